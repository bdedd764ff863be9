import assert from 'node:assert/strict'
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { before, test } from 'node:test'
import type { StepRow, TeacherCacheReport } from '../../lib/train/hooks.js'
import type { DistillOptions } from '../../lib/train/options.js'
import { distill, pretrain } from '../../lib/train/run.js'
import { type CacheKey, openTeacherCache } from '../../lib/train/teacher-cache.js'

process.env.TRAIN_CORE_CACHE = await mkdtemp(join(tmpdir(), 'train-core-cache-'))
const folder = await mkdtemp(join(tmpdir(), 'train-core-teacher-cache-'))
process.on('exit', () => {
  for (const path of [folder, process.env.TRAIN_CORE_CACHE!]) rmSync(path, { recursive: true, force: true })
})
const at = (name: string): string => join(folder, name)
writeFileSync(at('text.txt'), 'she sells sea shells by the sea shore, and he sees her sell them all. '.repeat(20))

const BASE = {
  data: [at('text.txt')],
  tokenizer: 'byte',
  device: 'cpu',
  precision: 'f32',
  steps: 8,
  batchSize: 3,
  seqLen: 16,
  gradAccum: 2,
  warmup: 0,
  lr: 1e-3,
} as const
const STUDENT = { ...BASE, student: 'L=1,H=2,C=16', teacher: at('teacher/final'), kl: 5, ce: 2, cos: 0 }

interface Run {
  rows: StepRow[]
  reports: TeacherCacheReport[]
}

async function run(options: DistillOptions, signal?: AbortSignal): Promise<Run> {
  const result: Run = { rows: [], reports: [] }
  const onStep = (row: StepRow): void => void result.rows.push(row)
  const onTeacherCache = (report: TeacherCacheReport): void => void result.reports.push(report)
  await distill(options, { onStep, onTeacherCache, signal })
  return result
}

const refused =
  (code: string, message: RegExp) =>
  (error: Error & { code?: string }): boolean => {
    assert.equal(error.code, code)
    assert.match(error.message, message)
    return true
  }

before(async () => {
  await pretrain({ ...BASE, model: 'L=2,H=2,C=32', steps: 30, lr: 3e-3, out: at('teacher') })
})

for (const order of ['sequential', 'shuffled'] as const)
  test(`a cache of the whole vocabulary trains as the teacher does, ${order}`, async () => {
    const online = await run({ ...STUDENT, order, out: at(`online-${order}`) })
    const cache = { teacherCache: at(`whole-${order}`), topK: 257 }
    const cached = await run({ ...STUDENT, ...cache, order, out: at(`cached-${order}`) })
    assert.equal(cached.rows.length, 8)
    for (const [k, { loss, kl, ce }] of online.rows.entries()) {
      const mine = cached.rows[k]
      // Log-probs are kept in f16.
      assert.ok(Math.abs(mine.loss - loss) < 2e-3 * loss, `step ${k + 1}: ${mine.loss} and ${loss}`)
      assert.ok(Math.abs(mine.kl! - kl!) < 5e-3 * kl!, `step ${k + 1}: kl ${mine.kl} and ${kl}`)
      assert.ok(Math.abs(mine.ce! - ce!) < 1e-3, `step ${k + 1}: ce ${mine.ce} and ${ce}`)
    }
    const last = cached.reports.at(-1)!
    assert.ok(last.done)
    assert.equal(last.bytesPerToken, 257 * 4 + 4)
    assert.ok(Math.abs(last.onlineKl! - last.cachedKl!) < 5e-3 * last.onlineKl!)
    const size = statSync(join(cache.teacherCache, 'records.bin')).size
    assert.ok(size <= last.windows * (16 * last.bytesPerToken + 4) + 16 * last.bytesPerToken * 100)
  })

test('a second run finds every window there, and needs the teacher for nothing', async () => {
  const options = { ...STUDENT, teacherCache: at('again'), topK: 8 }
  const first = await run({ ...options, out: at('again-1') })
  const second = await run({ ...options, out: at('again-2') })
  assert.ok(first.reports.at(-1)!.made > 0)
  assert.deepEqual(
    second.reports.map(report => report.made),
    [0],
  )
  assert.deepEqual(
    second.rows.map(row => row.loss),
    first.rows.map(row => row.loss),
  )
})

test('K of 8 is close to the teacher, and says how close', async () => {
  const { reports } = await run({ ...STUDENT, teacherCache: at('eight'), topK: 8, out: at('eight-run') })
  const { onlineKl, cachedKl, bytesPerToken } = reports.at(-1)!
  assert.equal(bytesPerToken, 36)
  // Fewer classes: a divergence can only fall.
  assert.ok(cachedKl! <= onlineKl! * 1.001 && cachedKl! > 0.2 * onlineKl!, `${cachedKl} of ${onlineKl}`)
})

