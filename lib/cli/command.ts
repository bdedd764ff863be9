import { TrainCoreError } from '../errors.js'
import { COMMON, camelCase, type Options, type Values } from './options.js'
import { UsageError } from './usage.js'

/** A command, known without loading the code that runs it. */
export interface Command {
  /** empty: the command that runs when none is named */
  readonly name: string
  readonly describe: string
  /** its flags beside the common ones */
  options(): Promise<Options>
  readonly examples: readonly (readonly [line: string, what: string])[]
  load(): Promise<{ run(invocation: Invocation): Promise<number | undefined> }>
}

/** A command as it was called. */
export interface Invocation {
  /** options given by flags and configuration file, the common ones included */
  readonly values: Values
  readonly json: boolean
  readonly quiet: boolean
  readonly verbose: boolean
  readonly dryRun: boolean
  /** fires at the first SIGINT */
  readonly signal: AbortSignal
  /** one line on stderr, whatever --quiet says */
  warn(message: string): void
  /** a line of progress on stderr */
  note(message: string): void
  /** the result on stdout: as JSON with --json, else as text */
  result(json: unknown, text: string): void
}

/** Makes the invocation of a command from its options. */
export function invocation(values: Values, signal: AbortSignal): Invocation {
  const { json = false, quiet = false, verbose = false, dryRun = false } = values as Record<string, boolean | undefined>
  const write = (message: string): void => {
    process.stderr.write(`${message}\n`)
  }
  return {
    values,
    json,
    quiet,
    verbose,
    dryRun,
    signal,
    warn: message => write(`warning: ${message}`),
    note: message => {
      if (!quiet) write(message)
    },
    result: (value, text) => {
      process.stdout.write(json ? `${JSON.stringify(value)}\n` : `${text}\n`)
    },
  }
}

/** Names (the library's) of the flags that steer the command line itself. */
const OWN = ['config', 'dryRun', 'json', 'quiet', 'verbose']

/** The options that are the library's: without --json and its like. */
export function libraryOptions(values: Values): Record<string, unknown> {
  return Object.fromEntries(Object.entries(values).filter(([name]) => !OWN.includes(name)))
}

/** Flags and the common ones. */
export function allOptions(options: Options): Options {
  return { ...options, ...COMMON }
}

/** Refuses a call without an option that it can't do without. @throws UsageError */
export function demand(values: Values, ...names: string[]): void {
  for (const name of names) if (values[camelCase(name)] === undefined) throw new UsageError(`--${name} must be given`)
}

/** Runs a check of options alone, whose ERR_CONFIG is a mistake in the call. @throws UsageError */
export function asUsage<T>(check: () => T): T {
  try {
    return check()
  } catch (error) {
    if (error instanceof TrainCoreError && error.code === 'ERR_CONFIG') throw new UsageError(error.message)
    throw error
  }
}
