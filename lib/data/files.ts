import { readdir, stat } from 'node:fs/promises'
import { sep } from 'node:path'
import { fileError } from '../durable-file.js'
import { TrainCoreError } from '../errors.js'

/** A data file and how to read it. */
export interface DataFile {
  path: string
  format: 'text' | 'jsonl' | 'bin'
  compression: 'none' | 'gzip' | 'zstd'
}

/** Something wrong with the data that does not end the run. */
export interface DataWarning {
  /** The file it is about. */
  file: string
  /** The line in it, counted from 1; undefined where it is about the whole file. */
  line?: number
  message: string
}

const KNOWN = '.txt, .jsonl (both also .gz or .zst) or .bin'

/** How to read a file of this name; undefined for a name that says nothing. */
export function formatOf(path: string): DataFile | undefined {
  const match = /\.(txt|jsonl|bin)(?:\.(gz|zst))?$/i.exec(path)
  if (!match) return undefined
  const extension = match[1].toLowerCase()
  const packed = match[2]?.toLowerCase()
  if (extension === 'bin') return packed ? undefined : { path, format: 'bin', compression: 'none' }
  const compression = packed === 'gz' ? 'gzip' : packed === 'zst' ? 'zstd' : 'none'
  return { path, format: extension === 'txt' ? 'text' : 'jsonl', compression }
}

/**
 * The data files that `patterns` name: files, directories (all known files below, hidden ones left out) and globs
 * (`*`, `?`, `**`, `[a-z]`, `{a,b}`). Patterns keep their order; what one pattern names is sorted by path.
 *
 * Throws ERR_FILE for what does not exist or can't be read, ERR_DATA for a file of unknown kind or a pattern without any data file,
 * ERR_ARGUMENT for what is no list of texts.
 */
export async function findDataFiles(patterns: readonly string[]): Promise<DataFile[]> {
  if (!Array.isArray(patterns) || patterns.some(pattern => typeof pattern !== 'string'))
    throw new TrainCoreError('ERR_ARGUMENT', `[data] files must be a list of paths; got ${JSON.stringify(patterns)}`)
  const found: DataFile[] = []
  for (const pattern of patterns) found.push(...(await expand(pattern)))
  if (found.length === 0) throw new TrainCoreError('ERR_DATA', '[data] at least one data file is wanted; got none')
  return found
}

async function expand(pattern: string): Promise<DataFile[]> {
  const info = await stat(pattern).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return undefined
    throw fileError(`[data] cannot open ${pattern}`, error)
  })
  if (info?.isFile()) {
    const file = formatOf(pattern)
    if (file) return [file]
    throw new TrainCoreError('ERR_DATA', `[data] a file of kind ${KNOWN} is wanted; got ${pattern}`)
  }
  if (info?.isDirectory()) return known(await walk(pattern), `the directory ${pattern}`)
  if (!info && /[*?[{]/.test(pattern))
    return known(await matching(pattern.replace(/\/+/g, '/')), `the pattern ${pattern}`)
  throw new TrainCoreError('ERR_FILE', `[data] there is no file or directory ${pattern}`)
}

/** The files that a glob matches, of any kind. */
async function matching(glob: string): Promise<string[]> {
  const { base, depth } = globBase(glob)
  const paths = await walk(base || '.', depth).catch((error: TrainCoreError) => {
    if (['ENOENT', 'ENOTDIR'].includes((error.cause as NodeJS.ErrnoException)?.code ?? '')) return []
    throw error
  })
  const regExp = globToRegExp(glob)
  return paths.map(path => (base ? path : path.slice(2))).filter(path => regExp.test(path))
}

function known(paths: string[], where: string): DataFile[] {
  const files = paths.map(formatOf).filter(file => file !== undefined)
  if (files.length === 0) throw new TrainCoreError('ERR_DATA', `[data] ${where} has no file of kind ${KNOWN}`)
  return files
}

/** Files at most `depth` folders below `dir`, sorted, hidden files and folders left out. A link to a folder is not followed. */
async function walk(dir: string, depth = Number.POSITIVE_INFINITY): Promise<string[]> {
  const paths: string[] = []
  const entries = await readdir(dir, { withFileTypes: true }).catch((cause: unknown) => {
    throw fileError(`[data] cannot read the folder ${dir}`, cause)
  })
  for (const entry of entries) {
    if (entry.name.startsWith('.')) continue
    const path = dir === '/' ? `/${entry.name}` : `${dir.replace(/[/\\]+$/, '')}${sep}${entry.name}`
    if (entry.isDirectory()) {
      if (depth > 0) paths.push(...(await walk(path, depth - 1)))
    } else if (entry.isFile() || (entry.isSymbolicLink() && (await stat(path).catch(() => undefined))?.isFile()))
      paths.push(path)
  }
  return paths.sort((a, b) => (a < b ? -1 : a > b ? 1 : 0))
}

/** The folders of a glob before its first wildcard (empty: the working directory), and how many folders below them it can reach. */
function globBase(pattern: string): { base: string; depth: number } {
  const parts = pattern.split('/')
  const first = parts.findIndex(part => /[*?[{]/.test(part))
  const base = parts.slice(0, first).join('/') || (first > 0 ? '/' : '')
  return { base, depth: pattern.includes('**') ? Number.POSITIVE_INFINITY : parts.length - first - 1 }
}

/** A glob as a regular expression over whole paths. */
export function globToRegExp(glob: string): RegExp {
  let source = ''
  let depth = 0
  for (let i = 0; i < glob.length; i++) {
    const char = glob[i]
    if (glob.startsWith('**/', i)) {
      source += '(?:[^/]+/)*'
      i += 2
    } else if (char === '*') {
      source += glob[i + 1] === '*' ? '.*' : '[^/]*'
      if (glob[i + 1] === '*') i++
    } else if (char === '?') source += '[^/]'
    else if (char === '[' && glob.indexOf(']', i + 2) > 0) {
      const end = glob.indexOf(']', i + 2)
      source += `[${glob
        .slice(i + 1, end)
        .replace(/^!/, '^')
        .replace(/[\\[]/g, '\\$&')}]`
      i = end
    } else if (char === '{' && glob.indexOf('}', i) > 0) {
      source += '(?:'
      depth++
    } else if (char === '}' && depth > 0) {
      source += ')'
      depth--
    } else if (char === ',' && depth > 0) source += '|'
    else source += char.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')
  }
  return new RegExp(`^${source}$`)
}
