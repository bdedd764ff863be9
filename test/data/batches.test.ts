import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type Batch, BatchSource, packRows } from '../../lib/data/batches.js'
import { TokenDataset } from '../../lib/data/dataset.js'
import { evalWindows } from '../../lib/data/eval-windows.js'
import { Permutation } from '../../lib/data/permutation.js'
import { randomSource } from './helpers.js'

const EOS = 9999
const count = (n: number): TokenDataset =>
  TokenDataset.fromIds(
    Uint16Array.from({ length: n }, (_, i) => i),
    EOS,
  )
const row = (batch: Batch, r: number, T: number) => [...batch.inputs.subarray(r * T, (r + 1) * T)]

describe('sequential', () => {
  test('row r of micro-batch k begins at token (k·B + r)·T, targets shifted by one, wrapping at the end', async () => {
    const N = 23
    const source = new BatchSource(count(N), { batchSize: 2, seqLen: 4, order: 'sequential' })
    for (let k = 0; k < 10; k++) {
      const batch = await source.next()
      assert.equal(batch.index, k)
      assert.equal(batch.weights, null)
      assert.equal(batch.until, null)
      for (let r = 0; r < 2; r++) {
        for (let t = 0; t < 4; t++) {
          const at = (k * 2 + r) * 4 + t
          assert.equal(batch.inputs[r * 4 + t], at % N)
          assert.equal(batch.targets[r * 4 + t], (at + 1) % N)
        }
      }
    }
  })
})

describe('shuffled', () => {
  test('covers every window once in each epoch, in another order each time', async () => {
    const [N, B, T] = [103, 3, 5]
    const source = new BatchSource(count(N), { batchSize: B, seqLen: T, seed: 7 })
    assert.equal(source.windows, 20)
    const rows: number[][] = []
    for (let k = 0; k < 40; k++) {
      const batch = await source.next()
      for (let r = 0; r < B; r++) {
        rows.push(row(batch, r, T))
        for (let t = 0; t < T; t++) assert.equal(batch.targets[r * T + t], batch.inputs[r * T + t] + 1)
      }
    }
    const epochs = Array.from({ length: 6 }, (_, e) => rows.slice(e * 20, (e + 1) * 20).map(([first]) => first))
    const expected = Array.from({ length: 20 }, (_, w) => w * T)
    for (const epoch of epochs)
      assert.deepEqual(
        [...epoch].sort((a, b) => a - b),
        expected,
      )
    assert.equal(new Set(epochs.map(String)).size, 6)
  })

  test('seeds decide the order', async () => {
    const first = async (seed: number) => {
      const batch = await new BatchSource(count(5001), { batchSize: 8, seqLen: 5, seed }).next()
      return Array.from({ length: 8 }, (_, r) => batch.inputs[r * 5])
    }
    assert.deepEqual(await first(1), await first(1))
    assert.notDeepEqual(await first(1), await first(2))
    assert.notDeepEqual(await first(1), await first(1 + 2 ** 32))
  })

  for (const size of [1, 2, 3, 4, 5, 16, 17, 1000, 65_537]) {
    test(`a permutation of ${size} is one`, () => {
      const permutation = new Permutation(size, 3, 1)
      const seen = new Uint8Array(size)
      for (let i = 0; i < size; i++) seen[permutation.at(i)]++
      assert.ok(seen.every(n => n === 1))
    })
  }

  test('a permutation mixes well: few fixed points, no correlation of neighbours', () => {
    const n = 20_000
    const permutation = new Permutation(n, 5, 0)
    let fixed = 0
    let correlation = 0
    for (let i = 0; i + 1 < n; i++) {
      if (permutation.at(i) === i) fixed++
      correlation += (permutation.at(i) / n - 0.5) * (permutation.at(i + 1) / n - 0.5) * 12
    }
    assert.ok(fixed <= 8, `${fixed} fixed points; 1 is expected`)
    assert.ok(Math.abs(correlation / n) < 4 / Math.sqrt(n), `correlation ${correlation / n}`)
  })

  test('a permutation of a huge range stays inside it and can be repeated', () => {
    const size = 2 ** 51 + 12_345
    const permutation = new Permutation(size, 1, 2)
    const random = randomSource(4)
    for (let i = 0; i < 1000; i++) {
      const index = Math.floor(random() * size)
      const value = permutation.at(index)
      assert.ok(Number.isSafeInteger(value) && value >= 0 && value < size)
      assert.equal(new Permutation(size, 1, 2).at(index), value)
    }
  })
})

for (const order of ['sequential', 'shuffled'] as const) {
  test(`${order}: seeking gives what reading gives, whatever is read ahead`, async () => {
    const options = { batchSize: 3, seqLen: 7, order, seed: 11 }
    const reader = new BatchSource(count(500), { ...options, prefetch: 0 })
    const all: Batch[] = []
    for (let k = 0; k < 30; k++) all.push(await reader.next())
    const seeker = new BatchSource(count(500), { ...options, prefetch: 5 })
    for (const k of [17, 18, 3, 29, 0, 1, 1]) {
      seeker.seek(k)
      assert.equal(seeker.position, k)
      assert.deepEqual(await seeker.next(), all[k])
    }
    assert.deepEqual(await seeker.next(), all[2])
  })
}

