// What a model takes and gives back. In a file of its own: tensors of other tests would go whenever their garbage is collected.
import assert from 'node:assert/strict'
import { gpt2Config } from '../../lib/model/config.js'
import { generate } from '../../lib/model/generate.js'
import { GPT2 } from '../../lib/model/gpt2.js'
import { forEachDevice, onEachDevice } from '../devices.js'
import { formulaTokens, MODEL_OPS } from './golden.js'

const CONFIG = gpt2Config({ layers: 2, heads: 4, width: 64, vocabSize: 130, positions: 48 })
const modelOf = (layers: number): GPT2 => new GPT2({ ...CONFIG, layers })

onEachDevice(
  'a forward pass leaves nothing behind; without a tape its memory does not grow with the layers',
  async device => {
    const ids = formulaTokens('memory', 48, 130)
    const peaks: number[] = []
    for (const layers of [1, 2, 8]) {
      const model = modelOf(layers)
      await model.logits([ids])
      const { live, tensors } = device.info()
      device.resetPeak()
      for (let k = 0; k < 10; k++) await model.logits([ids])
      await assert.rejects(model.logits([[130]]), { code: 'ERR_DATA' })
      assert.deepEqual([device.info().live, device.info().tensors], [live, tensors])
      peaks.push(device.info().peak - live)
      model.free()
    }
    assert.equal(peaks[2], peaks[1])
    assert.ok(peaks[1]! <= peaks[0]! + 48 * 64 * 4, `${peaks}`)
  },
  MODEL_OPS,
)

onEachDevice(
  'a model gives everything back',
  async device => {
    const { live, tensors } = device.info()
    const model = modelOf(2)
    model.parameters.allocateGradients()
    assert.ok(device.info().live > live)
    model.free()
    assert.deepEqual([device.info().live, device.info().tensors], [live, tensors])
  },
  MODEL_OPS,
)

forEachDevice('a frozen model holds its weights in the compute precision alone', (device, precision) => {
  const bytes = (frozen: boolean): number => {
    const before = device.info().live
    const model = new GPT2(CONFIG, { precision, frozen })
    const taken = device.info().live - before
    model.free()
    return taken / model.parameters.size
  }
  const width = precision === 'f32' ? 4 : 2
  assert.deepEqual([bytes(true), bytes(false)], [width, precision === 'f32' ? 4 : 4 + width])
})

onEachDevice(
  'a hundred generations, finished or not, leave nothing behind',
  async device => {
    const model = modelOf(2)
    const abort = new AbortController()
    const runs = async (): Promise<void> => {
      for await (const _ of generate(model, [1, 2, 3], { maxTokens: 4, eosId: null })) void 0
      for await (const _ of generate(model, [1, 2, 3], { eosId: null })) break
      const aborted = generate(model, [1], { signal: abort.signal })
      await assert.rejects(aborted.next(), { code: 'ERR_ABORTED' })
      await assert.rejects(generate(model, [1, 200]).next(), { code: 'ERR_DATA' })
      await assert.rejects(generate(model, [1], { temperature: -1 }).next(), { code: 'ERR_ARGUMENT' })
    }
    abort.abort()
    await runs()
    const { live, tensors } = device.info()
    device.resetPeak()
    for (let k = 0; k < 20; k++) await runs()
    assert.deepEqual([device.info().live, device.info().tensors], [live, tensors])
    assert.ok(device.info().peak < live + (1 << 20))
    model.free()
  },
  MODEL_OPS,
)
