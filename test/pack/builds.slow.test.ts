// Whatever starts the build builds the same addon: node-gyp, prebuildify, cmake-js, cmake alone (a user's machine).
import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { type Ended, root, runCommand, runModule } from '../process/run-node.js'
import { bareBin, install, npm, pack, prebuiltName, stage } from './package.js'

const minutes = 15 // a build alone takes one on two cores
const temporary = mkdtempSync(path.join(tmpdir(), 'train-core-builds-'))
const staged = path.join(temporary, 'staged')
const built = path.join(staged, 'build/Release/train_core.node')

before(() => stage(staged))
after(() => rmSync(temporary, { recursive: true }))

// The addon in that file multiplies, in the package of this repository (so it has its version too).
async function works(binary: string): Promise<void> {
  const source = `
    import { matmul, Tensor } from 'train-core/kernels'
    console.log(...matmul(Tensor.from([1, 2, 3, 4], [2, 2]), Tensor.from([5, 6, 7, 8], [2, 2])).readSync())`
  const ended = await runModule(source, { env: { TRAIN_CORE_BINARY: binary } })
  assert.deepEqual([ended.code, ended.stdout], [0, '19 22 43 50\n'], ended.stderr)
}

function succeeded({ code, stdout, stderr }: Ended): void {
  assert.equal(code, 0, (stdout + stderr).slice(-3000))
}

test('cmake-js', async () => {
  const cmakeJs = path.join(root, 'node_modules/cmake-js/bin/cmake-js')
  succeeded(
    await runCommand(process.execPath, [cmakeJs, 'compile', '-O', 'build/cmake', '-T', 'addon'], {
      cwd: staged,
      minutes,
    }),
  )
  await works(built)
})

test('node-gyp rebuild', async () => {
  rmSync(built, { force: true })
  // `build` and not `rebuild`, which would take CMake's tree with it; prebuildify's is a rebuild
  const args = ['exec', '--offline', '--call', 'node-gyp configure build'] // npm has a node-gyp of its own in PATH
  succeeded(await npm(staged, args, undefined, minutes))
  await works(built)
  const addons = readdirSync(path.dirname(built)).filter(file => file.endsWith('.node'))
  assert.deepEqual(addons, ['train_core.node'], 'node-gyp-build takes the first .node that it finds')
})

test('prebuildify, npm pack, npm ci, npx train-core build without cmake-js', async () => {
  succeeded(await npm(staged, ['run', 'prebuildify'], undefined, minutes))
  await works(path.join(staged, prebuiltName))
  const others = readdirSync(path.dirname(path.join(staged, prebuiltName))).filter(file => file !== 'train-core.node')
  assert.deepEqual(
    others.filter(file => file !== 'train_core_cuda.so'),
    [],
    'nothing of the tests is shipped',
  )
  const { tarball } = await pack(staged)
  const user = path.join(temporary, 'user')
  await install(tarball, user, bareBin(path.join(temporary, 'bin')))
  const installed = path.join(user, 'node_modules/train-core')
  await works(path.join(installed, prebuiltName))

  assert.ok(!existsSync(path.join(user, 'node_modules/cmake-js')))
  succeeded(await runCommand(path.join(user, 'node_modules/.bin/train-core'), ['build'], { cwd: user, minutes }))
  await works(path.join(installed, 'build/Release/train_core.node'))
})
