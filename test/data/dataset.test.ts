import assert from 'node:assert/strict'
import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, beforeEach, describe, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { openDataset, TokenDataset } from '../../lib/data/dataset.js'
import { type DataWarning, findDataFiles, globToRegExp } from '../../lib/data/files.js'
import { Tokenizer } from '../../lib/data/tokenizer.js'
import { sampleDataPath, withSampleData } from '../sample-data.js'
import { allTokens, byteText, idsHash, randomSource, randomText, zstdFrame } from './helpers.js'

let root: string
let dir: string
let cacheDir: string
let byte: Tokenizer
let gpt2: Tokenizer
let warnings: DataWarning[]
before(async () => {
  root = mkdtempSync(join(tmpdir(), 'train-core-data-'))
  byte = await Tokenizer.load('byte')
  gpt2 = await Tokenizer.load('gpt2')
})
after(() => rmSync(root, { recursive: true }))
beforeEach(() => {
  dir = mkdtempSync(join(root, 'd-'))
  cacheDir = join(dir, 'cache')
  warnings = []
})

const write = (name: string, content: string | Uint8Array): string => {
  writeFileSync(join(dir, name), content)
  return join(dir, name)
}
const openFiles = (files: string[], extra: { textField?: string; tokenizer?: Tokenizer } = {}) =>
  openDataset({ files, tokenizer: byte, cacheDir, onWarning: warning => warnings.push(warning), ...extra })
const textOf = async (...args: Parameters<typeof openFiles>): Promise<string> => {
  const dataset = await openFiles(...args)
  const text = byteText(await allTokens(dataset))
  await dataset.close()
  return text
}
const rows = (...values: unknown[]): string => values.map(value => `${JSON.stringify(value)}\n`).join('')
const uint16 = (...ids: number[]): Buffer => Buffer.from(Uint16Array.from(ids).buffer)
const llmc = (ids: number[], magic = 20240520, version = 1, count = ids.length): Buffer => {
  const header = Buffer.alloc(1024)
  for (const [i, value] of [magic, version, count].entries()) header.writeInt32LE(value, i * 4)
  return Buffer.concat([header, uint16(...ids)])
}

describe('text files', () => {
  test('one document each, end-of-text between files only', async () => {
    assert.equal(await textOf([write('a.txt', 'one\r\ntwo\n')]), 'one\r\ntwo\n')
    assert.equal(await textOf([join(dir, 'a.txt'), write('b.txt', 'x')]), 'one\r\ntwo\n|x')
  })

  test('empty ones leave no trace; end-of-text written in a text stays text', async () => {
    const files = [write('a.txt', ''), write('b.txt', '<|endoftext|>'), write('c.txt', ''), write('d.txt', 'd')]
    assert.equal(await textOf(files), '<|endoftext|>|d')
    assert.equal(
      await textOf([write('e.jsonl', rows({ text: '' }, { text: 'e' }, { text: '' }, { text: 'f' }))]),
      'e|f',
    )
  })

  test('a byte-order mark is left out, compressed ones are read', async () => {
    assert.equal(await textOf([write('a.txt', '\ufeffhi')]), 'hi')
    const members = Buffer.concat([gzipSync('one '), gzipSync('two')])
    assert.equal(await textOf([write('b.txt.gz', members)]), 'one two')
    const frames = Buffer.concat([zstdFrame(Buffer.from('one ')), zstdFrame(Buffer.from('two'))])
    assert.equal(await textOf([write('c.txt.zst', frames)]), 'one two')
  })

  test('a long text encodes as a whole, however it is cut', async () => {
    const random = randomSource(5)
    let text = ''
    while (text.length < 900_000) text += `${randomText(random, 40)} `
    const dataset = await openFiles([write('long.txt', text)], { tokenizer: gpt2 })
    assert.deepEqual(await allTokens(dataset), gpt2.encode(text))
    await dataset.close()
  })

  test('a long text without white space is read too', async () => {
    const text = 'é'.repeat(700_000)
    const dataset = await openFiles([write('long.txt', text)])
    assert.equal(dataset.tokens, 1_400_000)
    await dataset.close()
  })

  test('text that is not UTF-8 is refused', async () => {
    await assert.rejects(openFiles([write('a.txt', Buffer.from([0x61, 0xff]))]), {
      code: 'ERR_DATA',
      message: /a\.txt is not UTF-8/,
    })
    await assert.rejects(openFiles([write('b.txt', Buffer.from([0x61, 0xc3]))]), {
      code: 'ERR_DATA',
      message: /b\.txt is not UTF-8/,
    })
  })
})

