import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { checkIds, parseBinHeader } from '../../lib/data/bin.js'
import { readBytes } from '../../lib/data/bytes.js'
import { formatOf } from '../../lib/data/files.js'
import { readJsonl } from '../../lib/data/jsonl.js'
import { Tokenizer } from '../../lib/data/tokenizer.js'
import { TrainCoreError } from '../../lib/errors.js'
import { randomSource, zstdFrame } from './helpers.js'

let dir: string
before(() => {
  dir = mkdtempSync(join(tmpdir(), 'train-core-fuzz-'))
})
after(() => rmSync(dir, { recursive: true }))

/** `bytes` with 0 to 3 changes: a byte overwritten, left out, doubled, or the end cut off. */
function mutate(bytes: Uint8Array, random: () => number): Buffer {
  let result = Buffer.from(bytes)
  for (let n = Math.floor(random() * 4); n > 0 && result.length > 0; n--) {
    const at = Math.floor(random() * result.length)
    const kind = random()
    if (kind < 0.5) result[at] = Math.floor(random() * 256)
    else if (kind < 0.75) result = Buffer.concat([result.subarray(0, at), result.subarray(at + 1)])
    else if (kind < 0.95) result = Buffer.concat([result.subarray(0, at), result.subarray(Math.max(0, at - 3))])
    else result = result.subarray(0, at)
  }
  return result
}

const isTrainCoreError = (error: unknown): boolean => error instanceof TrainCoreError && error.code === 'ERR_DATA'

test('120,000 mutated rows of JSON lines: the text, or a skipped row', async () => {
  const random = randomSource(21)
  const seeds = [
    '{"text":"plain"}',
    '{"text":"\\u00e9\\ud83d\\ude42 \\"q\\" é🙂","meta":{"url":"x","n":[1,2]}}',
    '{"meta":null,"text":""}',
    '"a string"',
    '{"text":"x","message_id":5}',
    '  {"text" : "spaces" }\r',
  ].map(seed => Buffer.from(seed))
  const lines = Array.from({ length: 120_000 }, (_, i) => mutate(seeds[i % seeds.length], random))
  const path = join(dir, 'rows.jsonl')
  writeFileSync(path, Buffer.concat(lines.flatMap(line => [line, Buffer.from('\n')])))

  // What is right, said another way: split as Latin-1, decode only what survives a round trip through UTF-8.
  const expected: string[] = []
  let bad = 0
  for (const [i, line] of readFileSync(path).toString('latin1').split('\n').entries()) {
    const bytes = Buffer.from(line, 'latin1')
    const trimmed = line.replace(/^[ \t\r]+|[ \t\r]+$/g, '')
    if (trimmed === '' || (i === 0 && trimmed === '\u00ef\u00bb\u00bf')) continue
    const text = bytes.toString('utf8')
    try {
      if (!Buffer.from(text).equals(bytes)) throw new Error('not UTF-8')
      const row = JSON.parse(text)
      const value = typeof row === 'string' ? row : Array.isArray(row) ? undefined : row.text
      if (typeof value !== 'string' || (row.message_id !== undefined && row.role !== undefined))
        throw new Error('no text')
      expected.push(value)
    } catch {
      bad++
    }
  }
  const texts: string[] = []
  let summary = ''
  const file = formatOf(path) ?? assert.fail()
  for await (const piece of readJsonl(file, { roleTokens: false, onWarning: ({ message }) => (summary = message) })) {
    if (piece.kind === 'text') texts.push(piece.text)
  }
  assert.ok(bad > 20_000 && expected.length > 20_000, `${bad} bad, ${expected.length} good`)
  assert.deepEqual(texts, expected)
  assert.match(summary, new RegExp(`: ${bad} of ${bad + expected.length} rows skipped`))
})

