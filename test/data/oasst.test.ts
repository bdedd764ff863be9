import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { gunzipSync, gzipSync } from 'node:zlib'
import { openDataset } from '../../lib/data/dataset.js'
import type { DataWarning } from '../../lib/data/files.js'
import { isOasstRow, type OasstMessage, OasstReader, threadPieces, threadsOf } from '../../lib/data/oasst.js'
import { Tokenizer } from '../../lib/data/tokenizer.js'
import { sampleDataPath, withSampleData } from '../sample-data.js'
import { allTokens, byteText } from './helpers.js'

type Row = Record<string, unknown>

let dir: string
let byte: Tokenizer
before(async () => {
  dir = mkdtempSync(join(tmpdir(), 'train-core-oasst-'))
  byte = await Tokenizer.load('byte')
})
after(() => rmSync(dir, { recursive: true }))

/** A message; odd depths are answers. Absent fields are left out. */
const message = (id: string, replies: Row[] = [], extra: Row = {}): Row => ({
  message_id: id,
  text: `text of ${id}`,
  role: 'prompter',
  replies: replies.map(reply => ({ ...reply, role: 'assistant', parent_id: id })),
  ...extra,
})
const tree = (prompt: Row | null): Row => ({ message_tree_id: 't', tree_state: 'ready_for_export', prompt })

/** q with answers a and b, where a goes on with c: threads q-a-c and q-b. */
const conversation = message('q', [message('a', [message('c')]), message('b')])
const THREADS = [
  ['q', 'a', 'c'],
  ['q', 'b'],
]

const flatten = (row: Row): Row[] => {
  const { replies, ...rest } = row
  return [rest, ...(replies as Row[]).flatMap(flatten)]
}
const withNulls = (row: Row): Row => ({
  parent_id: null,
  rank: null,
  emojis: null,
  labels: null,
  lang: null,
  deleted: null,
  ...row,
  replies: (row.replies as Row[]).map(withNulls),
})
const read = (rows: Row[]): { threads: OasstMessage[][]; orphans: { line: number; reason: string }[] } => {
  const reader = new OasstReader()
  const threads = rows.flatMap((row, i) => reader.add(row, i + 1))
  const rest = reader.finish()
  return { threads: [...threads, ...rest.threads], orphans: rest.orphans }
}
const idsOf = (threads: OasstMessage[][]) => threads.map(thread => thread.map(({ messageId }) => messageId))

describe('rows', () => {
  const shapes: [string, Row[]][] = [
    ['a tree', [tree(conversation)]],
    ['a tree with explicit nulls', [tree(withNulls(conversation))]],
    ['a message with its replies', [conversation]],
    ['a message with its replies and explicit nulls', [withNulls(conversation)]],
    ['flat messages', flatten(conversation)],
    ['flat messages, children first', flatten(conversation).reverse()],
    [
      'threads',
      [
        ['q', 'a', 'c'],
        ['q', 'b'],
      ].map((ids, i) => ({ thread_id: `${i}`, thread: ids.map(id => message(id)) })),
    ],
  ]
  for (const [name, rows] of shapes) {
    test(`${name}: all threads from root to leaf`, () => {
      const { threads, orphans } = read(rows)
      assert.deepEqual(idsOf(threads).sort(), THREADS)
      assert.deepEqual(orphans, [])
      for (const row of rows) assert.ok(isOasstRow(row))
    })
  }

  test('flat messages that hang on nothing are named', () => {
    const rows = [...flatten(conversation), { message_id: 'x', text: '', role: 'assistant', parent_id: 'gone' }]
    const { threads, orphans } = read(rows)
    assert.equal(threads.length, 2)
    assert.deepEqual(orphans, [{ line: 5, reason: 'message x hangs on no root (parent gone)' }])
  })

  test('flat messages that go round in a circle are named', () => {
    const loop = ['x', 'y'].map((id, i) => ({ message_id: id, text: '', role: 'assistant', parent_id: 'yx'[i] }))
    const { threads, orphans } = read(loop)
    assert.equal(threads.length, 0)
    assert.equal(orphans.length, 2)
  })

  test('a conversation of 50,000 messages in a row is read', () => {
    let last = message('leaf')
    for (let i = 0; i < 50_000; i++) last = { ...message(`m${i}`), replies: [last] }
    const { threads } = read([last])
    assert.equal(threads[0].length, 50_001)
  })

  const bad: [string, Row, RegExp][] = [
    ['no text', tree({ message_id: 'm', role: 'prompter' }), /message m has no "text"/],
    ['another role', message('m', [], { role: 'system' }), /m: role is neither prompter nor assistant/],
    ['replies that are no list', tree({ ...message('m'), replies: {} }), /m: field "replies" is not a list/],
    ['a reply that is none', message('m', [], { replies: [5] }), /not an object/],
    ['a rank that is no number', message('m', [], { rank: '1' }), /m: field "rank" is not a number/],
    ['an empty thread', { thread_id: 't', thread: [] }, /"thread" is not a list/],
  ]
  for (const [name, row, reason] of bad)
    test(`refused: ${name}`, () => assert.throws(() => read([row]), { message: reason }))

  test('ordinary rows are none of theirs', () => {
    for (const row of [{ text: 'x' }, { text: 'x', message_id: 'mail 7' }, { prompt: 'x' }, 'text', null, []]) {
      assert.ok(!isOasstRow(row))
    }
  })
})

