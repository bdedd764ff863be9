import { PRESET_NAMES } from '../model/config.js'
import { DISTILL_DEFAULTS } from '../train/objectives.js'
import { TRAIN_DEFAULTS } from '../train/options.js'
import { SCHEDULES } from '../train/schedule.js'
import { kebabCase, type Option, type Options, TEXT_FIELD } from './options.js'

const SHAPE = `L=6,H=6,C=384[,V=..,T=..] or ${PRESET_NAMES.join(', ')}: from scratch; a folder: from its weights`

type Rows = Readonly<Record<string, readonly [kind: Option['kind'], describe: string, more?: Partial<Option>]>>

/** Rows by the library's names, with its defaults. */
function table(rows: Rows, defaults: Readonly<Record<string, unknown>>): Options {
  return Object.fromEntries(
    Object.entries(rows).map(([name, [kind, describe, more]]) => {
      const fallback = defaults[name] === undefined ? undefined : String(defaults[name])
      return [kebabCase(name), { kind, describe, fallback, ...more }]
    }),
  )
}

const TRAIN: Rows = {
  data: ['texts', 'files, folders and globs: .txt, .jsonl (.gz, .zst), .bin'],
  evalData: ['texts', 'held-out data; without it nothing is evaluated'],
  tokenizer: ['text', 'byte, gpt2 or a folder', { fallback: "that of the model's or teacher's folder, else gpt2" }],
  textField: [TEXT_FIELD.kind, TEXT_FIELD.describe, TEXT_FIELD],
  steps: ['number', 'optimizer steps'],
  batchSize: ['number', 'B: rows of a micro-batch'],
  seqLen: ['number', 'T: tokens of a row', { fallback: "256, at most the model's positions" }],
  gradAccum: ['number', 'micro-batches of a step'],
  lr: ['number', 'learning rate, the highest'],
  schedule: ['text', 'of the learning rate', { choices: SCHEDULES }],
  warmup: ['number', 'steps until --lr is reached', { fallback: 'a tenth of --steps, at most 100' }],
  minLr: ['number', 'learning rate at the end', { fallback: 'a tenth of --lr' }],
  weightDecay: ['number', 'decoupled, on tensors of two and more dimensions'],
  beta1: ['number', 'of AdamW'],
  beta2: ['number', 'of AdamW'],
  eps: ['number', 'of AdamW'],
  gradClip: ['number', 'largest global norm of the gradients; 0: not clipped'],
  dropout: ['number', 'on embeddings, attention and residuals', { fallback: "the model's" }],
  evalEvery: ['number', 'steps between evaluations; 0: only at the end'],
  saveEvery: ['number', 'steps between checkpoints; 0: only when interrupted'],
  keep: ['number', 'checkpoints kept; 0: all'],
  resume: ['text', 'auto, never, or the folder of a checkpoint or a run'],
  order: ['text', 'of the rows', { choices: ['shuffled', 'sequential'] }],
  packDocuments: ['flag', 'no document sees another in its row'],
}

/** Flags of `pretrain`. */
export const PRETRAIN: Options = {
  ...table({ model: ['text', SHAPE] }, {}),
  ...table(TRAIN, TRAIN_DEFAULTS),
  ...table({ out: ['text', 'run directory'] }, { out: 'runs/pretrain' }),
}

const LOSS: Rows = {
  temperature: ['number', 'of the softmax of both'],
  kl: ['number', 'weight of T²·KL(teacher‖student)'],
  rkl: ['number', 'weight of T²·KL(student‖teacher)'],
  jsd: ['number', 'weight of the Jensen-Shannon divergence'],
  beta: ['number', 'of the Jensen-Shannon divergence'],
  ce: ['number', 'weight of the cross-entropy'],
  cos: ['number', 'weight of 1 - cosine of the last hidden states'],
}

/** Flags of `distill`. */
export const DISTILL: Options = {
  ...table({ teacher: ['text', 'folder in Hugging Face layout, or a preset'], student: ['text', SHAPE] }, {}),
  ...table(LOSS, { ...DISTILL_DEFAULTS }),
  ...table(
    {
      init: ['text', 'where a student given by its shape starts: random, teacher-layers or a folder'],
      teacherCache: [
        'text',
        "folder of the teacher's most probable tokens, made where missing; then only --kl and --ce",
      ],
      topK: ['number', 'tokens of each prediction that the teacher cache keeps', { fallback: '64' }],
      layerMap: [
        'numbers',
        'for teacher-layers: a teacher layer for each student layer, 0,2,4',
        { fallback: 'spread' },
      ],
    },
    { init: 'random' },
  ),
  ...table(TRAIN, TRAIN_DEFAULTS),
  ...table({ out: ['text', 'run directory'] }, { out: 'runs/distill' }),
}
