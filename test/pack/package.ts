// Packs this repository and installs the tarball as a user would: in a folder of its own, without compiler and network.
import { createHash } from 'node:crypto'
import {
  accessSync,
  constants,
  cpSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { type Ended, root, runCommand, runNode } from '../process/run-node.js'

type LockEntry = Record<string, unknown>

/** A file that an executable of PATH is in the end, e.g. npm's npm-cli.js. */
export function findExecutable(name: string): string {
  for (const folder of (process.env.PATH ?? '').split(path.delimiter))
    try {
      const file = path.join(folder, name)
      accessSync(file, constants.X_OK)
      return realpathSync(file)
    } catch {}
  throw new Error(`${name} is not in PATH`)
}

/** Copies the repository without what is built or installed, but with dist and a link to node_modules. */
export function stage(folder: string): void {
  const apart = new Set(
    ['.git', 'node_modules', 'build', 'prebuilds', 'runs', 'shared'].map(name => path.join(root, name)),
  )
  cpSync(root, folder, { recursive: true, filter: source => !apart.has(source) })
  symlinkSync(realpathSync(path.join(root, 'node_modules')), path.join(folder, 'node_modules'))
}

/** Where prebuildify puts the addon of this platform. */
export const prebuiltName: string = `prebuilds/${process.platform}-${process.arch}/train-core.node`

/** `npm pack` in a staged folder; the tarball, and the names of its files. */
export async function pack(folder: string): Promise<{ tarball: string; files: string[] }> {
  const packed = await npm(folder, ['pack', '--ignore-scripts', '--json', '--offline'])
  if (packed.code !== 0) throw new Error(`npm pack: ${packed.stderr.slice(0, 2000)}`)
  const [report] = JSON.parse(packed.stdout) as [{ filename: string; files: { path: string }[] }]
  return { tarball: path.join(folder, report.filename), files: report.files.map(file => file.path) }
}

/** Runs npm; `bin` as {@link bareBin} makes it. */
export function npm(cwd: string, args: readonly string[], bin?: string, minutes?: number): Promise<Ended> {
  return runNode([findExecutable('npm'), ...args], { cwd, minutes, env: environment(bin) })
}

/** Runs a command with nothing in PATH but what is in `bin`. */
export function runBare(cwd: string, command: string, args: readonly string[], bin: string): Promise<Ended> {
  return runCommand(command, args, { cwd, env: environment(bin) })
}

// Without what npm tells its scripts: `npm test` must not reach into the npm that is tested.
function environment(bin?: string): NodeJS.ProcessEnv {
  const env: NodeJS.ProcessEnv = {}
  for (const name in process.env)
    if (/^npm_/i.test(name) && !/^npm_config_(cache|registry)$/i.test(name)) env[name] = undefined
  return bin ? { ...env, PATH: bin } : env
}

/** A folder for PATH with node and a shell, no compiler and no cmake. */
export function bareBin(folder: string): string {
  mkdirSync(folder)
  symlinkSync(process.execPath, path.join(folder, 'node'))
  symlinkSync(findExecutable('sh'), path.join(folder, 'sh'))
  return folder
}

/**
 * Installs the tarball into an empty folder with `npm ci` and a lock file made from this repository's: the same versions
 * of the dependencies, which npm has in its cache since it installed them here. (With a lock file npm does not look at
 * `gypfile: false`: it compiles every package that has a binding.gyp. So the tarball has none.)
 */
export async function install(tarball: string, folder: string, bin: string): Promise<void> {
  mkdirSync(folder)
  const name = path.basename(tarball)
  cpSync(tarball, path.join(folder, name))
  const lockText = readFileSync(path.join(root, 'package-lock.json'), 'utf8')
  const { packages } = JSON.parse(lockText) as { packages: Record<string, LockEntry> }
  const { '': self, ...others } = packages
  const { devDependencies: _, ...own } = self!
  const integrity = `sha512-${createHash('sha512').update(readFileSync(tarball)).digest('base64')}`
  const user = { name: 'user', version: '1.0.0', dependencies: { 'train-core': `file:${name}` } }
  const lock = {
    name: 'user',
    version: '1.0.0',
    lockfileVersion: 3,
    packages: {
      '': user,
      ...Object.fromEntries(Object.entries(others).filter(([, entry]) => !entry.dev && !entry.devOptional)),
      'node_modules/train-core': { ...own, name: undefined, resolved: `file:${name}`, integrity },
    },
  }
  writeFileSync(path.join(folder, 'package.json'), JSON.stringify(user))
  writeFileSync(path.join(folder, 'package-lock.json'), JSON.stringify(lock))
  const installed = await npm(folder, ['ci', '--prefer-offline', '--no-audit', '--no-fund'], bin)
  if (installed.code !== 0) throw new Error(`npm ci: ${installed.stderr.slice(0, 2000)}`)
}
