// csrc/metal/runtime_metal.mm, the one file that calls Metal, compiled as it is and run on a stand-in for Metal's framework (stub/) whose
// dispatches go to the emulator. Object lifetimes, the order of calls, and how errors come out; nothing of Apple's own code.
import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { device } from '../../lib/device.js'
import { native } from '../../lib/native.js'
import { packageRoot } from '../../lib/native-loader.js'
import { NEW, run, Tensor } from '../../lib/tensor.js'
import { all } from '../devices.js'
import { type Ended, runCommand, runNode } from '../process/run-node.js'
import { runEmulated } from './emulated.js'
import { compileAs, objectsOf, run as runTool } from './rebuild.js'

const release = path.join(packageRoot(), 'build/Release')
const stub = path.join(release, 'train_core_metal_stub.so')
const hostTest = path.join(release, 'train_core_metal_host_test')
const skip = existsSync(stub)
  ? false
  : 'runtime_metal.mm is built on Linux only, where there are gobjc++ and libgnustep-base-dev'

/** Lines of runtime_metal.mm, and what stands there instead. The first with every `npm test`, all with TRAIN_CORE_TEST_ALL=1. */
const CHANGES: readonly (readonly [was: string, put?: string])[] = [
  ['[buffer release];'],
  ['[buffer waitUntilCompleted];'],
  ['[encoder_ endEncoding];'],
  ['[encoder_ release];'],
  ['[command_.buffer commit];'],
  ['[buffer->buffer release];'],
  ['[pipeline->state release];', ';'],
  ['[library release];', ';'],
  ['[nothing_ release];'],
  ['[queue_ release];'],
  ['[device_ release];'],
  ['[function release];'],
  ['[device release];'],
  ['Pool pool;\n    if (!encoder_ && !begin()) return;', 'if (!encoder_ && !begin()) return;'],
  ['problem_ = "Metal gives no command buffer";'],
  ['[[queue_ commandBuffer] retain]', '[queue_ commandBuffer]'],
  ['[buffer status] == MTLCommandBufferStatusError', 'false'],
  ['what.empty() && [buffer', '[buffer'],
  ['setFastMathEnabled:NO', 'setFastMathEnabled:YES'],
  ['constants[k].is_bool ? MTLDataTypeBool', 'constants[k].is_bool ? MTLDataTypeUInt'],
  ['b.buffer ? b.buffer->buffer : nothing_', 'b.buffer ? b.buffer->buffer : nil'],
  ['atIndex:NSUInteger(d.buffer_count)', 'atIndex:NSUInteger(d.buffer_count + 1)'],
  ['[encoder_ setThreadgroupMemoryLength:d.threadgroup_bytes[k] atIndex:NSUInteger(k)]', ''],
  ['lanes != kLanes', 'false'],
  ['bytes > size_t([device_ maxBufferLength])', 'false'],
  ['options:options\n', 'options:nil\n'],
]

/** What the stand-in counted until its process ended. */
interface Counts {
  live: number
  commands: number
  dispatches: number
  misuse: string[]
}

// What a child process does on the stand-in; its result is printed as JSON.
const cases: Record<string, () => Promise<unknown>> = {
  async fails() {
    const [a, b] = twoTensors()
    const late = run('add', [a, b], [NEW])[0]!
    const after = run('gelu_forward', [late], [NEW])[0]!
    const first = await after.read().then(() => ({}), outcome)
    const again = await run('scale', [b], [NEW], [2])[0]!.read()
    return { first, again: [...again] }
  },
  async compiles() {
    const [a, b] = twoTensors()
    const { kernels, problems } = native().binding.examine(a.device.index)
    const error = await run('add', [a, b], [NEW])[0]!
      .read()
      .then(() => ({}), outcome)
    return { ...error, kernels, problems }
  },
  // Each launch counts as 5 µs and more: 15,000 are more than the 50 ms that a command buffer may take.
  async queues() {
    let [a, b] = twoTensors()
    for (let k = 0; k < 15_000; k++) {
      const sum = run('add', [a, b], [NEW])[0]!
      if (k) a.free()
      a = sum
    }
    return [...(await a.read())]
  },
}

function twoTensors(): [Tensor, Tensor] {
  const make = (...values: number[]): Tensor => Tensor.from(Float32Array.from(values), [2], { device: device('metal') })
  return [make(0, 0), make(1, 2)]
}

function outcome(error: unknown): object {
  const { name, code, message } = error as Error & { code: string }
  return { name, code, message }
}