describe('jsonl files', () => {
  test('a document a row; blank lines, line ends and byte-order mark do not matter', async () => {
    const text = `\ufeff${rows({ text: 'a' })}\r\n  \n{"text":"b","meta":{"x":1}}\r\n"c"\n{"text":"d"}`
    assert.equal(await textOf([write('a.jsonl', text)]), 'a|b|c|d')
    assert.deepEqual(warnings, [])
  })

  test('the field that holds the text can be named', async () => {
    const file = write('a.jsonl', rows({ text: 'no', content: 'yes' }, { content: 'oui' }))
    assert.equal(await textOf([file], { textField: 'content' }), 'yes|oui')
  })

  test('compressed files, several gzip members or zstd frames', async () => {
    const [one, two] = [rows({ text: 'a' }, { text: 'b' }), rows({ text: 'c' })].map(text => Buffer.from(text))
    assert.equal(await textOf([write('a.jsonl.gz', Buffer.concat([gzipSync(one), gzipSync(two)]))]), 'a|b|c')
    assert.equal(await textOf([write('b.jsonl.zst', Buffer.concat([zstdFrame(one), zstdFrame(two)]))]), 'a|b|c')
  })

  test('bad rows are named by file and line, counted and skipped', async () => {
    const file = write('a.jsonl', `{"text":"a"}\n{"text":\n{"txt":"x"}\n{"text":5}\n[1]\nnull\n{"text":"b"}\n`)
    const broken = Buffer.concat([readFileSync(file), Buffer.from([0x22, 0xff, 0x22, 0x0a])])
    assert.equal(await textOf([write('a.jsonl', broken)]), 'a|b')
    assert.deepEqual(
      warnings.map(warning => warning.line),
      [2, 3, 4, 5, 6, 8, undefined],
    )
    const patterns = [
      /a\.jsonl:2: .*not JSON/,
      /no field "text"; it has txt/,
      /"text" is not a string/,
      /not an object/,
      /not an object/,
      /not UTF-8/,
      /6 of 8 rows skipped/,
    ]
    for (const [i, pattern] of patterns.entries()) assert.match(warnings[i].message, pattern)
  })

  test('many bad rows: some are named, all are counted, also when the shard is used again', async () => {
    const file = write('a.jsonl', `${'nonsense\n'.repeat(500)}{"text":"a"}\n`)
    assert.equal(await textOf([file]), 'a')
    const first = warnings
    assert.ok(first.length < 20)
    assert.match(first.at(-1)?.message ?? '', /500 of 501 rows skipped/)
    warnings = []
    assert.equal(await textOf([file]), 'a')
    assert.deepEqual(warnings, first)
  })

  test('a file of bad rows only is refused', async () => {
    await assert.rejects(openFiles([write('a.jsonl', '{"body":"x"}\n{"body":"y"}\n')]), {
      code: 'ERR_DATA',
      message:
        /none of the 2 rows of .*a\.jsonl can be used; line 1: no field "text"; it has body; help: name the field/,
    })
  })

  test('a zstd frame that asks for a window of 1 GiB is refused', async () => {
    const frame = Buffer.concat([Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3]), Buffer.alloc(20)])
    await assert.rejects(openFiles([write('big.jsonl.zst', frame)]), {
      code: 'ERR_DATA',
      message: /asks for a window above/,
    })
  })

  for (const [name, content] of [
    ['cut.jsonl.gz', gzipSync(rows({ text: 'a'.repeat(1000) })).subarray(0, 25)],
    ['no.jsonl.gz', Buffer.from('{"text":"a"}')],
    ['cut.jsonl.zst', zstdFrame(Buffer.from(rows({ text: 'a' }))).subarray(0, 15)],
    ['no.jsonl.zst', Buffer.from('{"text":"a", "b": 1}')],
  ] as [string, Buffer][]) {
    test(`broken compression is refused: ${name}`, async () => {
      await assert.rejects(openFiles([write(name, content)]), {
        code: 'ERR_DATA',
        message: new RegExp(`${name} is not whole, valid`),
      })
    })
  }
})

