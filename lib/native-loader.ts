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

/** The file of the native addon: what TRAIN_CORE_BINARY names, else the local build, else the prebuilt binary that fits. @throws Error when there is none */
export function bindingPath(): string {
  const named = process.env.TRAIN_CORE_BINARY
  const find = require('node-gyp-build') as { path(folder: string): string }
  return named ? path.resolve(named) : find.path(packageRoot())
}

/**
 * Loads the native addon from {@link bindingPath}.
 *
 * @throws TrainCoreError ERR_DEVICE, saying what is missing and how to build it, or that binary and package differ in version
 */
export function loadBinding(): unknown {
  const root = packageRoot()
  const version = packageVersion()
  const named = process.env.TRAIN_CORE_BINARY
  let binding: { version?: string; bind?: unknown }
  try {
    binding = require(bindingPath()) as typeof binding
  } catch (cause) {
    throw notLoaded(root, version, cause as Error)
  }
  if (typeof binding.bind !== 'function') throw notLoaded(root, version, new Error('it is not a binary of train-core'))
  if (binding.version !== version)
    throw new TrainCoreError(
      'ERR_DEVICE',
      `train-core ${version} loaded a native binary of version ${binding.version}${named ? ` (TRAIN_CORE_BINARY=${named})` : ''}`,
      { help: named ? 'unset TRAIN_CORE_BINARY' : 'rebuild it: npx train-core build' },
    )
  return binding
}

function notLoaded(root: string, version: string, cause: Error): TrainCoreError {
  const where = `on ${process.platform}-${process.arch} (node ${process.version})`
  const reason = cause.message.split('\n')[0]
  const named = process.env.TRAIN_CORE_BINARY
  if (named)
    return new TrainCoreError('ERR_DEVICE', `TRAIN_CORE_BINARY=${named} could not be loaded ${where}: ${reason}`, {
      help: 'unset it, or point it to the train_core.node of this version',
      cause,
    })
  const folder = path.join(root, 'prebuilds')
  const shipped = existsSync(folder) ? readdirSync(folder).join(', ') : 'none'
  return new TrainCoreError(
    'ERR_DEVICE',
    `the native binary of train-core ${version} could not be loaded ${where}: ${reason}; prebuilt binaries in this package: ${shipped}`,
    { help: 'build it here (needs CMake >= 3.19 and a C++20 compiler): npx train-core build', cause },
  )
}
