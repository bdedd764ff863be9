import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { mkdtemp, readdir, readFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { TokenDataset, Tokenizer } from '../../lib/data/index.js'
import { device, setDefaultDevice } from '../../lib/device.js'
import { gpt2Config } from '../../lib/model/config.js'
import { GPT2 } from '../../lib/model/gpt2.js'
import { evaluate } from '../../lib/train/evaluate.js'
import type { StepRow, TrainResult } from '../../lib/train/hooks.js'
import { initRandom } from '../../lib/train/init.js'
import type { PretrainOptions } from '../../lib/train/options.js'
import { distill, planPretrain, pretrain, resolvePrecision } from '../../lib/train/run.js'

process.env.TRAIN_CORE_CACHE = await mkdtemp(join(tmpdir(), 'train-core-cache-'))
const folder = await mkdtemp(join(tmpdir(), 'train-core-run-'))
process.on('exit', () => {
  for (const path of [folder, process.env.TRAIN_CORE_CACHE!]) rmSync(path, { recursive: true, force: true })
})
const text = join(folder, 'text.txt')
writeFileSync(text, 'the cat sat on the mat and the dog sat on the log. '.repeat(60))
const heldOut = join(folder, 'held-out.txt')
writeFileSync(heldOut, 'the dog sat on the mat and the cat sat on the log. '.repeat(3))
setDefaultDevice(device('cpu'))

const BASE = {
  data: [text],
  tokenizer: 'byte',
  device: 'cpu',
  precision: 'f32',
  steps: 12,
  batchSize: 2,
  seqLen: 16,
  gradAccum: 2,
  lr: 3e-3,
  warmup: 2,
  saveEvery: 5,
} as const satisfies Partial<PretrainOptions>
const MODEL = 'L=2,H=2,C=32'

const out = (name: string): string => join(folder, name)
const weights = async (run: string): Promise<string> =>
  createHash('sha256')
    .update(await readFile(join(run, 'final', 'model.safetensors')))
    .digest('hex')

/** Rows of the log without what depends on the clock or the machine. */
function log(run: string): unknown[] {
  const lines = readFileSync(join(run, 'log.jsonl'), 'utf8').trim().split('\n')
  return lines.map(line => {
    const { tokens_per_s: _, mem_bytes: __, ...row } = JSON.parse(line) as Record<string, unknown>
    return row
  })
}

for (const kind of ['pretrain', 'distill'] as const) {
  const teacher = out('teacher')
  const options = { ...BASE, dropout: 0.1, evalData: [heldOut], evalEvery: 4 }
  const begin = (name: string, signal?: AbortSignal, onStep?: (row: StepRow) => void) =>
    kind === 'pretrain'
      ? pretrain({ ...options, model: MODEL, out: out(name) }, { signal, onStep })
      : distill(
          { ...options, teacher: join(teacher, 'final'), student: 'L=1,H=2,C=16', out: out(name) },
          { signal, onStep },
        )

  test(`${kind}: a run that was stopped goes on bit for bit`, async () => {
    if (kind === 'distill') await pretrain({ ...BASE, model: MODEL, out: teacher })
    const whole = await begin(`${kind}-whole`)
    assert.equal(whole.interrupted, false)
    assert.equal(whole.steps, 12)
    assert.equal(whole.tokens, 12 * 2 * 2 * 16)

    // Before an evaluation, too, and before the last one.
    for (const step of [7, 8, 12]) {
      const stop = new AbortController()
      const stopAt = (row: StepRow): void => {
        if (row.step === step) stop.abort()
      }
      const first = await begin(`${kind}-stopped`, stop.signal, stopAt)
      assert.deepEqual([first.interrupted, first.steps, first.final], [true, step, null])
    }
    const second = await begin(`${kind}-stopped`)
    assert.equal(second.interrupted, false)
    assert.deepEqual(log(out(`${kind}-stopped`)), log(out(`${kind}-whole`)))
    assert.equal(await weights(out(`${kind}-stopped`)), await weights(out(`${kind}-whole`)))
    const again = await begin(`${kind}-stopped`)
    assert.equal(again.loss, null, 'nothing was left to do')
    assert.equal(again.evalLoss, second.evalLoss)
  })
}

test('the same run twice at once: one is refused, the other is as if alone', async () => {
  const run = (name: string): Promise<TrainResult> => pretrain({ ...BASE, model: MODEL, out: out(name) })
  const both = await Promise.allSettled([run('at-once'), run('at-once')])
  const refused = both.filter(({ status }) => status === 'rejected') as PromiseRejectedResult[]
  assert.deepEqual(
    refused.map(({ reason }) => [
      reason.code,
      / is in use by another run, of this process; help:/.test(reason.message),
    ]),
    [['ERR_FILE', true]],
  )
  assert.equal(log(out('at-once')).length, BASE.steps)
  assert.equal(existsSync(join(out('at-once'), '.lock')), false)
  await run('alone')
  assert.equal(await weights(out('at-once')), await weights(out('alone')))
})

test('the loss falls; rows of the log have what they should; the final model is whole', async () => {
  const rows: StepRow[] = []
  const run = out('falls')
  const result = await pretrain({ ...BASE, steps: 40, model: MODEL, out: run }, { onStep: row => rows.push(row) })
  assert.equal(rows.length, 40)
  assert.ok(rows[39].loss < rows[0].loss - 1, `${rows[0].loss} -> ${rows[39].loss}`)
  const { step, loss, ce, lr, grad_norm, tokens, tokens_per_s, mem_bytes } = rows[4]
  assert.deepEqual([step, tokens], [5, 5 * 64])
  assert.equal(loss, ce)
  for (const value of [lr, grad_norm, tokens_per_s, mem_bytes]) assert.ok(value > 0)
  const files = await readdir(result.final!)
  for (const name of ['config.json', 'model.safetensors', 'tokenizer.json']) assert.ok(files.includes(name), name)
  const model = await GPT2.load(result.final!)
  assert.equal(model.config.eosId, 256)
  model.free()
})

test("Open Assistant's trees are read as conversations, unless a field is named", async () => {
  const file = join(folder, 'tree.jsonl')
  const reply = { text: 'It is a whale. '.repeat(9), role: 'assistant', message_id: 'b', parent_id: 'a', replies: [] }
  const prompt = { text: 'What is it?', role: 'prompter', message_id: 'a', replies: [reply] }
  writeFileSync(file, `${JSON.stringify({ message_tree_id: 'a', tree_state: 'ready_for_export', prompt })}\n`)
  const options = { ...BASE, model: MODEL, data: [file], out: out('tree') }
  assert.ok((await planPretrain(options)).dataTokens > 140)
  await assert.rejects(planPretrain({ ...options, textField: 'text' }), /no field "text"/)
})

test('auto is what it comes to: a run goes on in the same precision and on the same device, in no other', async () => {
  const run = { ...BASE, model: MODEL, out: out('auto'), steps: 6 }
  const stop = new AbortController()
  const precision = resolvePrecision(device('cpu'), 'auto')
  const onStep = (row: StepRow): void => {
    if (row.step === 3) stop.abort()
  }
  await pretrain({ ...run, precision: 'auto' }, { signal: stop.signal, onStep })
  const fromStep = async (more: Partial<PretrainOptions>): Promise<number> =>
    (await planPretrain({ ...run, ...more })).fromStep
  assert.equal(await fromStep({ precision: 'auto' }), 3)
  assert.equal(await fromStep({ precision }), 3)
  assert.equal(await fromStep({ precision, device: 'auto' }), 3)
  await assert.rejects(fromStep({ precision: precision === 'f32' ? 'bf16' : 'f32' }), {
    code: 'ERR_CONFIG',
    message: /auto holds another run, which differs in --precision \(\w+, now \w+\); help:/,
  })
})

test('a plan says what a run would do and writes nothing', async () => {
  const plan = await planPretrain({ ...BASE, model: MODEL, out: out('planned') })
  assert.equal(plan.tokensPerStep, 64)
  assert.equal(plan.model.parameters, 257 * 32 + 16 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 64)
  assert.ok(plan.dataTokens > 3000)
  assert.equal(existsSync(out('planned')), false)
})

test('gradients that are not finite stop the run: step, tensor and checkpoint named, nothing lost', async () => {
  const run = out('diverges')
  await assert.rejects(
    pretrain({ ...BASE, model: MODEL, lr: 1e30, warmup: 0, gradClip: 0, saveEvery: 0, out: run }),
    (error: Error & { code?: string }) => {
      assert.equal(error.code, 'ERR_DATA')
      assert.match(error.message, /training stopped at step \d+: the gradient of transformer\.\S+ is not finite/)
      assert.match(error.message, /the newest checkpoint is of step \d+: \S+\/step-\d+|there is no checkpoint/)
      return true
    },
  )
})

test('a teacher and a student that do not fit are refused before anything starts', async () => {
  const teacher = join(out('teacher'), 'final')
  const given = { ...BASE, teacher, out: out('refused') }
  const code = (wanted: string, message: RegExp) => (error: Error & { code?: string }) => {
    assert.equal(error.code, wanted)
    assert.match(error.message, message)
    return true
  }
  const student = 'L=1,H=2,C=32'
  await assert.rejects(distill({ ...given, student, tokenizer: 'gpt2' }), code('ERR_CONFIG', /257 tokens.*gpt2/))
  await assert.rejects(
    distill({ ...given, student, seqLen: 17 }),
    code('ERR_CONFIG', /--seq-len.*16 positions; got 17/),
  )
  process.env.HF_HUB_OFFLINE = '1'
  await assert.rejects(distill({ ...given, student, teacher: 'gpt2' }), code('ERR_FILE', /weights of gpt2 are not on/))
  await assert.rejects(distill({ ...given, student, teacher: MODEL }), code('ERR_CONFIG', /no weights are called L=2/))
  await assert.rejects(distill({ ...given, student: 'nowhere' }), code('ERR_FILE', /no model is called nowhere/))
  await assert.rejects(
    distill({ ...given, student: 'L=3,H=2,C=32', init: 'teacher-layers' }),
    code('ERR_CONFIG', /at most the teacher's 2 layers; got 3/),
  )
  assert.equal(existsSync(out('refused')), false)
})

test('a student made of teacher layers begins where they are', async () => {
  const run = out('layers')
  const teacher = join(out('teacher'), 'final')
  const rows: StepRow[] = []
  const student = { student: 'L=2,H=2,C=32', init: 'teacher-layers' }
  const hooks = { onStep: (row: StepRow) => void rows.push(row) }
  await distill({ ...BASE, ...student, teacher, steps: 1, warmup: 0, out: run }, hooks)
  assert.equal(rows[0].kl, 0, 'all layers copied: the student is the teacher')
  assert.ok(Math.abs(rows[0].cos as number) < 1e-6)
})

test('evaluation is the mean over all predictions, whatever the batch size', async () => {
  const tokenizer = await Tokenizer.load('byte')
  const data = TokenDataset.fromText('to be or not to be, that is the question'.repeat(4), tokenizer)
  const model = new GPT2(gpt2Config({ layers: 1, heads: 2, width: 16, vocabSize: 257, positions: 16 }))
  initRandom(model, 3)
  const ids = new Int32Array(data.tokens)
  await data.read(0, ids)
  let sum = 0
  for (let start = 0; start < ids.length - 1; start += 16) {
    const inputs = ids.subarray(start, Math.min(start + 16, ids.length - 1))
    const logits = await model.logits([inputs])
    for (let t = 0; t < inputs.length; t++) {
      const row = Array.from(logits.subarray(t * 257, (t + 1) * 257))
      const top = Math.max(...row)
      sum += top + Math.log(row.reduce((total, z) => total + Math.exp(z - top), 0)) - row[ids[start + t + 1]]
    }
  }
  const mean = sum / (ids.length - 1)
  for (const batchSize of [1, 3, 8]) {
    const result = await evaluate(model, data, { batchSize, seqLen: 16 })
    assert.equal(result.tokens, ids.length - 1)
    assert.ok(Math.abs(result.loss - mean) < 1e-5 * mean, `${result.loss} and ${mean}`)
    assert.ok(Math.abs(result.perplexity - Math.exp(result.loss)) < 1e-9)
  }
  for (const wrong of [{ batchSize: 0 }, { batchSize: 1.5 }, { seqLen: 0 }])
    await assert.rejects(evaluate(model, data, wrong), { code: 'ERR_ARGUMENT' })
  model.free()
})
