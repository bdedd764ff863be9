// scripts/setup.mjs: what it finds out of date, and what it says where something is missing. CMake is a stand-in here
// that notes its calls: the real build is what every other test runs on.
import assert from 'node:assert/strict'
import {
  appendFileSync,
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { findExecutable, stage } from '../pack/package.js'
import { type Ended, root, runNode } from './run-node.js'

const temporary = mkdtempSync(path.join(tmpdir(), 'train-core-setup-'))
const clone = path.join(temporary, 'clone')
const [bin, log] = [path.join(temporary, 'bin'), path.join(temporary, 'log')]
const addon = path.join(clone, 'build/Release/train_core.node')
after(() => rmSync(temporary, { recursive: true }))

function standIn(name: string): void {
  writeFileSync(
    path.join(bin, name),
    `#!/bin/sh\necho "${name} $*" >> ${log}\n[ "$1" = --version ] && echo 3.25.1; exit 0\n`,
  )
  chmodSync(path.join(bin, name), 0o755)
}

before(() => {
  stage(clone)
  mkdirSync(bin)
  for (const tool of ['sh', 'env']) symlinkSync(findExecutable(tool), path.join(bin, tool))
  symlinkSync(process.execPath, path.join(bin, 'node'))
})

/** Runs it; `tools` says what it called: the compiler driver, or nothing. */
async function setup(options: string[] = []): Promise<Ended & { built: boolean }> {
  writeFileSync(log, '')
  const env = { PATH: bin, CXX: undefined, npm_execpath: undefined }
  const ended = await runNode([...options, path.join(clone, 'scripts/setup.mjs')], { cwd: temporary, env })
  return { ...ended, built: /^cmake --build/m.test(readFileSync(log, 'utf8')) }
}

test('without CMake, make and a compiler: one sentence that says so and how to get them', async () => {
  const { code, stdout, stderr } = await setup()
  assert.deepEqual([code, stdout], [1, ''])
  const [first, second, ...rest] = stderr.split('\n')
  assert.match(first!, /^train-core: building the native addon \(the first time takes a minute or two\)$/)
  assert.match(
    second!,
    /^train-core: building for \S+ needs CMake \(>= 3\.19\) and a C\+\+20 compiler and make, not found here; .*install/,
  )
  assert.deepEqual(rest, [''])
  for (const tool of ['cmake', 'make']) standIn(tool)
  assert.match((await setup()).stderr, /needs a C\+\+20 compiler, not found here/)
})

test('a fresh clone is built; then nothing is done; then what changed', async () => {
  for (const tool of ['cmake', 'make', 'g++']) standIn(tool)
  mkdirSync(path.dirname(addon), { recursive: true })
  cpSync(path.join(root, 'build/Release/train_core.node'), addon)
  const first = await setup()
  assert.deepEqual([first.code, first.built], [0, true], first.stderr)

  const start = performance.now()
  assert.deepEqual(await setup(), { code: 0, signal: null, stdout: '', stderr: '', built: false })
  const seconds = (performance.now() - start) / 1000
  assert.ok(seconds < 5, `${seconds} s`) // 0.1 s on a machine that does nothing else

  appendFileSync(path.join(clone, 'csrc/op.h'), '\n')
  assert.equal((await setup()).built, true, 'a changed source is built')
  assert.equal((await setup()).built, false)
  rmSync(path.join(clone, 'csrc/cpu/sample.cc'))
  assert.equal((await setup()).built, true, 'a source that went away is noticed')
  rmSync(addon)
  assert.equal((await setup()).built, true, 'a binary that went away is noticed')
  cpSync(path.join(root, 'build/Release/train_core.node'), addon)

  const [source, gone] = ['dist/lib/added.js', 'dist/lib/gone.js'].map(name => path.join(clone, name))
  writeFileSync(path.join(clone, 'lib/added.ts'), 'export const added = 1\n')
  writeFileSync(gone!, '')
  assert.equal((await setup()).built, false, 'TypeScript alone')
  assert.deepEqual([existsSync(source!), existsSync(gone!)], [true, false])
})

test('an error of the TypeScript compiler is shown and ends it, and is not forgotten', async () => {
  writeFileSync(path.join(clone, 'lib/added.ts'), 'export const added: string = 1\n')
  for (let k = 0; k < 2; k++) {
    const { code, stderr } = await setup()
    assert.notEqual(code, 0)
    assert.match(stderr, /added\.ts.*TS2322/)
  }
  rmSync(path.join(clone, 'lib/added.ts'))
})

test('a node that is too old is told so', async () => {
  const old =
    'data:text/javascript,Object.defineProperty(process,"versions",{value:{...process.versions,node:"20.18.3"}})'
  const { code, stderr } = await setup(['--import', old])
  assert.equal(code, 1)
  assert.match(
    stderr,
    /^train-core: node \^20\.19\.0 \|\| >=22\.12\.0 is needed; this is \S+\. Get it from https:\/\/nodejs\.org\n$/,
  )
})

test('packages that do not fit the lock file: a link to them is left alone, with a sentence', async () => {
  const lock = path.join(clone, 'package-lock.json')
  writeFileSync(lock, readFileSync(lock, 'utf8').replace('"version": "4.8.4"', '"version": "4.8.5"'))
  const { code, stderr } = await setup()
  assert.equal(code, 1)
  assert.match(
    stderr,
    /^train-core: node_modules is a link to a folder that does not fit package-lock\.json; run npm ci where it points\n$/,
  )
})

test('missing packages are installed with npm ci', async () => {
  rmSync(path.join(clone, 'node_modules'))
  standIn('npm')
  await setup()
  assert.match(readFileSync(log, 'utf8'), /^npm ci --no-audit --no-fund$/m)
})
