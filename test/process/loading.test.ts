// How the native binary is found, and what is said when it is not there, not ours, or of another version.
import assert from 'node:assert/strict'
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, test } from 'node:test'
import { root, runModule, runNode } from './run-node.js'

const binary = path.join(root, 'build/Release/train_core.node')
const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as { version: string }
const report = `import('train-core/kernels').then(({ Tensor }) => Tensor.zeros([1])).catch(e => console.log(e.code, e.message))`

const temporary = mkdtempSync(path.join(tmpdir(), 'train-core-loading-'))
after(() => rmSync(temporary, { recursive: true }))

function textFile(name: string, text: string): string {
  const file = path.join(temporary, name)
  writeFileSync(file, text)
  return file
}

/** The folder of a copy of the package without a binary, of the given version. */
function copyOfPackage(version: string): string {
  const folder = mkdtempSync(path.join(temporary, 'package-'))
  cpSync(path.join(root, 'dist/lib'), path.join(folder, 'dist/lib'), { recursive: true })
  const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as Record<string, unknown>
  writeFileSync(path.join(folder, 'package.json'), JSON.stringify({ ...manifest, version }))
  symlinkSync(path.join(root, 'node_modules'), path.join(folder, 'node_modules'))
  return folder
}

test('require() works from CommonJS', async () => {
  const source = `const { Tensor } = require('train-core/kernels'); Tensor.full([2], 3).read().then(x => console.log(...x))`
  const ended = await runNode(['--input-type=commonjs', '-e', source])
  assert.deepEqual([ended.code, ended.stdout], [0, '3 3\n'])
})

test('importing loads no binary: only the first use does', async () => {
  const source = `await import('train-core/kernels'); await import('train-core'); console.log('imported')`
  const ended = await runModule(source, { env: { TRAIN_CORE_BINARY: '/nowhere.node' } })
  assert.deepEqual([ended.code, ended.stdout], [0, 'imported\n'])
})

test('the addon loaded twice in one thread: each has its own tensors', async () => {
  const source = `
    const load = () => { delete require.cache[${JSON.stringify(binary)}]; return require(${JSON.stringify(binary)}) }
    const [one, two] = [load(), load()]
    one.bind(Error); two.bind(Error)
    console.log(one === two, one.openDevice('cpu', 1), two.openDevice('cpu', 1), one.deviceInfo(0).tensors)`
  const ended = await runNode(['--input-type=commonjs', '-e', source])
  assert.deepEqual(ended, { code: 0, signal: null, stdout: 'false 0 0 0\n', stderr: '' })
})

test('a binary of another version is refused with both versions', async () => {
  const folder = copyOfPackage('9.9.9')
  const { stdout } = await runModule(report, { cwd: folder, env: { TRAIN_CORE_BINARY: binary } })
  assert.equal(
    stdout,
    `ERR_DEVICE train-core 9.9.9 loaded a native binary of version ${version} (TRAIN_CORE_BINARY=${binary}); help: unset TRAIN_CORE_BINARY\n`,
  )
})

test('a package without a binary says what is missing and how to build it', async () => {
  const folder = copyOfPackage(version)
  const { stdout } = await runModule(report, { cwd: folder, env: { TRAIN_CORE_BINARY: undefined } })
  const start = `ERR_DEVICE the native binary of train-core ${version} could not be loaded on ${process.platform}-${process.arch}`
  assert.ok(stdout.startsWith(start), stdout)
  assert.match(stdout, /prebuilt binaries in this package: none; help: .*npx train-core build\n$/)
})

test('TRAIN_CORE_BINARY that is no addon is named, with the reason', async () => {
  const nonsense: [string, RegExp][] = [
    ['/nowhere/train_core.node', /Cannot find module/],
    [path.join(root, 'package.json'), /it is not a binary of train-core/],
    [path.join(root, 'LICENSE'), /SyntaxError|Unexpected/],
    [textFile('no.node', 'not a library'), /file too short|invalid ELF|not a mach-o/i],
  ]
  for (const [named, reason] of nonsense) {
    const { code, stdout } = await runModule(report, { env: { TRAIN_CORE_BINARY: named } })
    assert.equal(code, 0)
    assert.match(stdout, reason)
    assert.ok(stdout.startsWith(`ERR_DEVICE TRAIN_CORE_BINARY=${named} could not be loaded on `), stdout)
    assert.match(stdout, /; help: unset it, or point it to the train_core.node of this version\n$/)
  }
})
