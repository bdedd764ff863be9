import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type AdamWOptions, type AdamWState, adamw, globalNorm } from '../../lib/ops/optim.js'
import { capture } from '../../lib/step.js'
import { NEW, type Precision, run, Tensor } from '../../lib/tensor.js'
import { assertClose, assertSame, rounder } from '../close.js'
import { framed, onEachDevice, someOf, tensor, valuesOf } from '../devices.js'
import { Random } from '../gradcheck.js'
import { type AdamWConstants, adamwStep, globalNorm as exactNorm, type Moments } from '../reference/optim.js'

const OPS = ['global_norm', 'adamw', 'fill']
const PLAIN: AdamWConstants = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.1, maxNorm: 0, decayCount: 0 }
const singles = (data: Float64Array): Float64Array => data.map(Math.fround)

onEachDevice(
  'global norm against float64',
  async () => {
    const random = new Random(1)
    // one task of the CPU has 32,768 elements
    for (const shape of someOf([[1], [7, 9], [32767], [3, 32769], [1 << 18]], 4)) {
      const grads = singles(random.normal(shape.reduce((a, b) => a * b)))
      const norm = globalNorm(tensor(grads, shape))
      assert.deepEqual(norm.shape, [1])
      assertClose(await valuesOf(norm), [exactNorm(grads)], { name: `norm [${shape}]`, dtype: 'f32' })
    }
    const big = tensor([3e30, -4e30, 0], [3]) // whose squares no f32 holds
    assertClose(await valuesOf(globalNorm(big)), [5e30], { name: 'large', dtype: 'f32', low: [Math.fround(5e30)] })
    const { tensor: into, intact } = framed([1])
    assert.equal(globalNorm(tensor([3, 4], [2]), into), into)
    assertSame(await into.read(), [5], 'into')
    await intact()
    assertSame(await globalNorm(Tensor.empty([0])).read(), [0], 'none')
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY])
      for (const at of [0, 5, 40000]) {
        const grads = new Float32Array(40001)
        grads[at] = bad
        assertSame(await globalNorm(tensor(grads, [40001])).read(), [bad], `${bad} at ${at}`)
      }
  },
  OPS,
)

interface Trial {
  name: string
  size: number
  constants?: Partial<AdamWConstants>
  copy?: boolean
}
const TRIALS: readonly Trial[] = [
  { name: 'one element', size: 1, constants: { decayCount: 1 } },
  { name: 'plain', size: 67 },
  { name: 'half of it decays, with a copy', size: 1003, constants: { decayCount: 501 }, copy: true },
  { name: 'all decays, clipped', size: 333, constants: { decayCount: 333, maxNorm: 1 } },
  { name: 'not clipped', size: 40, constants: { maxNorm: 1e4 } },
  { name: 'no momentum', size: 21, constants: { beta1: 0, beta2: 0, epsilon: 1e-3 } },
  { name: 'other constants', size: 130, constants: { beta1: 0.95, beta2: 0.98, epsilon: 1e-6, weightDecay: 0.5 } },
  { name: 'decay ends at a task of the CPU', size: 32768 + 77, constants: { decayCount: 32768 }, copy: true },
  { name: 'decay ends inside a task', size: 32768 * 2 + 5, constants: { decayCount: 40001 } },
]

/** Tensors of a fresh optimizer, each between sentinels. */
function start(params: Float64Array, copy: Precision | null) {
  const size = params.length
  const framedTensors = {
    params: framed([size], 'f32', params),
    m: framed([size], 'f32', new Float64Array(size)),
    v: framed([size], 'f32', new Float64Array(size)),
    grads: framed([size]),
    copy: framed([size], copy ?? 'bf16'),
  }
  const { params: p, m, v, grads } = framedTensors
  const state = {
    params: p.tensor,
    m: m.tensor,
    v: v.tensor,
    grads: grads.tensor,
    copy: copy ? framedTensors.copy.tensor : null,
  }
  const intact = async () => {
    for (const f of Object.values(framedTensors)) await f.intact()
  }
  return { state, intact }
}

onEachDevice(
  'adamw against float64',
  async ({ precisions }) => {
    const random = new Random(2)
    const copies = precisions.filter(precision => precision !== 'f32')
    const trials = someOf(TRIALS, 8).flatMap(trial => (trial.copy ? copies : [null]).map(copy => ({ ...trial, copy })))
    for (const { name, size, constants, copy } of trials) {
      const options = { ...PLAIN, ...constants }
      const params = singles(random.normal(size))
      const { state, intact } = start(params, copy)
      const moments = (): Moments => ({ params: params.slice(), m: new Float64Array(size), v: new Float64Array(size) })
      const [want, low] = [moments(), moments()]
      for (let step = 1; step <= 3; step++) {
        const grads = singles(random.normal(size, step === 2 ? 1e-4 : 0.5))
        const lr = Math.fround(0.01 / step)
        state.grads.write(Float32Array.from(grads))
        const norm = options.maxNorm ? globalNorm(state.grads) : null
        adamw({ ...state, norm, schedule: tensor([lr, step], [2]) }, options)
        adamwStep(want, grads, options, [lr, step])
        adamwStep(low, grads, options, [lr, step], Math.fround)
      }
      for (const key of ['params', 'm', 'v'] as const)
        assertClose(await valuesOf(state[key]), want[key], { name: `${name}: ${key}`, dtype: 'f32', low: low[key] })
      if (copy) {
        const rounded = Float64Array.from(await state.params.toFloat32(), rounder(copy))
        assertSame(await valuesOf(state.copy!), rounded, `${name}: ${copy} copy`)
      }
      await intact()
    }
  },
  OPS,
)

