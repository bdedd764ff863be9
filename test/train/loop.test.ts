// The loop alone, with stand-ins for trainer and run directory: what is saved when something goes wrong.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type LoopJob, trainLoop } from '../../lib/train/loop.js'
import { resolvePretrain } from '../../lib/train/options.js'

interface Figures {
  loss: number
  gradNorm: number
}
interface Saved {
  step: number
  data: unknown
  keepEarlier: boolean
}

/** A loop of 4 steps that saves every 2; `figures` of each step, in turn. */
function loopOf(figures: readonly Figures[], more: { finite?: boolean; evaluate?: LoopJob['evaluate'] } = {}) {
  const saved: Saved[] = []
  let step = 0
  const trainer = {
    step: async () => ({ ...figures[step++]!, parts: [figures[step - 1]!.loss], tokens: 1 }),
    objective: { coefficients: [1, 0, 0, 0, 0] },
    model: { precision: 'f32', device: { info: () => ({ peak: 0 }) } },
    firstNonFinite: async () => 'h.0.weight',
    isFinite: async () => more.finite ?? true,
  }
  const run = {
    log: () => {},
    save: async (state: { step: number; data: unknown }, _: unknown, { keepEarlier = false } = {}) => {
      saved.push({ step: state.step, data: state.data, keepEarlier })
      return { path: `step-${state.step}` }
    },
  }
  const options = resolvePretrain({ model: 'L=1,H=1,C=8', data: ['-'], tokenizer: 'byte', steps: 4, saveEvery: 2 })
  const source = { seek: () => {}, next: async () => ({}) }
  const job = { trainer, run, source, options, checkpoint: null, evaluate: more.evaluate ?? null, hooks: {} }
  return { saved, result: trainLoop({ ...job, save: async () => {} } as unknown as LoopJob) }
}

const FINE = { loss: 1, gradNorm: 1 }

test('an evaluation that fails loses no step, and is made again by who goes on', async () => {
  const { saved, result } = loopOf([FINE, FINE, FINE, FINE], { evaluate: () => Promise.reject(new Error('no data')) })
  await assert.rejects(result, /no data/)
  assert.deepEqual(
    saved.map(({ step, data }) => [step, (data as { evaluating?: boolean }).evaluating]),
    [
      [2, undefined],
      [4, true],
    ],
  )
})

test('gradients that are not finite: what has a finite loss is saved beside the earlier checkpoints', async () => {
  const { saved, result } = loopOf([FINE, FINE, FINE, { loss: 1, gradNorm: Number.NaN }])
  await assert.rejects(
    result,
    /stopped at step 4: the gradient of h\.0\.weight .*checkpoint is of step 3: step-3; help/,
  )
  assert.deepEqual(
    saved.map(({ step, keepEarlier }) => [step, keepEarlier]),
    [
      [2, false],
      [3, true],
    ],
  )
})

for (const [what, figures, finite] of [
  ['a loss', { loss: Number.NaN, gradNorm: Number.NaN }, true],
  ['weights', { loss: 1, gradNorm: Number.POSITIVE_INFINITY }, false],
] as const)
  test(`${what} that is no number is not saved; the checkpoint before it is named`, async () => {
    const { saved, result } = loopOf([FINE, FINE, FINE, figures], { finite })
    await assert.rejects(result, /the newest checkpoint is of step 2: step-2; help: .*--model or --student/)
    assert.equal(saved.length, 1)
  })
