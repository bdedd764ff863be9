import { createHash } from 'node:crypto'
import { Tokenizer } from './tokenizer.js'
import { byteChars, byteLevelFiles, END_OF_TEXT, writeFiles } from './tokenizer-files.js'

/** 256 bytes, id = byte value, and end-of-text 256. Vocabulary 257. */
export class ByteTokenizer extends Tokenizer {
  readonly name: string = 'byte'
  readonly vocabSize: number = 257
  readonly eosId: number = 256
  readonly hash: string = createHash('sha256')
    .update('train-core byte tokenizer: ids are UTF-8 bytes, eos 256')
    .digest('hex')
  readonly specials: ReadonlyMap<string, number> = new Map([[END_OF_TEXT, 256]])
  readonly streamable: boolean = true

  static readonly #bytes: Uint8Array[] = Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte))
  static readonly #eos: Uint8Array = Buffer.from(END_OF_TEXT)

  protected encodeText(text: string): Int32Array {
    return Int32Array.from(Buffer.from(text, 'utf8'))
  }

  protected tokenBytes(id: number): Uint8Array | undefined {
    return id === this.eosId ? ByteTokenizer.#eos : ByteTokenizer.#bytes[id]
  }

  /** Written as the byte-level BPE it is: 256 byte tokens, no merges. Hugging Face's tokenizers read it unchanged. */
  async save(dir: string): Promise<void> {
    const vocab = Object.fromEntries(byteChars().map((char, byte) => [char, byte]))
    await writeFiles(
      dir,
      byteLevelFiles({ vocab, merges: [], eosId: this.eosId, className: 'PreTrainedTokenizerFast' }),
    )
  }
}