onEachDevice(
  'adamw and the norm give the same for aligned tensors',
  async () => {
    const random = new Random(5)
    for (const size of [1003, 32768]) {
      const [params, grads] = [singles(random.normal(size)), singles(random.normal(size))]
      const moved = start(params, 'bf16').state
      const zeros = new Float64Array(size)
      const aligned = {
        params: tensor(params, [size]),
        m: tensor(zeros, [size]),
        v: tensor(zeros, [size]),
        grads: tensor(grads, [size]),
        copy: tensor(zeros, [size], 'bf16'),
      }
      moved.grads.write(Float32Array.from(grads))
      const options = { ...PLAIN, decayCount: 501, maxNorm: 1 }
      const schedule = tensor([0.01, 1], [2])
      const norms = [moved, aligned].map(state => globalNorm(state.grads))
      assertSame(await valuesOf(norms[1]!), await valuesOf(norms[0]!), 'norm')
      for (const state of [moved, aligned]) adamw({ ...state, norm: norms[0]!, schedule }, options)
      for (const key of ['params', 'm', 'v', 'copy'] as const)
        assertSame(await valuesOf(aligned[key]), await valuesOf(moved[key]!), `${size}: ${key}`)
    }
  },
  OPS,
)

interface Golden {
  options: Required<Omit<AdamWOptions, 'decayCount'>>
  decayCount: number
  rates: number[]
  params: number[]
  steps: { grads: number[]; norm: number; params: number[]; m: number[]; v: number[] }[]
}
const golden = JSON.parse(readFileSync(join(import.meta.dirname, '../../../test/goldens/adamw.json'), 'utf8')) as Golden

onEachDevice(
  'adamw follows torch.optim.AdamW and clip_grad_norm_',
  async () => {
    const { state } = start(Float64Array.from(golden.params), null)
    for (const [k, step] of golden.steps.entries()) {
      state.grads.write(step.grads)
      const norm = globalNorm(state.grads)
      adamw(
        { ...state, norm, schedule: tensor([golden.rates[k]!, k + 1], [2]) },
        { ...golden.options, decayCount: golden.decayCount },
      )
      // Two ways of rounding the same steps: as far apart as torch is from float64, and no more.
      const near = (got: ArrayLike<number>, want: readonly number[], name: string) => {
        const scale = Math.max(...want.map(Math.abs))
        for (const [j, w] of want.entries())
          assert.ok(
            Math.abs(got[j]! - w) <= 4e-7 * scale,
            `step ${k + 1}, ${name}[${j}]: got ${got[j]}, torch has ${w}`,
          )
      }
      near(await valuesOf(norm), [step.norm], 'norm')
      for (const key of ['params', 'm', 'v'] as const) near(await valuesOf(state[key]), step[key], key)
    }
  },
  OPS,
)

onEachDevice(
  'adamw writes nothing where the norm is not finite, and goes on after it',
  async () => {
    const params = singles(new Random(3).normal(50))
    const { state, intact } = start(params, 'bf16')
    const schedule = tensor([0.1, 1], [2])
    state.grads.write(new Float32Array(50).fill(1))
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])
      for (const maxNorm of [0, 1]) adamw({ ...state, schedule, norm: tensor([bad], [1]) }, { maxNorm })
    assertSame(await state.params.read(), params, 'params')
    for (const untouched of [state.m, state.v]) assertSame(await untouched.read(), new Float32Array(50), 'moments')
    assertSame(await state.copy!.read(), new Uint16Array(50).fill(0xc640), 'copy')
    adamw({ ...state, schedule, norm: tensor([1], [1]) }, { maxNorm: 1 })
    const moved = await valuesOf(state.params)
    assert.ok(moved.every((p, k) => p < params[k]!))
    await intact()
  },
  OPS,
)

