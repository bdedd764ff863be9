import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { Tokenizer } from '../../lib/data/tokenizer.js'
import { sampleDataPath, withSampleData } from '../sample-data.js'
import { idsHash, randomSource, randomText } from './helpers.js'

let dir: string
let byte: Tokenizer
let gpt2: Tokenizer
before(async () => {
  dir = mkdtempSync(join(tmpdir(), 'train-core-tokenizer-'))
  byte = await Tokenizer.load('byte')
  gpt2 = await Tokenizer.load('gpt2')
})
after(() => rmSync(dir, { recursive: true }))

describe('byte', () => {
  test('ids are UTF-8 bytes', () => {
    assert.equal(byte.vocabSize, 257)
    assert.equal(byte.eosId, 256)
    assert.deepEqual([...byte.encode('aé🙂')], [0x61, 0xc3, 0xa9, 0xf0, 0x9f, 0x99, 0x82])
    assert.equal(byte.encode('').length, 0)
    assert.deepEqual([...byte.encode('a\ud800')], [0x61, 0xef, 0xbf, 0xbd])
  })

  test('special text is encoded as a special id only where asked', () => {
    assert.equal(byte.encode('x<|endoftext|>').length, 14)
    assert.deepEqual([...byte.encode('x<|endoftext|>y', { allowSpecial: true })], [0x78, 256, 0x79])
    assert.equal(byte.decode([0x78, 256]), 'x<|endoftext|>')
  })

  test('save and load give an equal tokenizer', async () => {
    await byte.save(join(dir, 'byte'))
    const loaded = await Tokenizer.load(join(dir, 'byte'))
    assert.equal(loaded.hash, byte.hash)
    assert.deepEqual([...loaded.encode('né<|endoftext|>', { allowSpecial: true })], [110, 0xc3, 0xa9, 256])
  })
})

describe('gpt2', () => {
  // Made with Hugging Face tokenizers (ByteLevelBPE): every branch of the pattern, white space that JavaScript's \s
  // takes differently, bytes outside printable Latin-1, merges across many ranks.
  const golden: [string, number[]][] = [
    ['a \u0085b', [64, 220, 126, 227, 65]],
    ['a \ufeffb', [64, 27332, 119, 123, 65]],
    [' the', [262]],
    ['🙂👍🏽 emoji', [8582, 25081, 41840, 235, 8582, 237, 121, 44805]],
    ['<|endoftext|>', [27, 91, 437, 1659, 5239, 91, 29]],
    ['', []],
  ]
  for (const [text, ids] of golden) {
    test(`encodes ${JSON.stringify(text)}`, () => assert.deepEqual([...gpt2.encode(text)], ids))
  }

  test('has the vocabulary of r50k', () => {
    assert.equal(gpt2.vocabSize, 50257)
    assert.equal(gpt2.eosId, 50256)
    assert.deepEqual([...gpt2.encode('<|endoftext|>', { allowSpecial: true })], [50256])
  })

  test('decodes what it encodes', () => {
    const random = randomSource(1)
    for (let i = 0; i < 300; i++) {
      const text = randomText(random, 60)
      assert.equal(gpt2.decode(gpt2.encode(text)), text)
    }
  })

  test('long texts encode as their pieces would together', () => {
    const random = randomSource(2)
    const text = Array.from({ length: 6000 }, () => randomText(random, 60)).join(random() < 0.5 ? ' ' : '\n')
    assert.ok(text.length > 150_000)
    // A text of one piece has at most 65,536 characters; cut here at the same kind of point, elsewhere.
    const at = text.slice(0, 30_000).search(/\S\s\S*$/) + 1
    const parts = [...gpt2.encode(text.slice(0, at)), ...gpt2.encode(text.slice(at))]
    assert.deepEqual(parts, [...gpt2.encode(text)])
  })

  test('a saved directory loads as an equal tokenizer, from tokenizer.json and from vocab.json with merges.txt', async () => {
    await gpt2.save(join(dir, 'gpt2'))
    const loaded = await Tokenizer.load(join(dir, 'gpt2'))
    assert.equal(loaded.hash, gpt2.hash)
    assert.equal(loaded.eosId, 50256)
    rmSync(join(dir, 'gpt2/tokenizer.json'))
    const fromVocab = await Tokenizer.load(join(dir, 'gpt2'))
    assert.equal(fromVocab.hash, gpt2.hash)
    assert.deepEqual([...fromVocab.encode('a \u0085b')], [64, 220, 126, 227, 65])
  })

  test('encodes the golden texts', withSampleData('tokenizer/gpt2_golden.first50.jsonl'), () => {
    const rows = readFileSync(sampleDataPath('tokenizer/gpt2_golden.first50.jsonl'), 'utf8').trim().split('\n')
    assert.equal(rows.length, 50)
    for (const row of rows) {
      const { text, ids } = JSON.parse(row) as { text: string; ids: number[] }
      assert.deepEqual([...gpt2.encode(text, { allowSpecial: true })], ids)
      assert.equal(gpt2.decode(ids), text)
    }
  })

  const wholeFiles: [string, number, string][] = [
    ['lm/tinyshakespeare.txt', 338_025, '25c01b32b32f41897a6359dd222ec114992dc30c357bcafbfe6c56672f76cd31'],
    ['lm/wikitext2.valid.txt', 258_659, '17bc83b54d943c68889ab3b9cb01f17b86fe0216e9738ee39806d2631aac2ef9'],
  ]
  for (const [file, count, hash] of wholeFiles) {
    test(`encodes ${file}`, withSampleData(file), () => {
      const ids = gpt2.encode(readFileSync(sampleDataPath(file), 'utf8'))
      assert.equal(ids.length, count)
      assert.equal(idsHash(ids), hash)
    })
  }
})

