// One op's case: make its tensors, check its result, time it.
import type { Device } from '../lib/device.js'
import { run, scope } from '../lib/tensor.js'
import type { CallSpec } from './case.js'
import { CHECKS, REMEMBERED, slice } from './checks.js'
import { LiveCase } from './live.js'
import type { Timed } from './measure.js'

/** A case ready to be timed. */
export interface Ready extends Timed {
  /** sets of tensors that take turns, and the bytes of all but one of them */
  readonly sets: number
  readonly spareBytes: number
  /** fails when the result is not what the case's formula, or a law, gives */
  check(): Promise<void>
}

async function checkCall(live: LiveCase): Promise<void> {
  const [call] = live.sets
  const check = CHECKS[call.op]
  if (!check) throw new Error(`bench/checks.ts has no check for ${call.op}`)
  const before = await Promise.all(call.given.map(t => (t ? slice(t, 0, Math.min(t.size, REMEMBERED)) : null)))
  const results = scope(() => run(call.op, call.inputs, call.outputs, call.scalars))
  await check({ ...call, results, before })
  results.forEach((result, k) => {
    if (result && !call.given[k]) result.free()
  })
}

export function readyOp(spec: CallSpec, device: Device, cacheBytes: number): Ready & { free(): void } {
  const live = new LiveCase(spec, device, cacheBytes)
  return {
    sets: live.sets.length,
    spareBytes: live.spareBytes,
    run: async count => {
      for (let k = 0; k < count; k++) live.queue()
      await device.sync()
    },
    check: () => checkCall(live),
    free: () => live.free(),
  }
}
