import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { TrainCoreError } from './errors.js'

const require = createRequire(import.meta.url)

/** The package's root: the nearest folder above this file whose package.json is train-core's. */
export function packageRoot(): string {
  let folder = path.dirname(fileURLToPath(import.meta.url))
  for (;;) {
    const file = path.join(folder, 'package.json')
    if (existsSync(file) && (JSON.parse(readFileSync(file, 'utf8')) as { name?: string }).name === 'train-core')
      return folder
    const parent = path.dirname(folder)
    if (parent === folder)
      throw new TrainCoreError('ERR_FILE', "train-core's own package.json was not found; help: reinstall it")
    folder = parent
  }
}

/** The version in package.json. */
export function packageVersion(): string {
  return (JSON.parse(readFileSync(path.join(packageRoot(), 'package.json'), 'utf8')) as { version: string }).version
}

/**
 * Loads the native addon: TRAIN_CORE_BINARY where set, else the local build, else the prebuilt binary that fits.
 *
 * @throws TrainCoreError ERR_DEVICE, saying what is missing and how to build it, or that binary and package differ in version
 */
export function loadBinding(): unknown {
  const root = packageRoot()
  const version = packageVersion()
  const find = require('node-gyp-build') as { (folder: string): unknown; path(folder: string): string }
  let binding: { version?: string }
  try {
    const named = process.env.TRAIN_CORE_BINARY
    binding = (named ? require(path.resolve(named)) : find(root)) as { version?: string }
  } catch (cause) {
    const folder = path.join(root, 'prebuilds')
    const shipped = existsSync(folder) ? readdirSync(folder).join(', ') : 'none'
    throw new TrainCoreError(
      'ERR_DEVICE',
      `the native binary of train-core ${version} could not be loaded on ${process.platform}-${process.arch} (node ${process.version}): ` +
        `${(cause as Error).message.split('\n')[0]}; prebuilt binaries in this package: ${shipped}`,
      { help: 'build it here (needs CMake >= 3.19 and a C++20 compiler): npx train-core build', cause },
    )
  }
  if (binding.version !== version)
    throw new TrainCoreError(
      'ERR_DEVICE',
      `train-core ${version} loaded a native binary of version ${binding.version}`,
      {
        help: 'rebuild it: npx train-core build',
      },
    )
  return binding
}
