import type { Option } from './options.js'
import { UsageError } from './usage.js'

const WANTED: Readonly<Record<Option['kind'], string>> = {
  text: 'a text',
  number: 'a number',
  flag: 'true or false',
  texts: 'a text or a list of texts',
  numbers: 'a list of whole numbers (0,2,4)',
}

/**
 * The value of an option, checked against its kind.
 *
 * @param raw of a flag: what was typed (texts for everything but a `flag`); of a configuration file: any value
 * @param typed whether it was typed, so that numbers come as text
 * @param where names it in messages: `--steps`, `run.yaml:3: steps`
 * @throws UsageError
 */
export function checkedValue(option: Option, raw: unknown, typed: boolean, where: string): unknown {
  const value = option.mayBeEmpty && raw === '' ? raw : convert(option.kind, raw, typed)
  if (value === undefined) throw new UsageError(`${where} must be ${WANTED[option.kind]}; got ${shown(raw)}`)
  if (option.choices && !option.choices.includes(value as string))
    throw new UsageError(`${where} must be one of ${option.choices.join(', ')}; got ${shown(raw)}`)
  if (option.form && !option.form.pattern.test(value as string))
    throw new UsageError(`${where} must be ${option.form.wanted}; got ${shown(raw)}`)
  if (option.range) checkRange(value as number, option.range, raw, where)
  return value
}

/** The largest number of f32, which is what a number that is not whole becomes in a kernel. */
const LARGEST = 3.4e38

/** @throws UsageError naming the bounds; those that no option has of its own only where they are exceeded */
function checkRange(value: number, range: NonNullable<Option['range']>, raw: unknown, where: string): void {
  const { whole, least, above, most = whole ? Number.MAX_SAFE_INTEGER : LARGEST } = range
  if (value <= most && (above ? value > least : value >= least) && (!whole || Number.isInteger(value))) return
  const isBounded = range.most !== undefined || value > most
  const bounds = above
    ? `above ${least}${isBounded ? ` and at most ${most}` : ''}`
    : isBounded
      ? `from ${least} to ${most}`
      : `of ${least} or more`
  throw new UsageError(`${where} must be ${whole ? 'an integer' : 'a number'} ${bounds}; got ${shown(raw)}`)
}

function convert(kind: Option['kind'], raw: unknown, typed: boolean): unknown {
  switch (kind) {
    case 'text':
      return typeof raw === 'string' && raw !== '' ? raw : undefined
    case 'number':
      return number(raw, typed)
    case 'flag':
      return typeof raw === 'boolean' ? raw : undefined
    case 'texts': {
      const list = typeof raw === 'string' ? [raw] : raw
      return Array.isArray(list) && list.every(item => typeof item === 'string' && item !== '') ? list : undefined
    }
    case 'numbers': {
      const list = typeof raw === 'string' ? raw.split(',') : raw
      const values = Array.isArray(list) ? list.map(item => number(item, typeof raw === 'string')) : []
      return values.length && values.every(Number.isInteger) ? values : undefined
    }
  }
}

function number(raw: unknown, typed: boolean): number | undefined {
  if (!typed) return typeof raw === 'number' ? raw : undefined
  const isDecimal = typeof raw === 'string' && /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(raw.trim())
  return isDecimal ? Number(raw) : undefined
}

/** A value in a message. */
export function shown(raw: unknown): string {
  if (raw === '') return 'nothing'
  const text = typeof raw === 'string' ? raw : (JSON.stringify(raw) ?? String(raw))
  return text.length > 100 ? `${text.slice(0, 97)}...` : text
}
