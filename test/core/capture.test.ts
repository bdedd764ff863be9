// Captured steps: replay equals eager bitwise, changes are found, errors leave a usable device, memory is given back.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { currentDevice } from '../../lib/device.js'
import { native } from '../../lib/native.js'
import { add, fill, scale } from '../../lib/ops/elementwise.js'
import { linear, mlp } from '../../lib/ops/matmul.js'
import { adamw, globalNorm } from '../../lib/ops/optim.js'
import { createRng, dropout, setRngStep } from '../../lib/ops/random.js'
import { type CapturedStep, capture } from '../../lib/step.js'
import { backward } from '../../lib/tape.js'
import { keep, NEW, run, scope, Tensor } from '../../lib/tensor.js'
import { onEachDevice } from '../devices.js'
import { Random } from '../random.js'
import { inProcess } from './process.js'

const CHANGED = { code: 'ERR_CAPTURE' }
const live = (): number => currentDevice().info().live
const one = (x: Tensor): number => x.readSync()[0]!

/** A regression of 8 numbers on 12 by two layers, trained by AdamW. */
class Model {
  readonly x = Tensor.zeros([6, 12])
  readonly wanted = Tensor.zeros([6, 8])
  readonly schedule = Tensor.zeros([2])
  readonly rng = createRng(3)
  readonly flat: Tensor
  private readonly m: Tensor
  private readonly v: Tensor
  private readonly grads: Tensor
  private readonly parts: Tensor[]

  constructor() {
    const shapes = [[12, 16], [16], [16, 8], [8]]
    const sizes = shapes.map(shape => shape.reduce((a, b) => a * b))
    const total = sizes.reduce((a, b) => a + b)
    this.flat = Tensor.from(Float32Array.from(new Random(1).normal(total, 0.3)))
    ;[this.m, this.v, this.grads] = [0, 1, 2].map(() => Tensor.zeros([total])) as [Tensor, Tensor, Tensor]
    let offset = 0
    this.parts = shapes.map((shape, k) => {
      const part = this.flat.view(shape, offset)
      part.requiresGrad = true
      part.grad = this.grads.view(shape, offset)
      offset += sizes[k]!
      return part
    })
  }

  feed(step: number): void {
    const random = new Random(100 + step)
    this.x.write(Float32Array.from(random.normal(72)))
    this.wanted.write(Float32Array.from(random.normal(48)))
    this.schedule.write([0.01 / step, step])
    setRngStep(this.rng, 3, step)
  }

  step(): { error: Tensor; norm: Tensor } {
    const [w1, b1, w2, b2] = this.parts as [Tensor, Tensor, Tensor, Tensor]
    fill(this.grads, 0)
    const hidden = dropout(mlp(this.x, w1, b1, w2, b2), { probability: 0.2, rng: this.rng, stream: 0 })
    const error = add(hidden, scale(this.wanted, -1))
    backward(error, error, { release: true }) // the gradient of sum(error²) / 2
    const norm = globalNorm(this.grads)
    adamw({ params: this.flat, grads: this.grads, m: this.m, v: this.v, schedule: this.schedule, norm }, { maxNorm: 1 })
    return { error, norm }
  }
}

onEachDevice('record, verify and replay equal eager runs bitwise; what is written between calls is seen', async () => {
  const eager = new Model()
  const replayed = new Model()
  const step = capture(() => replayed.step())
  const norms = new Set<number>()
  let errors: Tensor | undefined
  for (let k = 1; k <= 12; k++) {
    eager.feed(k)
    replayed.feed(k)
    const a = scope(() => eager.step())
    const b = step()
    assert.deepEqual(await b.error.read(), await a.error.read(), `error of step ${k}`)
    assert.deepEqual(await b.norm.read(), await a.norm.read())
    assert.deepEqual(await replayed.flat.read(), await eager.flat.read(), `weights after step ${k}`)
    norms.add(one(b.norm))
    if (k >= 3) assert.equal(b.error, errors)
    errors = b.error
  }
  assert.equal(norms.size, 12)
})

onEachDevice('a loss of one element may start backward inside a captured step', () => {
  const w = Tensor.from([2, 3], [2, 1])
  const x = Tensor.from([5, 7], [1, 2])
  w.requiresGrad = true
  const step = capture(() => {
    const loss = linear(x, w)
    backward(loss)
    return loss
  })
  for (let k = 1; k <= 5; k++) {
    assert.equal(one(step()), 31)
    assert.deepEqual([...w.grad!.readSync()], [5 * k, 7 * k])
  }
})

onEachDevice('tensors may be made and filled inside a captured step', () => {
  const x = Tensor.from([1, 2, 3])
  const step = capture(() => {
    const made = Tensor.full([3], 10)
    return { sum: add(x, made), row: add(made.view([1], 2), x.view([1], 1)) }
  })
  for (let k = 0; k < 5; k++) {
    x.write([k, 2 * k, 3])
    const { sum, row } = step()
    assert.deepEqual([...sum.readSync()], [10 + k, 10 + 2 * k, 13])
    assert.equal(one(row), 10 + 2 * k)
  }
})

