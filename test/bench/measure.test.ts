import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { calibrate, measure, QUICK } from '../../bench/measure.js'
import { compare } from '../../bench/rivals.js'

/** Work of a known length: it sleeps. */
const sleeper = (ms: number) => ({ run: (count: number): Promise<void> => sleep(ms * count) })

/** A busy machine wakes sleepers late: once in five attempts must do. What is wrong fails in all of them. */
async function inOneOfFive(body: () => Promise<void>): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await body()
    } catch (error) {
      if (attempt === 5) throw error
    }
  }
}

test('samples are ms of one unit, however many make a sample', () =>
  inOneOfFive(async () => {
    // A sample is of 3 units, 21 ms.
    const ms = Math.min(...(await measure(sleeper(7), QUICK)))
    assert.ok(ms >= 6 && ms < 20, `${ms}`)
    assert.ok((await calibrate(sleeper(50))) === 1)
    const many = await calibrate(sleeper(1))
    assert.ok(many > 1 && many < 30, `${many}`)
  }))

test('work that throws fails its measurement, at the first call or later', async () => {
  const failing = (after: number) => {
    let calls = 0
    return {
      run: async (): Promise<void> => {
        await sleep(1)
        if (++calls > after) throw new Error('the kernel failed')
      },
    }
  }
  await assert.rejects(measure(failing(0), QUICK), /the kernel failed/)
  await assert.rejects(measure(failing(12), QUICK), /the kernel failed/)
})

test('a rival is compared in turns', () => inOneOfFive(compareInTurns))

async function compareInTurns(): Promise<void> {
  const turns: string[] = []
  const side = (name: string, ms: number) => ({
    run: async (count: number): Promise<void> => {
      turns.push(name)
      await sleep(ms * count)
    },
  })
  const rival = { name: 'slow', mode: '', close: () => {}, ...side('theirs', 90) }
  const row = await compare(side('ours', 30), rival)
  assert.ok(row.ratio > 2 && row.ratio < 4, `${row.ratio}`)
  assert.equal(row.pairs, 7)
  assert.deepEqual(turns.slice(-14), Array.from({ length: 7 }, () => ['ours', 'theirs']).flat())
}
