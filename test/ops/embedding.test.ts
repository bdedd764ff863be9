import assert from 'node:assert/strict'
import { embedding } from '../../lib/ops/embedding.js'
import { backward, noGrad, reshape } from '../../lib/tape.js'
import { NEW, run, SKIP, Tensor } from '../../lib/tensor.js'
import { assertClose, assertSame, type Precision, rounder } from '../close.js'
import { forEachDevice, framed, onEachDevice, someOf, tensor, valuesOf } from '../devices.js'
import { gradcheck, Random, randomTensor } from '../gradcheck.js'
import { embeddingBackward, embeddingForward } from '../reference/embedding.js'

const FORWARD = ['embedding_forward']
const BOTH = ['embedding_forward', 'embedding_backward', 'fill', 'add', 'cast', 'scale']

interface Case {
  B: number
  T: number
  C: number
  V: number
  Vp: number
  P: number
}
const CASES: readonly Case[] = [
  { B: 3, T: 17, C: 37, V: 11, Vp: 16, P: 19 },
  { B: 2, T: 200, C: 24, V: 3, Vp: 8, P: 200 }, // ids with many rows
  { B: 1, T: 1, C: 1, V: 1, Vp: 1, P: 1 },
  { B: 2, T: 64, C: 130, V: 500, Vp: 512, P: 64 },
  { B: 1, T: 33, C: 768, V: 97, Vp: 128, P: 40 },
]

interface Made {
  tokens: Int32Array
  positions: Int32Array
  wte: Tensor
  wpe: Tensor
}
function make(random: Random, { B, T, C, V, Vp, P }: Case, precision: Precision): Made {
  const tokens = random.integers(B * T, V)
  tokens[0] = V - 1
  const positions = random.integers(B * T, P)
  positions[0] = P - 1
  return {
    tokens,
    positions,
    wte: randomTensor(random, [Vp, C], precision),
    wpe: randomTensor(random, [P, C], precision, 0.5),
  }
}
const ids = (data: Int32Array, { B, T }: Case): Tensor => Tensor.from(data, [B, T])
const inOrder = ({ B, T }: Case): Int32Array => Int32Array.from({ length: B * T }, (_, r) => r % T)

forEachDevice(
  'embedding forward is exact: plain, with positions, with past, without wpe',
  async (_, precision) => {
    const random = new Random(1)
    for (const c of someOf(CASES, 3)) {
      const { tokens, positions, wte, wpe } = make(random, c, precision)
      const [table, places] = [await valuesOf(wte), await valuesOf(wpe)]
      const round = (v: number) => rounder(precision)(Math.fround(v))
      const check = async (out: Tensor, at: Int32Array, withPlaces: boolean, name: string): Promise<void> => {
        assert.deepEqual(out.shape, [c.B, c.T, c.C])
        assertSame(
          await valuesOf(out),
          embeddingForward(tokens, at, table, withPlaces ? places : null, c.C, round),
          name,
        )
      }
      const t = ids(tokens, c)
      const vocab = c.V
      await check(embedding(t, wte, wpe, { vocab }), inOrder(c), true, 'plain')
      await check(embedding(t, wte, wpe, { vocab, positions: ids(positions, c) }), positions, true, 'positions')
      await check(embedding(t, wte, null, { vocab }), positions, false, 'no wpe')
      const past = Tensor.from(Int32Array.of(c.P - c.T), [1])
      await check(
        embedding(t, wte, wpe, { vocab, past }),
        inOrder(c).map(r => r + c.P - c.T),
        true,
        'past',
      )
    }
  },
  { ops: FORWARD },
)

forEachDevice(
  'embedding backward sums the rows of each token and position, fresh and accumulating; padding stays 0',
  async (_, precision) => {
    const random = new Random(2)
    for (const c of someOf(CASES, 3)) {
      const { tokens, positions } = make(random, c, precision)
      const dOut = randomTensor(random, [c.B, c.T, c.C], precision)
      const d = await valuesOf(dOut)
      const check = async (got: Tensor, at: Int32Array, before: Float64Array, name: string): Promise<void> => {
        const want = embeddingBackward(d, at, before, c.C)
        const low = embeddingBackward(d, at, before, c.C, Math.fround)
        assertClose(await valuesOf(got), want, { name, dtype: 'f32', low, shape: got.shape })
      }
      const [fresh] = run('embedding_backward', [dOut, ids(tokens, c)], [NEW, SKIP], [c.V])
      assert.deepEqual(fresh!.shape, [c.V, c.C])
      await check(fresh!, tokens, new Float64Array(c.V * c.C), 'fresh d_wte')

      const before = random.normal(c.Vp * c.C).map(Math.fround)
      const beforePlaces = random.normal(c.P * c.C).map(Math.fround)
      for (const at of [positions, inOrder(c)]) {
        const dWte = tensor(before, [c.Vp, c.C])
        const dWpe = tensor(beforePlaces, [c.P, c.C])
        run('embedding_backward', [dOut, ids(tokens, c), at === positions ? ids(at, c) : null], [dWte, dWpe], [c.V])
        await check(dWte, tokens, before, 'd_wte')
        await check(dWpe, at, beforePlaces, 'd_wpe')
        const padding = (await valuesOf(dWte)).subarray(c.V * c.C)
        assertSame(padding, before.subarray(c.V * c.C), 'the padded rows of d_wte')
      }
    }
  },
  { ops: BOTH },
)