describe('documents', () => {
  test("with role tokens: Open Assistant's own template", async () => {
    const saved = join(dir, 'tokenizer')
    await byte.save(saved)
    const json = JSON.parse(readFileSync(join(saved, 'tokenizer.json'), 'utf8'))
    for (const [i, content] of ['<|prompter|>', '<|assistant|>'].entries()) {
      json.added_tokens.push({ ...json.added_tokens[0], id: 257 + i, content })
    }
    writeFileSync(join(saved, 'tokenizer.json'), JSON.stringify(json))
    const tokenizer = await Tokenizer.load(saved)
    const row = message('q', [message('a', [], { text: '<|prompter|>' })])
    writeFileSync(join(dir, 'x.jsonl'), `${JSON.stringify(row)}\n`.repeat(2))
    const dataset = await openDataset({ files: [join(dir, 'x.jsonl')], tokenizer, cacheDir: join(dir, 'cache') })
    const once = [257, ...byte.encode('text of q'), 256, 258, ...byte.encode('<|prompter|>'), 256]
    assert.deepEqual([...(await allTokens(dataset))], [...once, ...once])
    assert.equal(tokenizer.decode(once), '<|prompter|>text of q<|endoftext|><|assistant|><|prompter|><|endoftext|>')
    await dataset.close()
  })

  test('without: plain text; bad rows are named', async () => {
    const file = join(dir, 'plain.jsonl.gz')
    writeFileSync(
      file,
      gzipSync([conversation, { message_id: 'm', role: 'prompter' }].map(row => JSON.stringify(row)).join('\n')),
    )
    const warnings: DataWarning[] = []
    const onWarning = (warning: DataWarning) => warnings.push(warning)
    const dataset = await openDataset({ files: [file], tokenizer: byte, cacheDir: join(dir, 'cache'), onWarning })
    assert.equal(
      byteText(await allTokens(dataset)),
      'User: text of q\n\nAssistant: text of a\n\nAssistant: text of c|User: text of q\n\nAssistant: text of b',
    )
    assert.match(warnings[0].message, /plain\.jsonl\.gz:2: .*message m has no "text"/)
    await dataset.close()
  })

  test('a named text field turns conversations into ordinary rows', async () => {
    const file = join(dir, 'field.jsonl')
    writeFileSync(file, JSON.stringify(conversation))
    const dataset = await openDataset({
      files: [file],
      tokenizer: byte,
      cacheDir: join(dir, 'cache'),
      textField: 'text',
    })
    assert.equal(byteText(await allTokens(dataset)), 'text of q')
    await dataset.close()
  })
})

describe('sample data', () => {
  const lines = (file: string): Row[] => {
    const bytes = readFileSync(sampleDataPath(file))
    const text = (file.endsWith('.gz') ? gunzipSync(bytes) : bytes).toString('utf8')
    return text
      .trim()
      .split('\n')
      .map(line => JSON.parse(line) as Row)
  }
  const messages = (root: Row): Row[] => [root, ...(root.replies as Row[]).flatMap(messages)]
  const flatRows = (): Row[] =>
    lines('oasst/en_message.first50.jsonl')
      .flatMap(messages)
      .map(({ replies, ...rest }) => rest)
  const threadRows = (): Row[] =>
    read(lines('oasst/en_tree.first50.jsonl')).threads.map((thread, i) => ({
      thread_id: `${i}`,
      thread: thread.map(({ messageId, text, role }) => ({ message_id: messageId, text, role, replies: null })),
    }))
  const sources: [string, string, () => Row[]][] = [
    ['trees', 'oasst/en_tree.first50.jsonl', () => lines('oasst/en_tree.first50.jsonl')],
    ['trees, gzip', 'oasst/en_tree.first50.jsonl.gz', () => lines('oasst/en_tree.first50.jsonl.gz')],
    ['nested messages', 'oasst/en_message.first50.jsonl', () => lines('oasst/en_message.first50.jsonl')],
    ['flat messages made from them', 'oasst/en_message.first50.jsonl', flatRows],
    ['threads made from them', 'oasst/en_tree.first50.jsonl', threadRows],
  ]
  for (const [name, file, rows] of sources) {
    test(`${name}: 288 threads, 178 ending in an answer, the deepest of 6`, withSampleData(file), async () => {
      const gpt2 = await Tokenizer.load('gpt2')
      const { threads, orphans } = read(rows())
      assert.equal(orphans.length, 0)
      assert.equal(threads.length, 288)
      assert.equal(threads.filter(thread => thread.at(-1)?.role === 'assistant').length, 178)
      assert.equal(Math.max(...threads.map(thread => thread.length)), 6)
      const distinct = new Map(threads.flat().map(({ messageId, text }) => [messageId, text]))
      assert.equal(distinct.size, 549)
      assert.equal(
        [...distinct.values()].reduce((n, text) => n + gpt2.encode(text).length, 0),
        60_250,
      )
      const lengths = threads.map(thread => thread.reduce((n, { text }) => n + gpt2.encode(text).length, 0))
      lengths.sort((a, b) => a - b)
      assert.equal((lengths[143] + lengths[144]) / 2, 268.5)
      assert.equal(lengths.at(-1), 2112)
    })
  }

  test('as a dataset: one document a thread', withSampleData('oasst/en_tree.first50.jsonl.gz'), async () => {
    const files = [sampleDataPath('oasst/en_tree.first50.jsonl.gz')]
    const dataset = await openDataset({ files, tokenizer: byte, cacheDir: join(dir, 'cache') })
    assert.equal((await allTokens(dataset)).filter(id => id === 256).length, 287)
    await dataset.close()
  })

  test('threads of a message are its paths, in order', () => {
    const { threads } = read([conversation])
    const pieces = threads.flatMap(thread => [...threadPieces(thread, true)])
    assert.equal(pieces.filter(piece => piece.kind === 'end').length, 2)
    assert.deepEqual(idsOf(threadsOf(threads[0][0])), THREADS)
  })
})
