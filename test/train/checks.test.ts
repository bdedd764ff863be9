import assert from 'node:assert/strict'
import { cpSync, existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { before, test } from 'node:test'
import { mainJob, planMainJob } from '../../lib/train/main-job.js'
import type { DistillOptions, PretrainOptions } from '../../lib/train/options.js'
import { distill, planDistill, planPretrain, pretrain } from '../../lib/train/run.js'

process.env.TRAIN_CORE_CACHE = await mkdtemp(join(tmpdir(), 'train-core-cache-'))
const folder = await mkdtemp(join(tmpdir(), 'train-core-checks-'))
process.on('exit', () => {
  for (const path of [folder, process.env.TRAIN_CORE_CACHE!]) rmSync(path, { recursive: true, force: true })
})
const at = (name: string): string => join(folder, name)
writeFileSync(at('text.txt'), 'she sells sea shells by the sea shore, and he sees her sell them all. '.repeat(20))
writeFileSync(at('short.txt'), 'she sells')
writeFileSync(at('one.txt'), 's')
mkdirSync(at('others'))
writeFileSync(at('others/notes.txt'), '')

const SIZES = { batchSize: 2, seqLen: 16, steps: 2, device: 'cpu', precision: 'f32', tokenizer: 'byte' } as const
const BASE = { ...SIZES, data: [at('text.txt')], out: at('refused') }
const DISTILL = { ...BASE, teacher: at('teacher/final'), student: 'L=1,H=2,C=32' }

/** The plan and the run refuse with one message; the run writes nothing. */
async function refused(what: Promise<unknown>[], code: string, message: RegExp): Promise<void> {
  const errors = await Promise.all(what.map(each => each.then(() => null).catch(error => error)))
  for (const error of errors) {
    assert.match(String(error?.message), message)
    assert.equal(error.code, code)
  }
  assert.equal(errors[0].message, errors[1].message)
  assert.equal(existsSync(at('refused')), false)
}
const noDistill = (more: Partial<DistillOptions>, code: string, message: RegExp): Promise<void> =>
  refused([planDistill({ ...DISTILL, ...more }), distill({ ...DISTILL, ...more })], code, message)
const noPretrain = (more: Partial<PretrainOptions>, code: string, message: RegExp): Promise<void> => {
  const options = { ...BASE, model: 'L=1,H=2,C=16', ...more }
  return refused([planPretrain(options), pretrain(options)], code, message)
}

before(async () => {
  await pretrain({ ...BASE, model: 'L=2,H=2,C=32', out: at('teacher') })
  cpSync(at('teacher/final'), at('hollow'), { recursive: true })
  rmSync(at('hollow/model.safetensors'))
})

test('a plan refuses what the run would: a student that does not fit its teacher', async () => {
  const layers = { init: 'teacher-layers' }
  await noDistill(
    { student: 'L=1,H=2,C=16,V=300' },
    'ERR_CONFIG',
    /one vocabulary; got 257 and 300 tokens; help: .*V=257/,
  )
  await noDistill({ ...layers, student: 'L=1,H=2,C=16' }, 'ERR_CONFIG', /the teacher's width.*got C=16, H=2/)
  await noDistill({ ...layers, student: 'L=3,H=2,C=32' }, 'ERR_CONFIG', /at most the teacher's 2 layers; got 3/)
  await noDistill(
    { ...layers, layerMap: [7] },
    'ERR_CONFIG',
    /--layer-map must name 1 teacher layers from 0 to 1.*got 7/,
  )
  await noDistill({ ...layers, layerMap: [0, 1] }, 'ERR_CONFIG', /--layer-map must name 1 teacher layers.*got 0,1/)
  await noDistill(
    { teacherCache: at('cache'), topK: 300 },
    'ERR_CONFIG',
    /--top-k must be at most .*257 tokens; got 300/,
  )
})

test('a plan refuses what the run would: weights that are not there or not these', async () => {
  const final = at('teacher/final')
  await noDistill(
    { init: at('ramdom') },
    'ERR_FILE',
    /--init must be random, teacher-layers or a folder; .*no folder .*ramdom/,
  )
  await noDistill({ init: at('hollow'), student: final }, 'ERR_CONFIG', /--init .* and --student .* both name weights/)
  await noDistill({ init: final }, 'ERR_FILE', /does not hold this GPT-2: .*unexpected/)
  await noDistill({ teacher: at('hollow') }, 'ERR_FILE', /hollow has neither model\.safetensors nor/)
  await noPretrain({ model: at('hollow') }, 'ERR_FILE', /hollow has neither model\.safetensors nor/)
})

test('a plan refuses what the run would: data too short, folders that can not be', async () => {
  await noPretrain({ data: [at('short.txt')] }, 'ERR_DATA', /at least 17 tokens are wanted/)
  await noPretrain({ evalData: [at('one.txt')] }, 'ERR_DATA', /\[eval\] at least 2 tokens are wanted; got 1/)
  await noPretrain({ resume: at('typo') }, 'ERR_FILE', /--resume: there is no folder .*typo/)
  const resumed = { ...BASE, model: 'L=1,H=2,C=16', resume: at('others') }
  await assert.rejects(planPretrain(resumed), /others: not a complete checkpoint/)
  await noPretrain({ out: at('text.txt') }, 'ERR_FILE', /--out .*text\.txt can't be used: .*is a file, no folder/)
  await noPretrain(
    { out: at('text.txt/x/y') },
    'ERR_FILE',
    /--out .*y can't be used: a part of its path is not a folder/,
  )
  await noDistill(
    { teacherCache: at('text.txt') },
    'ERR_FILE',
    /--teacher-cache .*text\.txt can't be used: .*is a file/,
  )
  await noDistill({ teacherCache: at('others') }, 'ERR_CONFIG', /--teacher-cache must be a new or an earlier cache/)
})

test('options that mean nothing are refused', async () => {
  await noDistill({ layerMap: [0] }, 'ERR_CONFIG', /--layer-map is of --init teacher-layers; got it with --init random/)
  const copied = { init: 'teacher-layers', student: at('teacher/final') }
  await noDistill(copied, 'ERR_CONFIG', /--init teacher-layers wants a student given by its shape; got the folder/)
  await noPretrain({ evalEvery: 5 }, 'ERR_CONFIG', /--eval-every 5 wants --eval-data; got none/)
})

test("a shape has its teacher's vocabulary, and the positions of the folder that it starts from", async () => {
  const padded = { ...BASE, model: 'L=1,H=2,C=16,V=300,T=32', out: at('padded') }
  await pretrain(padded)
  const options = { ...DISTILL, teacher: at('padded/final'), student: 'L=1,H=2,C=16', out: at('from-padded') }
  assert.equal((await planDistill(options)).model.config.vocabSize, 300)
  const planned = await planDistill({ ...options, init: at('padded/final') })
  assert.deepEqual([planned.model.config.positions, planned.seqLen], [32, 16])
  assert.equal((await distill({ ...options, init: at('padded/final') })).steps, 2)
})

test('the run directory is open and the plan told before a teacher cache is filled', async () => {
  const options = { ...DISTILL, cos: 0, teacherCache: at('filled'), topK: 4, steps: 3, out: at('cached') }
  const told: string[] = []
  const hooks = {
    onPlan: () => void told.push(existsSync(at('cached/config.json')) ? 'plan' : 'plan without a directory'),
    onTeacherCache: ({ ready, wanted, done }: { ready: number; wanted: number; done: boolean }) =>
      void told.push(`${ready} of ${wanted}${done ? ', done' : ''}`),
  }
  await distill(options, hooks)
  assert.deepEqual(told, ['plan', '2 of 6', '4 of 6', '6 of 6', '6 of 6, done'])
  // More rows than an epoch has windows.
  const epochs = { ...options, batchSize: 30, steps: 8, out: at('epochs'), teacherCache: at('epochs-cache') }
  told.splice(0)
  await distill(epochs, { onTeacherCache: hooks.onTeacherCache })
  assert.deepEqual(told, ['30 of 87', '60 of 87', '87 of 87', '87 of 87, done'])

  told.splice(0)
  const inVain = { ...options, resume: at('others'), teacherCache: at('in-vain'), out: at('never-begun') }
  await assert.rejects(distill(inVain, hooks), /others: not a complete checkpoint/)
  assert.deepEqual(told, [])
  const other = { ...options, temperature: 3 }
  await assert.rejects(planDistill(other), /teacher cache .*filled was made with another temperature: 2; wanted 3/)
})

test('the main job looks at its directory before it trains a teacher', async () => {
  const wanted = { code: 'ERR_FILE', message: /--out .*run can't be used: a part of its path is not a folder/ }
  await assert.rejects(planMainJob({ device: 'cpu', out: at('text.txt/run') }), wanted)
  await assert.rejects(mainJob({ device: 'cpu', out: at('text.txt/run') }), wanted)
})