forEachDevice(
  'embedding gradient check, tables as parameters and as results of other ops',
  async (_, precision) => {
    const random = new Random(3)
    const c = CASES[0]!
    const { tokens, positions, wte, wpe } = make(random, c, precision)
    const options = { vocab: c.V, positions: ids(positions, c) }
    await gradcheck(([a, b]) => embedding(ids(tokens, c), a!, b!, options), [wte, wpe], {
      name: 'embedding',
      reference: ([a, b]) => embeddingForward(tokens, positions, a!, b!, c.C),
    })
  },
  { ops: BOTH },
)

onEachDevice(
  'a row that takes a token many times gets each of its gradients',
  async () => {
    const T = 5000
    const dOut = Tensor.full([1, T, 3], 0.25)
    const [dWte] = run('embedding_backward', [dOut, Tensor.from(new Int32Array(T).fill(2), [1, T])], [NEW, SKIP], [4])
    assertSame(await valuesOf(dWte!), [0, 0, 0, 0, 0, 0, T / 4, T / 4, T / 4, 0, 0, 0], 'd_wte')
  },
  BOTH,
)

onEachDevice(
  'only what takes a gradient gets one',
  async () => {
    const [wte, wpe] = [Tensor.full([4, 2], 1), Tensor.full([3, 2], 1)]
    const tokens = Tensor.from(Int32Array.of(1, 3), [1, 2])
    const dOut = tensor([1, 2, 3, 4], [1, 2, 2])
    wpe.requiresGrad = true
    backward(embedding(tokens, wte, wpe), dOut)
    assert.equal(wte.grad, null)
    assertSame(await valuesOf(wpe.grad!), [1, 2, 3, 4, 0, 0], 'wpe.grad')
    wte.requiresGrad = true
    wpe.requiresGrad = false
    backward(embedding(tokens, reshape(wte, [4, 2]), wpe), dOut)
    backward(embedding(tokens, wte, wpe, { past: Tensor.from(Int32Array.of(1), [1]) }), dOut)
    assertSame(await valuesOf(wte.grad!), [0, 0, 2, 4, 0, 0, 6, 8], 'wte.grad')
  },
  BOTH,
)

onEachDevice(
  'ids outside the vocabulary and positions outside wpe are named at the next read or fence',
  async device => {
    const wte = Tensor.full([8, 2], 1)
    const wpe = Tensor.full([4, 2], 1)
    const at = (list: number[]) => Tensor.from(Int32Array.from(list), [1, list.length])
    const rejects = async (out: Tensor, message: string): Promise<void> => {
      await assert.rejects(out.read(), { name: 'TrainCoreError', code: 'ERR_DATA', message })
    }
    await rejects(
      embedding(at([0, 1, 5, 2]), wte, null, { vocab: 5 }),
      '[embedding_forward] token id 5 at row 2 is outside the vocabulary of 5',
    )
    await rejects(
      embedding(at([1000]), wte),
      '[embedding_forward] token id 1000 at row 0 is outside the vocabulary of 8',
    )
    await rejects(embedding(at([-1]), wte), '[embedding_forward] token id -1 at row 0 is outside the vocabulary of 8')
    await rejects(
      embedding(at([0, 0, 0, 0, 0]), wte, wpe),
      '[embedding_forward] position 4 at row 4 is outside the 4 positions',
    )
    const past = Tensor.from(Int32Array.of(4), [1])
    await rejects(
      embedding(at([0]), wte, wpe, { past }),
      '[embedding_forward] position 4 at row 0 is outside the 4 positions',
    )
    const [dWte] = run('embedding_backward', [Tensor.full([1, 2, 2], 1), at([0, 9])], [NEW, SKIP], [5])
    await rejects(dWte!, '[embedding_backward] token id 9 at row 1 is outside the vocabulary of 5')
    // Nothing is queued between a read and the op but the op, and no read follows.
    const tokens = at([3, 11])
    await tokens.read()
    embedding(tokens, wte)
    await assert.rejects(device.sync(), { code: 'ERR_DATA', message: /token id 11 at row 1/ })
    await device.sync()
    assertSame(await valuesOf(embedding(at([1]), wte, wpe)), [2, 2], 'the device works on')
  },
  BOTH,
)

