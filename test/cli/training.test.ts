import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { Tokenizer } from '../../lib/data/index.js'
import { GPT2 } from '../../lib/model/gpt2.js'
import type { RunPlan, TrainResult } from '../../lib/train/hooks.js'
import { type Ended, type RunOptions, scratch, trainCore } from './command-line.js'

const place = (name: string): string => join(scratch(), name)
const TEXT = 'the cat sat on the mat and the dog sat on the log. '
writeFileSync(place('data.txt'), TEXT.repeat(60))
writeFileSync(place('held-out.txt'), 'the dog sat on the mat and the cat sat on the log. '.repeat(3))

const TINY = ['--data', 'data.txt', '--tokenizer', 'byte', '--device', 'cpu', '--batch-size', '2', '--seq-len', '16']
const pretrain = (out: string, ...more: string[]): string[] => [
  ...['pretrain', '--model', 'L=2,H=2,C=16', ...TINY, '--lr', '0.01', '--out', out],
  ...more,
]

async function succeeds(args: readonly string[], options: RunOptions = {}): Promise<Ended> {
  const ended = await trainCore(args, options)
  assert.equal(ended.code, 0, `train-core ${args.join(' ')}\n${ended.stdout}${ended.stderr}`)
  return ended
}

const weights = (run: string): string =>
  createHash('sha256')
    .update(readFileSync(join(place(run), 'final', 'model.safetensors')))
    .digest('hex')

/** Rows of the log without what depends on the clock or the machine. */
function log(run: string): unknown[] {
  const lines = readFileSync(join(place(run), 'log.jsonl'), 'utf8')
    .trim()
    .split('\n')
  return lines.map(line => {
    const { tokens_per_s: _, mem_bytes: __, ...row } = JSON.parse(line) as Record<string, unknown>
    return row
  })
}

test('pretrain, distill, eval and generate, one after the other', async () => {
  const trained = await succeeds(pretrain('teacher', '--steps', '60', '--eval-data', 'held-out.txt', '--json'))
  const result = JSON.parse(trained.stdout) as TrainResult
  assert.equal(trained.stdout.split('\n').length, 2)
  assert.deepEqual([result.interrupted, result.steps, result.final], [false, 60, join('teacher', 'final')])
  assert.ok(result.loss! < 3 && result.evalLoss! < 4, trained.stdout)
  assert.match(trained.stderr, /^options {4}--.*--lr 0\.01 .*--warmup 6 .*--min-lr 0\.001 /m)
  assert.match(trained.stderr, /^step 60: held-out loss \d\.\d{4}$/m)

  const distill = ['distill', '--teacher', 'teacher/final', '--student', 'L=1,H=2,C=16', ...TINY.slice(0, 2)]
  const quiet = await succeeds([
    ...distill,
    '--init',
    'teacher-layers',
    '--layer-map',
    '1',
    '--steps',
    '5',
    '--seq-len',
    '16',
    '--quiet',
  ])
  assert.equal(quiet.stderr, '')
  assert.match(quiet.stdout, /^model in runs.distill.final$/m)

  const evaluated = await succeeds([
    'eval',
    '--model',
    'teacher/final',
    '--data',
    'held-out.txt',
    '--precision',
    'f32',
    '--json',
    '--seq-len',
    '10',
  ])
  const { loss, perplexity, tokens } = JSON.parse(evaluated.stdout) as Record<string, number>
  const want = await windowLoss(place('teacher/final'), readFileSync(place('held-out.txt'), 'utf8'), 10)
  assert.deepEqual([Object.keys(JSON.parse(evaluated.stdout)), tokens], [['loss', 'perplexity', 'tokens'], want.tokens])
  assert.ok(Math.abs(loss! - want.loss) < 1e-5, `${loss} ${want.loss}`)
  assert.ok(Math.abs(perplexity! - Math.exp(loss!)) < 1e-9)
})