describe('token files', () => {
  test('raw, as nanoGPT writes them, and with llm.c header', async () => {
    assert.equal(await textOf([write('a.bin', uint16(97, 98, 256, 99))]), 'ab|c')
    assert.equal(await textOf([write('b.bin', llmc([256, 97, 98]))]), '|ab')
    assert.equal(readdirSync(dir).includes('cache'), false)
  })

  test('end-of-text goes between files where neither has it', async () => {
    const [a, b] = [write('a.bin', uint16(97)), write('b.bin', uint16(98, 256))]
    const [c, d] = [write('c.txt', 'c'), write('d.bin', llmc([256, 100]))]
    assert.equal(await textOf([a, b, c, d, a]), 'a|b|c|d|a')
  })

  const bad: [string, Buffer, RegExp][] = [
    [
      'an id outside the vocabulary',
      uint16(97, 257, 98),
      /a\.bin: token ids below 257 \(tokenizer byte\) are wanted; got 257 at token 1/,
    ],
    ['an odd size', Buffer.from([1, 0, 2]), /odd number of bytes \(3\)/],
    ['an empty file', Buffer.alloc(0), /empty/],
    ['a header that says more', llmc([97], 20240520, 1, 5), /the header says 5 tokens; the file has 1/],
    ['another version', llmc([97], 20240520, 2), /version 1 are wanted; got version 2/],
    ['uint32 ids', llmc([97, 0], 20240801, 7), /uint32/],
    ['a header cut short', llmc([97]).subarray(0, 100), /header of 1024 bytes/],
  ]
  for (const [name, content, message] of bad) {
    test(`refused: ${name}`, () => assert.rejects(openFiles([write('a.bin', content)]), { code: 'ERR_DATA', message }))
  }

  test('an id outside the vocabulary is found beyond the first chunk', async () => {
    const ids = new Uint16Array(700_000).fill(97)
    ids[600_001] = 300
    await assert.rejects(openFiles([write('a.bin', Buffer.from(ids.buffer))]), { message: /got 300 at token 600001/ })
  })
})

