// Packets that no caller would write: an error or a result, never a crash, a hang or a leak.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { inProcess } from './process.js'

// Scalars as words: the bits of floats where the op takes floats.
const F = (x: number): number => new Int32Array(Float32Array.of(x).buffer)[0]!
const LOSS = [12, F(2), F(0.5), F(1), F(1), F(1), F(1), 0]
const TOP_K = [12, F(2), F(0.5), F(1), F(1), 0, 0, 3]

/** A valid call of each op, by names of tensors below; `0` absent or new, `-1` skipped. */
const TEMPLATES: [op: string, inputs: (string | 0)[], outputs: (string | number)[], scalars: number[]][] = [
  ['matmul', ['h', 'w', 'c16', 'h'], [0, 0], [0, 0, 1, -1, 0]],
  ['matmul', ['h', 'w', 0, 0, 'h'], ['h2', -1], [0, 1, 2, 0, 1]],
  ['matmul', ['hb', 'wb'], [0, -1], [0, 1, 0, 1, 0]],
  ['column_sum', ['h'], ['c16'], []],
  ['attention_forward', ['qkv', 0, 'tokens', 0, 'rng'], [0, 0], [2, F(0), F(0.1), 1]],
  ['attention_forward', ['q', 'kv', 'wild', 'past'], [0, 0], [2, F(0), F(0), 1]],
  ['attention_backward', ['q', 'qkv', 0, 'q', 'lse', 'tokens', 0, 'rng'], [0, -1], [2, F(0), F(0.1), 1]],
  ['attention_backward', ['q', 'q', 'kv', 'q', 'lse', 'wild', 'past'], [0, 0], [2, F(0), F(0), 1]],
  ['kv_append', ['qkv', 'past'], ['kv'], []],
  ['layernorm_forward', ['h', 'c16', 'c16', 'h'], [0, 0, 0, 0], [F(1e-5)]],
  ['layernorm_backward', ['h', 'h', 'c16', 'r8', 'r8', 'h'], [0, 'c16', 'd16'], []],
  ['gelu_forward', ['hb'], [0], []],
  ['gelu_backward', ['h', 'h'], [0], []],
  ['add', ['h', 'h2'], ['h'], []],
  ['scale', ['h', 'one'], [0], [F(2)]],
  ['cast', ['h'], [0], [1]],
  ['fill', ['h'], [0], [F(2)]],
  ['weighted_sum', ['h', 'r8'], ['c16'], []],
  ['embedding_forward', ['tokens', 'head', 'w', 'positions'], [0], [12]],
  ['embedding_forward', ['wild', 'head', 'w', 0, 'past'], [0], [12]],
  ['embedding_backward', ['h', 'tokens', 'positions'], ['dhead', 'dw'], [12]],
  ['embedding_backward', ['h', 'wild', 'wild'], [0, -1], [12]],
  ['loss_forward', ['logits', 'targets', 'r8', 'logits'], [0], LOSS],
  ['loss_forward', ['logits', 'wild', 'r8', 'ids', 'logprobs', 'r8'], [0], TOP_K],
  ['loss_backward', ['logits', 'targets', 'r8', 'logits', 0, 0, 'one'], [0, 0], LOSS],
  ['loss_backward', ['logits', 'targets', 'r8', 'ids', 'logprobs', 'r8', 'one'], [0, -1], TOP_K],
  ['head_loss_forward', ['h', 'head', 'targets', 'r8', 'h', 'head'], [0], LOSS],
  ['head_loss_backward', ['h', 'head', 'targets', 'r8', 'h', 'head', 0, 'one'], [0, 'dhead', 0], LOSS],
  ['head_loss_backward', ['h', 'head', 'wild', 'r8', 'ids', 'logprobs', 'r8'], [0, 0, 0], TOP_K],
  ['head_top_k', ['h', 'head'], [0, 0, 0], [12, F(1), 3]],
  ['cosine_loss_forward', ['h', 'h2', 'r8'], [0], []],
  ['cosine_loss_backward', ['h', 'h2', 'r8', 'one'], [0, 0], []],
  ['global_norm', ['h'], [0], []],
  ['adamw', ['h', 'two', 'one'], ['h2', 'm', 'v', -1], [F(0.9), F(0.99), F(1e-8), F(0.1), F(1), 5]],
  ['random_uniform', ['rng'], ['h2'], [F(0), F(1), 3]],
  ['random_normal', ['rng'], ['hb2'], [F(0), F(1), 3]],
  ['dropout', ['h', 'rng', 'h2'], [0], [F(0.5), 2]],
  ['argmax', ['logits'], [0], [12]],
  ['sample', ['logits', 'rng'], [0], [12, F(0.7), 5, F(0.9), 1]],
]

