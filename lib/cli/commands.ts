import type { Command } from './command.js'
import type { Options } from './options.js'

const none = async (): Promise<Options> => ({})

const MODEL: Options[string] = {
  kind: 'text',
  describe: 'folder in Hugging Face layout, or gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2',
}
const TOKENIZER: Options[string] = { kind: 'text', describe: 'byte, gpt2 or a folder', fallback: "the model's" }

const EVAL: Options = {
  model: MODEL,
  data: { kind: 'texts', describe: 'files, folders and globs: .txt, .jsonl (.gz, .zst), .bin' },
  tokenizer: TOKENIZER,
  'text-field': { kind: 'text', describe: 'field of jsonl rows that holds the text', fallback: 'text' },
  'batch-size': { kind: 'number', describe: 'windows at a time', fallback: '8' },
  'seq-len': { kind: 'number', describe: 'T: tokens of a window', fallback: "the model's positions, at most 1024" },
}

const GENERATE: Options = {
  model: MODEL,
  prompt: { kind: 'text', describe: 'text to continue', fallback: 'read from stdin' },
  tokenizer: TOKENIZER,
  'max-tokens': { kind: 'number', describe: 'new tokens at most', fallback: '100' },
  temperature: { kind: 'number', describe: '0: the most probable token always', fallback: '1' },
  'top-k': { kind: 'number', describe: 'keep the K most probable tokens; 0: all', fallback: '0' },
  'top-p': { kind: 'number', describe: 'then the fewest whose probability reaches P', fallback: '1' },
}

/** All commands, the main job (no name) first. */
export const COMMANDS: readonly Command[] = [
  {
    name: 'ops',
    describe: 'which device has which op',
    options: none,
    examples: [['ops --json', 'the table as JSON']],
    load: () => import('./ops.js'),
  },
  {
    name: 'env',
    describe: 'what a bug report should say: versions, devices, memory',
    options: none,
    examples: [],
    load: () => import('./env.js'),
  },
  {
    name: 'build',
    describe: 'build the native binary here',
    options: none,
    examples: [],
    load: () => import('./build.js'),
  },
]
void EVAL
void GENERATE
