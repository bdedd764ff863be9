// How the addon finds, refuses and uses a CUDA library, on machines without a GPU: each case in a process of its own, which sees the stub
// of stub.cc.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { backends, device } from '../../lib/device.js'
import { gelu } from '../../lib/ops/elementwise.js'
import { capture } from '../../lib/step.js'
import { NEW, run, Tensor } from '../../lib/tensor.js'
import { noStandIn, standIn } from '../cuda-emu/stand-in.js'

type Outcome = Record<string, unknown>
const outcome = (error: unknown): Outcome => ({
  code: (error as { code: string }).code,
  message: (error as Error).message,
})
async function rejected(promise: Promise<unknown>): Promise<Outcome> {
  return promise.then(() => ({}), outcome)
}
function thrown(body: () => unknown): Outcome {
  try {
    body()
    return {}
  } catch (error) {
    return outcome(error)
  }
}

// What a child process does; its result is printed as JSON.
const cases: Record<string, () => unknown> = {
  status: () => ({ ...backends().find(backend => backend.name === 'cuda'), open: thrown(() => device('cuda')) }),
  automatic: () => ({ name: device().name }),
  async use() {
    const open = device('cuda')
    const [a, b] = [1, 2].map(value => Tensor.from(Float32Array.of(value, 10 * value), [2], { device: open }))
    const [sum] = run('add', [a!, b!], [NEW])
    return {
      name: open.name,
      same: device('cuda:0') === open || device('cuda:0').index === open.index,
      sum: [...(await sum!.read())],
    }
  },
  index: () => ({
    second: device('cuda:1').name,
    third: thrown(() => device('cuda:2')),
    wrong: thrown(() => device('cuda:x')),
  }),
  async late() {
    const x = Tensor.from(Float32Array.of(1, 2), [2], { device: device('cuda') })
    const y = gelu(x)
    const [z] = run('add', [x, y], [NEW])
    const first = await rejected(z!.read())
    const [again] = run('add', [x, x], [NEW])
    return { first, again: [...(await again!.read())] }
  },
  async queue() {
    const x = Tensor.from(Float32Array.of(1, 2), [2], { device: device('cuda') })
    return rejected(run('scale', [x], [NEW], [2])[0]!.read())
  },
  unsupported: () => {
    const x = Tensor.from(Float32Array.of(1, 2), [2], { device: device('cuda') })
    return thrown(() => run('gelu_backward', [x, x], [NEW]))
  },
  // Six runs of a captured step (the first two and the verified third come before the second replay), then one that outlives its step.
  async graph() {
    const open = device('cuda')
    const [x, y] = [1, 2].map(() => Tensor.from(Float32Array.of(0, 0), [2], { device: open })) as [Tensor, Tensor]
    const step = capture(() => run('add', [x, run('add', [x, y], [NEW])[0]], [NEW])[0]!, { device: open })
    const seen: (number[] | Outcome)[] = []
    for (let k = 1; k <= 6; k++) {
      x.write([k, 10 * k])
      const sum = step()
      seen.push(await sum.read().then(data => [...(data as Float32Array)], outcome))
    }
    const before = open.info().description
    step.free()
    await x.read()
    return { seen, before, after: open.info().description }
  },
  memory: () => thrown(() => Tensor.empty([1 << 23], { device: device('cuda') })),
}