describe('other byte-level tokenizers', () => {
  // The ids are those of Hugging Face's tokenizers 0.23.2 for GPT-2's vocabulary with another pre-tokenizer.
  const llama3 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true }
  const split = { type: 'Split', pattern: { Regex: llama3 }, behavior: 'Isolated', invert: false }
  const special = { id: 50258, content: '<pad>', special: true }
  const kinds: [string, object, [string, number[]][]][] = [
    [
      'a Split pattern and a normalizer',
      {
        normalizer: { type: 'NFC' },
        pre_tokenizer: { type: 'Sequence', pretokenizers: [split, { ...byteLevel, use_regex: false }] },
      },
      [
        ["It's 12345\n\n DON'T  e\u0301 x", [1026, 338, 220, 10163, 2231, 628, 23917, 6, 51, 220, 38251, 2124]],
        ['a   b½7 <pad>', [64, 220, 220, 275, 23141, 22, 1279, 15636, 29]],
        ['a \u0085b12', [64, 220, 126, 227, 65, 1065]],
      ],
    ],
    [
      'added tokens that are not special',
      {
        added_tokens: [
          { id: 50257, content: '   ', special: false },
          special,
          { id: 50256, content: '<|endoftext|>', special: true },
        ],
      },
      [
        ["It's 12345\n\n DON'T  e\u0301 x", [1026, 338, 17031, 2231, 628, 23917, 6, 51, 220, 304, 136, 223, 2124]],
        ['a   b½7 <pad>', [64, 50257, 65, 23141, 22, 220, 50258]],
        ['a \u0085b12', [64, 220, 126, 227, 65, 1065]],
      ],
    ],
    [
      'single digits',
      {
        pre_tokenizer: {
          type: 'Sequence',
          pretokenizers: [
            { type: 'Digits', individual_digits: true },
            { ...byteLevel, use_regex: true },
          ],
        },
      },
      [
        [
          "It's 12345\n\n DON'T  e\u0301 x",
          [1026, 338, 220, 16, 17, 18, 19, 20, 628, 23917, 6, 51, 220, 304, 136, 223, 2124],
        ],
        ['a   b½7 <pad>', [64, 220, 220, 275, 23141, 22, 1279, 15636, 29]],
        ['a \u0085b12', [64, 220, 126, 227, 65, 16, 17]],
      ],
    ],
  ]
  for (const [i, [name, change, goldens]] of kinds.entries()) {
    test(name, async () => {
      const folder = join(dir, `other-${i}`)
      await gpt2.save(folder)
      const path = join(folder, 'tokenizer.json')
      writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), ...change }))
      const tokenizer = await Tokenizer.load(folder)
      assert.notEqual(tokenizer.hash, gpt2.hash)
      for (const [text, ids] of goldens) {
        assert.deepEqual([...tokenizer.encode(text, { allowSpecial: true })], ids, JSON.stringify(text))
        assert.equal(tokenizer.decode(ids), i === 0 ? text.normalize('NFC') : text)
      }
      assert.ok(!tokenizer.encode('<pad><|endoftext|>').includes(50256))
    })
  }
})

