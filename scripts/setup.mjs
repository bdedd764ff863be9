// Installs and builds what is missing or older than its sources. `npm start`, `npm test` and `npm run bench` begin with
// it, so a fresh clone needs no other step; nothing changed: 0.1 s. All output goes to stderr: stdout is the command's own.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const at = (...parts) => path.join(root, ...parts)
const readJson = file => JSON.parse(readFileSync(file, 'utf8'))

/**
 * Brings node_modules, the native addon and dist/ up to date; ends the process with a message when it can't.
 *
 * @param tests build the libraries that only tests load too
 */
export function setup({ tests = false } = {}) {
  checkNode()
  if (!installed()) install()
  const stamps = readStamps()
  const { TRAIN_CORE_CUDA, CXX, CUDACXX } = process.env
  const native = fingerprint(
    [
      'csrc',
      'test/metal-emu',
      'test/cuda-emu',
      'test/cuda-stub',
      'CMakeLists.txt',
      'package.json',
      'scripts/build-native.mjs',
    ],
    [TRAIN_CORE_CUDA, CXX, CUDACXX],
  )
  const target = tests ? 'all' : 'addon'
  const fits = stamps.native === native && (stamps.target === 'all' || stamps.target === target)
  if (!fits || !existsSync(at('build/Release/train_core.node'))) {
    say(`building the native addon${existsSync(at('build/cmake')) ? '' : ' (the first time takes a minute or two)'}`)
    step(process.execPath, [at('scripts/build-native.mjs'), `--target=${target}`])
    Object.assign(stamps, { native, target })
    writeStamps(stamps)
  }
  const ts = fingerprint(['lib', 'test', 'bench', 'tsconfig.json', 'package-lock.json'])
  if (stamps.ts !== ts || !existsSync(at('dist/lib'))) {
    step(process.execPath, [at('node_modules/typescript/bin/tsc'), '-p', root])
    removeOrphans(at('dist'))
    writeStamps({ ...stamps, ts })
  }
}

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major > 22 || (major === 22 && minor >= 12) || (major === 20 && minor >= 19)) return
  stop(
    `node ${readJson(at('package.json')).engines.node} is needed; this is ${process.version}. Get it from https://nodejs.org`,
  )
}

// Everything that package-lock.json asks of this platform is in node_modules, in that version.
function installed() {
  const hidden = at('node_modules/.package-lock.json')
  if (!existsSync(hidden)) return false
  const present = readJson(hidden).packages
  return Object.entries(readJson(at('package-lock.json')).packages).every(
    ([name, wanted]) => name === '' || (present[name] ? present[name].version === wanted.version : wanted.optional),
  )
}

function install() {
  if (lstatSync(at('node_modules'), { throwIfNoEntry: false })?.isSymbolicLink())
    stop('node_modules is a link to a folder that does not fit package-lock.json; run npm ci where it points')
  say('installing packages')
  const npm = process.env.npm_execpath
  const flags = ['ci', '--no-audit', '--no-fund']
  if (npm?.endsWith('.js')) step(process.execPath, [npm, ...flags])
  else step('npm', flags)
}

// Names, sizes and times of all files: also notices a file that went away or became older.
function fingerprint(sources, extra = []) {
  const hash = createHash('sha256').update(JSON.stringify(extra))
  const visit = name => {
    const info = statSync(at(name), { throwIfNoEntry: false })
    if (info?.isDirectory()) for (const entry of readdirSync(at(name)).sort()) visit(`${name}/${entry}`)
    else if (info) hash.update(`${name} ${info.size} ${info.mtimeMs}\n`)
  }
  for (const source of sources) visit(source)
  return hash.digest('hex')
}

const stampFile = at('build/setup.json')
function readStamps() {
  try {
    return readJson(stampFile)
  } catch {
    return {}
  }
}
function writeStamps(stamps) {
  mkdirSync(at('build'), { recursive: true })
  writeFileSync(stampFile, JSON.stringify(stamps))
}

// tsc leaves the output of a source that was removed or renamed.
function removeOrphans(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const file = path.join(folder, entry.name)
    const source = at(path.relative(at('dist'), file))
    if (entry.isDirectory()) {
      if (existsSync(source)) removeOrphans(file)
      else rmSync(file, { recursive: true })
    } else if (/\.(js|d\.ts)(\.map)?$/.test(file) && !existsSync(source.replace(/\.(js|d\.ts)(\.map)?$/, '.ts')))
      rmSync(file)
  }
}

// Quiet unless it fails.
function step(command, args) {
  const options = { cwd: root, stdio: ['ignore', 'pipe', 'pipe'], encoding: 'utf8', maxBuffer: 1 << 28 }
  const { status, error, stdout, stderr } = spawnSync(command, args, options)
  if (error) stop(`${command} could not be run: ${error.message}`)
  if (status === 0) return
  process.stderr.write(stdout + stderr)
  process.exit(status ?? 1)
}
function say(text) {
  process.stderr.write(`train-core: ${text}\n`)
}
function stop(text) {
  say(text)
  process.exit(1)
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) setup()
