import { readFile } from 'node:fs/promises'
import { fileError } from '../durable-file.js'
import { TrainCoreError } from '../errors.js'
import { nearest } from '../nearest.js'
import { camelCase, kebabCase, type Options, type Values } from './options.js'
import { UsageError } from './usage.js'
import { checkedValue, shown } from './values.js'

/** A top-level key of a configuration file. */
interface Entry {
  readonly key: string
  readonly value: unknown
  /** counted from 1; 0: unknown */
  readonly line: number
}

/** Keys that the config.json of a run has beside options: a run can be had again with `--config runs/a/config.json --out runs/b`. */
const OF_A_RUN = ['command', 'model_config']

/**
 * Reads a configuration file: JSON where its name ends so, else YAML. Keys are the command's flags without dashes; `batchSize` and
 * `batch_size` stand for `batch-size`.
 *
 * @param command that the options are for
 *
 * @throws UsageError naming file, line and option for an unknown key (with the nearest known one), a wrong type, a syntax error;
 *   TrainCoreError ERR_FILE where it can't be read
 */
export async function readConfigFile(file: string, options: Options, command: string): Promise<Values> {
  const text = await readFile(file, 'utf8').catch((cause: unknown) => {
    throw fileError(`cannot read --config ${file}`, cause)
  })
  const entries = /\.json$/i.test(file) ? jsonEntries(file, text) : await yamlEntries(file, text)
  const values: Record<string, unknown> = {}
  for (const { key, value, line } of entries) {
    const name = kebabCase(key)
    const place = line ? `${file}:${line}` : file
    if (key === 'command' && value !== command)
      throw new UsageError(
        `${place}: these are options of the command ${shown(value)}, not of ${command || 'the main job'}`,
      )
    if (OF_A_RUN.includes(key)) continue
    const option = Object.hasOwn(options, name) && name !== 'config' ? options[name] : undefined
    if (!option) {
      const known = Object.keys(options).filter(each => each !== 'config')
      throw new UsageError(`${place}: unknown key "${key}"; did you mean "${nearest(name, known)}"?`)
    }
    if (Object.hasOwn(values, camelCase(name))) throw new UsageError(`${place}: ${key} is given twice`)
    values[camelCase(name)] = checkedValue(option, value, false, `${place}: ${key}`)
  }
  return values
}

function jsonEntries(file: string, text: string): Entry[] {
  let json: unknown
  try {
    json = JSON.parse(text.replace(/^\ufeff/, ''))
  } catch (cause) {
    throw new UsageError(`${file} is not JSON: ${(cause as Error).message.split('\n')[0]}`)
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw new UsageError(`${file} must hold an object of options`)
  return Object.entries(json).map(([key, value]) => ({ key, value, line: 0 }))
}

async function yamlEntries(file: string, text: string): Promise<Entry[]> {
  const { isMap, isScalar, LineCounter, parseDocument } = await import('yaml')
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false })
  const problem = document.errors[0]
  if (problem)
    throw new UsageError(`${file}:${lines.linePos(problem.pos[0]).line}: ${problem.message.split('\n')[0]!.trim()}`)
  if (document.contents === null) return []
  if (!isMap(document.contents)) throw new UsageError(`${file} must hold options as "name: value" lines`)
  return document.contents.items.map(({ key, value }) => {
    const at = isScalar(key) && key.range ? lines.linePos(key.range[0]).line : 0
    if (!isScalar(key) || typeof key.value !== 'string')
      throw new UsageError(`${at ? `${file}:${at}` : file}: a key must be the name of an option`)
    return { key: key.value, value: toPlain(value), line: at }
  })

  function toPlain(node: unknown): unknown {
    try {
      return node === null ? null : (node as { toJS(document: unknown): unknown }).toJS(document)
    } catch (cause) {
      throw new TrainCoreError('ERR_CONFIG', `${file}: ${(cause as Error).message}`, { cause })
    }
  }
}
