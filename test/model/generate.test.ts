import assert from 'node:assert/strict'
import { gpt2Config } from '../../lib/model/config.js'
import { type GenerateOptions, generate } from '../../lib/model/generate.js'
import { GPT2 } from '../../lib/model/gpt2.js'
import { gpt2Parameters } from '../../lib/model/names.js'
import { noGrad } from '../../lib/tape.js'
import { Tensor } from '../../lib/tensor.js'
import { assertSame } from '../close.js'
import { forEachDevice, onEachDevice } from '../devices.js'
import { formulaModel, formulaTokens, MODEL_OPS } from './golden.js'

const PROMPT = [...formulaTokens('prompt', 5, 130)]

async function tokensOf(model: GPT2, options: GenerateOptions, prompt: readonly number[] = PROMPT): Promise<number[]> {
  const made: number[] = []
  for await (const id of generate(model, prompt, options)) made.push(id)
  return made
}

/** Logits [V] after the ids, without a cache. */
async function nextLogits(model: GPT2, ids: readonly number[]): Promise<Float32Array> {
  const logits = await model.logits([ids])
  return logits.subarray(logits.length - model.config.vocabSize)
}

/** Ids, the most probable first. */
const ranked = (logits: Float32Array): number[] => [...logits.keys()].sort((a, b) => logits[b]! - logits[a]!)

forEachDevice(
  'with a cache, in pieces of any length, as without: up to the last position',
  async (_device, precision) => {
    const model = formulaModel('deep', { precision })
    const { positions, width } = model.config
    const ids = formulaTokens('cache', 2 * positions, 130)
    const whole = await noGrad(() => model.hidden(Tensor.from(ids, [2, positions]))).toFloat32()
    const cache = model.createCache(2, positions)
    const largest = whole.reduce((most, x) => Math.max(most, Math.abs(x)), 0)
    let past = 0
    for (const length of [5, 1, 1, 17, 2, 21, 1]) {
      const piece = Int32Array.from({ length: 2 * length }, (_, k) => {
        return ids[Math.floor(k / length) * positions + past + (k % length)]!
      })
      cache.past.write([past])
      const got = await model.hiddenCached(Tensor.from(piece, [2, length]), cache).toFloat32()
      for (const b of [0, 1])
        for (let k = 0; k < length * width; k++) {
          const want = whole[(b * positions + past) * width + k]!
          const bound = { f32: 2e-6, bf16: 3e-2, f16: 4e-3 }[precision] * largest
          assert.ok(
            Math.abs(got[b * length * width + k]! - want) < bound,
            `row ${b}, token ${past} and on, element ${k}`,
          )
        }
      past += length
    }
    assert.equal(past, positions)
  },
  { ops: MODEL_OPS },
)

onEachDevice(
  'a cache takes no more than it has room for',
  async () => {
    const model = formulaModel('deep')
    const feed = async (room: number, past: number, count: number): Promise<void> => {
      const cache = model.createCache(1, room)
      cache.past.write([past])
      await model.hiddenCached(Tensor.zeros([1, count], { dtype: 'i32' }), cache).read()
    }
    await feed(5, 4, 1)
    await assert.rejects(feed(5, 5, 1), { code: 'ERR_ARGUMENT', message: /holds 5 positions; got 1 more after 5/ })
    await assert.rejects(feed(5, 3, 3), { code: 'ERR_ARGUMENT', message: /holds 5 positions; got 3 more after 3/ })
    await assert.rejects(feed(48, 48, 1), { code: 'ERR_DATA', message: /position 48 .* outside the 48 positions/ })
    await assert.rejects(feed(49, 0, 1), { code: 'ERR_SHAPE', message: /48 positions; got a sequence of 49 tokens/ })
  },
  MODEL_OPS,
)

onEachDevice(
  'greedy text is the largest logit each time, to the last position and no further',
  async () => {
    const model = formulaModel('deep')
    const ids = [...PROMPT]
    while (ids.length < 48) ids.push(ranked(await nextLogits(model, ids))[0]!)
    assert.deepEqual(await tokensOf(model, { temperature: 0 }), ids.slice(5), 'a hundred are allowed, 43 fit')
    assert.deepEqual(await tokensOf(model, { temperature: 0 }, ids.slice(0, 47)), ids.slice(47))
    assert.deepEqual(await tokensOf(model, { temperature: 0, maxTokens: 3 }), ids.slice(5, 8))
    assert.deepEqual(await tokensOf(model, { temperature: 0, maxTokens: 0 }), [])
    assert.deepEqual(await tokensOf(model, { topK: 1, seed: 3 }), ids.slice(5), 'one candidate')
    assert.deepEqual(await tokensOf(model, { topP: 1e-6, seed: 3 }), ids.slice(5), 'a nucleus of one')
  },
  MODEL_OPS,
)

onEachDevice(
  'the same seed gives the same text, another seed another',
  async () => {
    const model = formulaModel('deep')
    const first = await tokensOf(model, { seed: 7 })
    assert.equal(first.length, 43)
    assertSame(await tokensOf(model, { seed: 7 }), first, 'again')
    assert.notDeepEqual(await tokensOf(model, { seed: 8 }), first)
    assert.notDeepEqual(await tokensOf(model, { seed: 7, temperature: 2 }), first)
    assert.deepEqual(await tokensOf(model, { seed: 7, maxTokens: 10 }), first.slice(0, 10))
    assert.ok(new Set(first).size > 20, 'tokens differ: each has a random number of its own')
    const [a, b] = [generate(model, PROMPT, { seed: 7 }), generate(model, PROMPT, { seed: 7 })]
    for (const want of first) for (const texts of [a, b]) assert.equal((await texts.next()).value, want, 'side by side')
  },
  MODEL_OPS,
)

