import assert from 'node:assert/strict'
import { stepCost } from '../../bench/cases-step.js'
import { chromeTrace, groupLaunches, heaviestInSpace, heaviestInTime } from '../../bench/profile.js'
import { profileStep, profileText } from '../../bench/profile-command.js'
import { onEachDevice } from '../devices.js'

const PEAKS = { gemm: { f32: 100, bf16: 100 }, memory: 10 }
const options = (model: string, device: string) =>
  ({ model, batchSize: 2, seqLen: 64, device, precision: 'f32', threads: 0 }) as const

onEachDevice('the kernels of a step add up to the step, and to its FLOPs', async device => {
  const model = 'L=2,H=2,C=64,V=2000,T=64'
  let share = 0
  for (let attempt = 0; attempt < 3 && share < 0.6; attempt++) {
    const { profile, launches } = await profileStep(options(model, device.name), PEAKS)
    share = profile.kernel_ms / profile.step_ms
    assert.ok(share <= 1, `${share}`)
    const products = launches.filter(({ label }) => /matmul|attention|head_loss/.test(label))
    const counted = products.reduce((sum, { cost }) => sum + cost.flops, 0)
    const wanted = stepCost({ model, B: 2, T: 64 }, 'f32').flops
    assert.ok(Math.abs(counted / wanted - 1) < 0.02, `${counted} FLOPs in kernels, ${wanted} in the formula`)
    assert.deepEqual(
      ['forward', 'loss', 'backward', 'optimizer'].filter(phase => !profile.groups.some(g => g.phase === phase)),
      [],
    )
    const calls = (label: string) => profile.groups.find(g => `${g.phase} ${g.label}` === label)?.count
    assert.equal(calls('backward matmul wgrad'), 8)
    assert.equal(calls('forward attention_forward'), 2)
    assert.equal(calls('optimizer adamw'), 1)
    assert.ok(profile.peak_bytes > 0)
    assert.match(profileText(profile), /Heaviest in time[\s\S]*Heaviest in space[\s\S]*sum of kernels/)
  }
  assert.ok(share > 0.6, `kernels are ${share} of the step`)
})

onEachDevice('an op made slow moves to the top', async device => {
  const top = async (model: string): Promise<string> =>
    (await profileStep(options(model, device.name), PEAKS)).profile.groups[0].label
  assert.notEqual(await top('L=3,H=4,C=128,V=256,T=64'), 'head_loss_backward')
  assert.equal(await top('L=3,H=4,C=128,V=20000,T=64'), 'head_loss_backward')

  const { launches } = await profileStep(options('L=1,H=2,C=32,V=300,T=64', device.name), PEAKS)
  const slowed = launches.map(launch =>
    launch.label === 'weighted_sum' ? { ...launch, time: { ...launch.time, end: launch.time.end + 1000 } } : launch,
  )
  const [first] = heaviestInTime(groupLaunches(slowed, 'f32', PEAKS))
  assert.equal(first.label, 'weighted_sum')
  assert.ok(first.ms >= 1000)
  const [largest] = heaviestInSpace(groupLaunches(launches, 'f32', PEAKS))
  assert.ok(largest.made >= Math.max(...launches.map(({ time }) => time.workspace)))
})

onEachDevice('a trace has one event a kernel, in order, in µs', async device => {
  const { launches } = await profileStep(options('L=1,H=2,C=32,V=300,T=64', device.name), PEAKS)
  const { traceEvents } = JSON.parse(JSON.stringify(chromeTrace(launches, device.name))) as ReturnType<
    typeof chromeTrace
  >
  assert.equal(traceEvents.length, launches.length)
  assert.equal(traceEvents[0].ts, 0)
  traceEvents.forEach((event, k) => {
    assert.equal(event.ph, 'X')
    const { begin, end } = launches[k].time
    assert.ok(Math.abs(event.dur - (end - begin) * 1000) < 1e-6)
    if (k) assert.ok(event.ts >= traceEvents[k - 1].ts + traceEvents[k - 1].dur - 1)
  })
})
