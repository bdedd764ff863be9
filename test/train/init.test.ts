import assert from 'node:assert/strict'
import { test } from 'node:test'
import { gpt2Config } from '../../lib/model/config.js'
import { GPT2 } from '../../lib/model/gpt2.js'
import { gpt2Parameters } from '../../lib/model/names.js'
import { defaultLayerMap, initFromTeacher, initProjection, initRandom } from '../../lib/train/init.js'
import { distillObjective, pretrainObjective } from '../../lib/train/objectives.js'
import { Trainer } from '../../lib/train/trainer.js'
import { assertSame } from '../close.js'
import { forEachDevice, onEachDevice } from '../devices.js'
import { formulaModel, formulaTokens, MODEL_OPS } from '../model/golden.js'

const CONFIG = gpt2Config({ layers: 3, heads: 2, width: 64, vocabSize: 300, positions: 40 })

async function drawn(seed: number): Promise<Map<string, Float32Array>> {
  const model = new GPT2(CONFIG)
  initRandom(model, seed)
  const values = new Map<string, Float32Array>()
  for (const { name } of gpt2Parameters(CONFIG)) values.set(name, await model.parameters.read(name))
  model.free()
  return values
}

const meanOf = (values: Float32Array): number => values.reduce((a, b) => a + b, 0) / values.length
const correlation = (a: Float32Array, b: Float32Array): number => {
  const dot = (x: Float32Array, y: Float32Array): number => x.reduce((sum, v, k) => sum + v * y[k]!, 0)
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b))
}

onEachDevice(
  "random initialisation is GPT-2's own",
  async device => {
    const { live } = device.info()
    const values = await drawn(1)
    assert.equal(device.info().live, live)
    for (const [name, x] of values) {
      const std = /c_proj.weight$/.test(name) ? 0.02 / Math.sqrt(6) : 0.02
      if (/ln_\w+.weight$/.test(name)) assertSame(x, new Float32Array(x.length).fill(1), name)
      else if (/bias$/.test(name)) assertSame(x, new Float32Array(x.length), name)
      else {
        const { length: n } = x
        const got = Math.sqrt(meanOf(x.map(v => v * v)))
        assert.ok(Math.abs(meanOf(x)) < (4.5 * std) / Math.sqrt(n), `${name}: mean ${meanOf(x)}`)
        assert.ok(Math.abs(got / std - 1) < 4.5 / Math.sqrt(2 * n), `${name}: std ${got}, wanted ${std}`)
        const beyond = x.filter(v => Math.abs(v) > 2 * std).length / n
        assert.ok(Math.abs(beyond - 0.0455) < 0.02, `${name}: ${beyond} beyond two standard deviations`)
      }
    }
    assert.equal(values.size, 2 + 3 * 12 + 2)
  },
  MODEL_OPS,
)

onEachDevice(
  'a seed decides all; every tensor has numbers of its own',
  async () => {
    const [one, again, other] = [await drawn(1), await drawn(1), await drawn(2)]
    const random = [...one.keys()].filter(name => one.get(name)!.length > 0 && !/ln_|bias/.test(name))
    assert.equal(random.length, 2 + 3 * 4)
    for (const name of random) {
      assertSame(again.get(name)!, one.get(name)!, name)
      assert.ok(Math.abs(correlation(one.get(name)!, other.get(name)!)) < 0.1, name)
    }
    for (const [k, a] of random.entries())
      for (const b of random.slice(k + 1)) {
        const n = Math.min(one.get(a)!.length, one.get(b)!.length)
        assert.ok(Math.abs(correlation(one.get(a)!.subarray(0, n), one.get(b)!.subarray(0, n))) < 0.1, `${a} and ${b}`)
      }
  },
  MODEL_OPS,
)

onEachDevice(
  'the projection between two widths',
  async () => {
    const objective = distillObjective(formulaModel('small'), formulaModel('wide_teacher'), {
      ...{ temperature: 2, kl: 1, rkl: 0, jsd: 0, beta: 0.5, ce: 0, cos: 1 },
    })
    initProjection(objective.extra!, 4)
    const values = await objective.extra!.read('projection.weight')
    assert.equal(values.length, 32 * 48)
    const std = Math.sqrt(meanOf(values.map(v => v * v)))
    assert.ok(Math.abs(std * Math.sqrt(32) - 1) < 0.08, `std ${std}`)
  },
  MODEL_OPS,
)