test('batches come in order even when reads finish out of order', async () => {
  // A dataset whose reads take the longer the earlier they begin.
  const dataset = count(1000)
  const read = dataset.read.bind(dataset)
  let delay = 40
  dataset.read = async (position, out) => {
    delay = Math.max(0, delay - 5)
    await new Promise(resolve => setTimeout(resolve, delay))
    return read(position, out)
  }
  const source = new BatchSource(dataset, { batchSize: 1, seqLen: 10, order: 'sequential', prefetch: 6 })
  const batches = await Promise.all([source.next(), source.next(), source.next(), source.next()])
  assert.deepEqual(
    batches.map(batch => [batch.index, batch.inputs[0]]),
    [
      [0, 0],
      [1, 10],
      [2, 20],
      [3, 30],
    ],
  )
})

test('a read that fails rejects its own batch and nothing else', async () => {
  const dataset = count(1000)
  const read = dataset.read.bind(dataset)
  dataset.read = async (position, out) => {
    if (position === 20) throw new Error('disk on fire')
    return read(position, out)
  }
  const source = new BatchSource(dataset, { batchSize: 1, seqLen: 10, order: 'sequential' })
  await source.next()
  await source.next()
  await assert.rejects(source.next(), /disk on fire/)
  assert.equal((await source.next()).inputs[0], 30)
})

test('a failing read that nobody waits for is no unhandled rejection', async () => {
  const dataset = count(1000)
  const read = dataset.read.bind(dataset)
  dataset.read = async (position, out) => {
    if (position >= 20) throw new Error('disk on fire')
    return read(position, out)
  }
  const source = new BatchSource(dataset, { batchSize: 1, seqLen: 10, order: 'sequential', prefetch: 8 })
  await source.next()
  source.seek(0)
  // Unhandled rejections are raised when the queue of micro-tasks is empty, and fail the test.
  await new Promise(resolve => setTimeout(resolve, 5))
  assert.equal((await source.next()).inputs[0], 0)
})

describe('packed documents', () => {
  test('a document begins with its end-of-text token', () => {
    const { until, positions } = packRows(Int32Array.of(5, 6, EOS, 7, 8, EOS, EOS, 1, 2, 3), 5, EOS)
    assert.deepEqual([...until], [2, 2, 5, 5, 5, 1, 5, 5, 5, 5])
    assert.deepEqual([...positions], [0, 1, 0, 1, 2, 0, 0, 1, 2, 3])
  })

  test('batches carry it', async () => {
    const dataset = TokenDataset.fromIds(Uint16Array.of(1, 2, EOS, 4, 5, 6, 7), EOS)
    const batch = await new BatchSource(dataset, {
      batchSize: 1,
      seqLen: 5,
      order: 'sequential',
      packDocuments: true,
    }).next()
    assert.deepEqual([...(batch.until as Int32Array)], [2, 2, 5, 5, 5])
    assert.deepEqual([...(batch.positions as Int32Array)], [0, 1, 0, 1, 2])
  })
})

describe('evaluation windows', () => {
  for (const [N, B, T] of [
    [2, 1, 1],
    [2, 4, 8],
    [9, 2, 4],
    [10, 2, 4],
    [17, 2, 4],
    [100, 3, 7],
    [64, 4, 16],
  ]) {
    test(`${N} tokens in batches ${B}x${T} give ${N - 1} predictions, each once`, async () => {
      const seen: number[] = []
      let predictions = 0
      for await (const batch of evalWindows(count(N), { batchSize: B, seqLen: T })) {
        assert.equal(batch.inputs.length, B * T)
        predictions += batch.predictions
        for (let i = 0; i < B * T; i++) {
          if (batch.weights[i] === 0) continue
          assert.equal(batch.weights[i], 1)
          // Row w of all rows begins at token wT.
          assert.equal(batch.inputs[i] % T, i % T)
          assert.equal(batch.targets[i], batch.inputs[i] + 1)
          seen.push(batch.inputs[i])
        }
      }
      assert.equal(predictions, N - 1)
      assert.deepEqual(
        seen,
        Array.from({ length: N - 1 }, (_, i) => i),
      )
    })
  }

  test('one token is too few', async () => {
    await assert.rejects(evalWindows(count(1), { batchSize: 1, seqLen: 4 }).next(), {
      code: 'ERR_DATA',
      message: /at least 2 tokens/,
    })
  })
})

describe('refusals', () => {
  test('data shorter than a window', () => {
    assert.throws(() => new BatchSource(count(8), { batchSize: 1, seqLen: 8 }), {
      code: 'ERR_DATA',
      message: /at least 9 tokens.*got 8; help: use more data or a smaller --seq-len/,
    })
    assert.equal(new BatchSource(count(9), { batchSize: 1, seqLen: 8 }).windows, 1)
    // The second window of 16 tokens would lack its last target.
    assert.equal(new BatchSource(count(16), { batchSize: 1, seqLen: 8 }).windows, 1)
    assert.equal(new BatchSource(count(17), { batchSize: 1, seqLen: 8 }).windows, 2)
  })

  test('sizes that are none', () => {
    for (const size of [0, -1, 1.5, Number.NaN]) {
      assert.throws(() => new BatchSource(count(50), { batchSize: size, seqLen: 8 }), { code: 'ERR_ARGUMENT' })
      assert.throws(() => new BatchSource(count(50), { batchSize: 1, seqLen: size }), { code: 'ERR_ARGUMENT' })
    }
    assert.throws(() => new BatchSource(count(50), { batchSize: 1, seqLen: 8 }).seek(-1), { code: 'ERR_ARGUMENT' })
  })
})
