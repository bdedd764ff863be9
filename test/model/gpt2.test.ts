import assert from 'node:assert/strict'
import { gpt2Config } from '../../lib/model/config.js'
import { GPT2 } from '../../lib/model/gpt2.js'
import { gpt2Parameters } from '../../lib/model/names.js'
import { createRng, setRngStep } from '../../lib/ops/random.js'
import { checkpoint, noGrad } from '../../lib/tape.js'
import { scope, Tensor } from '../../lib/tensor.js'
import { pretrainObjective, type StepInputs } from '../../lib/train/objectives.js'
import { assertSame, noteBits, type Precision } from '../close.js'
import { forEachDevice, onEachDevice } from '../devices.js'
import { formulaBatch, formulaModel, formulaTokens, golden, MODEL_OPS, sketchError } from './golden.js'

/** Of the loss, relative. Logits and gradients may be off by twice what torch itself is in the same precision. */
const LOSS_BOUND: Readonly<Record<Precision, number>> = { f32: 1e-6, bf16: 2e-3, f16: 3e-4 }

/** Adds the gradients of a batch's mean cross-entropy to the model's; returns the loss. */
async function step(model: GPT2, given: Omit<StepInputs, 'seed' | 'sums' | 'weights'>): Promise<number> {
  const R = given.targets.size
  const sums = Tensor.zeros([5])
  model.parameters.allocateGradients()
  const inputs = { ...given, weights: Tensor.full([R], 1), seed: Tensor.full([1], 1 / R), sums }
  scope(() => pretrainObjective().micro(model, inputs))
  return (await sums.toFloat32())[0]! / R
}

/** The largest difference, relative to the largest of the wanted values. */
function difference(got: Float32Array, want: Float32Array): number {
  noteBits(got)
  assert.equal(got.length, want.length)
  let [most, largest] = [0, 0]
  for (let k = 0; k < got.length; k++) {
    most = Math.max(most, Math.abs(got[k]! - want[k]!))
    largest = Math.max(largest, Math.abs(want[k]!))
  }
  assert.ok(largest > 0 && !Number.isNaN(most))
  return most / largest
}

for (const [name, want] of Object.entries(golden.models)) {
  forEachDevice(
    `${name}: logits, loss and every gradient are transformers' own`,
    async (_device, precision) => {
      const bounds = want.errors[precision]
      const model = formulaModel(name, { precision })
      const { B, T } = want
      const V = model.config.vocabSize
      const { inputs, targets, weights, W } = formulaBatch(name, V, B, T)
      const logits = await model.logits(Array.from({ length: B }, (_, b) => inputs.subarray(b * T, b * T + T)))
      noteBits(logits)
      assert.equal(logits.length, want.logits.length)
      const off = logits.reduce((most, z, k) => Math.max(most, Math.abs(z - want.logits[k]!)), 0)
      assert.ok(off <= 2 * bounds.logits, `logits are off by ${off}`)

      model.parameters.allocateGradients()
      const sums = Tensor.zeros([5])
      scope(() =>
        pretrainObjective().micro(model, {
          tokens: Tensor.from(inputs, [B, T]),
          targets: Tensor.from(targets),
          weights: Tensor.from(weights),
          seed: Tensor.from([1 / W]),
          sums,
        }),
      )
      const loss = (await sums.toFloat32())[0]! / W
      assert.ok(Math.abs(loss / want.loss - 1) < LOSS_BOUND[precision], `loss ${loss}, wanted ${want.loss}`)
      const parameters = gpt2Parameters(model.config)
      assert.deepEqual(parameters.map(p => p.name).sort(), Object.keys(want.gradients).sort())
      for (const parameter of parameters) {
        const gradient = await model.parameters.readFrom(model.parameters.gradients!, parameter.name)
        const error = sketchError(parameter.name, gradient, want.gradients[parameter.name]!)
        assert.ok(error <= 2 * bounds.gradient, `the gradient of ${parameter.name} is off by ${error} of its norm`)
      }
      model.free()
    },
    { ops: MODEL_OPS },
  )
}

