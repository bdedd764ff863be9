/** A flag, which is a key of a configuration file too. */
export interface Option {
  /** `texts` and `numbers` are lists: `--data A B --data C`, `--layer-map 0,2,4` */
  readonly kind: 'text' | 'number' | 'flag' | 'texts' | 'numbers'
  readonly describe: string
  /** the only values it takes */
  readonly choices?: readonly string[]
  /** what its text must look like, and how to say that */
  readonly form?: { readonly pattern: RegExp; readonly wanted: string }
  /** what a number must be; what is not here, the library checks. `above`: more than `least` */
  readonly range?: {
    readonly whole?: boolean
    readonly least: number
    readonly above?: boolean
    readonly most?: number
  }
  /** an empty text has a meaning */
  readonly mayBeEmpty?: boolean
  /** shown as its default */
  readonly fallback?: string
}

/** Flags by their names without dashes: `batch-size`. */
export type Options = Readonly<Record<string, Option>>

/** Values by the library's names: `batchSize`. Only what was given. */
export type Values = Readonly<Record<string, unknown>>

/** Of a number: a whole one of 0 or more; of 1 or more. */
export const WHOLE: Option['range'] = { whole: true, least: 0 }
export const POSITIVE: Option['range'] = { whole: true, least: 1 }

/** Of every command that reads data. */
export const TEXT_FIELD: Option = {
  kind: 'text',
  describe: 'field of jsonl rows that holds the text',
  fallback: "text; Open Assistant's rows as conversations",
}

/** Flags that every command takes. */
export const COMMON: Options = {
  device: {
    kind: 'text',
    form: { pattern: /^(auto|cpu|cuda(:\d{1,3})?|metal)$/, wanted: 'auto, cpu, cuda, cuda:N or metal' },
    describe: 'auto, cpu, cuda, cuda:N or metal; auto is the fastest that works here',
    fallback: 'auto',
  },
  precision: {
    kind: 'text',
    choices: ['auto', 'f32', 'bf16', 'f16'],
    describe: 'of weights and activations; auto is bf16 where the device multiplies it faster, f16 needs metal',
    fallback: 'auto',
  },
  seed: { kind: 'number', range: WHOLE, describe: 'of all random numbers', fallback: '0' },
  threads: { kind: 'number', range: { ...WHOLE, most: 1024 }, describe: 'CPU threads', fallback: 'all' },
  config: { kind: 'text', describe: 'YAML or JSON file with these options as keys; flags win' },
  'dry-run': { kind: 'flag', describe: 'resolve and check everything, print the plan, do nothing' },
  json: { kind: 'flag', describe: 'print the result as JSON on stdout, and nothing else there' },
  quiet: { kind: 'flag', describe: 'no progress on stderr' },
  verbose: { kind: 'flag', describe: 'stack traces with errors' },
}

/** `batch-size` -> `batchSize`. */
export function camelCase(name: string): string {
  return name.replace(/-([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())
}

/** `batchSize`, `batch_size` -> `batch-size`. */
export function kebabCase(name: string): string {
  return name.replace(/_/g, '-').replace(/(?<=[a-z0-9])[A-Z]/g, letter => `-${letter.toLowerCase()}`)
}