describe('finding files', () => {
  test('directories and globs, sorted; hidden and unknown files are left out', async () => {
    mkdirSync(join(dir, 'in/sub/.hidden'), { recursive: true })
    for (const name of ['b.txt', 'a.jsonl', 'README.md', '.c.txt', 'sub/d.bin', 'sub/e.txt', 'sub/.hidden/f.txt']) {
      write(
        `in/${name}`,
        name.endsWith('.bin') ? uint16(100) : name.endsWith('.jsonl') ? rows({ text: 'a' }) : name[name.length - 5],
      )
    }
    assert.equal(await textOf([join(dir, 'in')]), 'a|b|d|e')
    assert.equal(await textOf([join(dir, 'in/*.txt')]), 'b')
    assert.equal(await textOf([join(dir, 'in/**/*.txt')]), 'b|e')
    assert.equal(await textOf([join(dir, 'in/{sub/?,a}.{bin,jsonl}')]), 'a|d')
    assert.equal(await textOf([join(dir, 'in/sub'), join(dir, 'in/b.txt')]), 'd|e|b')
  })

  test('a glob may begin with ./ or hold //', async () => {
    mkdirSync(join(dir, 'in/sub'), { recursive: true })
    for (const name of ['b.txt', 'sub/e.txt']) write(`in/${name}`, 'x')
    const here = process.cwd()
    const found = async (glob: string) => (await findDataFiles([glob])).map(file => file.path)
    try {
      process.chdir(dir)
      assert.deepEqual(await found('./in/*.txt'), ['./in/b.txt'])
      assert.deepEqual(await found('in//*/*.txt'), ['in/sub/e.txt'])
      assert.deepEqual(await found('*/*.txt'), ['in/b.txt'])
      assert.deepEqual(await found('./**/*.txt'), ['./in/b.txt', './in/sub/e.txt'])
    } finally {
      process.chdir(here)
    }
  })

  test('a folder that may not be read is named; one that a glob does not reach into is no matter', async t => {
    const isRoot = process.geteuid!() === 0
    if (isRoot) process.seteuid!(65534) // nobody: root may read everything
    const closed = join(mkdtempSync(join(tmpdir(), 'train-core-closed-')), 'in')
    t.after(() => {
      chmodSync(join(closed, 'private'), 0o700)
      rmSync(join(closed, '..'), { recursive: true })
      if (isRoot) process.seteuid!(0)
    })
    mkdirSync(join(closed, 'private'), { recursive: true })
    writeFileSync(join(closed, 'a.txt'), 'a')
    chmodSync(join(closed, 'private'), 0)
    const refused = { code: 'ERR_FILE', message: /cannot (read the folder|open) .*private.*: permission denied/ }
    for (const pattern of ['', 'private', '**/*.txt', '*/*.txt', 'private/*.txt'])
      await assert.rejects(findDataFiles([join(closed, pattern)]), refused, pattern)
    assert.equal((await findDataFiles([join(closed, '*.txt')])).length, 1)
  })

  test('the order is that of whole paths', async () => {
    mkdirSync(join(dir, 'in/a'), { recursive: true })
    for (const name of ['a/1.txt', 'a-b.txt', 'a.txt']) write(`in/${name}`, name.slice(0, 3))
    assert.equal(await textOf([join(dir, 'in')]), 'a-b|a.t|a/1')
  })

  test('patterns', () => {
    const cases: [string, string, boolean][] = [
      ['*.txt', 'a.txt', true],
      ['*.txt', 'x/a.txt', false],
      ['**/*.txt', 'a.txt', true],
      ['x/**/a[0-9].txt', 'x/y/z/a3.txt', true],
      ['x/a[!0-9].txt', 'x/a3.txt', false],
      ['a+(b).txt', 'a+(b).txt', true],
      ['a.txt', 'abtxt', false],
    ]
    for (const [glob, path, matches] of cases) assert.equal(globToRegExp(glob).test(path), matches, `${glob} ${path}`)
  })

  test('what is not there or not known is refused', async () => {
    await assert.rejects(openFiles([join(dir, 'none.txt')]), {
      code: 'ERR_FILE',
      message: /there is no file or directory .*none\.txt/,
    })
    await assert.rejects(openFiles([write('a.pdf', 'x')]), {
      code: 'ERR_DATA',
      message: /kind \.txt, \.jsonl .*got .*a\.pdf/,
    })
    await assert.rejects(openFiles([write('a.bin.gz', 'x')]), { code: 'ERR_DATA' })
    await assert.rejects(openFiles([join(dir, '*.txt')]), { code: 'ERR_DATA', message: /has no file of kind/ })
    await assert.rejects(openFiles([]), { code: 'ERR_DATA' })
    await assert.rejects(openFiles('a.txt' as never), {
      code: 'ERR_ARGUMENT',
      message: /a list of paths; got "a\.txt"/,
    })
    for (const options of [{ files: ['a.txt'] }, { files: ['a.txt'], tokenizer: 'byte' }, undefined] as never[])
      await assert.rejects(openDataset(options), { code: 'ERR_ARGUMENT', message: /a tokenizer is wanted; got/ })
    await assert.rejects(openFiles([5] as never), { code: 'ERR_ARGUMENT', message: /a list of paths; got \[5\]/ })
    await assert.rejects(openFiles([write('empty.txt', '')]), {
      code: 'ERR_DATA',
      message: /there is none in .*empty\.txt/,
    })
  })
})