/** The contract's definition of `eval`, from logits: window w has inputs tokens[wT..wT+T-1], and targets one further. */
async function windowLoss(folder: string, text: string, T: number): Promise<{ loss: number; tokens: number }> {
  const model = await GPT2.load(folder)
  const tokenizer = await Tokenizer.load(folder)
  const ids = [...tokenizer.encode(text)]
  let sum = 0
  for (let at = 0; at < ids.length - 1; at += T) {
    const inputs = ids.slice(at, Math.min(at + T, ids.length - 1))
    const logits = await model.logits([inputs])
    inputs.forEach((_, t) => {
      const row = logits.subarray(t * model.config.vocabSize, (t + 1) * model.config.vocabSize)
      sum += Math.log(row.reduce((s, z) => s + Math.exp(z), 0)) - row[ids[at + t + 1]!]!
    })
  }
  model.free()
  return { loss: sum / (ids.length - 1), tokens: ids.length - 1 }
}

test('a teacher cache is told of after the plan, with its size and how far it is', async () => {
  const args = ['distill', '--teacher', 'teacher/final', '--student', 'L=1,H=2,C=16', ...TINY, '--steps', '3']
  const { stderr } = await succeeds([...args, '--teacher-cache', 'cached', '--out', 'from-cache'])
  const told = ['distill ', 'options ', 'teacher cache: window 2/6  2 made', 'teacher cache: window 6/6  6 made']
  const places = [...told, 'teacher cache cached: 6 windows, ', 'step 1/3 '].map(line =>
    stderr.indexOf(`\n${line}`, -1),
  )
  assert.ok(stderr.startsWith(told[0]!), stderr)
  assert.ok(
    places.slice(1).every((place, k) => place > places[k]!),
    stderr,
  )
})