describe('streaming decoder', () => {
  test('holds back a character until it is whole', () => {
    const decoder = byte.createDecoder()
    assert.deepEqual(
      [0xf0, 0x9f, 0x99, 0x82, 0x21].map(id => decoder.push(id)),
      ['', '', '', '🙂', '!'],
    )
    assert.equal(decoder.flush(), '')
  })

  test('an unfinished character becomes U+FFFD at the end', () => {
    const decoder = byte.createDecoder()
    assert.equal(decoder.push(0xe2), '')
    assert.equal(decoder.flush(), '\ufffd')
    assert.equal(decoder.push(0x61), 'a')
  })

  test('gives in pieces what decode gives at once', () => {
    const random = randomSource(3)
    for (let i = 0; i < 200; i++) {
      // Any ids, not only those that encode makes: their bytes are often not UTF-8.
      const ids = Int32Array.from({ length: 20 }, () => Math.floor(random() * 50257))
      const decoder = gpt2.createDecoder()
      const text = [...ids].map(id => decoder.push(id)).join('') + decoder.flush()
      assert.equal(text, gpt2.decode(ids))
    }
  })

  test('a leading U+FEFF is text', () => assert.equal(gpt2.decode(gpt2.encode('\ufeffa')), '\ufeffa'))
})

describe('refusals', () => {
  const cases: [string, Record<string, string>, string, RegExp][] = [
    ['an empty directory', {}, 'ERR_FILE', /neither tokenizer.json nor vocab.json/],
    ['broken JSON', { 'tokenizer.json': '{"model"' }, 'ERR_DATA', /tokenizer.json is broken/],
    ['no model', { 'tokenizer.json': '{}' }, 'ERR_DATA', /no model/],
    [
      'a WordPiece model',
      { 'tokenizer.json': '{"model":{"type":"WordPiece","vocab":{"a":0}}}' },
      'ERR_UNSUPPORTED',
      /WordPiece/,
    ],
    [
      'a vocabulary without all bytes',
      { 'vocab.json': '{"a":0}', 'merges.txt': '' },
      'ERR_DATA',
      /no token for byte 0/,
    ],
  ]
  for (const [name, files, code, message] of cases) {
    test(name, async () => {
      const folder = mkdtempSync(join(dir, 'bad-'))
      for (const [file, text] of Object.entries(files)) writeFileSync(join(folder, file), text)
      await assert.rejects(Tokenizer.load(folder), { code, message })
    })
  }

  test('a tokenizer that puts a space in front', async () => {
    const folder = join(dir, 'prefix')
    await gpt2.save(folder)
    const path = join(folder, 'tokenizer.json')
    writeFileSync(path, readFileSync(path, 'utf8').replaceAll('"add_prefix_space":false', '"add_prefix_space":true'))
    await assert.rejects(Tokenizer.load(folder), { code: 'ERR_UNSUPPORTED', message: /without prefix space/ })
  })

  test('a name that is nothing', async () => {
    await assert.rejects(Tokenizer.load(join(dir, 'nowhere')), {
      code: 'ERR_FILE',
      message: /use byte, gpt2, or a directory/,
    })
  })

  test('an id outside the vocabulary', () => {
    assert.throws(() => byte.decode([257]), { code: 'ERR_ARGUMENT' })
    assert.throws(() => gpt2.decode([-1]), { code: 'ERR_ARGUMENT' })
    for (const tokenizer of [byte, gpt2])
      assert.throws(() => tokenizer.encode(5 as never), { code: 'ERR_ARGUMENT', message: /a text is wanted; got 5/ })
  })
})