describe('shards', () => {
  const shards = () => readdirSync(cacheDir).filter(name => name.endsWith('.bin'))

  test('are made once and used again, by content', async () => {
    const file = write('a.txt', 'hello')
    await textOf([file])
    assert.equal(shards().length, 1)
    // Were the shard made anew, the change in it would be gone.
    writeFileSync(join(cacheDir, shards()[0]), uint16(106, 101, 108, 108, 111))
    assert.equal(await textOf([file]), 'jello')
    assert.equal(await textOf([write('same.txt', 'hello')]), 'jello')
    assert.equal(await textOf([write('a.txt', 'hullo')]), 'hullo')
    assert.equal(shards().length, 2)
  })

  test('depend on tokenizer and text field', async () => {
    const file = write('a.jsonl', rows({ text: 'one', b: 'two' }))
    await textOf([file])
    await (await openFiles([file], { tokenizer: gpt2 })).close()
    assert.equal(await textOf([file], { textField: 'b' }), 'two')
    assert.equal(shards().length, 3)
  })

  test('a torn one is made anew', async () => {
    const file = write('a.txt', 'hello')
    await textOf([file])
    const path = join(cacheDir, shards()[0])
    truncateSync(path, 4)
    assert.equal(await textOf([file]), 'hello')
    writeFileSync(`${path}.json`, '{"tok')
    assert.equal(await textOf([file]), 'hello')
  })

  test('made twice at once, they are whole, and nothing else is left', async () => {
    const file = write('a.txt', 'hello '.repeat(20_000))
    const both = await Promise.all([textOf([file]), textOf([file])])
    assert.equal(both[0], both[1])
    assert.equal(readdirSync(cacheDir).length, 2)
  })

  test('a failure leaves nothing behind', async () => {
    await assert.rejects(
      openFiles([write('a.txt', Buffer.concat([Buffer.alloc(600_000, 'a b'), Buffer.from([0xff])]))]),
    )
    assert.deepEqual(readdirSync(cacheDir), [])
  })

  test('a folder that cannot be written is named', async () => {
    writeFileSync(cacheDir, 'a file where the folder should be')
    await assert.rejects(openFiles([write('a.txt', 'x')]), {
      code: 'ERR_FILE',
      message: /cannot write tokens into .*TRAIN_CORE_CACHE/,
    })
  })

  test('an abort ends tokenizing', async () => {
    const options = { files: [write('a.txt', 'x y')], tokenizer: byte, cacheDir, signal: AbortSignal.abort() }
    await assert.rejects(openDataset(options), { code: 'ERR_ABORTED' })
    assert.deepEqual(readdirSync(cacheDir), [])
  })

  test('of a vocabulary above 65,536 hold uint32', async () => {
    const files = join(dir, 'tokenizer')
    await byte.save(files)
    const json = JSON.parse(readFileSync(join(files, 'tokenizer.json'), 'utf8'))
    json.model.vocab.aa = 70_000
    json.model.merges = ['a a']
    writeFileSync(join(files, 'tokenizer.json'), JSON.stringify(json))
    const big = await Tokenizer.load(files)
    assert.equal(big.vocabSize, 70_001)
    const dataset = await openFiles([write('a.jsonl', rows({ text: 'aab' }, { text: 'b' }))], { tokenizer: big })
    assert.deepEqual([...(await allTokens(dataset))], [70_000, 98, 256, 98])
    await dataset.close()
  })
})

