// From `npm pack` to a user's first product, on a machine without a compiler.
import assert from 'node:assert/strict'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { root, runNode } from '../process/run-node.js'
import { bareBin, install, pack, prebuiltName, runBare, stage } from './package.js'

const temporary = mkdtempSync(path.join(tmpdir(), 'train-core-pack-'))
const [staged, user] = [path.join(temporary, 'staged'), path.join(temporary, 'user')]
const bin = bareBin(path.join(temporary, 'bin'))
let tarball: string
let files: string[]

before(async () => {
  stage(staged)
  mkdirSync(path.dirname(path.join(staged, prebuiltName)), { recursive: true })
  cpSync(path.join(root, 'build/Release/train_core.node'), path.join(staged, prebuiltName))
  const cuda = path.join(root, 'build/Release/train_core_cuda.so')
  if (existsSync(cuda)) cpSync(cuda, path.join(staged, path.dirname(prebuiltName), path.basename(cuda)))
  ;({ tarball, files } = await pack(staged))
  await install(tarball, user, bin)
})
after(() => rmSync(temporary, { recursive: true }))

const product = `Tensor.from([1, 2, 3, 4], [2, 2]), Tensor.from([5, 6, 7, 8], [2, 2])`

test('the tarball holds what runs and what builds, nothing else, in less than 12 MB', () => {
  const allowed =
    /^(package\.json|README\.md|LICENSE|CMakeLists\.txt|csrc\/.*|scripts\/build-native\.mjs|prebuilds\/[\w-]+\/(train-core\.node|train_core_cuda\.so)|dist\/lib\/.*\.(js|d\.ts))$/
  assert.deepEqual(
    files.filter(file => !allowed.test(file)),
    [],
  )
  const sources = readdirSync(path.join(root, 'lib'), { recursive: true }).map(String)
  for (const source of sources.filter(file => file.endsWith('.ts')))
    for (const ending of ['.js', '.d.ts'])
      assert.ok(files.includes(`dist/lib/${source.replace(/\.ts$/, ending)}`), `dist/lib of lib/${source}`)
  for (const needed of [
    'csrc/addon.cc',
    'csrc/ops.def',
    'csrc/addon.exports',
    'LICENSE',
    'CMakeLists.txt',
    prebuiltName,
  ])
    assert.ok(files.includes(needed), needed)
  assert.ok(statSync(tarball).size < 12e6, `${statSync(tarball).size} bytes`)
})

test('installed without a compiler, it multiplies: import and require', async () => {
  for (const source of [
    `import('train-core/kernels').then(async ({ matmul, Tensor }) => console.log(...(await matmul(${product}).read())))`,
    `const { matmul, Tensor } = require('train-core/kernels'); console.log(...matmul(${product}).readSync())`,
  ]) {
    const ended = await runBare(user, 'node', ['--input-type=commonjs', '-e', source], bin)
    assert.deepEqual([ended.code, ended.stdout], [0, '19 22 43 50\n'], ended.stderr)
  }
  assert.ok(!existsSync(path.join(user, 'node_modules/train-core/build')), 'nothing was compiled')
})

test('npx train-core ops --json lists every op', async () => {
  const npx = path.join(user, 'node_modules/.bin/train-core')
  const ended = await runBare(user, npx, ['ops', '--json'], bin)
  assert.equal(ended.code, 0, ended.stderr)
  const { ops } = JSON.parse(ended.stdout) as { ops: { name: string; cpu: string }[] }
  assert.equal(ops.find(op => op.name === 'matmul')?.cpu, 'yes')
  assert.ok(ops.length > 20, `${ops.length} ops`)
})

test("a user's strict TypeScript finds the types of both entries", async () => {
  writeFileSync(
    path.join(user, 'user.ts'),
    `import { GPT2, TrainCoreError } from 'train-core'
import { matmul, Tensor } from 'train-core/kernels'
const c: Tensor = matmul(${product})
export const all: Promise<Float32Array> = c.toFloat32()
export const load: Promise<GPT2> = GPT2.load('folder', { device: 'cpu' })
// @ts-expect-error a number is no tensor
matmul(1, c)
export const code = (error: TrainCoreError): string => error.code
`,
  )
  const options = ['--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2023', '--skipLibCheck', 'false']
  const types = ['--typeRoots', path.join(root, 'node_modules/@types'), '--types', 'node']
  const tsc = path.join(root, 'node_modules/typescript/bin/tsc')
  const ended = await runNode([tsc, ...options, ...types, 'user.ts'], { cwd: user })
  assert.deepEqual([ended.code, ended.stdout], [0, ''])
})