test('120,000 mutated token files: ids below the vocabulary, or an error', () => {
  const random = randomSource(22)
  const vocabulary = { name: 'test', vocabSize: 300 }
  const ids = Uint16Array.from({ length: 20 }, (_, i) => i * 15)
  const raw = new Uint8Array(ids.buffer)
  const header = new Int32Array(256)
  header.set([20240520, 1, 20])
  const llmc = Buffer.concat([new Uint8Array(header.buffer), raw])
  const head = llmc.subarray(0, 12)
  let good = 0
  for (let i = 0; i < 120_000; i++) {
    // Changes in the middle of the header's padding would hardly ever show, so its fields are changed by themselves.
    const bytes =
      i % 2 === 0
        ? mutate(raw, random)
        : Buffer.concat([mutate(head, random), llmc.subarray(12, 1024), mutate(raw, random)])
    try {
      const { offset, tokens } = parseBinHeader('x.bin', bytes.subarray(0, 1024), bytes.length)
      assert.ok(tokens > 0 && (offset === 0 || offset === 1024) && offset + 2 * tokens === bytes.length)
      const read = new Uint16Array(bytes.buffer.slice(bytes.byteOffset + offset, bytes.byteOffset + bytes.length))
      assert.equal(read.length, tokens)
      checkIds('x.bin', read, 0, vocabulary)
      assert.ok(read.every(id => id < 300))
      good++
    } catch (error) {
      assert.ok(isTrainCoreError(error), String(error))
    }
  }
  assert.ok(good > 10_000 && good < 110_000, `${good} good`)
})

test('3,000 mutated compressed files: bytes, or an error', async () => {
  const random = randomSource(23)
  const text = Buffer.from('{"text":"the quick brown fox jumps over the lazy dog"}\n'.repeat(20))
  // One block of every kind of zstd, made with zstd 1.5.4 -19 of `text`.
  const zstd = Buffer.from(
    'KLUv/WRMAwUCAHQDeyJ0ZXh0IjoidGhlIHF1aWNrIGJyb3duIGZveCBqdW1wcyBvdmVyIHRoZSBsYXp5IGRvZyJ9CgEAJ4H+FRSATRUv',
    'base64',
  )
  const seeds: [string, Buffer][] = [
    ['a.jsonl.gz', gzipSync(text)],
    ['a.jsonl.zst', zstdFrame(text)],
    ['b.jsonl.zst', zstd],
  ]
  let errors = 0
  for (let i = 0; i < 3000; i++) {
    const [name, bytes] = seeds[i % seeds.length]
    writeFileSync(join(dir, name), mutate(bytes, random))
    try {
      let length = 0
      for await (const chunk of readBytes(formatOf(join(dir, name)) ?? assert.fail())) length += chunk.length
      assert.ok(length < 2 ** 26)
    } catch (error) {
      assert.ok(isTrainCoreError(error), String(error))
      errors++
    }
  }
  assert.ok(errors > 500 && errors < 2900, `${errors} errors`)
})

test('1,000 mutated tokenizer directories: a tokenizer that decodes what it encodes, or an error', async () => {
  const random = randomSource(24)
  const byte = await Tokenizer.load('byte')
  await byte.save(dir)
  const json = JSON.parse(readFileSync(join(dir, 'tokenizer.json'), 'utf8'))
  json.model.vocab.ab = 257
  json.model.merges.push('a b')
  writeFileSync(join(dir, 'tokenizer.json'), JSON.stringify(json))
  const names = ['tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json']
  const originals = names.map(name => readFileSync(join(dir, name)))
  // The structure is the interesting part: the vocabulary is most of the file.
  const at = originals[0].indexOf('"vocab"')
  let good = 0
  for (let i = 0; i < 1000; i++) {
    const which = i % 4 === 3 ? 1 + (i % 2) : 0
    for (const [j, name] of names.entries()) writeFileSync(join(dir, name), originals[j])
    const original = originals[which]
    const cut = which === 0 ? at : original.length
    writeFileSync(
      join(dir, names[which]),
      Buffer.concat([mutate(original.subarray(0, cut), random), original.subarray(cut)]),
    )
    try {
      const tokenizer = await Tokenizer.load(dir)
      const ids = tokenizer.encode('Hé <|endoftext|>')
      assert.ok(ids.every(id => id >= 0 && id < tokenizer.vocabSize))
      good++
    } catch (error) {
      assert.ok(error instanceof TrainCoreError, String((error as Error).stack))
    }
  }
  assert.ok(good > 100 && good < 950, `${good} good`)
})
