// Each check must pass what the kernels compute and refuse zeros: the smallest case of each op, then the same with its results wiped out.
import assert from 'node:assert/strict'
import { type BenchCase, type CallSpec, input, type Precision } from '../../bench/case.js'
import { readyOp } from '../../bench/case-run.js'
import { benchCases } from '../../bench/cases.js'
import { CHECKS, type Ran, REMEMBERED, slice } from '../../bench/checks.js'
import { callBytes, LiveCase } from '../../bench/live.js'
import type { Device } from '../../lib/device.js'
import { run, type Tensor } from '../../lib/tensor.js'
import { forEachDevice } from '../devices.js'

const LOGITS = [
  input('f32', [20, 1024]),
  input('i32', [20], 'tokens', { vocab: 1000 }),
  null,
  input('f32', [20, 1024]),
  null,
  null,
]
const LOSS = [1000, 2, 0.5, 2, 5, 0, 0, 0]

/** The cases of these ops are larger than a test should be. */
const SMALL: Readonly<Record<string, CallSpec>> = {
  adamw: {
    op: 'adamw',
    inputs: [input('f32', [5000], 'normal', { std: 1e-3 }), input('f32', [2], 'schedule'), input('f32', [1], 'one')],
    outputs: [
      input('f32', [5000], 'normal', { std: 0.02 }),
      input('f32', [5000], 'normal', { std: 1e-4 }),
      input('f32', [5000], 'positive', { std: 1e-6 }),
      'skip',
    ],
    scalars: [0.9, 0.95, 1e-8, 0.1, 1, 5000],
  },
  head_top_k: {
    op: 'head_top_k',
    inputs: [input('f32', [20, 64]), input('f32', [1024, 64], 'normal', { std: 0.3 })],
    outputs: ['new', 'new', 'new'],
    scalars: [1000, 2, 8],
  },
  loss_forward: { op: 'loss_forward', inputs: LOGITS, outputs: ['new'], scalars: LOSS },
  loss_backward: { op: 'loss_backward', inputs: [...LOGITS, null], outputs: ['new', 'skip'], scalars: LOSS },
  global_norm: {
    op: 'global_norm',
    inputs: [input('f32', [200_000], 'normal', { std: 1e-3 })],
    outputs: ['new'],
    scalars: [],
  },
}

function smallest(op: string, cases: readonly BenchCase[]): CallSpec | undefined {
  const specs = cases.filter(c => c.op === op).map(c => c.call!)
  return SMALL[op] ?? specs.sort((a, b) => callBytes(a) - callBytes(b))[0]
}

async function ranOnce(spec: CallSpec, live: LiveCase): Promise<Ran> {
  const [call] = live.sets
  const before = await Promise.all(call.given.map(t => (t ? slice(t, 0, Math.min(t.size, REMEMBERED)) : null)))
  return { ...call, before, results: run(spec.op, call.inputs, call.outputs, call.scalars) }
}

function wipe(tensor: Tensor | null): void {
  if (tensor) tensor.write(tensor.dtype === 'i32' ? new Int32Array(tensor.size) : new Float32Array(tensor.size))
}

async function takesAndRefuses(device: Device, precision: Precision): Promise<void> {
  const cases = benchCases([precision])
  for (const op of Object.keys(CHECKS)) {
    const spec = smallest(op, cases)
    if (!spec) continue
    await readyOp(spec, device, 0).check()
    const live = new LiveCase(spec, device, 0)
    const ran = await ranOnce(spec, live)
    await CHECKS[op](ran)
    ran.results.forEach(wipe)
    await assert.rejects(CHECKS[op](ran), /wrong/, `${op} passed zeros`)
    for (const tensor of [...ran.inputs, ...ran.results]) tensor?.free()
  }
}

forEachDevice('every check takes the right result and refuses zeros', takesAndRefuses)