onEachDevice(
  'the padded rows of the vocabulary take no gradient',
  async () => {
    const model = formulaModel('odd')
    const { inputs, targets } = formulaBatch('odd', 61, 3, 15)
    await step(model, { tokens: Tensor.from(inputs, [3, 15]), targets: Tensor.from(targets) })
    assert.deepEqual(model.head.shape, [128, 48])
    const gradient = await model.head.grad!.toFloat32()
    assertSame(gradient.subarray(61 * 48), new Float32Array(67 * 48), 'rows from 61 on')
    assert.ok(gradient.subarray(60 * 48, 61 * 48).some(g => g !== 0))
  },
  MODEL_OPS,
)

onEachDevice(
  'gradients of micro-batches add up',
  async () => {
    const { inputs, targets, weights, W } = formulaBatch('small', 257, 4, 10)
    const gradientsOf = async (parts: number): Promise<Float32Array> => {
      const model = formulaModel('small')
      const gradients = model.parameters.allocateGradients()
      const n = 40 / parts
      const seed = Tensor.full([1], 1 / W)
      const sums = Tensor.zeros([5])
      for (let at = 0; at < 40; at += n) {
        const tokens = Tensor.from(inputs.subarray(at, at + n), [4 / parts, 10])
        const rows = {
          targets: Tensor.from(targets.subarray(at, at + n)),
          weights: Tensor.from(weights.subarray(at, at + n)),
        }
        scope(() => pretrainObjective().micro(model, { tokens, ...rows, seed, sums }))
      }
      return await gradients.toFloat32()
    }
    const whole = await gradientsOf(1)
    assert.ok(difference(await gradientsOf(4), whole) < 1e-6)
  },
  MODEL_OPS,
)

forEachDevice(
  'documents packed into a row are as documents apart',
  async (_device, precision) => {
    const bound = { f32: 2e-6, bf16: 2e-2, f16: 3e-3 }[precision]
    const lengths = [7, 1, 9, 3]
    const T = 20
    const ids = formulaTokens('packed', T, 257)
    const targets = formulaTokens('packed/targets', T, 257)
    const ends = lengths.map((_, k) => lengths.slice(0, k + 1).reduce((a, b) => a + b))
    const until = lengths.flatMap((length, k) => Array<number>(length).fill(ends[k]!))
    const positions = lengths.flatMap(length => Array.from({ length }, (_, t) => t))
    const packed = {
      until: Tensor.from(Int32Array.from(until), [1, T]),
      positions: Tensor.from(Int32Array.from(positions), [1, T]),
    }

    const model = formulaModel('small', { precision })
    const hidden = noGrad(() => model.hidden(Tensor.from(ids, [1, T]), packed))
    const together = await hidden.toFloat32()
    const gradients = model.parameters.allocateGradients()
    await step(model, { tokens: Tensor.from(ids, [1, T]), targets: Tensor.from(targets), ...packed })
    const gradientTogether = await gradients.toFloat32()

    const other = formulaModel('small', { precision })
    const sums = Tensor.zeros([5])
    const gradientsApart = other.parameters.allocateGradients()
    for (const [k, length] of lengths.entries()) {
      const begin = ends[k]! - length
      const tokens = Tensor.from(ids.subarray(begin, ends[k]), [1, length])
      const alone = await noGrad(() => other.hidden(tokens)).toFloat32()
      assert.ok(difference(together.subarray(begin * 32, ends[k]! * 32), alone) < bound, `document ${k}`)
      const rows = { targets: Tensor.from(targets.subarray(begin, ends[k])), weights: Tensor.full([length], 1) }
      scope(() => pretrainObjective().micro(other, { tokens, ...rows, seed: Tensor.full([1], 1 / T), sums }))
    }
    assert.ok(difference(gradientTogether, await gradientsApart.toFloat32()) < bound)

    const plain = await noGrad(() => model.hidden(Tensor.from(ids, [1, T]))).toFloat32()
    assert.ok(difference(plain.subarray(7 * 32), together.subarray(7 * 32)) > 0.1, 'until and positions do something')
  },
  { ops: MODEL_OPS },
)

