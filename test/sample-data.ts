import { existsSync } from 'node:fs'
import { join } from 'node:path'

/**
 * Real sample data that is not part of the repository: the folder `../shared/data` beside the project's root, or the
 * one that TRAIN_CORE_DATA names. Tests that use it skip, with a printed reason, where it is absent.
 */
export const sampleDataFolder: string = process.env.TRAIN_CORE_DATA ?? join(import.meta.dirname, '../../../shared/data')

/**
 * Options for `test(name, options, fn)` that skip it unless all `paths` (relative to the sample-data folder) are here.
 * A file that is here but can't be read fails its test.
 */
export function withSampleData(...paths: string[]): { skip: string | false } {
  const missing = paths.find(path => !existsSync(sampleDataPath(path)))
  if (missing === undefined) return { skip: false }
  const reason = `skipped: ../shared/data/${missing} is not here (real sample data, see CONTRIBUTING)`
  console.log(reason)
  return { skip: reason }
}

/** The path of one sample-data file. */
export function sampleDataPath(path: string): string {
  return join(sampleDataFolder, path)
}
