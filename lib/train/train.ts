import { BatchSource, type TokenDataset, type Tokenizer } from '../data/index.js'
import type { Device } from '../device.js'
import { type GPT2Config, parameterCount } from '../model/config.js'
import type { GPT2 } from '../model/gpt2.js'
import { readWeights, saveGPT2 } from '../model/weights.js'
import { packageVersion } from '../native-loader.js'
import { withTeacher } from './cached-teacher.js'
import { evaluate } from './evaluate.js'
import type { ModelSummary, RunPlan, TrainHooks, TrainResult } from './hooks.js'
import { type Identity, identityOf, type Origin } from './identity.js'
import { trainLoop } from './loop.js'
import type { Objective } from './objectives.js'
import type { Resolved, TrainOptions } from './options.js'
import { openRun } from './run-directory.js'
import type { TeacherCache } from './teacher-cache.js'
import { Trainer } from './trainer.js'

/** A run with everything opened: what {@link train} takes. The caller keeps ownership of models and datasets. */
export interface TrainJob {
  readonly kind: 'pretrain' | 'distill'
  readonly options: Resolved<TrainOptions>
  readonly model: GPT2
  readonly modelName: string
  readonly teacher: GPT2 | null
  readonly teacherName: string | null
  readonly objective: Objective
  readonly tokenizer: Tokenizer
  readonly data: TokenDataset
  readonly evalData: TokenDataset | null
  readonly seqLen: number
  /** the teacher of each batch, instead of `teacher` */
  readonly teacherCache: TeacherCache | null
  /** long work that the run needs first; done once its directory is open, so that nothing is worked out in vain */
  readonly prepare?: () => Promise<void>
  /** where the weights of model and teacher come from */
  readonly origin: Origin
}

/** A model as a plan names it. */
export function summaryOf(name: string, config: GPT2Config): ModelSummary {
  return { name, config, parameters: parameterCount(config) }
}

/** What a job is going to do, from its beginning, and what makes it this run and no other. */
export function planOf(
  job: Omit<TrainJob, 'objective' | 'model' | 'teacher'>,
  model: ModelSummary,
  teacher: ModelSummary | null,
  device: Device,
  precision: string,
): { plan: RunPlan; identity: Identity } {
  const { options, data, seqLen } = job
  const tokensPerStep = options.batchSize * seqLen * options.gradAccum
  const plan = {
    kind: job.kind,
    options: { ...options, seqLen },
    device: device.info().description,
    precision,
    tokenizer: job.tokenizer.name,
    model,
    teacher,
    seqLen,
    dataTokens: data.tokens,
    evalTokens: job.evalData?.tokens ?? 0,
    tokensPerStep,
    epochs: (tokensPerStep * options.steps) / Math.max(1, data.tokens - 1),
    out: options.out,
    fromStep: 0,
  }
  return { plan, identity: identityOf(job, model.config, device.name, precision) }
}

/**
 * Trains `job.model` by `job.objective`, in a run directory: goes on from its newest checkpoint as if never interrupted, logs, evaluates,
 * saves, and leaves the model in `final/`.
 *
 * @throws TrainCoreError ERR_CONFIG, ERR_FILE, ERR_DATA, ERR_MEMORY; what was reached stays in the run directory's checkpoints
 */
export async function train(job: TrainJob, hooks: TrainHooks = {}): Promise<TrainResult> {
  const { model, options, seqLen, tokenizer } = job
  const { device } = model
  const summary = summaryOf(job.modelName, model.config)
  const teacher = job.teacher && summaryOf(job.teacherName!, job.teacher.config)
  const { plan, identity } = planOf(job, summary, teacher, device, model.precision)
  const { teacherCache } = job
  const batches = new BatchSource(job.data, { ...options, seqLen })
  const source = teacherCache ? withTeacher(batches, teacherCache) : batches
  const environment = { train_core: packageVersion(), device: plan.device, precision: model.precision }
  const config = { command: job.kind, ...plan.options, model_config: model.config }
  const { keep, resume, out } = options
  const { run, checkpoint, warnings } = await openRun(out, { config, identity, environment, keep, resume })
  let trainer: Trainer | undefined
  try {
    for (const warning of warnings) hooks.onWarning?.(warning)
    hooks.onPlan?.({ ...plan, fromStep: checkpoint?.state.step ?? 0 })
    await job.prepare?.()
    const began = performance.now()
    device.resetPeak()
    trainer = new Trainer(model, job.objective, { ...options, seqLen, cachedTopK: teacherCache?.key.topK })
    if (checkpoint) {
      await readWeights(model, checkpoint.path)
      await trainer.loadState(checkpoint.path)
    }
    const { batchSize } = options
    const { evalData } = job
    const saveModel = async (folder: string): Promise<void> => {
      await saveGPT2(model, folder)
      await tokenizer.save(folder)
    }
    const result = await trainLoop({
      trainer,
      source,
      options,
      run,
      checkpoint,
      evaluate:
        evalData && (async () => (await evaluate(model, evalData, { batchSize, seqLen, signal: hooks.signal })).loss),
      save: async folder => {
        await saveModel(folder)
        await trainer!.saveState(folder)
      },
      hooks,
    })
    const final = result.interrupted ? null : await run.saveFinal(saveModel)
    const seconds = (performance.now() - began) / 1000
    const { peak: peakBytes } = device.info()
    return { ...result, seconds, peakBytes, parameters: summary.parameters, out, final }
  } finally {
    trainer?.free()
    run.close()
  }
}