const file = fileURLToPath(import.meta.url)
const asked = process.env.TRAIN_CORE_STUB_CASE
if (asked) {
  process.stdout.write(`RESULT ${JSON.stringify(await cases[asked]!())}\n`)
} else {
  let library = ''
  const child = (name: string, env: Record<string, string> = {}): Outcome => childWithErrors(name, env).result
  function childWithErrors(name: string, env: Record<string, string> = {}): { result: Outcome; stderr: string } {
    const childEnv: NodeJS.ProcessEnv = {
      ...process.env,
      TRAIN_CORE_STUB_CASE: name,
      TRAIN_CORE_CUDA_LIBRARY: library,
      ...env,
    }
    delete childEnv.NODE_TEST_CONTEXT // else it would speak the runner's binary protocol
    const { stdout, stderr } = spawnSync(process.execPath, [file], { env: childEnv, encoding: 'utf8' })
    const result = /^RESULT (.*)$/m.exec(stdout)?.[1]
    assert.ok(result, `the child ended without a result: ${stdout}${stderr}`)
    return { result: JSON.parse(result) as Outcome, stderr }
  }
  const refused = (status: Outcome, reason: RegExp): void => {
    assert.equal(status.available, false)
    assert.match(status.reason as string, reason)
    const open = status.open as { code: string; message: string }
    assert.equal(open.code, 'ERR_DEVICE')
    assert.ok(open.message.startsWith(`cuda: ${status.reason}`), open.message)
  }

  describe('the CUDA library', { skip: noStandIn }, () => {
    before(() => {
      library = standIn('train_core_cuda_stub')
    })

    test('that is not there is a reason, not an error', () => {
      const nowhere = path.join(path.dirname(library), 'nowhere.so')
      refused(
        child('status', { TRAIN_CORE_CUDA_LIBRARY: nowhere }),
        /could not be opened: .*nowhere\.so.*; help: build it/,
      )
    })
    test('that is another one is refused', () => {
      const other = path.join(path.dirname(library), 'train_core.node')
      refused(child('status', { TRAIN_CORE_CUDA_LIBRARY: other }), /has no train_core_cuda_api: it is not train-core's/)
    })
    for (const [fault, reason] of [
      ['abi', /is of another build \(interface 4, version unknown\); wanted: interface 3.*; help: rebuild/],
      ['args', /is of another build/],
      ['version', /is of another build \(interface 3, version 0\.0\.0\); wanted: interface 3, version/],
      ['no-device', /^the stub has no device$/],
    ] as const)
      test(`with the fault ${fault} is refused, and says why`, () =>
        refused(child('status', { TRAIN_CORE_STUB: fault }), reason))

    test('that fits makes a device, which computes', () => {
      const { available, missing } = child('status') as { available: boolean; missing: string }
      assert.ok(available)
      const ops = missing.split(' ')
      assert.ok(ops.includes('matmul') && !ops.includes('add'))
      assert.deepEqual(child('use'), { name: 'cuda', same: true, sum: [3, 30] })
    })
    test('opens devices by number, and says how many there are', () => {
      const { second, third, wrong } = child('index') as Record<string, { code: string; message: string }>
      assert.equal(second, 'cuda:1')
      assert.equal(third!.code, 'ERR_DEVICE')
      assert.match(third!.message, /cuda:2 is not there: this machine has 2 CUDA devices, counted from 0/)
      assert.equal(wrong!.code, 'ERR_ARGUMENT')
    })
    test('that can not open its device says why', () => {
      const { available, open } = child('status', { TRAIN_CORE_STUB: 'open' })
      assert.ok(available)
      assert.deepEqual(open, { code: 'ERR_DEVICE', message: 'cuda:0: the stub does not open' })
    })
    test('that can not open its device is passed over by the automatic choice, which says so', () => {
      const { result, stderr } = childWithErrors('automatic', { TRAIN_CORE_STUB: 'open' })
      assert.deepEqual(result, { name: 'cpu' })
      assert.equal(stderr, 'train-core: not cuda: cuda:0: the stub does not open\n')
      assert.deepEqual(child('automatic'), { name: 'cuda' })
    })
    test('reports what failed later once, by the name of its op', () => {
      const { first, again } = child('late')
      assert.deepEqual(first, { code: 'ERR_DATA', message: '[gelu_forward] found out later' })
      assert.deepEqual(again, [2, 4])
    })
    test('reports what could not be queued', () =>
      assert.deepEqual(child('queue'), { code: 'ERR_DEVICE', message: '[scale] could not be queued' }))
    test('that lacks an op says so at the call', () => {
      const { code, message } = child('unsupported') as { code: string; message: string }
      assert.equal(code, 'ERR_UNSUPPORTED')
      assert.match(message, /\[gelu_backward\] the cuda backend has no kernel for it/)
    })
    const sums = [1, 2, 3, 4, 5, 6].map(k => [2 * k, 20 * k])
    test('runs a captured step as a graph from the first replay on, launched once a step', () => {
      const { result, stderr } = childWithErrors('graph')
      assert.deepEqual(result, {
        seen: sums,
        before: 'cuda:0: stub 0: 4 graphs and 4 ops launched, 1 graphs live',
        after: 'cuda:0: stub 0: 4 graphs and 4 ops launched, 0 graphs live',
      })
      assert.equal(stderr, '')
    })
    test('runs captured steps op by op where graphs are turned off', () => {
      const { result, stderr } = childWithErrors('graph', { TRAIN_CORE_CUDA_GRAPH: '0' })
      assert.deepEqual(
        [result.seen, result.before],
        [sums, 'cuda:0: stub 0: 0 graphs and 12 ops launched, 0 graphs live'],
      )
      assert.equal(stderr, '')
    })
    for (const [fault, why] of [
      ['graph-begin', 'no capture begins'],
      ['graph-op', "the op can't be captured"],
      ['graph-end', 'no graph can be had'],
    ] as const)
      test(`runs captured steps op by op with the fault ${fault}, and says so in one line`, () => {
        const { result, stderr } = childWithErrors('graph', { TRAIN_CORE_STUB: fault })
        assert.deepEqual(
          [result.seen, result.before],
          [sums, 'cuda:0: stub 0: 0 graphs and 12 ops launched, 0 graphs live'],
        )
        assert.equal(
          stderr,
          `train-core: cuda:0: captured steps run op by op, since one could not become a CUDA graph: ${why}\n`,
        )
      })
    test('reports a graph that could not be launched', () => {
      const { seen } = child('graph', { TRAIN_CORE_STUB: 'graph-launch' })
      assert.deepEqual((seen as unknown[])[3], { code: 'ERR_DEVICE', message: 'the graph was lost' })
    })
    test('that has met a fault says so, not that memory is out', () =>
      assert.deepEqual(child('memory', { TRAIN_CORE_STUB: 'fault' }), {
        code: 'ERR_DEVICE',
        message: 'the stub met a fault',
      }))
    test('that is out of memory names sizes', () => {
      const { code, message } = child('memory') as { code: string; message: string }
      assert.equal(code, 'ERR_MEMORY')
      assert.match(message, /cuda:0: out of memory: need 32\.0 MiB, have 32\.0 MiB/)
    })
  })
}
