// A file of results: found unwritable before anything is measured, and never half written.
import { closeSync, openSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'

/** @throws Error naming the option of a file that can't be written; undefined is no file */
export function checkWritable(option: string, file: string | undefined): void {
  if (file === undefined) return
  try {
    if (file === '') throw new Error('a name is wanted')
    if (statSync(file, { throwIfNoEntry: false })?.isDirectory()) throw new Error('it is a folder')
    closeSync(openSync(`${file}.part`, 'w'))
    rmSync(`${file}.part`)
  } catch (error) {
    throw new Error(`--${option} ${file} can't be written: ${(error as Error).message}`)
  }
}

export function writeResults(file: string, text: string): void {
  writeFileSync(`${file}.part`, text)
  renameSync(`${file}.part`, file)
}
