// --precision f16: refused where the device lacks it; on Metal (emulated) training, resuming, evaluation and generation.
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { emulatorReason } from '../metal-emu/emulated.js'
import { type Ended, scratch, trainCore } from './command-line.js'

writeFileSync(join(scratch(), 'data.txt'), 'the cat sat on the mat and the dog sat on the log. '.repeat(60))
const DATA = ['--data', 'data.txt', '--tokenizer', 'byte', '--seq-len', '16']
const PRETRAIN = ['pretrain', '--model', 'L=1,H=2,C=16', ...DATA, '--batch-size', '4', '--lr', '0.01', '--quiet']

const runOnMetal = (...args: string[]): Promise<Ended> =>
  trainCore([...args, '--device', 'metal'], { env: { TRAIN_CORE_METAL: 'emulator' } })

async function onMetal(...args: string[]): Promise<string> {
  const ended = await runOnMetal(...args)
  assert.equal(ended.code, 0, `train-core ${args.join(' ')}\n${ended.stdout}${ended.stderr}`)
  return ended.stdout
}

test('the CPU has no f16, and says what to take', async () => {
  const { code, stdout, stderr } = await trainCore([...PRETRAIN, '--device', 'cpu', '--precision', 'f16'])
  assert.deepEqual([code, stdout], [1, ''])
  assert.equal(
    stderr,
    'train-core: cpu computes in f32 and bf16; got f16; help: take one of them, or --device metal on a Mac\n',
  )
})

test('on emulated Metal', { skip: emulatorReason() }, async () => {
  const train = [...PRETRAIN, '--precision', 'f16', '--steps', '6', '--save-every', '3']
  await onMetal(...train, '--out', 'whole')
  await onMetal(...train, '--out', 'resumed', '--resume', 'whole/checkpoints/step-000003')
  const weights = (run: string): Buffer => readFileSync(join(scratch(), run, 'final/model.safetensors'))
  assert.ok(weights('whole').equals(weights('resumed')), 'resumed bit for bit')

  const model = ['--model', 'whole/final', '--tokenizer', 'byte', '--quiet']
  const lossIn = async (precision: string): Promise<number> => {
    const out = await onMetal(
      'eval',
      ...model,
      '--data',
      'data.txt',
      '--seq-len',
      '16',
      '--precision',
      precision,
      '--json',
    )
    return (JSON.parse(out) as { loss: number }).loss
  }
  const [half, full] = [await lossIn('f16'), await lossIn('f32')]
  assert.ok(half !== full && Math.abs(half - full) < 1e-3, `f16 ${half}, f32 ${full}`)

  const generate = ['generate', ...model, '--prompt', 'the ', '--max-tokens', '8', '--temperature', '0', '--precision']
  assert.equal(await onMetal(...generate, 'f16'), await onMetal(...generate, 'f32'))
})

test('weights beyond f16 end a run with a word about bf16', { skip: emulatorReason() }, async () => {
  const grow = ['--lr', '1e6', '--warmup', '0', '--steps', '4', '--out', 'grown']
  const { code, stderr } = await runOnMetal(...PRETRAIN, ...grow, '--precision', 'f16')
  assert.equal(code, 1)
  assert.match(
    stderr,
    /^train-core: training stopped at step 2: .* not finite \(loss NaN\); .*help: .* --precision bf16, in another --out\n$/,
  )
})