onEachDevice(
  'laws: the first step moves every weight by the learning rate, whatever the size of its gradient; a captured step = the same steps',
  async () => {
    const random = new Random(4)
    const params = singles(random.normal(500))
    const grads = singles(random.normal(500).map(g => g + Math.sign(g)))
    const lr = 0.0625
    const { state } = start(params, null)
    state.grads.write(Float32Array.from(grads))
    adamw({ ...state, schedule: tensor([lr, 1], [2]) }, { weightDecay: 0 })
    const want = params.map((p, k) => p - lr * Math.sign(grads[k]!))
    assertClose(await valuesOf(state.params), want, {
      name: 'first step',
      dtype: 'f32',
      low: want.map(v => v * (1 + 1e-7)),
    })

    const [a, b] = [start(params, 'bf16').state, start(params, 'bf16').state]
    const schedule = tensor([0, 0], [2])
    const stepOf = (s: Omit<AdamWState, 'schedule'>) => () => {
      const norm = globalNorm(s.grads)
      adamw({ ...s, schedule, norm }, { maxNorm: 0.5 })
      return { norm }
    }
    const captured = capture(stepOf(b))
    for (let step = 1; step <= 5; step++) {
      schedule.write([0.01 * step, step])
      const g = Float32Array.from(random.normal(500))
      for (const s of [a, b]) s.grads.write(g)
      stepOf(a)()
      captured()
      for (const key of ['params', 'm', 'v', 'copy'] as const)
        assertSame(await b[key]!.read(), await a[key]!.read(), `${key} after step ${step}`)
    }
    captured.free()
  },
  OPS,
)

onEachDevice(
  'no elements are no work',
  async () => {
    const none = () => Tensor.empty([0])
    adamw({ params: none(), grads: none(), m: none(), v: none(), schedule: tensor([0.1, 1], [2]) })
    assertSame(await none().read(), [], 'none')
  },
  OPS,
)

onEachDevice(
  'misuse is refused, and says what was wanted',
  async device => {
    const { state } = start(new Float64Array(6), 'bf16')
    state.grads.write(new Float32Array(6).fill(1))
    const good = { ...state, schedule: tensor([0.1, 1], [2]) }
    const refuse = (code: string, message: RegExp, change: Partial<AdamWState>, options: AdamWOptions = {}) =>
      assert.throws(() => adamw({ ...good, ...change }, options), { name: 'TrainCoreError', code, message })
    const low = Tensor.zeros([6], { dtype: 'bf16' })
    refuse('ERR_DTYPE', /\[adamw\] grads must be f32; got \[6\] bf16/, { grads: low })
    refuse('ERR_SHAPE', /\[adamw\] schedule must be \[2\] f32: learning rate, step; got \[1\]/, {
      schedule: tensor([1], [1]),
    })
    refuse('ERR_SHAPE', /\[adamw\] norm must be \[1\] f32; got \[2\]/, { norm: tensor([1, 1], [2]) })
    refuse('ERR_SHAPE', /\[adamw\] output params must be \[6\] f32; got \[5\]/, { params: Tensor.zeros([5]) })
    refuse('ERR_DTYPE', /\[adamw\] output m must be \[6\] f32; got \[6\] bf16/, { m: low })
    refuse('ERR_SHAPE', /\[adamw\] output v must be/, { v: Tensor.zeros([7]) })
    refuse('ERR_DTYPE', /\[adamw\] copy must be bf16 or f16; got \[6\] f32/, { copy: Tensor.zeros([6]) })
    refuse('ERR_ARGUMENT', /beta1 must be in \[0, 1\); got 1\.0/, {}, { beta1: 1 })
    refuse('ERR_ARGUMENT', /beta2 must be in \[0, 1\); got -0\.1/, {}, { beta2: -0.1 })
    refuse('ERR_ARGUMENT', /epsilon must be above 0; got 0/, {}, { epsilon: 0 })
    refuse('ERR_ARGUMENT', /weight_decay must be 0 or more; got -1/, {}, { weightDecay: -1 })
    refuse('ERR_ARGUMENT', /max_norm must be 0 \(off\) or more; got nan/, {}, { maxNorm: Number.NaN })
    refuse('ERR_ARGUMENT', /max_norm needs norm; got none/, {}, { maxNorm: 1 })
    refuse('ERR_ARGUMENT', /decay_count must be from 0 to 6; got 7/, {}, { decayCount: 7 })
    const misuse = (op: string, message: RegExp, code: string, body: () => unknown) =>
      assert.throws(body, { name: 'TrainCoreError', code, message }, op)
    misuse('norm', /\[global_norm\] grads must be f32; got \[6\] bf16/, 'ERR_DTYPE', () => globalNorm(low))
    misuse('in place', /\[adamw\] output 0 is written in place and must be given/, 'ERR_ARGUMENT', () =>
      run('adamw', [state.grads, good.schedule], [NEW, state.m, state.v], [0.9, 0.9, 1e-8, 0, 0, 0]),
    )

    for (const step of [0, -1, Number.NaN]) {
      adamw({ ...good, schedule: tensor([0.1, step], [2]) })
      await assert.rejects(device.sync(), {
        name: 'TrainCoreError',
        code: 'ERR_DATA',
        message: /\[adamw\] schedule\[1\] must be the step, counted from 1; got/,
      })
    }
    assertSame(await state.params.read(), new Float32Array(6), 'params')
    state.m.free()
    refuse('ERR_FREED', /\[adamw\]/, {})
  },
  OPS,
)