test('generate: greedy is the most probable token; a seed gives the same text; prompt from stdin', async () => {
  const generate = ['generate', '--model', 'teacher/final', '--precision', 'f32', '--max-tokens', '8']
  const greedy = await succeeds([...generate, '--prompt', 'the ', '--temperature', '0'])
  const model = await GPT2.load(place('teacher/final'))
  const tokenizer = await Tokenizer.load('byte')
  const ids = [...tokenizer.encode('the ')]
  for (let k = 0; k < 8; k++) {
    const row = (await model.logits([ids])).slice(-model.config.vocabSize)
    ids.push(row.indexOf(Math.max(...row)))
  }
  model.free()
  assert.equal(greedy.stdout, `${tokenizer.decode(ids.slice(4))}\n`)
  assert.match(greedy.stderr, /^teacher.final \(.* parameters\) on cpu: .*, f32\n8 tokens, /)

  const sampled = async (...more: string[]): Promise<string> =>
    (await succeeds([...generate, '--top-k', '20', '--top-p', '0.95', '--quiet', ...more], { stdin: 'the \n' })).stdout
  assert.equal(await sampled('--seed', '5'), await sampled('--seed', '5', '--prompt', 'the '))
  assert.notEqual(await sampled('--seed', '5'), await sampled('--seed', '6'))
  const json = JSON.parse(await sampled('--json')) as Record<string, unknown>
  assert.deepEqual([json.prompt, json.tokens, json.interrupted], ['the ', 8, false])
  const long = await succeeds([...generate, '--prompt', 'the cat', '--max-tokens', '99'])
  assert.match(long.stderr, /^9 tokens, .*stopped at the model's 16 positions$/m)
  const empty = await succeeds([...generate, '--prompt', ''])
  assert.match(empty.stderr, /^8 tokens/m)
})

test('generate: ids that the model has beyond the tokenizer are never drawn', async () => {
  const padded = ['pretrain', '--model', 'L=1,H=1,C=8,V=384', ...TINY, '--seq-len', '64', '--steps', '1']
  await succeeds([...padded, '--out', 'padded', '--quiet'])
  const generate = ['generate', '--model', 'padded/final', '--prompt', 'a', '--max-tokens', '99']
  const { stdout } = await succeeds([...generate, '--temperature', '50', '--seed', '1', '--json'])
  assert.equal(JSON.parse(stdout).tokens, 63)
})

test('--dry-run says what would be and writes nothing', async () => {
  const plan = JSON.parse((await succeeds(pretrain('dry', '--dry-run', '--json'))).stdout) as RunPlan
  assert.deepEqual([plan.kind, plan.tokensPerStep, plan.options.steps], ['pretrain', 32, 1000])
  const { stdout } = await succeeds(pretrain('dry', '--dry-run'))
  assert.match(stdout, /^data {7}3,060 tokens \(byte\)$/m)
  assert.match(stdout, /^pretrain L=2,H=2,C=16 \(.* parameters\), from scratch$/m)
  const { stdout: further } = await succeeds(pretrain('dry', '--dry-run', '--model', 'teacher/final'))
  assert.match(further, /^pretrain teacher.final \(.* parameters\), from its weights$/m)
  for (const args of [
    ['--dry-run', '--out', 'dry'],
    ['eval', '--model', 'teacher/final', '--data', 'data.txt', '--dry-run'],
  ])
    assert.equal((await succeeds([...args, '--quiet'])).stderr, '')
  assert.equal(existsSync(place('dry')), false)
})

test("a run's own config.json makes the run again", async () => {
  await succeeds(pretrain('again', '--steps', '4', '--seed', '3'))
  await succeeds(['pretrain', '--config', 'again/config.json', '--out', 'again-2'])
  assert.deepEqual(log('again-2'), log('again'))
  assert.equal(weights('again-2'), weights('again'))
  const other = await trainCore(['distill', '--config', 'again/config.json', '--teacher', 'x'])
  assert.deepEqual([other.code, other.stdout], [2, ''])
})

const LONG = ['--steps', '400', '--save-every', '40', '--dropout', '0.1']
const whole = (): Promise<void> => (wholeRun ??= succeeds(pretrain('whole', ...LONG)).then(() => {}))
let wholeRun: Promise<void> | undefined

test('SIGINT and SIGTERM save and exit 130 and 143; the same command goes on bit for bit', async () => {
  await whole()
  let sent = 0
  const stop = (name: NodeJS.Signals, after: number): RunOptions => ({
    onOutput: ({ stderr }, kill) => {
      if (sent || !stderr.includes(`step-000${after}`)) return
      sent++
      kill(name)
    },
  })
  const first = await trainCore(pretrain('stopped', ...LONG), stop('SIGINT', 120))
  assert.equal(first.code, 130, first.stderr)
  assert.match(first.stdout, /^interrupted after step \d+: the same command goes on from the checkpoint in stopped\n$/)
  const step = Number(/step (\d+)/.exec(first.stdout)![1])
  assert.ok(step >= 120 && step < 400, `${step}`)
  assert.ok(readdirSync(place('stopped/checkpoints')).includes(`step-${String(step).padStart(6, '0')}`))
  assert.equal(existsSync(place('stopped/final')), false)
  sent = 0
  const second = await trainCore(pretrain('stopped', ...LONG, '--json'), stop('SIGTERM', 280))
  assert.equal(second.code, 143, second.stderr)
  assert.equal((JSON.parse(second.stdout) as TrainResult).interrupted, true)
  assert.match(second.stderr, new RegExp(`going on from step ${step}$`, 'm'))
  await succeeds(pretrain('stopped', ...LONG))
  assert.equal(weights('stopped'), weights('whole'))
  assert.deepEqual(log('stopped'), log('whole'))
})

test('a second SIGINT ends the process at once', async () => {
  let sent = 0
  const began = performance.now()
  let sentAt = 0
  // A step of this model takes seconds, and the first signal waits for it.
  const args = [
    'pretrain',
    '--model',
    'L=4,H=4,C=512',
    ...TINY,
    '--seq-len',
    '512',
    '--batch-size',
    '64',
    '--out',
    'twice',
  ]
  const ended = await trainCore(args, {
    onOutput: ({ stderr }, kill) => {
      if (sent === 0 && stderr.includes('options')) {
        sent = 1
        kill('SIGINT')
      } else if (sent === 1 && stderr.includes('stopping')) {
        sent = 2
        sentAt = performance.now()
        kill('SIGINT')
      }
    },
  })
  assert.equal(ended.code, 130, ended.stderr)
  assert.equal(ended.stdout, '')
  const waited = performance.now() - sentAt
  assert.ok(sent === 2 && waited < 1500, `${waited} ms after the second, ${performance.now() - began} ms in all`)
  assert.deepEqual(readdirSync(place('twice/checkpoints')), [])
})

test('killed at random moments, a run goes on bit for bit', async () => {
  await whole()
  let kills = 0
  for (let attempt = 0; attempt < 30; attempt++) {
    let timer: NodeJS.Timeout | undefined
    const { code } = await trainCore(pretrain('killed', ...LONG), {
      onOutput: ({ stderr }, kill) => {
        if (!timer && stderr.includes('saved')) timer = setTimeout(() => kill('SIGKILL'), Math.random() * 60)
      },
    })
    clearTimeout(timer)
    if (code === 0) break
    assert.equal(code, null)
    kills++
  }
  assert.ok(kills >= 3, `${kills} kills`)
  assert.equal(weights('killed'), weights('whole'))
  assert.deepEqual(log('killed'), log('whole'))
})

test('generate: SIGINT ends the text and exits 130; a reader that goes away ends it quietly', async () => {
  // Positions enough that a text lasts for seconds.
  await succeeds(['pretrain', '--model', 'L=4,H=4,C=128,T=20000', ...TINY, '--steps', '1', '--out', 'long'])
  const generate = ['generate', '--model', 'long/final', '--prompt', 'a', '--max-tokens', '19000']
  let sent = 0
  const ended = await trainCore(generate, {
    onOutput: ({ stdout }, kill) => {
      if (stdout.length > 20 && sent++ === 0) kill('SIGINT')
    },
  })
  assert.equal(ended.code, 130, ended.stderr)
  assert.ok(ended.stdout.length > 20 && ended.stdout.endsWith('\n'))
  assert.match(ended.stderr, /^\d+ tokens, \S+ tokens\/s$/m)
  const gone = await trainCore([...generate, '--quiet'], { closeStdout: true })
  assert.deepEqual([gone.code, gone.stderr], [0, ''])
})

test('the main job can be stopped and goes on', async () => {
  let sent = 0
  const env = { TRAIN_CORE_CACHE: place('main-cache') }
  const planned = async (...words: string[]) =>
    JSON.parse((await succeeds(['--dry-run', '--json', ...words], { env })).stdout)
  const plan = await planned()
  assert.deepEqual(
    plan.models.map((model: { name: string }) => model.name),
    ['teacher', 'student', 'control'],
  )
  const begun: number[] = []
  for (let run = 0; run < 2; run++) {
    sent = 0
    const ended = await trainCore([...(run ? [] : ['--json']), '--device', 'cpu', '--seed', '1'], {
      env,
      onOutput: ({ stderr }, kill) => {
        if (/^teacher \d+\/\d+/m.test(stderr) && sent++ === 0) kill('SIGINT')
      },
    })
    assert.equal(ended.code, 130, ended.stderr)
    if (run)
      assert.match(ended.stdout, /^interrupted while the teacher was trained: the same command goes on from there$/m)
    else {
      const report = JSON.parse(ended.stdout)
      assert.deepEqual([report.interrupted, report.rows, report.final], [true, [], null])
    }
    begun.push(Number(/^teacher (\d+)\/\d+/m.exec(ended.stderr)![1]))
  }
  assert.equal(begun[0], 1)
  assert.ok(begun[1]! > 1, 'the second time goes on where the first stopped')
  mkdirSync(place('runs/main'), { recursive: true })
  writeFileSync(place('runs/main/config.json'), '{"seed":1}')
  assert.deepEqual(
    [(await planned('--seed', '1')).out, (await planned('--seed', '2')).out],
    ['runs/main', 'runs/main-2'],
    'a folder with a run of another seed is passed over',
  )
})
