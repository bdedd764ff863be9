import type { Command } from './command.js'
import { type Options, POSITIVE, TEXT_FIELD, WHOLE } from './options.js'

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
  'text-field': TEXT_FIELD,
  'batch-size': { kind: 'number', range: POSITIVE, describe: 'windows at a time', fallback: '8' },
  'seq-len': {
    kind: 'number',
    range: POSITIVE,
    describe: 'T: tokens of a window',
    fallback: "256, at most the model's positions",
  },
}

const GENERATE: Options = {
  model: MODEL,
  prompt: { kind: 'text', mayBeEmpty: true, describe: 'text to continue', fallback: 'read from stdin' },
  tokenizer: TOKENIZER,
  'max-tokens': { kind: 'number', range: WHOLE, describe: 'new tokens at most', fallback: '100' },
  temperature: { kind: 'number', range: { least: 0 }, describe: '0: the most probable token always', fallback: '1' },
  'top-k': { kind: 'number', range: WHOLE, describe: 'keep the K most probable tokens; 0: all', fallback: '0' },
  'top-p': {
    kind: 'number',
    range: { least: 0, above: true, most: 1 },
    describe: 'then the fewest whose probability reaches P, above 0 and up to 1',
    fallback: '1',
  },
}

/** All commands, the main job (no name) first. */
export const COMMANDS: readonly Command[] = [
  {
    name: '',
    describe: 'the main job: distil a small student on the embedded sample text, and compare',
    options: async () => ({
      out: { kind: 'text', describe: 'run directory', fallback: 'runs/main, or the next free number' },
    }),
    examples: [['--device cpu', 'the main job on the CPU']],
    load: () => import('./main-job.js'),
  },
  {
    name: 'distill',
    describe: 'teacher + student + data -> student',
    options: async () => (await import('./training-options.js')).DISTILL,
    examples: [
      ['distill --teacher gpt2-medium --student distilgpt2 --data book.txt', 'from scratch'],
      ['distill --teacher gpt2 --student distilgpt2 --init teacher-layers --data corpus/', 'from teacher layers'],
    ],
    load: () => import('./distill.js'),
  },
  {
    name: 'pretrain',
    describe: 'train by cross-entropy, from scratch or from weights',
    options: async () => (await import('./training-options.js')).PRETRAIN,
    examples: [
      ['pretrain --model L=6,H=6,C=384 --data book.txt --tokenizer byte --steps 500', 'from scratch'],
      ['pretrain --config run.yaml --dry-run', 'what a configuration file comes to'],
    ],
    load: () => import('./pretrain.js'),
  },
  {
    name: 'eval',
    describe: 'loss and perplexity of a model on data',
    options: async () => EVAL,
    examples: [['eval --model runs/pretrain/final --data held-out.txt --json', 'the result as JSON']],
    load: () => import('./eval.js'),
  },
  {
    name: 'generate',
    describe: 'continue a text, token by token',
    options: async () => GENERATE,
    examples: [['generate --model runs/main/final --prompt "The whale " --temperature 0.8', '']],
    load: () => import('./generate.js'),
  },
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
    name: 'doctor',
    describe: 'self-test of a device: every op against its formula and the CPU',
    options: none,
    examples: [['doctor --device cpu', 'is what the CPU computes right?']],
    load: () => import('./doctor.js'),
  },
  {
    name: 'build',
    describe: 'build the native binary here',
    options: none,
    examples: [],
    load: () => import('./build.js'),
  },
]