const asked = process.env.TRAIN_CORE_STUB_CASE
if (asked) process.stdout.write(`RESULT ${JSON.stringify(await cases[asked]!())}\n`)
else
  describe('runtime_metal.mm on a stand-in for Metal', { skip }, () => {
    test('lifetimes, order of calls, errors', async () => {
      const { code, stdout, stderr } = await runCommand(hostTest, [])
      assert.equal(code, 0, stdout + stderr)
      assert.ok(stdout.match(/^ok /gm)!.length >= 10, stdout)
    })

    test('a failed command buffer is an error that names its kernels, once', async () => {
      const { result, counts } = await child('fails', 'failing=add_f32')
      assert.deepEqual(result, {
        first: {
          name: 'TrainCoreError',
          code: 'ERR_DEVICE',
          message: 'metal: the GPU stopped a command buffer of add_f32, gelu_forward_f32: Caused GPU Timeout Error',
        },
        again: [2, 4],
      })
      assert.equal(counts.dispatches, 2)
    })

    test("a file that does not compile is an error with the compiler's message, the file and the system", async () => {
      const { result, counts } = await child('compiles', 'compiler=elementwise.metal:9:1: error: no float4')
      const { code, message, kernels, problems } = result as {
        code: string
        message: string
        kernels: number
        problems: string[]
      }
      assert.equal(kernels, 0)
      assert.ok(problems.length > 8 && problems.every(each => /^\w+\.metal: does not compile on Stand-in/.test(each)))
      assert.equal(code, 'ERR_DEVICE')
      assert.match(
        message,
        /^metal: add_f32 of elementwise\.metal: does not compile on Stand-in, macOS .*: elementwise\.metal:9:1: error: no float4$/,
      )
      assert.equal(counts.dispatches, 0)
    })

    test('much work is sent off in parts', async () => {
      const { result, counts } = await child('queues')
      assert.deepEqual(result, [15_000, 30_000])
      assert.equal(counts.dispatches, 15_000)
      assert.ok(counts.commands >= 2 && counts.commands <= 4, `${counts.commands} command buffers`)
    })

    for (const family of all ? ['elementwise', 'norm', 'optim', 'embedding', 'matmul', 'attention'] : ['norm', 'optim'])
      test(`${family} through it is what the emulator computes, bit for bit`, async () => {
        const file = path.join(import.meta.dirname, `../ops/${family}.test.js`)
        const want = (await runEmulated(file)).digest
        for (const settings of ['', 'at_commit'])
          await counted(settings, async env => assert.equal((await runEmulated(file, env)).digest, want, settings))
      })

    // Tests this test: each of these changes must be noticed.
    for (const [was, put = ''] of all ? CHANGES : CHANGES.slice(0, 1))
      test(`a change is noticed: "${was}" to "${put}"`, async context => {
        const { code, signal, stdout } = await changedHost(was, put)
        assert.notEqual(code, 0, 'the host test passes')
        context.diagnostic(/^FAILED .*$/m.exec(stdout)?.[0] ?? `ended by ${signal}`)
      })
  })

/** Runs `body` with an environment that leads to the stand-in, and checks what it counted. */
async function counted(settings: string, body: (env: Record<string, string>) => Promise<unknown>): Promise<Counts> {
  const folder = mkdtempSync(path.join(tmpdir(), 'train-core-stub-'))
  const report = path.join(folder, 'report.json')
  try {
    await body({
      TRAIN_CORE_METAL: 'emulator',
      TRAIN_CORE_METAL_EMULATOR: stub,
      TRAIN_CORE_METAL_STUB: settings,
      TRAIN_CORE_METAL_STUB_REPORT: report,
    })
    const counts = JSON.parse(readFileSync(report, 'utf8')) as Counts
    assert.deepEqual({ live: counts.live, misuse: counts.misuse }, { live: 0, misuse: [] })
    return counts
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Runs a case of `cases` in a process of its own. */
async function child(name: string, settings = ''): Promise<{ result: unknown; counts: Counts }> {
  let result: unknown
  const counts = await counted(settings, async env => {
    const ended = await runNode([fileURLToPath(import.meta.url)], { env: { ...env, TRAIN_CORE_STUB_CASE: name } })
    const text = /^RESULT (.*)$/m.exec(ended.stdout)?.[1]
    assert.ok(text, `the child ended without a result: ${ended.stdout}${ended.stderr}`)
    result = JSON.parse(text)
  })
  return { result, counts }
}

/** The host test with `was` of runtime_metal.mm replaced. */
async function changedHost(was: string, put: string): Promise<Ended> {
  const text = readFileSync(path.join(packageRoot(), 'csrc/metal/runtime_metal.mm'), 'utf8')
  assert.ok(text.includes(was), `${was} is in runtime_metal.mm`)
  const folder = mkdtempSync(path.join(tmpdir(), 'train-core-host-'))
  try {
    const [source, object, program] = ['changed.mm', 'changed.o', 'changed'].map(name => path.join(folder, name))
    writeFileSync(source!, text.replaceAll(was, put).replace(/#include "(?=runtime|sources)/g, '#include "metal/'))
    const compiler = await compileAs('runtime_metal.mm', source!, object!)
    const kept = objectsOf(['train_core_metal_kernels', 'train_core_metal_host_test'], ['runtime_metal.mm'])
    await runTool(compiler, [...kept, object!, '-lgnustep-base', '-lobjc', '-lpthread', '-ldl', '-o', program!])
    return await runCommand(program!, [])
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
