import yargs, { type Argv } from 'yargs'
import { TrainCoreError } from '../errors.js'
import { packageVersion } from '../native-loader.js'
import { nearest } from '../nearest.js'
import { allOptions, type Command, invocation } from './command.js'
import { COMMANDS } from './commands.js'
import { readConfigFile } from './config-file.js'
import { Interrupt } from './interrupt.js'
import { camelCase, type Options, type Values } from './options.js'
import { DONE, FAILED, guardStreams, reportError } from './output.js'
import { UsageError } from './usage.js'
import { checkedValue } from './values.js'

/** Runs `train-core ...args`. @returns the exit code */
export async function runCommandLine(args: readonly string[]): Promise<number> {
  const verbose = args.includes('--verbose')
  guardStreams()
  for (const event of ['uncaughtException', 'unhandledRejection'])
    process.on(event, error => process.exit(reportError(error, verbose)))
  const interrupt = new Interrupt()
  let exitCode: number = DONE
  const known = new Map<string, Options>()
  const start = async (command: Command, argv: Record<string, unknown>): Promise<void> => {
    const values = await collectValues(known.get(command.name)!, argv, args, command)
    const { run } = await command.load()
    exitCode = (await run(invocation(values, interrupt.signal))) ?? DONE
  }
  try {
    await parser(args, known, start).parseAsync()
  } catch (caught) {
    // yargs throws some of its own findings as a YError; what a command threw comes through as it is.
    const isFinding = caught instanceof Error && caught.name === 'YError'
    const error: unknown = isFinding ? usageError(caught.message, args, known) : caught
    const aborted =
      error === interrupt.signal.reason || (error instanceof TrainCoreError && error.code === 'ERR_ABORTED')
    if (!(aborted && interrupt.code)) exitCode = reportError(error, verbose)
  }
  return interrupt.code && exitCode !== FAILED ? interrupt.code : exitCode
}

function parser(
  args: readonly string[],
  known: Map<string, Options>,
  start: (command: Command, argv: Record<string, unknown>) => Promise<void>,
): Argv {
  // Values are parsed as text and checked here, so that messages can say what was typed; help shows their kinds.
  const help = args.some(arg => arg === '--help' || arg === '-h')
  const program = yargs([...args])
    .locale('en')
    .scriptName('train-core')
    .usage('$0 [command]\n\nDistils and trains GPT-2 models.')
    .parserConfiguration({ 'dot-notation': false })
    .exitProcess(false)
    .strict()
    .version(packageVersion())
    .help('help')
    .alias('help', 'h')
    .wrap(Math.min(process.stdout.columns ?? 100, 120))
    .fail((message, error) => {
      throw error ?? usageError(message, args, known)
    })
  for (const command of COMMANDS) {
    const build = async (cli: Argv): Promise<Argv> => {
      const options = allOptions(await command.options())
      known.set(command.name, options)
      for (const [line, what] of command.examples) cli.example(`$0 ${line}`, what)
      return cli.options(
        Object.fromEntries(Object.entries(options).map(([name, option]) => [name, yargsOption(option, help)])),
      )
    }
    // The types of yargs know no asynchronous builder; yargs does (docs/advanced.md, "Commands").
    program.command(command.name || '$0', command.describe, build as never, argv => start(command, argv as never))
  }
  return program
}

function yargsOption(option: Options[string], help: boolean): object {
  const { kind, describe, fallback, choices } = option
  const type = kind === 'flag' ? 'boolean' : kind === 'number' && help ? 'number' : 'string'
  const shown = choices && help ? { choices } : {}
  return {
    type,
    array: kind === 'texts',
    requiresArg: kind !== 'flag',
    describe,
    defaultDescription: fallback,
    ...shown,
  }
}

/** What yargs found wrong, with the nearest name that is known. */
function usageError(message: string, args: readonly string[], known: ReadonlyMap<string, Options>): UsageError {
  const help = 'train-core --help lists them'
  const names = COMMANDS.map(command => command.name).filter(Boolean)
  // First of all: the options of a command that is not known are not known either.
  const [first = '-'] = args
  if (!first.startsWith('-') && !names.includes(first))
    return new UsageError(`unknown command ${first}; did you mean ${nearest(first, names)}? (${help})`)
  const unknown = /^Unknown arguments?: (.+)$/.exec(message)?.[1]?.split(', ')[0]
  if (unknown !== undefined) {
    const typed = args.find(arg => /^--?(?:no-)?([^=]*)/.exec(arg)?.[1] === unknown)
    if (typed) {
      const flags = [...known.values()].flatMap(options => Object.keys(options))
      return new UsageError(
        `unknown option ${typed.split('=')[0]}; did you mean --${nearest(unknown, flags)}? (${help})`,
      )
    }
    return new UsageError(`unexpected argument ${unknown} (${help})`)
  }
  const lacking = /^Not enough arguments following: (.+)$/.exec(message)?.[1]
  return new UsageError(lacking ? `--${lacking} wants a value; got none` : message)
}

/** Flags over the configuration file; only what was given, by the library's names. */
async function collectValues(
  options: Options,
  argv: Record<string, unknown>,
  args: readonly string[],
  command: Command,
): Promise<Values> {
  const extra = (argv._ as unknown[]).slice(command.name ? 1 : 0)
  if (extra.length) throw new UsageError(`unexpected argument ${String(extra[0])}`)
  const flags: Record<string, unknown> = {}
  for (const [name, option] of Object.entries(options)) {
    let raw = argv[name]
    if (raw === undefined) continue
    // Of an option given twice the last counts, as everywhere.
    if (Array.isArray(raw) && option.kind !== 'texts') raw = raw.at(-1)
    if (option.kind === 'flag') raw = typedFlag(name, args, raw)
    flags[camelCase(name)] = checkedValue(option, raw, true, `--${name}`)
  }
  const file = flags.config === undefined ? {} : await readConfigFile(flags.config as string, options, command.name)
  return { ...file, ...flags }
}

/** yargs takes any text after `--json=` for false; this gives the text back unless it is true or false. */
function typedFlag(name: string, args: readonly string[], parsed: unknown): unknown {
  const typed = args.findLast(arg => arg.startsWith(`--${name}=`) || arg.startsWith(`--${camelCase(name)}=`))
  const text = typed?.slice(typed.indexOf('=') + 1)
  return text === undefined || text === 'true' || text === 'false' ? parsed : text
}
