// Which runs are the same run: what decides the result does, not how it was spelled.
import assert from 'node:assert/strict'
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { before, test } from 'node:test'
import type { StepRow } from '../../lib/train/hooks.js'
import type { DistillOptions, PretrainOptions } from '../../lib/train/options.js'
import { distill, planDistill, planPretrain, pretrain } from '../../lib/train/run.js'

process.env.TRAIN_CORE_CACHE = await mkdtemp(join(tmpdir(), 'train-core-cache-'))
const folder = await mkdtemp(join(tmpdir(), 'train-core-identity-'))
process.on('exit', () => {
  for (const path of [folder, process.env.TRAIN_CORE_CACHE!]) rmSync(path, { recursive: true, force: true })
})
const at = (name: string): string => join(folder, name)
const TEXT = 'the cat sat on the mat and the dog sat on the log. '.repeat(30)
writeFileSync(at('text.txt'), TEXT)
writeFileSync(at('copy.txt'), TEXT)
writeFileSync(at('other.txt'), TEXT.toUpperCase())

const BASE = {
  data: [at('text.txt')],
  tokenizer: 'byte',
  device: 'cpu',
  precision: 'f32',
  batchSize: 1,
  steps: 9,
} as const
const STUDENT = {
  ...{ ...BASE, seqLen: 8, teacher: at('teacher/final'), student: 'L=1,H=2,C=16', init: 'teacher-layers' },
  out: at('student'),
} as const

/** Stops a run behind its second step. */
async function interrupted(train: (hooks: object) => Promise<unknown>): Promise<void> {
  const stop = new AbortController()
  const onStep = ({ step }: StepRow): void => {
    if (step === 2) stop.abort()
  }
  await train({ signal: stop.signal, onStep })
}

before(async () => {
  for (const [name, seed] of Object.entries({ teacher: 0, other: 1 }))
    await pretrain({ ...BASE, seqLen: 8, steps: 1, seed, model: 'L=2,H=2,C=16', out: at(name) })
  await interrupted(hooks => distill(STUDENT, hooks))
})

const SAME: Record<string, Partial<DistillOptions>> = {
  'another spelling of a folder': { teacher: relative('.', at('teacher/final')) },
  'another order in a shape': { student: 'C=16,L=1,H=2,V=257,T=8' },
  'the same text elsewhere': { data: [at('copy.txt')] },
  'no dropout, as the model has it': { dropout: 0 },
  'a derived number as it is printed': { minLr: 0.00006, warmup: 1 },
  'an option of a term that is off': { beta: 0.7 },
  'the layers that are the default': { layerMap: [0] },
  'what changes nothing': { keep: 7, saveEvery: 4, evalEvery: 3, evalData: [at('other.txt')] },
}
for (const [what, more] of Object.entries(SAME))
  test(`the same run: ${what}`, async () => {
    assert.equal((await planDistill({ ...STUDENT, ...more })).fromStep, 2)
  })

const ANOTHER: [named: RegExp, more: Partial<DistillOptions>][] = [
  [/--lr \(0.0006, now 0.001\), --min-lr \(0.00006, now 0.0001\);/, { lr: 1e-3 }],
  [/--student, the weights to start from;/, { student: 'L=2,H=2,C=16' }],
  [/--dropout;/, { dropout: 0.1 }],
  [/--beta \(not given, now 0.5\), --jsd|--jsd \(0, now 1\), --beta/, { jsd: 1 }],
  [/the weights to start from;/, { layerMap: [1] }],
  [/the weights to start from;/, { init: 'random' }],
  [/differs in the weights of --teacher;/, { teacher: at('other/final') }],
  [/the contents of --data;/, { data: [at('other.txt')] }],
  [
    /--kl \(5, now 1\), --ce \(2, now 1\), --cos \(1, now 2\), --seed \(0, now 4\) and 1 more;/,
    { kl: 1, ce: 1, cos: 2, lr: 1, seed: 4, minLr: 6e-5 },
  ],
]
for (const [named, more] of ANOTHER)
  test(`another run is refused, and named: ${Object.keys(more)}`, async () => {
    const attempt = { ...STUDENT, ...more }
    const wanted = { code: 'ERR_CONFIG', message: named }
    await assert.rejects(planDistill(attempt), wanted)
    await assert.rejects(distill(attempt), wanted)
  })

test('another run is refused before its teacher fills a cache', async () => {
  const cached = { ...STUDENT, teacherCache: at('cache'), topK: 4, cos: 0 }
  await assert.rejects(distill(cached), {
    code: 'ERR_CONFIG',
    message: /--cos \(1, now 0\), --top-k \(not given, now 4\);/,
  })
  assert.equal(existsSync(cached.teacherCache), false)
})

test('other weights under the same path make another run', async () => {
  const options = { ...STUDENT, teacher: at('changing'), out: at('overwritten') }
  cpSync(STUDENT.teacher, options.teacher, { recursive: true })
  await interrupted(hooks => distill({ ...options, init: 'random' }, hooks))
  cpSync(at('other/final'), options.teacher, { recursive: true })
  const message = /overwritten holds another run, which differs in the weights of --teacher;/
  await assert.rejects(distill({ ...options, init: 'random' }), { code: 'ERR_CONFIG', message })
})

test('so do other weights to start from, by --model, --student and --init', async () => {
  const start = at('start')
  const change = (to: string): void => cpSync(at(`${to}/final`), start, { recursive: true })
  const given = { ...BASE, seqLen: 8 }
  const runs: Record<string, (more: object, hooks?: object) => Promise<unknown>> = {
    model: (more, hooks) => pretrain({ ...given, model: start, ...more, out: at('by-model') }, hooks),
    student: (more, hooks) =>
      distill({ ...STUDENT, init: 'random', student: start, ...more, out: at('by-student') }, hooks),
    init: (more, hooks) =>
      distill({ ...STUDENT, student: 'L=2,H=2,C=16', init: start, ...more, out: at('by-init') }, hooks),
  }
  for (const [option, run] of Object.entries(runs)) {
    change('teacher')
    await interrupted(hooks => run({}, hooks))
    change('other')
    await assert.rejects(run({}), { code: 'ERR_CONFIG', message: /differs in the weights to start from;/ }, option)
    await run({ [option]: at('teacher/final') })
  }
})

test("a run's own config.json gives the same run, with --seq-len left to its default", async () => {
  const options: PretrainOptions = { ...BASE, model: 'L=1,H=2,C=16', steps: 3, out: at('defaults') }
  await interrupted(hooks => pretrain(options, hooks))
  const { command: _, model_config: __, ...resolved } = JSON.parse(readFileSync(at('defaults/config.json'), 'utf8'))
  assert.deepEqual([resolved.seqLen, resolved.model], [256, 'L=1,H=2,C=16,V=257,T=1024'])
  assert.equal((await planPretrain(resolved)).fromStep, 2)
})
