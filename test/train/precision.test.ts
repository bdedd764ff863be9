// bf16 must train as f32 does: 200 steps on real text, compared step by step.
import assert from 'node:assert/strict'
import { rmSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { sampleText } from '../../lib/data/index.js'
import { pretrain } from '../../lib/train/run.js'

test('200 bf16 steps on real text stay within 1 % of the f32 loss curve', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'train-core-precision-'))
  process.env.TRAIN_CORE_CACHE = join(folder, 'cache')
  try {
    const { text } = await sampleText()
    writeFileSync(join(folder, 'text.txt'), text.slice(0, 200_000))
    const curve = async (precision: 'f32' | 'bf16'): Promise<number[]> => {
      const losses: number[] = []
      await pretrain(
        {
          model: 'L=2,H=2,C=64',
          data: [join(folder, 'text.txt')],
          tokenizer: 'byte',
          device: 'cpu',
          precision,
          steps: 200,
          batchSize: 8,
          seqLen: 64,
          lr: 1e-3,
          saveEvery: 0,
          out: join(folder, precision),
        },
        { onStep: row => losses.push(row.loss) },
      )
      return losses
    }
    const f32 = await curve('f32')
    const bf16 = await curve('bf16')
    assert.ok(f32[199] < 0.5 * f32[0], `the run learns: ${f32[0]} -> ${f32[199]}`)
    assert.notDeepEqual(bf16, f32, 'bf16 really rounds')
    // Means of 10 steps. A learning rate at which f32 itself is stable: in a spike any rounding grows.
    const mean = (curve: number[], from: number): number => curve.slice(from, from + 10).reduce((a, b) => a + b) / 10
    for (let from = 0; from < 200; from += 10) {
      const [low, full] = [mean(bf16, from), mean(f32, from)]
      assert.ok(Math.abs(low - full) < 0.01 * full, `steps ${from + 1} to ${from + 10}: bf16 ${low}, f32 ${full}`)
    }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})
