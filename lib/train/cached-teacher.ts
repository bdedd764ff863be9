import type { Batch, BatchSource } from '../data/index.js'
import { TrainCoreError } from '../errors.js'
import type { GPT2 } from '../model/gpt2.js'
import { headLoss, headTopK } from '../ops/loss.js'
import { noGrad } from '../tape.js'
import { scope, Tensor } from '../tensor.js'
import type { TeacherCacheReport, TrainHooks } from './hooks.js'
import type { TrainSource } from './loop.js'
import type { TeacherCache } from './teacher-cache.js'
import type { CachedRows } from './trainer.js'

/** The batches of `source`, each with its teacher from the cache. */
export function withTeacher(source: BatchSource, cache: TeacherCache): TrainSource {
  return {
    seek: index => source.seek(index),
    next: async () => {
      const batch = await source.next()
      return { ...batch, teacher: await cache.read(source.windowsOf(batch.index)) }
    },
  }
}

/**
 * Runs the teacher on every window of the first `count` micro-batches that the cache lacks, and compares cached and online loss on the
 * first one. Stops and goes on anywhere.
 *
 * @param loadTeacher called only where windows are missing; the caller frees the model
 * @throws TrainCoreError ERR_FILE, ERR_MEMORY; ERR_ABORTED when the signal fires (what was made stays)
 */
export async function fillTeacherCache(
  cache: TeacherCache,
  source: BatchSource,
  count: number,
  loadTeacher: () => Promise<GPT2>,
  student: GPT2,
  hooks: TrainHooks,
): Promise<TeacherCacheReport> {
  const wanted = source.windowsIn(count)
  let teacher: GPT2 | null = null
  let ready = 0
  let made = 0
  let sample: { onlineKl: number; cachedKl: number } | null = null
  try {
    for (let index = 0; ready < wanted; index++) {
      const windows = source.windowsOf(index)
      const missing = windows.some(window => !cache.has(window))
      ready = Math.min(ready + windows.length, wanted)
      if (missing) {
        if (hooks.signal?.aborted)
          throw new TrainCoreError('ERR_ABORTED', `the teacher cache ${cache.folder} was stopped; it can go on`)
        teacher ??= await loadTeacher()
        made += await makeWindows(cache, teacher, await source.at(index), windows)
        if (!sample) {
          await cache.flush()
          sample = await compare(cache, teacher, student, await source.at(index), windows)
        }
        hooks.onTeacherCache?.(reportOf(cache, { ready, wanted, made }, sample, false))
      }
    }
    await cache.flush()
  } finally {
    teacher?.free()
  }
  const report = reportOf(cache, { ready, wanted, made }, sample, true)
  hooks.onTeacherCache?.(report)
  return report
}

function reportOf(
  cache: TeacherCache,
  progress: Pick<TeacherCacheReport, 'ready' | 'wanted' | 'made'>,
  sample: { onlineKl: number; cachedKl: number } | null,
  done: boolean,
): TeacherCacheReport {
  const { folder, windows, bytesPerToken } = cache
  return { folder, windows, ...progress, bytesPerToken, onlineKl: null, cachedKl: null, ...sample, done }
}

/** Writes those rows of a batch that the cache lacks; returns how many. */
async function makeWindows(
  cache: TeacherCache,
  teacher: GPT2,
  batch: Batch,
  windows: readonly number[],
): Promise<number> {
  const { seqLen: T, topK: K, temperature, vocabSize: vocab } = cache.key
  const made = noGrad(() =>
    scope(() => {
      const hidden = teacher.hidden(...forwardInputs(teacher, batch, T))
      const { ids, logProbs, tail } = headTopK(hidden, teacher.head, { topK: K, temperature, vocab })
      return { ids, logProbs, tail }
    }),
  )
  const [ids, logProbs, tail] = await Promise.all([made.ids.read(), made.logProbs.read(), made.tail.read()])
  for (const tensor of Object.values(made)) tensor.free()
  const written = new Set<number>()
  for (const [row, window] of windows.entries()) {
    if (cache.has(window) || written.has(window)) continue
    written.add(window)
    await cache.write(window, {
      ids: ids.subarray(row * T * K, (row + 1) * T * K) as CachedRows['ids'],
      logProbs: logProbs.subarray(row * T * K, (row + 1) * T * K) as Float32Array,
      tail: tail.subarray(row * T, (row + 1) * T) as Float32Array,
    })
  }
  return written.size
}

/** Mean T²·KL per token of a batch, to the teacher itself and to its cached form as read from the disk. */
async function compare(
  cache: TeacherCache,
  teacher: GPT2,
  student: GPT2,
  batch: Batch,
  windows: readonly number[],
): Promise<{ onlineKl: number; cachedKl: number }> {
  const { seqLen: T, temperature, vocabSize: vocab } = cache.key
  const { device } = student
  const rows = await cache.read(windows)
  const R = windows.length * T
  const losses = noGrad(() =>
    scope(() => {
      const hidden = student.hidden(...forwardInputs(student, batch, T))
      const teacherHidden = teacher.hidden(...forwardInputs(teacher, batch, T))
      const seed = Tensor.from([1 / R], [1], { device })
      const options = { kl: 1, temperature, vocab, seed }
      const cached = {
        ids: Tensor.from(rows.ids, [R, cache.key.topK], { device }),
        logProbs: Tensor.from(rows.logProbs, [R, cache.key.topK], { device }),
        tail: Tensor.from(rows.tail, [R], { device }),
      }
      const online = { hidden: teacherHidden, head: teacher.head }
      return [online, cached].map(of => headLoss(hidden, student.head, { ...options, teacher: of }).loss)
    }),
  )
  const [onlineKl, cachedKl] = await Promise.all(losses.map(async loss => (await loss.toFloat32())[0]))
  for (const loss of losses) loss.free()
  return { onlineKl, cachedKl }
}

function forwardInputs(
  { device }: GPT2,
  { inputs, until, positions }: Batch,
  T: number,
): [Tensor, { until: Tensor | null; positions: Tensor | null }] {
  const shape = [inputs.length / T, T]
  const tensor = (data: Int32Array): Tensor => Tensor.from(data, shape, { device })
  return [tensor(inputs), { until: until && tensor(until), positions: positions && tensor(positions) }]
}