test('making a cache can stop and go on', async () => {
  const stop = new AbortController()
  const options = { ...STUDENT, teacherCache: at('stopped'), topK: 8 }
  const onTeacherCache = (report: TeacherCacheReport): void => {
    if (report.made >= 12) stop.abort()
  }
  await assert.rejects(
    distill({ ...options, out: at('stopped-run') }, { signal: stop.signal, onTeacherCache }),
    refused('ERR_ABORTED', /it can go on/),
  )
  const { rows, reports } = await run({ ...options, out: at('stopped-run') })
  const whole = await run({ ...options, teacherCache: at('never-stopped'), out: at('never-stopped-run') })
  assert.ok(reports.at(-1)!.made < whole.reports.at(-1)!.made, 'what was made before was used')
  assert.deepEqual(
    rows.map(row => row.loss),
    whole.rows.map(row => row.loss),
  )
})

test('a cache of something else is refused with the difference named', async () => {
  const options = { ...STUDENT, teacherCache: at('keyed'), topK: 8 }
  await run({ ...options, out: at('keyed-1') })
  const attempt = (more: Partial<DistillOptions>): Promise<unknown> => run({ ...options, ...more, out: at('keyed-2') })
  await assert.rejects(attempt({ temperature: 3 }), refused('ERR_CONFIG', /another temperature: 2; wanted 3/))
  await assert.rejects(attempt({ topK: 9 }), refused('ERR_CONFIG', /another topK: 8; wanted 9/))
  await assert.rejects(attempt({ order: 'sequential' }), refused('ERR_CONFIG', /another order/))
  await assert.rejects(attempt({ seqLen: 8 }), refused('ERR_CONFIG', /another seqLen/))
  writeFileSync(at('other.txt'), 'quite another text, which is long enough for a few windows of data. '.repeat(9))
  await assert.rejects(attempt({ data: [at('other.txt')] }), refused('ERR_CONFIG', /another data/))
  await assert.rejects(attempt({ teacher: at('keyed-1/final') }), refused('ERR_CONFIG', /another teacher/))
  await assert.rejects(
    attempt({ cos: 1 }),
    refused('ERR_CONFIG', /--teacher-cache gives --kl and --ce only; got --cos 1/),
  )
  await assert.rejects(attempt({ topK: 258 }), refused('ERR_CONFIG', /at most the teacher's 257 tokens; got 258/))
  await assert.rejects(attempt({ teacherCache: folder }), refused('ERR_CONFIG', /must be a new or an earlier cache/))
  await assert.rejects(
    attempt({ teacherCache: undefined }),
    refused('ERR_CONFIG', /--top-k is of a teacher cache; got it without/),
  )
})

test('a damaged record is found, not trained on', async () => {
  const key: CacheKey = {
    teacher: 'a',
    tokenizer: 'b',
    data: 'c',
    order: 'shuffled',
    packDocuments: false,
    seqLen: 3,
    vocabSize: 70000,
    temperature: 1,
    topK: 2,
    precision: 'f32',
  }
  const rows = {
    ids: Int32Array.of(69999, 1, 2, 3, 4, 5),
    logProbs: Float32Array.of(-0.5, -1, -1.5, -2, -2.5, -3),
    tail: Float32Array.of(0.25, 0.125, 1e-9),
  }
  const cache = await openTeacherCache(at('damaged'), key)
  await cache.write(5, rows)
  await assert.rejects(cache.read([5]), refused('ERR_FILE', /window 5 is missing or damaged/), 'not flushed yet')
  await cache.flush()
  assert.deepEqual(await cache.read([5]), rows)
  const { ids, tail } = await cache.read([5, 5])
  assert.deepEqual([ids.length, tail.length], [12, 6])
  await assert.rejects(cache.read([4]), refused('ERR_FILE', /window 4 is missing/))
  await cache.close()
  const file = at('damaged/records.bin')
  const bytes = readFileSync(file)
  for (const byte of [bytes.length - 1, bytes.length - 20, bytes.length - 50]) {
    const damaged = Buffer.from(bytes)
    damaged[byte] ^= 4
    writeFileSync(file, damaged)
    const again = await openTeacherCache(at('damaged'), key)
    await assert.rejects(again.read([5]), refused('ERR_FILE', /window 5 is missing or damaged/), `byte ${byte}`)
    await again.close()
  }
  writeFileSync(file, bytes.subarray(0, -1))
  const cut = await openTeacherCache(at('damaged'), key)
  await assert.rejects(cut.read([5]), refused('ERR_FILE', /window 5 is missing or damaged/))
  await cut.close()
})