forEachDevice(
  'unaligned tensors give the same, and nothing around them is touched; no rows are fine',
  async (_, precision) => {
    const random = new Random(4)
    for (const c of [CASES[1]!, CASES[3]!, CASES[4]!]) {
      const { tokens, wte, wpe } = make(random, c, precision)
      const t = ids(tokens, c)
      const dOut = randomTensor(random, [c.B, c.T, c.C], precision)
      const zeros = new Float32Array(Math.max(c.Vp, c.P) * c.C)
      const out = framed([c.B, c.T, c.C], precision)
      const [dWte, dWpe] = [
        framed([c.Vp, c.C], 'f32', zeros.subarray(0, c.Vp * c.C)),
        framed([c.P, c.C], 'f32', zeros.subarray(0, c.P * c.C)),
      ]
      run(
        'embedding_forward',
        [t, framed([c.Vp, c.C], precision, await valuesOf(wte)).tensor, wpe],
        [out.tensor],
        [c.V],
      )
      run(
        'embedding_backward',
        [framed([c.B, c.T, c.C], precision, await valuesOf(dOut)).tensor, t],
        [dWte.tensor, dWpe.tensor],
        [c.V],
      )
      assertSame(await valuesOf(out.tensor), await valuesOf(embedding(t, wte, wpe, { vocab: c.V })), 'out')
      const fresh = [Tensor.zeros([c.Vp, c.C]), Tensor.zeros([c.P, c.C])]
      const [plain, places] = run('embedding_backward', [dOut, t], fresh, [c.V])
      assertSame(await valuesOf(dWte.tensor), await valuesOf(plain!), 'd_wte')
      assertSame(await valuesOf(dWpe.tensor), await valuesOf(places!), 'd_wpe')
      for (const frame of [out, dWte, dWpe]) await frame.intact()
    }

    const { wte, wpe } = make(random, CASES[3]!, precision)
    const none = Tensor.empty([0, 5], { dtype: 'i32' })
    assert.equal((await valuesOf(embedding(none, wte, wpe))).length, 0)
    const [ofNone] = run('embedding_backward', [Tensor.empty([0, 5, 3]), none], [NEW, SKIP], [4])
    assertSame(await valuesOf(ofNone!), new Float64Array(12), 'd_wte of no rows')
  },
  { ops: BOTH },
)

onEachDevice(
  'misuse is refused, and says what was wanted',
  () => {
    const wte = Tensor.zeros([8, 2])
    const wpe = Tensor.zeros([4, 2])
    const tokens = Tensor.from(Int32Array.of(1), [1, 1])
    const refuse = (code: string, message: RegExp, body: () => unknown) =>
      assert.throws(body, { name: 'TrainCoreError', code, message })
    refuse('ERR_DTYPE', /tokens must be i32; got \[1, 1\] f32/, () => embedding(Tensor.zeros([1, 1]), wte))
    refuse('ERR_SHAPE', /tokens must be \[B,T\]/, () => embedding(Tensor.from(Int32Array.of(1), [1]), wte))
    refuse('ERR_ARGUMENT', /vocab must be from 1 to wte's 8 rows; got 9/, () =>
      embedding(tokens, wte, null, { vocab: 9 }),
    )
    refuse('ERR_SHAPE', /wpe must be \[P,C\]/, () => embedding(tokens, wte, Tensor.zeros([4, 3])))
    refuse('ERR_DTYPE', /wpe must have wte's dtype/, () =>
      embedding(tokens, wte, Tensor.zeros([4, 2], { dtype: 'bf16' })),
    )
    refuse('ERR_SHAPE', /positions must have tokens' shape/, () =>
      embedding(tokens, wte, wpe, { positions: Tensor.from(Int32Array.of(1, 2), [1, 2]) }),
    )
    refuse('ERR_ARGUMENT', /d_wpe must be an existing tensor/, () =>
      run('embedding_backward', [Tensor.zeros([1, 1, 2]), tokens], [NEW, NEW], [8]),
    )
    refuse('ERR_SHAPE', /d_wte must be \[Vp,C\]/, () =>
      run('embedding_backward', [Tensor.zeros([1, 1, 2]), tokens], [wpe, SKIP], [8]),
    )
    wpe.requiresGrad = true
    const past = Tensor.from(Int32Array.of(0), [1])
    refuse('ERR_ARGUMENT', /past is for generation.*noGrad/, () => embedding(tokens, wte, wpe, { past }))
    assert.equal(noGrad(() => embedding(tokens, wte, wpe, { past })).node, null)
    wte.free()
    refuse('ERR_FREED', /embedding_forward/, () => embedding(tokens, wte))
  },
  BOTH,
)