onEachDevice(
  'dropout: the same seed and step the same bits, another step others, none without a generator',
  async () => {
    const tokens = Tensor.from(formulaTokens('dropout', 24, 257), [2, 12])
    const targets = Tensor.from(formulaTokens('dropout/targets', 24, 257))
    const results = async (rates: Partial<GPT2['config']['dropout']>, rng?: Tensor): Promise<Float32Array> => {
      const source = formulaModel('small')
      const dropout = { embedding: 0, attention: 0, residual: 0, ...rates }
      const model = new GPT2(gpt2Config({ ...source.config, dropout }))
      for (const { name } of gpt2Parameters(model.config))
        model.parameters.write(name, await source.parameters.read(name))
      const loss = await step(model, { tokens, targets, rng })
      return Float32Array.of(loss, ...(await model.parameters.gradients!.toFloat32()))
    }
    const none = await results({})
    const rng = createRng(7)
    for (const site of ['embedding', 'attention', 'residual'] as const) {
      const rates = { [site]: 0.2 }
      assertSame(await results(rates), none, `${site} dropout without a generator`)
      setRngStep(rng, 7, 3)
      const first = await results(rates, rng)
      assertSame(await results(rates, rng), first, `${site} again`)
      assert.ok(difference(first, none) > 1e-3, `${site} dropout does something`)
      setRngStep(rng, 7, 4)
      assert.ok(difference(await results(rates, rng), first) > 1e-3, `${site} in another step`)
      setRngStep(rng, 8, 3)
      assert.ok(difference(await results(rates, rng), first) > 1e-3, `${site} with another seed`)
    }
    assertSame(await results({}, rng), none, 'rates of 0')
  },
  MODEL_OPS,
)

onEachDevice(
  'a checkpointed model has the same gradients, dropout included',
  async () => {
    const tokens = Tensor.from(formulaTokens('dropout', 24, 257), [2, 12])
    const targets = Tensor.from(formulaTokens('dropout/targets', 24, 257))
    const source = formulaModel('small')
    const config = { ...source.config, dropout: { embedding: 0.1, attention: 0.1, residual: 0.1 } }
    const gradientsOf = async (wrap: boolean): Promise<Float32Array> => {
      const model = new GPT2(config)
      for (const { name } of gpt2Parameters(config)) model.parameters.write(name, await source.parameters.read(name))
      const hidden = model.hidden.bind(model)
      if (wrap) model.hidden = (ids, options) => checkpoint(() => hidden(ids, options), [])
      await step(model, { tokens, targets, rng: createRng(1) })
      return await model.parameters.gradients!.toFloat32()
    }
    const plain = await gradientsOf(false)
    assert.ok(plain.some(g => g !== 0))
    assertSame(await gradientsOf(true), plain, 'gradients')
  },
  MODEL_OPS,
)

onEachDevice(
  'wrong tokens are errors that say so',
  async () => {
    const model = formulaModel('odd')
    await assert.rejects(model.logits([]), { code: 'ERR_SHAPE', message: /one or more rows/ })
    await assert.rejects(model.logits([[]]), { code: 'ERR_SHAPE', message: /one or more rows/ })
    for (const rows of [[[1, 2], [3]], [1, 2], 'hello', null] as never[])
      await assert.rejects(model.logits(rows), { code: 'ERR_SHAPE', message: /all of one length/ })
    const long = Array<number>(33).fill(1)
    await assert.rejects(model.logits([long]), { code: 'ERR_SHAPE', message: /has 32 positions; got .* 33 tokens/ })
    await assert.rejects(model.logits([[1, 0.5]]), { code: 'ERR_ARGUMENT', message: /integers; got 0.5 at 1/ })
    await assert.rejects(model.logits([[1, 61]]), { code: 'ERR_DATA', message: /61/ })
    await assert.rejects(model.logits([[-1]]), { code: 'ERR_DATA', message: /-1/ })
    assert.equal((await model.logits([long.slice(1)])).length, 32 * 61)
  },
  MODEL_OPS,
)