test('mutated packets give errors or results; the device still computes afterwards', async () => {
  const source = JSON.stringify(TEMPLATES)
  const told = await inProcess(
    new Function(
      'lib',
      `return (${fuzz.toString()})(lib, ${source}, ${Number(process.env.TRAIN_CORE_FUZZ_PACKETS ?? 120_000)}, ${Number(process.env.TRAIN_CORE_FUZZ_SEED ?? 1)})`,
    ) as (lib: import('./process.js').Lib) => Promise<Awaited<ReturnType<typeof fuzz>>>,
    { env: { TRAIN_CORE_MEMORY_LIMIT: '16M' }, timeout: 120_000 },
  )
  assert.deepEqual(told.foreign, [])
  assert.deepEqual(told.missing, [], 'ops that never ran, though a valid call of each is among the packets')
  assert.ok(told.ran > 20_000, `${told.ran} packets ran`)
  for (const code of ['ERR_SHAPE', 'ERR_DTYPE', 'ERR_ARGUMENT', 'ERR_FREED', 'ERR_MEMORY', 'ERR_DATA', 'ERR_CAPTURE'])
    assert.ok((told.codes[code] ?? 0) > 0, `${code} among ${JSON.stringify(told.codes)}`)
  assert.equal(told.product, 32)
  assert.equal(told.left, 0)
})

