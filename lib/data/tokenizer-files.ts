import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { TrainCoreError } from '../errors.js'

/** The text of the end-of-text token of `byte` and `gpt2`. */
export const END_OF_TEXT = '<|endoftext|>'

/**
 * The printable character that stands for each byte in byte-level vocabularies: printable Latin-1 for itself, the other
 * 68 bytes as U+0100 and up. Source: openai/gpt-2, src/encoder.py, bytes_to_unicode.
 */
export function byteChars(): string[] {
  const chars: string[] = []
  let next = 0x100
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
    chars.push(String.fromCharCode(printable ? byte : next++))
  }
  return chars
}

/** A byte-level BPE with GPT-2's pre-tokenizer. */
export interface ByteLevelBpe {
  /** Token (in {@link byteChars}) -> id. */
  vocab: Record<string, number>
  /** `left right`, best first. */
  merges: string[]
  /** Id of {@link END_OF_TEXT}. */
  eosId: number
  /** Hugging Face class to load it with. */
  className: string
}

/** `tokenizer.json` as Hugging Face's tokenizers 0.22 and later write it for such a BPE. */
export function byteLevelJson(bpe: Omit<ByteLevelBpe, 'className'>): Record<string, unknown> {
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true }
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [
      {
        id: bpe.eosId,
        content: END_OF_TEXT,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      },
    ],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: { ...byteLevel, trim_offsets: false },
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: '',
      end_of_word_suffix: '',
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: bpe.vocab,
      merges: bpe.merges,
    },
  }
}

/** The files of a Hugging Face directory for such a BPE, by name. */
export function byteLevelFiles(bpe: ByteLevelBpe): Map<string, string> {
  const specials = { bos_token: END_OF_TEXT, eos_token: END_OF_TEXT, unk_token: END_OF_TEXT }
  const config = {
    tokenizer_class: bpe.className,
    ...specials,
    add_prefix_space: false,
    clean_up_tokenization_spaces: false,
  }
  return new Map([
    ['tokenizer.json', `${JSON.stringify(byteLevelJson(bpe))}\n`],
    ['tokenizer_config.json', `${JSON.stringify(config, null, 2)}\n`],
    ['special_tokens_map.json', `${JSON.stringify(specials, null, 2)}\n`],
  ])
}

/** Writes `files` (by name) into `dir`, made if need be. Throws ERR_FILE. */
export async function writeFiles(dir: string, files: ReadonlyMap<string, string | Uint8Array>): Promise<void> {
  try {
    await mkdir(dir, { recursive: true })
    for (const [name, content] of files) await writeFile(join(dir, name), content)
  } catch (cause) {
    throw new TrainCoreError('ERR_FILE', `[tokenizer.save] cannot write into ${dir}: ${(cause as Error).message}`, {
      cause,
    })
  }
}
