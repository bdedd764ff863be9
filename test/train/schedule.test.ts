import assert from 'node:assert/strict'
import { test } from 'node:test'
import { checkSchedule, learningRate, SCHEDULES, type ScheduleOptions } from '../../lib/train/schedule.js'

const RUN: ScheduleOptions = { schedule: 'cosine', lr: 6e-4, minLr: 6e-5, warmup: 20, steps: 200 }

/** nanoGPT's get_lr (train.py), after its warm-up. */
function nanoGPT(it: number): number {
  if (it > 200) return 6e-5
  const decayRatio = (it - 20) / (200 - 20)
  const coeff = 0.5 * (1.0 + Math.cos(Math.PI * decayRatio))
  return 6e-5 + coeff * (6e-4 - 6e-5)
}

const near = (got: number, wanted: number, what: unknown): void =>
  assert.ok(Math.abs(got - wanted) <= 1e-15, `${what}: ${got}, wanted ${wanted}`)

test('warm-up is a straight line that begins with the first step and ends at lr', () => {
  for (const schedule of SCHEDULES) {
    const rates = Array.from({ length: 21 }, (_, step) => learningRate(step, { ...RUN, schedule }))
    for (let step = 0; step < 20; step++) near(rates[step], 3e-5 * (step + 1), `${schedule} ${step}`)
    near(rates[20], 6e-4, `${schedule}, the first step after`)
  }
})

test('cosine is nanoGPT, linear is the chord, both a step short of the minimum at the end', () => {
  for (const step of [20, 21, 77, 110, 199, 200, 1000]) near(learningRate(step, RUN), nanoGPT(step), step)
  const linear = (step: number): number => learningRate(step, { ...RUN, schedule: 'linear' })
  near(linear(110), (6e-4 + 6e-5) / 2, 'half-way')
  near(linear(199), 6e-5 + (6e-4 - 6e-5) / 180, 'last step')
  near(linear(200), 6e-5, 'past the end')
  near(linear(5000), 6e-5, 'long past the end')
  near(
    learningRate(199, { ...RUN, schedule: 'linear', minLr: 0 }),
    6e-4 / 180,
    "Hugging Face's (200 - 199) / (200 - 20)",
  )
})

test('constant stays; wsd stays and falls over the last tenth', () => {
  for (const step of [20, 100, 199, 500]) assert.equal(learningRate(step, { ...RUN, schedule: 'constant' }), 6e-4)
  const wsd = (step: number, run: Partial<ScheduleOptions> = {}): number =>
    learningRate(step, { ...RUN, schedule: 'wsd', ...run })
  for (const step of [20, 100, 180]) assert.equal(wsd(step), 6e-4)
  near(wsd(190), (6e-4 + 6e-5) / 2, 190)
  near(wsd(200), 6e-5, 200)
  // Where warm-up reaches into the last tenth, the decay takes what is left, from lr.
  assert.equal(wsd(195, { warmup: 195 }), 6e-4)
  near(wsd(196, { warmup: 195 }), 6e-4 - (6e-4 - 6e-5) / 5, 196)
})

test('a run of warm-up only, and one of a single step', () => {
  for (const schedule of SCHEDULES) {
    near(learningRate(9, { ...RUN, schedule, warmup: 10, steps: 10 }), 6e-4, schedule)
    assert.ok(Number.isFinite(learningRate(10, { ...RUN, schedule, warmup: 10, steps: 10 })), schedule)
    assert.equal(learningRate(0, { ...RUN, schedule, warmup: 0, steps: 1 }), 6e-4, schedule)
  }
})

test('a schedule that cannot be is refused with the option named', () => {
  checkSchedule(RUN)
  checkSchedule({ ...RUN, minLr: 0, warmup: 0 })
  const refused: [Partial<ScheduleOptions>, RegExp][] = [
    [{ schedule: 'cosinus' as 'cosine' }, /--schedule must be one of cosine, linear, constant, wsd; got cosinus/],
    [{ steps: 0 }, /--steps must be an integer of 1 or more; got 0/],
    [{ steps: 1.5 }, /--steps/],
    [{ warmup: -1 }, /--warmup must be/],
    [{ warmup: 201 }, /--warmup must not exceed --steps \(200\); got 201/],
    [{ lr: 0 }, /--lr must be above 0/],
    [{ lr: Number.NaN }, /--lr/],
    [{ lr: Number.POSITIVE_INFINITY }, /--lr/],
    [{ minLr: 1e-3 }, /--min-lr must be from 0 to --lr \(0.0006\); got 0.001/],
    [{ minLr: -1 }, /--min-lr/],
  ]
  for (const [change, message] of refused)
    assert.throws(() => checkSchedule({ ...RUN, ...change }), { code: 'ERR_CONFIG', message })
})
