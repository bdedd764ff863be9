import { existsSync } from 'node:fs'
import { checkEvalData } from '../data/eval-windows.js'
import { BatchSource, type TokenDataset } from '../data/index.js'
import { checkFolder } from '../durable-file.js'
import { TrainCoreError } from '../errors.js'
import type { GPT2Config } from '../model/config.js'
import { chooseLayers } from './init.js'
import { checkVocabularies } from './objectives.js'
import type { Resolved, ResolvedDistill, TrainOptions } from './options.js'

/**
 * The folders that a run is told to use: one to write into can be made, one to read from is there.
 *
 * @throws TrainCoreError ERR_FILE
 */
export async function checkFolders({ out, resume }: Resolved<TrainOptions>, teacherCache?: string): Promise<void> {
  await checkFolder(out, '--out')
  if (teacherCache !== undefined) await checkFolder(teacherCache, '--teacher-cache')
  if (resume !== 'auto' && resume !== 'never' && !existsSync(resume))
    throw new TrainCoreError('ERR_FILE', `--resume: there is no folder ${resume}`, {
      help: 'name a run or one of its checkpoints; or auto, or never',
    })
}

/** Whether a student begins with layers of its teacher. */
export function copiesTeacher(student: { folder: string | null }, { init }: ResolvedDistill): boolean {
  return init === 'teacher-layers' && !student.folder
}

/**
 * A student beside its teacher.
 *
 * @param student its folder: where its weights come from, if from one
 * @throws TrainCoreError ERR_CONFIG
 */
export function checkPair(
  student: { config: GPT2Config; folder: string | null },
  teacher: GPT2Config,
  options: ResolvedDistill,
): void {
  const { layerMap, topK = 0 } = options
  const { vocabSize } = teacher
  checkVocabularies(student.config.vocabSize, vocabSize)
  if (copiesTeacher(student, options)) chooseLayers(student.config, teacher, layerMap)
  if (topK > vocabSize)
    throw new TrainCoreError('ERR_CONFIG', `--top-k must be at most the teacher's ${vocabSize} tokens; got ${topK}`)
}

/** Whether there is a whole row to train on, and something to predict. @throws TrainCoreError ERR_DATA */
export function checkData(
  { batchSize }: Resolved<TrainOptions>,
  seqLen: number,
  data: TokenDataset,
  evalData: TokenDataset | null,
): void {
  new BatchSource(data, { batchSize, seqLen })
  if (evalData) checkEvalData(evalData)
}