test('a step that changes is refused at its first difference, and never replayed', () => {
  const x = Tensor.from([1, 2])
  const other = Tensor.from([5, 5])
  const changes: [string, RegExp, (call: number) => Tensor][] = [
    ['a scalar', /\[scale\] call 1 .* \(then: scale with another scalar 0\)/, n => scale(add(x, x), n)],
    ['an input', /\[add\] call 1 .* \(then: add with another input 1\)/, n => add(add(x, x), n < 3 ? x : other)],
    ['an op', /\[add\] call 1 .* \(then: scale\)/, n => (n < 3 ? scale(add(x, x), 1) : add(add(x, x), x))],
    ['one more', /\[scale\] call 1 .* \(then: the end of the step\)/, n => (n < 3 ? add(x, x) : scale(add(x, x), 1))],
    ['one fewer', /had 2 calls the first time; got 1/, n => (n < 3 ? scale(add(x, x), 1) : add(x, x))],
    [
      'an offset',
      /\[view\] call 0 .* \(then: view with another scalar 0\)/,
      n => add(x.view([1], n < 3 ? 0 : 1), x.view([1])),
    ],
    ['a shape', /\[create\] call 0 .* \(then: create with another scalar 3\)/, n => Tensor.zeros([n])],
    ['a rank', /\[view\] call 0 .* \(then: view with another scalar 2\)/, n => scale(x.view(n < 3 ? [1] : [1, 1]), 1)],
    [
      'the target',
      /\[scale\] call 1 .* another output 0/,
      n => run('scale', [add(x, x), null], [n < 3 ? NEW : other], [1])[0]!,
    ],
  ]
  for (const [what, message, body] of changes) {
    let calls = 0
    const before = live()
    const step = capture(() => body(what === 'a scalar' || what === 'a shape' ? Math.max(++calls, 2) : ++calls))
    step().free()
    step()
    assert.throws(step, { ...CHANGED, message }, what)
    assert.equal(live(), before, what)
    calls = 5
    const first = step() // anew: an ordinary run
    if (first !== other) first.free()
    step()
    if (what === 'a scalar' || what === 'a shape') assert.throws(step, CHANGED)
    else assert.doesNotThrow(step)
    step.free()
    assert.equal(live(), before)
  }
})

test('a step that catches the error of its own change is refused too', () => {
  const x = Tensor.from([1])
  let calls = 0
  const step = capture(() => {
    const out = add(x, x)
    try {
      if (++calls > 2) scale(x, 3)
    } catch {}
    return out
  })
  step()
  step()
  assert.throws(step, { ...CHANGED, message: /\[scale\] call 1/ })
})

test("tensors that the step returns but did not make stay their owner's", () => {
  const x = Tensor.from([1])
  const step = capture(() => ({ x, list: add(x, x) }))
  for (let k = 0; k < 4; k++) step()
  step.free()
  assert.equal(one(x), 1)
})

test('results outlive the scopes around the calls, and end with free()', () => {
  const x = Tensor.from([1])
  const { tensors } = currentDevice().info()
  const step = capture(() => add(x, x))
  for (let k = 1; k <= 5; k++)
    scope(() => {
      x.write([k])
      assert.equal(one(step()), 2 * k)
    })
  const out = step()
  assert.equal(one(out), 10)
  step.free()
  step.free()
  assert.throws(() => one(out), { code: 'ERR_FREED' })
  assert.equal(currentDevice().info().tensors, tensors)
})

test("a tensor kept inside a captured step holds the newest step's values; a stand-in is freed", () => {
  const x = Tensor.from([1])
  const kept: Tensor[] = []
  const step = capture(() => {
    kept.push(keep(scale(x, 3)))
    return add(x, x)
  })
  for (let k = 1; k <= 5; k++) {
    x.write([k])
    step()
  }
  assert.equal(kept.length, 3) // run, recorded, verified
  assert.equal(one(kept[0]!), 3)
  assert.equal(one(kept[1]!), 15)
  assert.throws(() => one(kept[2]!), { code: 'ERR_FREED' })
  step.free()
  assert.equal(one(kept[1]!), 15)
})

test('reads, writes and fences inside a captured step are refused', async () => {
  const x = Tensor.from([1])
  const uses: [string, () => unknown][] = [
    ['write', () => x.write([1])],
    ['readSync', () => x.readSync()],
    ['write', () => Tensor.from([1])],
  ]
  for (const [what, use] of uses) {
    const step = capture(() => {
      use()
      return add(x, x)
    })
    step()
    assert.throws(step, { ...CHANGED, message: new RegExp(`^\\[${what}\\]`) })
    assert.equal(one(add(x, x)), 2)
  }
  const pending: Promise<unknown>[] = []
  const step = capture(() => {
    pending.push(x.read(), currentDevice().sync())
    return add(x, x)
  })
  step()
  await Promise.all(pending.splice(0))
  step()
  for (const promise of pending) await assert.rejects(promise, CHANGED)
})