describe('reading', () => {
  test('any run of tokens, across files and round the end', async () => {
    const dataset = await openFiles([
      write('a.bin', uint16(97, 98)),
      write('b.txt', 'cde'),
      write('c.bin', uint16(102, 256)),
    ])
    const whole = 'ab|cde|f|'
    assert.equal(dataset.tokens, whole.length)
    for (let from = 0; from < 20; from++) {
      for (let length = 1; length < 25; length++) {
        const out = new Int32Array(length)
        await dataset.read(from, out)
        assert.equal(
          byteText(out),
          whole
            .repeat(6)
            .slice(from % whole.length)
            .slice(0, length),
        )
      }
    }
    await dataset.close()
    await assert.rejects(dataset.read(0, new Int32Array(1)), { code: 'ERR_FREED' })
  })

  test('a file cut short under way is an error', async () => {
    const file = write('a.bin', uint16(97, 98, 99, 100))
    const dataset = await openFiles([file])
    truncateSync(file, 4)
    await assert.rejects(dataset.read(2, new Int32Array(2)), {
      code: 'ERR_FILE',
      message: /a\.bin: it is shorter than it was/,
    })
    await dataset.close()
  })

  test('datasets of ids and of texts', async () => {
    assert.equal(byteText(await allTokens(TokenDataset.fromText('abc', byte))), 'abc')
    await assert.rejects(TokenDataset.fromText('', byte).read(0, new Int32Array(1)), { code: 'ERR_DATA' })
  })

  test('hashes tell datasets apart', async () => {
    const file = write('a.txt', 'abc')
    const first = (await openFiles([file])).hash
    assert.equal((await openFiles([file])).hash, first)
    appendFileSync(file, 'd')
    assert.notEqual((await openFiles([file])).hash, first)
    const bin = write('b.bin', uint16(97, 98))
    const before = (await openFiles([bin])).hash
    write('b.bin', uint16(97, 99))
    assert.notEqual((await openFiles([bin])).hash, before)
  })
})

describe('sample data', () => {
  const packed: [string, number, string][] = [
    ['wikipedia.wrapped.0-19.jsonl', 61_898, 'ab4040b1f660335e5375320ce9e94002555fc9d9838d8553cb4973ad2fa96c28'],
    ['wikipedia.wrapped.20-39.jsonl.zst', 94_921, 'd3f271d93b7ea7f4acf5db810ce013f7b69c7927fb55f37bfc90aefbae2a441b'],
    ['github.wrapped.jsonl', 19_197, '0d4e16f8d07faf669b262d1eedd986bf8d88b537240706c588ba8a99bf69c8a2'],
  ]
  for (const [name, tokens, hash] of packed) {
    test(`${name}: tokens and packed hash`, withSampleData(`redpajama/${name}`), async () => {
      const dataset = await openFiles([sampleDataPath(`redpajama/${name}`)], { tokenizer: gpt2 })
      const ids = await allTokens(dataset)
      await dataset.close()
      // The golden numbers count texts without, and hash them with, an end-of-text after each, the last one included.
      assert.equal(ids.filter(id => id !== 50256).length, tokens)
      assert.equal(idsHash([...ids, 50256]), hash)
      assert.deepEqual(warnings, [])
    })
  }

  test('tinyshakespeare as a text file', withSampleData('lm/tinyshakespeare.txt'), async () => {
    const dataset = await openFiles([sampleDataPath('lm/tinyshakespeare.txt')], { tokenizer: gpt2 })
    assert.equal(dataset.tokens, 338_025)
    assert.equal(idsHash(await allTokens(dataset)), '25c01b32b32f41897a6359dd222ec114992dc30c357bcafbfe6c56672f76cd31')
    await dataset.close()
  })

  test('prompts, a JSON string a line', withSampleData('oasst/prompt_lottery_en.first125.jsonl'), async () => {
    const dataset = await openFiles([sampleDataPath('oasst/prompt_lottery_en.first125.jsonl')])
    assert.equal((await allTokens(dataset)).filter(id => id === 256).length, 124)
    await dataset.close()
  })
})