test('the default layers are spread evenly, first and last included', () => {
  assert.deepEqual(defaultLayerMap(12, 6), [0, 2, 4, 7, 9, 11])
  assert.deepEqual(defaultLayerMap(24, 6), [0, 5, 9, 14, 18, 23])
  assert.deepEqual(defaultLayerMap(4, 2), [0, 3])
  assert.deepEqual(defaultLayerMap(12, 1), [0])
  for (const [teacher, student] of [
    [12, 12],
    [48, 12],
    [7, 5],
    [1, 1],
  ] as const) {
    const map = defaultLayerMap(teacher, student)
    assert.equal(map.length, student)
    assert.equal(map[0], 0)
    if (student > 1) assert.equal(map.at(-1), teacher - 1)
    for (let k = 1; k < map.length; k++) assert.ok(map[k]! > map[k - 1]!)
  }
  assert.throws(() => defaultLayerMap(6, 7), { code: 'ERR_CONFIG', message: /at most the teacher's 6 layers; got 7/ })
})

onEachDevice(
  "a student of teacher layers has the teacher's numbers, and fewer positions where it has fewer",
  async () => {
    const teacher = formulaModel('teacher')
    const config = gpt2Config({ ...teacher.config, layers: 2, positions: 10 })
    for (const [map, layers] of [
      [undefined, [0, 3]],
      [
        [2, 1],
        [2, 1],
      ],
    ] as const) {
      const student = new GPT2(config, { precision: 'bf16' })
      await initFromTeacher(student, teacher, map)
      for (const { name, shape } of gpt2Parameters(config)) {
        const from = name.replace(/h\.(\d)\./, (_, k: string) => `h.${layers[Number(k)]}.`)
        const want = await teacher.parameters.read(from)
        assertSame(
          await student.parameters.read(name),
          want.subarray(
            0,
            shape.reduce((a, b) => a * b),
          ),
          name,
        )
      }
    }
    for (const precision of ['f32', 'bf16'] as const) {
      const whole = new GPT2(teacher.config, { precision })
      await initFromTeacher(whole, teacher)
      const want = await formulaModel('teacher', { precision }).logits([[1, 2, 3]])
      assertSame(await whole.logits([[1, 2, 3]]), want, `all layers, ${precision}`)
    }
  },
  MODEL_OPS,
)

forEachDevice(
  'the padded rows of the vocabulary are zero and stay so',
  async (_device, precision) => {
    const config = gpt2Config({ ...CONFIG, layers: 1, dropout: { embedding: 0.1, attention: 0.1, residual: 0.1 } })
    const model = new GPT2(config, { precision })
    initRandom(model, 1)
    const sizes = { batchSize: 2, seqLen: 16, gradAccum: 1, packDocuments: false }
    const optimizer = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1, gradClip: 1 }
    const trainer = new Trainer(model, pretrainObjective(), { ...sizes, ...optimizer, seed: 1 })
    const before = await model.head.toFloat32()
    for (let step = 0; step < 4; step++) {
      const inputs = formulaTokens(`padding/${step}`, 32, 300)
      const targets = formulaTokens(`padding/${step}/targets`, 32, 300)
      await trainer.step([{ index: step, inputs, targets, weights: null, until: null, positions: null }], step, 1e-2)
    }
    const after = await model.head.toFloat32()
    assert.deepEqual(model.head.shape, [384, 64])
    assertSame(after.subarray(300 * 64), new Float32Array(84 * 64), 'padding')
    assertSame(before.subarray(300 * 64), new Float32Array(84 * 64), 'padding before')
    const moved = after.subarray(0, 300 * 64).filter((x, k) => x !== before[k]).length
    assert.ok(moved > 0.9 * 300 * 64, `${moved} of the others have moved`)
    trainer.free()
  },
  { ops: MODEL_OPS },
)