onEachDevice(
  'every token is one that top-k or top-p allow',
  async () => {
    const model = formulaModel('deep')
    const chosen = new Set<number>()
    for (const seed of [1, 2, 3]) {
      const made = await tokensOf(model, { topK: 3, seed })
      for (let k = 0; k < made.length; k++) {
        const rank = ranked(await nextLogits(model, [...PROMPT, ...made.slice(0, k)])).indexOf(made[k]!)
        assert.ok(rank < 3, `rank ${rank} with top-k 3`)
        chosen.add(rank)
      }
    }
    assert.deepEqual([...chosen].sort(), [0, 1, 2])
    const made = await tokensOf(model, { topP: 0.3, temperature: 1.3, seed: 1 })
    for (let k = 0; k < made.length; k++) {
      const logits = await nextLogits(model, [...PROMPT, ...made.slice(0, k)])
      const weights = logits.map(z => Math.exp(z / 1.3))
      const all = weights.reduce((x, y) => x + y)
      const before = ranked(logits)
      const above = before.slice(0, before.indexOf(made[k]!)).reduce((sum, id) => sum + weights[id]! / all, 0)
      assert.ok(above < 0.3, `${above} of the probability is above token ${k}`)
    }
  },
  MODEL_OPS,
)

onEachDevice(
  "no token above a tokenizer's is drawn",
  async () => {
    const model = formulaModel('deep')
    for (const temperature of [0, 1]) {
      const all = await tokensOf(model, { seed: 7, temperature })
      assert.ok(Math.max(...all) >= 100, 'there is something to leave out')
      const made = await tokensOf(model, { seed: 7, temperature, vocabSize: 100 })
      assert.ok(made.length === 43 && Math.max(...made) < 100, `temperature ${temperature}: ${made.join()}`)
      assert.deepEqual(await tokensOf(model, { seed: 7, temperature, vocabSize: 50_000 }), all, "the model's are all")
    }
  },
  MODEL_OPS,
)

onEachDevice(
  'text ends before the end-of-text token',
  async () => {
    const source = formulaModel('deep')
    const whole = await tokensOf(source, { seed: 7 })
    const eosId = whole[6]!
    const end = whole.indexOf(eosId)
    assert.deepEqual(await tokensOf(source, { seed: 7, eosId }), whole.slice(0, end))
    const model = new GPT2(gpt2Config({ ...source.config, eosId }))
    for (const { name } of gpt2Parameters(model.config))
      model.parameters.write(name, await source.parameters.read(name))
    assert.deepEqual(await tokensOf(model, { seed: 7 }), whole.slice(0, end), "the configuration's")
    assert.deepEqual(await tokensOf(model, { seed: 7, eosId: null }), whole, 'none')
  },
  MODEL_OPS,
)

onEachDevice(
  'what cannot be is refused, and names what was wanted',
  async () => {
    const model = formulaModel('deep')
    const refused = (options: GenerateOptions, message: RegExp, prompt: readonly number[] = PROMPT) =>
      assert.rejects(tokensOf(model, options, prompt), { code: 'ERR_ARGUMENT', message })
    await refused({}, /at least one token; got none/, [])
    await refused({}, /48 positions; got a prompt of 48 tokens/, Array<number>(48).fill(1))
    await refused({}, /token ids are integers; got 1.5 at 1/, [1, 1.5])
    await refused({}, /token ids are integers; got NaN at 0/, [Number.NaN])
    for (const [given, got] of [
      ['hello', 'a text'],
      [null, 'null'],
      [5, '5'],
    ] as const)
      await refused({}, new RegExp(`an array of integers; got ${got}; help: .*encode`), given as never)
    for (const vocabSize of [0, 1.5]) await refused({ vocabSize }, /vocabSize must be an integer of 1 or more/)
    await refused({ maxTokens: -1 }, /maxTokens must be an integer of 0 or more; got -1/)
    await refused({ maxTokens: 1.5 }, /maxTokens .* got 1.5/)
    await refused({ seed: -1 }, /seed .* got -1/)
    await refused({ temperature: -1 }, /temperature/)
    await refused({ temperature: Number.NaN }, /temperature/)
    await refused({ topK: -1 }, /top_k/)
    await refused({ topP: 1.5 }, /top_p/)
    for (const id of [130, -1]) await assert.rejects(tokensOf(model, {}, [1, id]), { code: 'ERR_DATA', message: /130/ })
    assert.equal((await tokensOf(model, {}, [1, 129])).length, 46, 'and all goes on')
  },
  MODEL_OPS,
)

onEachDevice(
  'a signal ends it at the next token',
  async () => {
    const model = formulaModel('deep')
    const abort = new AbortController()
    const made: number[] = []
    const run = async (): Promise<void> => {
      for await (const id of generate(model, PROMPT, { signal: abort.signal })) {
        made.push(id)
        if (made.length === 4) abort.abort(new Error('enough'))
      }
    }
    await assert.rejects(run(), (error: Error & { code?: string }) => {
      assert.equal(error.code, 'ERR_ABORTED')
      assert.equal((error.cause as Error).message, 'enough')
      return true
    })
    assert.equal(made.length, 4)
  },
  MODEL_OPS,
)
