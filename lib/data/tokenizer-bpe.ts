import { createHash } from 'node:crypto'
import { Tokenizer as HfTokenizer } from '@huggingface/tokenizers'
import { cutBeforeSpace } from './cut.js'
import { concatIds, Tokenizer } from './tokenizer.js'
import { byteChars, writeFiles } from './tokenizer-files.js'

/**
 * GPT-2's pre-tokenizer (openai/gpt-2, src/encoder.py). `\s` there is Unicode White_Space; JavaScript's `\s` lacks
 * U+0085 and adds U+FEFF, so the property is named.
 */
const GPT2_PATTERN =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu

/** Pre-tokens remembered with their ids. English text has some 10,000 distinct ones a megabyte. */
const CACHE_SIZE = 65_536
/** Longer pre-tokens are rare and not worth remembering [UTF-16 units]. */
const CACHE_LENGTH = 64

/** What {@link BpeTokenizer} is made of: the parts of a checked tokenizer.json. */
export interface BpeParts {
  name: string
  /** The whole tokenizer.json, parsed. */
  json: TokenizerJson
  /** tokenizer_config.json, parsed; `{}` where there is none. */
  config: Record<string, unknown>
  specials: Map<string, number>
  eosId: number
  /** Files to write on save, by name. */
  files: Map<string, string | Uint8Array>
}

/** The fields of tokenizer.json that are used here. */
export interface TokenizerJson {
  added_tokens?: { id: number; content: string; special?: boolean }[]
  normalizer?: unknown
  pre_tokenizer?: { type?: string; add_prefix_space?: boolean; use_regex?: boolean } | null
  model: {
    type?: string
    vocab: Record<string, number>
    merges: (string | [string, string])[]
    ignore_merges?: boolean
  }
  [key: string]: unknown
}

/** A byte-level BPE tokenizer, as GPT-2 and its successors use. The merging is Hugging Face's own JavaScript. */
export class BpeTokenizer extends Tokenizer {
  readonly name: string
  readonly vocabSize: number
  readonly eosId: number
  readonly hash: string
  readonly specials: ReadonlyMap<string, number>
  readonly streamable: boolean
  readonly #hf: HfTokenizer
  readonly #bytes: (Uint8Array | undefined)[]
  readonly #files: Map<string, string | Uint8Array>
  readonly #cache = new Map<string, number[]>()

  constructor(parts: BpeParts) {
    super()
    const { json, specials } = parts
    this.name = parts.name
    this.eosId = parts.eosId
    this.specials = specials
    this.#files = parts.files
    this.#bytes = bytesOfTokens(json)
    this.vocabSize = this.#bytes.length
    this.streamable = isGpt2Style(json, specials)
    this.hash = hashOf(parts, this.streamable)
    this.#hf = new HfTokenizer(withoutSpecials(json, specials, this.streamable), parts.config)
  }

  protected encodeText(text: string): Int32Array {
    if (!this.streamable) return Int32Array.from(this.#hfIds(text))
    const parts: Int32Array[] = []
    // Pieces of bounded size: the list of pre-tokens of a long text would cost many times the text itself.
    for (let at = 0; at < text.length; ) {
      const end = cutBeforeSpace(text, at, at + 65_536)
      parts.push(this.#encodePiece(text.slice(at, end)))
      at = end
    }
    return concatIds(parts)
  }

  protected tokenBytes(id: number): Uint8Array | undefined {
    return this.#bytes[id]
  }

  async save(dir: string): Promise<void> {
    await writeFiles(dir, this.#files)
  }

  #encodePiece(text: string): Int32Array {
    const ids: number[] = []
    for (const word of text.match(GPT2_PATTERN) ?? []) {
      let wordIds = this.#cache.get(word)
      if (!wordIds) {
        wordIds = this.#hfIds(word)
        if (word.length <= CACHE_LENGTH) {
          if (this.#cache.size >= CACHE_SIZE) this.#cache.clear()
          this.#cache.set(word, wordIds)
        }
      }
      for (const id of wordIds) ids.push(id)
    }
    return Int32Array.from(ids)
  }

  #hfIds(text: string): number[] {
    return text ? this.#hf.encode(text, { add_special_tokens: false }).ids : []
  }
}

/** GPT-2's own pre-tokenizer and nothing else that changes the text: the fast path holds. */
function isGpt2Style(json: TokenizerJson, specials: ReadonlyMap<string, number>): boolean {
  const pre = json.pre_tokenizer
  const plainAdded = (json.added_tokens ?? []).some(token => !specials.has(token.content))
  return pre?.type === 'ByteLevel' && pre.use_regex !== false && !json.normalizer && !plainAdded
}

/**
 * The tokenizer.json given to Hugging Face's code: no special token can come out of it, and with the fast path the
 * splitting is done here.
 */
function withoutSpecials(json: TokenizerJson, specials: ReadonlyMap<string, number>, fast: boolean): object {
  const vocab = Object.fromEntries(Object.entries(json.model.vocab).filter(([token]) => !specials.has(token)))
  return {
    ...json,
    normalizer: json.normalizer ?? null,
    post_processor: null,
    decoder: null,
    added_tokens: (json.added_tokens ?? []).filter(token => !specials.has(token.content)),
    pre_tokenizer: fast ? { ...json.pre_tokenizer, use_regex: false } : exactPreTokenizer(json.pre_tokenizer),
    model: { ...json.model, vocab },
  }
}

/**
 * Writes out as Split patterns what Hugging Face's JavaScript does a little otherwise than its Rust: ByteLevel's `\s` is
 * not Unicode White_Space, and Digits takes decimal digits only, not all numbers.
 */
function exactPreTokenizer(pre: unknown): unknown {
  const node = pre as {
    type?: string
    use_regex?: boolean
    individual_digits?: boolean
    pretokenizers?: unknown[]
  } | null
  const split = (Regex: string) => ({ type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false })
  if (node?.type === 'Sequence') return { ...node, pretokenizers: node.pretokenizers?.map(exactPreTokenizer) }
  if (node?.type === 'Digits') return split(node.individual_digits ? '\\p{N}' : '\\p{N}+')
  if (node?.type !== 'ByteLevel' || node.use_regex === false) return node ?? null
  return { type: 'Sequence', pretokenizers: [split(GPT2_PATTERN.source), { ...node, use_regex: false }] }
}

function bytesOfTokens(json: TokenizerJson): (Uint8Array | undefined)[] {
  const byteOf = new Map(byteChars().map((char, byte) => [char, byte]))
  const bytes: (Uint8Array | undefined)[] = []
  for (const [token, id] of Object.entries(json.model.vocab)) {
    const known = [...token].map(char => byteOf.get(char))
    bytes[id] = known.includes(undefined) ? Buffer.from(token) : Uint8Array.from(known as number[])
  }
  for (const { id, content } of json.added_tokens ?? []) bytes[id] = Buffer.from(content)
  return bytes
}

function hashOf(parts: BpeParts, fast: boolean): string {
  const { json } = parts
  const byId = (a: [string, number], b: [string, number]) => a[1] - b[1]
  const merges = json.model.merges.map(merge => (typeof merge === 'string' ? merge : merge.join(' ')))
  const rules = fast ? 'gpt2' : [json.normalizer ?? null, json.pre_tokenizer, json.added_tokens]
  const content = {
    rules,
    vocab: Object.entries(json.model.vocab).sort(byId),
    merges,
    ignoreMerges: json.model.ignore_merges ?? false,
    specials: [...parts.specials].sort(byId),
    eosId: parts.eosId,
  }
  return createHash('sha256').update(JSON.stringify(content)).digest('hex')
}
