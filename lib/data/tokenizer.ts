import { TrainCoreError } from '../errors.js'

/** How {@link Tokenizer.encode} treats text that looks like a special token. */
export interface EncodeOptions {
  /** `true`: such text becomes the special id. Default `false`: it is ordinary text, as it must be inside documents. */
  allowSpecial?: boolean
}

/** Turns token ids into text one at a time; a character cut by a token boundary is held back until it is whole. */
export interface StreamDecoder {
  /** Text completed by `id`, possibly empty. Throws ERR_ARGUMENT for an id outside the vocabulary. */
  push(id: number): string
  /** What is left at the end: U+FFFD for an unfinished character, else empty. The decoder is then as new. */
  flush(): string
}

/**
 * Text to token ids and back, losslessly: every tokenizer here works on UTF-8 bytes, so any well-formed text decodes to
 * itself (lone surrogates become U+FFFD). Nothing is added: no begin-of-text token, no prefix space.
 */
export abstract class Tokenizer {
  /** `byte`, `gpt2`, or the name of the directory it came from. */
  abstract readonly name: string
  /** Number of ids: all ids are below it. */
  abstract readonly vocabSize: number
  /** The end-of-text id, which separates documents. */
  abstract readonly eosId: number
  /** SHA-256 (hex) of everything that decides the ids; equal hashes mean equal encodings. */
  abstract readonly hash: string
  /** Special tokens by their text, e.g. `<|endoftext|>` -> 50256. */
  abstract readonly specials: ReadonlyMap<string, number>
  /**
   * Whether text may be cut before white space that follows a non-space and encoded in pieces, with the same ids as in
   * one piece. Lets readers stream documents of any size.
   */
  abstract readonly streamable: boolean

  #specialPattern: RegExp | undefined

  /** The ids of `text`, in which nothing is special. */
  protected abstract encodeText(text: string): Int32Array
  /** The UTF-8 bytes of a token; undefined where no token has this id. */
  protected abstract tokenBytes(id: number): Uint8Array | undefined
  /** Writes the files a Hugging Face directory needs (`tokenizer.json`, `tokenizer_config.json`, ...) into `dir`. */
  abstract save(dir: string): Promise<void>

  /**
   * Loads a tokenizer: `byte` (256 bytes and end-of-text), `gpt2` (r50k), or a directory with `tokenizer.json`, or with
   * `vocab.json` and `merges.txt`.
   *
   * Throws ERR_FILE when there is no such directory, ERR_DATA when its files are broken, ERR_UNSUPPORTED when the
   * tokenizer is not a byte-level BPE.
   */
  static async load(nameOrDir: string): Promise<Tokenizer> {
    const { loadTokenizer } = await import('./tokenizer-load.js')
    return loadTokenizer(nameOrDir)
  }

  /** The ids of `text`, as an Int32Array of any length (empty text: length 0). Throws ERR_ARGUMENT for what is no text. */
  encode(text: string, options: EncodeOptions = {}): Int32Array {
    if (typeof text !== 'string')
      throw new TrainCoreError('ERR_ARGUMENT', `[encode] a text is wanted; got ${String(text)}`)
    if (!options.allowSpecial || this.specials.size === 0) return this.encodeText(text)
    const parts: Int32Array[] = []
    for (const part of text.split(this.#splitter())) {
      const id = this.specials.get(part)
      if (id !== undefined) parts.push(Int32Array.of(id))
      else if (part) parts.push(this.encodeText(part))
    }
    return concatIds(parts)
  }

  /** The text of `ids`; invalid UTF-8 becomes U+FFFD. Throws ERR_ARGUMENT for an id outside the vocabulary. */
  decode(ids: ArrayLike<number>): string {
    const decoder = this.createDecoder()
    const parts: string[] = []
    for (let i = 0; i < ids.length; i++) parts.push(decoder.push(ids[i]))
    parts.push(decoder.flush())
    return parts.join('')
  }

  /** A streaming decoder; `push` every id in order, then `flush`. */
  createDecoder(): StreamDecoder {
    // ignoreBOM keeps a leading U+FEFF, which is text here.
    const utf8 = new TextDecoder('utf-8', { ignoreBOM: true })
    return {
      push: id => {
        const bytes = this.tokenBytes(id)
        if (!bytes) {
          throw new TrainCoreError(
            'ERR_ARGUMENT',
            `[decode] token ids below ${this.vocabSize} (tokenizer ${this.name}) are wanted; got ${id}`,
          )
        }
        return utf8.decode(bytes, { stream: true })
      },
      flush: () => utf8.decode(),
    }
  }

  #splitter(): RegExp {
    if (!this.#specialPattern) {
      // Longest first, so that no special hides one that it is a prefix of.
      const texts = [...this.specials.keys()].sort((a, b) => b.length - a.length)
      this.#specialPattern = new RegExp(`(${texts.map(escapeRegExp).join('|')})`)
    }
    return this.#specialPattern
  }
}

function escapeRegExp(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')
}

/** One array out of several. */
export function concatIds(parts: readonly Int32Array[]): Int32Array {
  if (parts.length === 1) return parts[0]
  const all = new Int32Array(parts.reduce((n, part) => n + part.length, 0))
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.length
  }
  return all
}
