// What happens on a Mac whose GPU does not do what train-core's kernels take for granted: the emulator with some kernels made wrong.
import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { device } from '../../lib/device.js'
import { packageRoot } from '../../lib/native-loader.js'
import { matmul } from '../../lib/ops/matmul.js'
import { Tensor } from '../../lib/tensor.js'
import { runNode } from '../process/run-node.js'
import { emulatorReason } from './emulated.js'
import { emulatorWith } from './rebuild.js'

/** A child's report: what opening the device came to, and a product of two ones. */
interface Opened {
  code?: string
  message?: string
  plain?: Record<string, string>
  product?: number
}

async function open(): Promise<Opened> {
  try {
    const metal = device('metal')
    const plain = Object.fromEntries(metal.info().variants.map(each => [each.family, each.plainBecause]))
    const ones = Tensor.from(new Float32Array(64 * 64).fill(1), [64, 64], { device: metal })
    return { plain, product: (await matmul(ones, ones).read())[0]! }
  } catch (error) {
    const { code, message } = error as { code: string; message: string }
    return { code, message }
  }
}

// Parts of matmul.metal: of the kernel on simdgroup_matrix, of the plain one, and of both.
const MATRIX = ['q < BK; q += 8', 'q + 8 < BK; q += 8'] as const
const PLAIN = ['q < SIDE; q++) sum +=', 'q + 1 < SIDE; q++) sum +='] as const
const NORM = ['simd_sum(squares)', 'simd_max(squares)'] as const

if (process.env.TRAIN_CORE_FIRST_USE) process.stdout.write(`RESULT ${JSON.stringify(await open())}\n`)
else
  describe('the first use of a Metal device', { skip: emulatorReason() }, () => {
    test('says nothing where all is right, and is remembered', async () => {
      await inFolder(async folder => {
        const first = await child(folder)
        assert.deepEqual([first.product, first.plain!.matmul, first.stderr], [64, '', ''])
        const kept = path.join(folder, 'self-test')
        const [file, ...others] = readdirSync(kept)
        assert.deepEqual(others, [])
        assert.equal(readFileSync(path.join(kept, file!), 'utf8'), '{}')
        // Were it tested again, this would not be believed.
        writeFileSync(path.join(kept, file!), '{"matmul":"a remembered mistake"}')
        const second = await child(folder)
        assert.match(second.stderr, /a remembered mistake/)
        // Torn: tested again.
        writeFileSync(path.join(kept, file!), '{"matm')
        assert.equal((await child(folder)).stderr, '')
        assert.equal(readFileSync(path.join(kept, file!), 'utf8'), '{}')
      })
    })

    test('takes the plain kernels where those on simdgroup_matrix are wrong, and says so in one line', async () => {
      await inFolder(async folder => {
        const env = { TRAIN_CORE_METAL_EMULATOR: await changed(folder, 'matmul', [MATRIX]) }
        const { stderr, plain, product } = await child(folder, env)
        assert.match(
          stderr,
          /^train-core: metal: plain kernels for matmul \(its other kernels are wrong here: matmul f32: output 0 at \[\d+\]: got \S+, want \S+\)\n$/,
        )
        assert.match(plain!.matmul!, /wrong here/)
        assert.equal(product, 64)
        // The next process does not test again, and says it too.
        assert.equal((await child(folder, env)).stderr, stderr)
        assert.equal((await child(folder, { ...env, TRAIN_CORE_METAL_PLAIN: '1' })).stderr, '')
        assert.notEqual((await child(folder, { ...env, TRAIN_CORE_METAL_SELF_TEST: '0' })).product, 64)
      })
    })

    test('takes the plain attention where the elements of a matrix lie in other lanes than assumed', async () => {
      await inFolder(async folder => {
        const { stderr, plain } = await child(folder, { TRAIN_CORE_METAL_LAYOUT: 'other' })
        assert.match(
          stderr,
          /^train-core: metal: plain kernels for attention \(its other kernels are wrong here: attention_forward \(causal\) f32: .*\)\n$/,
        )
        assert.deepEqual(
          Object.keys(plain!).filter(family => plain![family]),
          ['attention'],
        )
      })
    })

    for (const [what, family, changes, says] of [
      ['both kernels of a family', 'matmul', [MATRIX, PLAIN], /matmul f32: output 0 at /],
      ['kernels that have no others', 'norm', [NORM], /layernorm_forward f32: output 0 at /],
    ] as const)
      test(`is an error where ${what} are wrong`, async () => {
        await inFolder(async folder => {
          const env = { TRAIN_CORE_METAL_EMULATOR: await changed(folder, family, changes) }
          const { code, message, stderr } = await child(folder, env)
          assert.equal(code, 'ERR_DEVICE')
          assert.match(message!, /^metal: its self-test fails: /)
          assert.match(message!, says)
          assert.match(
            message!,
            /; help: use --device cpu; npx train-core doctor --device metal shows more, for a report$/,
          )
          assert.equal(stderr, '')
          assert.ok(!existsSync(path.join(folder, 'self-test')), 'a failure is not remembered')
          if (family === 'matmul') return
          const doctor = await runNode(['dist/lib/cli/main.js', 'doctor', '--device', 'metal', '--quiet'], {
            cwd: packageRoot(),
            env: { TRAIN_CORE_METAL: 'emulator', TRAIN_CORE_CACHE: folder, ...env },
          })
          assert.equal(doctor.code, 1)
          assert.match(doctor.stdout, /^metal: its self-test fails: /m)
          assert.match(doctor.stdout, /FAILED: output 0 at /)
        })
      })

    const stub = path.join(packageRoot(), 'build/Release/train_core_metal_stub.so')
    test('names a GPU without simdgroup_matrix', { skip: !existsSync(stub) && 'no gobjc++ or GNUstep' }, async () => {
      await inFolder(async folder => {
        const env = { TRAIN_CORE_METAL_EMULATOR: stub, TRAIN_CORE_METAL_STUB: 'family=1006' }
        const { stderr, product } = await child(folder, env)
        assert.match(stderr, /^train-core: metal: plain kernels for matmul \(the GPU has no simdgroup_matrix\).*\n$/)
        assert.equal(product, 64)
      })
    })
  })

async function inFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(path.join(tmpdir(), 'train-core-first-use-'))
  try {
    await body(folder)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** A library of the emulator whose kernels of a family are changed. */
function changed(folder: string, family: string, changes: readonly (readonly [string, string])[]): Promise<string> {
  let text = readFileSync(path.join(packageRoot(), 'csrc/metal', `${family}.metal`), 'utf8')
  for (const [was, put] of changes) {
    assert.ok(text.includes(was), `"${was}" is in ${family}.metal`)
    text = text.replaceAll(was, put)
  }
  return emulatorWith(family, text, folder)
}

/** Opens the device in a process of its own, with `folder` as the cache. */
async function child(folder: string, env: Record<string, string> = {}): Promise<Opened & { stderr: string }> {
  const all = { TRAIN_CORE_METAL: 'emulator', TRAIN_CORE_METAL_SELF_TEST: '1', TRAIN_CORE_CACHE: folder, ...env }
  const ended = await runNode([fileURLToPath(import.meta.url)], { env: { ...all, TRAIN_CORE_FIRST_USE: '1' } })
  const text = /^RESULT (.*)$/m.exec(ended.stdout)?.[1]
  assert.ok(text, `the child ended without a result: ${ended.stdout}${ended.stderr}`)
  return { ...(JSON.parse(text) as Opened), stderr: ended.stderr }
}