// Runs in the other process: everything it uses comes in as an argument.
async function fuzz(
  lib: import('./process.js').Lib,
  templates: typeof TEMPLATES,
  count: number,
  seed: number,
): Promise<{
  foreign: string[]
  codes: Record<string, number>
  missing: string[]
  ran: number
  product: number
  left: number
}> {
  const { Tensor, TrainCoreError, currentDevice, matmul, native, scope } = lib
  const { binding, words, numbers } = native()
  let state = seed
  const random = (n: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0
    return Math.floor(((state >>> 8) / 2 ** 24) * n)
  }
  const pick = <T>(list: readonly T[]): T => list[random(list.length)]!
  const floats = (n: number): Float32Array => Float32Array.from({ length: n }, () => random(2000) / 1000 - 1)
  const started = currentDevice().info().tensors

  const held: Record<string, InstanceType<typeof Tensor>> = {}
  const shapes: Record<string, number[]> = {
    h: [8, 16],
    m: [8, 16],
    v: [8, 16],
    h2: [8, 16],
    w: [16, 16],
    dw: [16, 16],
    c16: [16],
    d16: [16],
    r8: [8],
    one: [1],
    two: [2],
    qkv: [2, 4, 48],
    q: [2, 4, 16],
    kv: [2, 6, 32],
    lse: [2, 2, 4],
    head: [12, 16],
    dhead: [12, 16],
    logits: [8, 12],
    logprobs: [8, 3],
    empty: [0, 16],
    scalar: [],
  }
  for (const [name, shape] of Object.entries(shapes))
    held[name] = Tensor.from(floats(shape.reduce((a, b) => a * b, 1)), shape)
  for (const name of ['h', 'h2', 'w'])
    held[`${name.replace('2', '')}b${name.slice(1)}`] = Tensor.from(floats(name === 'w' ? 256 : 128), shapes[name], {
      dtype: 'bf16',
    })
  const ints = (shape: number[], of: () => number): InstanceType<typeof Tensor> =>
    Tensor.from(Int32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, of), shape)
  const ids = (): Record<string, InstanceType<typeof Tensor>> => ({
    tokens: ints([2, 4], () => random(12)),
    wild: ints([2, 4], () => pick([0, 1, -1, 11, 12, 13, 2 ** 31 - 1, -(2 ** 31), 65536])),
    positions: ints([2, 4], () => random(16)),
    targets: ints([8], () => random(14) - 1),
    past: ints([1], () => pick([0, 1, 2, 3, 7, -1, 2 ** 31 - 1, -(2 ** 31)])),
    rng: ints([4], () => random(1000)),
    ids: Tensor.from(
      Uint16Array.from({ length: 24 }, () => pick([0, 3, 5, 11, 12, 65535])),
      [8, 3],
    ),
    bytes: Tensor.from(new Uint8Array(64)),
    half: Tensor.zeros([16], { dtype: 'f16' }),
  })
  Object.assign(held, ids())

  const wildWords = [
    0,
    1,
    -1,
    2,
    3,
    8,
    16,
    255,
    65536,
    2 ** 31 - 1,
    -(2 ** 31),
    0x7f800000,
    0x7fc00000,
    0x3f800000,
    0x7f7fffff,
    -0x00800000,
    1 << 20,
  ]
  const made: number[] = []
  const anyId = (): number => {
    const of = random(10)
    if (of < 6) return held[pick(Object.keys(held))]!.id
    if (of < 8 && made.length) return pick(made)
    return of === 8 ? random(2 ** 24) * 128 : pick(wildWords)
  }
  const codes: Record<string, number> = {}
  const foreign: string[] = []
  const ranOps = new Set<string>()
  let ran = 0
  const guarded = <R>(what: string, use: () => R): R | undefined => {
    try {
      return use()
    } catch (error) {
      if (error instanceof TrainCoreError) codes[error.code] = (codes[error.code] ?? 0) + 1
      else if (foreign.length < 5) foreign.push(`${what}: ${String(error)}`)
      return undefined
    }
  }
  const call = (name: string): void => {
    const worked = guarded(name, () => {
      binding.call()
      return true
    })
    if (!worked) return
    ran++
    for (let k = 0; k < 4; k++) if (words[9 + k] === 0 && words[32 + 8 * k]) made.push(words[32 + 8 * k]!)
  }
  const write = (k: number): void => {
    const [op, inputs, outputs, scalars] = templates[k % templates.length]!
    words.fill(0, 0, 32)
    words[0] = numbers[op]!
    for (const [at, name] of inputs.entries()) words[1 + at] = name ? held[name]!.id : 0
    for (let at = 0; at < 4; at++) {
      const to = outputs[at] ?? -1
      words[9 + at] = typeof to === 'string' ? held[to]!.id : to
    }
    for (const [at, word] of scalars.entries()) words[13 + at] = word
  }
  const mutate = (): void => {
    for (let n = pick([0, 1, 1, 1, 2, 3, 8]); n > 0; n--) {
      const at = random(40)
      if (at === 0) words[0] = pick([random(60), ...wildWords])
      else if (at < 9) words[at] = anyId()
      else if (at < 13) words[at] = pick([0, -1, anyId()])
      else if (at < 25) words[at] = pick([...wildWords, random(20)])
      else if (at < 32) words[at] = random(2 ** 24)
    }
  }

  for (let k = 0; k < templates.length; k++) {
    write(k)
    const before = ran
    call(templates[k]![0])
    if (ran > before) ranOps.add(templates[k]![0])
  }
  let capturing = 0
  for (let k = 0; k < count; k++) {
    write(random(templates.length))
    mutate()
    call('call')
    while (made.length > 40) binding.free(made.splice(random(made.length), 1)[0]!)
    const other = random(400)
    if (other < 12) {
      for (let at = 0; at < 7; at++) words[at] = pick([anyId(), random(8), random(8)])
      const id = guarded('create or view', () =>
        other < 6
          ? binding.create()
          : binding.view(pick([0, 1, 5, 2 ** 31, 2 ** 53, 2 ** 63, 1e300, -1, Number.NaN, Infinity])),
      )
      if (id) made.push(id)
    } else if (other === 12) binding.free(random(2 ** 24) * 128)
    else if (other < 16) guarded('readSync', () => binding.readSync(anyId()))
    else if (other === 16) {
      const pending = guarded('read', () => binding.read(anyId()))
      await pending?.catch(error =>
        guarded('read', () => {
          throw error
        }),
      )
    } else if (other < 20) guarded('write', () => binding.write(anyId(), new Uint8Array(pick([0, 4, 64, 512]))))
    else if (other < 23) {
      const action = pick(['begin', 'end', 'verify', 'end_verify', 'replay', 'free', 'abandon'])
      guarded('capture', () => binding.capture(action, pick([0, 0, capturing, capturing, random(9), -1, 2 ** 31 - 1])))
      if (action === 'begin' || action === 'end') capturing++
    }
    if (k % 500 === 0) guarded('abandon', () => binding.capture('abandon'))
    if (k % 5000 === 0) {
      guarded('abandon', () => binding.capture('abandon'))
      for (let handle = 0; handle < 2000; handle++) binding.capture('free', handle)
      for (const [name, tensor] of Object.entries(ids())) {
        held[name]!.free() // a mutated call may have written into it
        held[name] = tensor
      }
    }
  }

  guarded('abandon', () => binding.capture('abandon'))
  for (let handle = 0; handle < capturing + 1; handle++) binding.capture('free', handle)
  for (const id of made) binding.free(id)
  for (const tensor of Object.values(held)) tensor.free()
  guarded('failures', () => scope(() => Tensor.from([1]).readSync()))
  const left = currentDevice().info().tensors - started
  const product = scope(() => {
    const a = Tensor.full([32, 32], 1)
    return matmul(a, a).readSync()[1023]!
  })
  const missing = Object.keys(numbers).filter(name => !ranOps.has(name))
  return { foreign, codes, missing, ran, product, left }
}