test('nested capture is refused, and the outer one too; replay inside a captured step as well', () => {
  const x = Tensor.from([1])
  const before = live()
  const inner = capture(() => add(x, x))
  inner()
  const outer = capture(() => scale(inner(), 2))
  assert.throws(
    () => {
      outer()
      outer()
    },
    { ...CHANGED, message: /captured/ },
  )
  const ready = capture(() => add(x, x))
  for (let k = 0; k < 3; k++) ready()
  const around = capture(() => scale(ready(), 2))
  around().free()
  assert.throws(around, { ...CHANGED, message: /can't be replayed inside/ })
  for (const step of [inner, outer, ready, around]) step.free()
  assert.equal(one(add(x, x)), 2)
  assert.ok(live() - before < 64)
})

test('an error thrown while recording or verifying leaves a usable device and no memory', () => {
  const x = Tensor.full([1000], 1)
  for (const bad of [1, 2, 3]) {
    const before = live()
    let calls = 0
    const step = capture(() => {
      const y = add(x, x)
      Tensor.zeros([500])
      if (++calls === bad) throw new RangeError('mine')
      return add(y, x)
    })
    for (let k = 1; k < bad; k++)
      if (k === 1) step().free()
      else step()
    assert.throws(step, RangeError)
    assert.equal(live(), before, `after an error in call ${bad}`)
    assert.equal(one(scope(() => add(x, x)).view([1])), 2)
    for (let k = 0; k < 4; k++) assert.equal(one(step().view([1])), 3)
    step.free()
  }
})

onEachDevice('what a recording reads and writes stays with it when it is freed', () => {
  const before = live()
  const x = Tensor.full([5000], 3)
  const sum = Tensor.zeros([5000])
  const step = capture(() => {
    run('add', [sum, x], [sum])
    return add(sum, x)
  })
  step().free()
  const out = step()
  step()
  x.free()
  sum.free()
  const others = [Tensor.full([5000], -1), Tensor.full([5000], -1)]
  assert.equal(step(), out)
  assert.equal(out.readSync()[4999], 15) // x = 3 five times: four runs, and once in the result
  for (const other of others) {
    assert.equal(other.readSync()[4999], -1)
    other.free()
  }
  step.free()
  assert.equal(live(), before)
})

onEachDevice('two captured steps alternate', () => {
  const x = Tensor.from([1])
  const twice = capture(() => run('add', [x, x], [x])[0]!)
  const plus = capture(() => scope(() => add(scale(x, 1), Tensor.full([1], 1))))
  let wanted = 1
  for (let k = 0; k < 8; k++) {
    twice()
    wanted = 2 * wanted + 1
    const out = plus()
    assert.equal(one(out), wanted)
    x.write([wanted])
  }
  twice.free()
  assert.equal(one(plus()), wanted + 1)
})

test('a captured step that is garbage gives its memory back', async () => {
  const [held, left, value] = await inProcess(
    async ({ Tensor, add, capture, currentDevice, scale }) => {
      const x = Tensor.full([100_000], 2)
      const before = currentDevice().info().live
      let out: InstanceType<typeof Tensor> | undefined
      const make = (): CapturedStep<InstanceType<typeof Tensor>> => capture(() => add(scale(x, 2), x))
      ;(() => {
        const step = make()
        for (let k = 0; k < 4; k++) out = step()
      })()
      const held = currentDevice().info().live - before
      for (let k = 0; k < 50 && currentDevice().info().live - before > 500_000; k++) {
        globalThis.gc!()
        await new Promise(resolve => setTimeout(resolve, 10))
      }
      return [held, currentDevice().info().live - before, (await out!.read())[99_999]!]
    },
    { flags: ['--expose-gc'] },
  )
  assert.ok(held! >= 800_000)
  assert.equal(left, 400_000)
  assert.equal(value, 6)
})

test('the actions of the binding refuse what is out of turn', () => {
  const { binding } = native()
  const x = Tensor.from([1])
  const bad: [string, number?][] = [
    ['end'],
    ['end_verify'],
    ['begin', 99],
    ['begin', -1],
    ['verify', 12345],
    ['replay', 12345],
    ['dance', 0],
    ['begin', 0.5],
  ]
  for (const [action, argument] of bad)
    assert.throws(() => binding.capture(action, argument), /captured|recorded|verified|recording|index|action|integer/)
  binding.capture('abandon')
  binding.capture('free', 12345)
  binding.capture('begin', 0)
  assert.throws(() => binding.capture('begin', 0), CHANGED)
  add(x, x)
  const handle = binding.capture('end')
  binding.capture('verify', handle)
  assert.throws(() => binding.capture('free', handle), CHANGED)
  assert.throws(() => binding.capture('replay', handle), CHANGED)
  binding.capture('abandon')
  assert.equal(binding.capture('replay', handle), 1)
  binding.capture('free', handle)
  assert.throws(() => binding.capture('replay', handle), CHANGED)
  assert.equal(one(add(x, x)), 2)
})
