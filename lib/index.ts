// `train-core`: models, tokenizers, data and training. The ops are in `train-core/kernels`.
export * from './data/index.js'
export { availableDevices, backends, Device, device, setDefaultDevice } from './device.js'
export { type ErrorCode, TrainCoreError } from './errors.js'
export {
  configFromHuggingFace,
  configToHuggingFace,
  type GPT2Config,
  gpt2Config,
  PRESET_NAMES,
  parameterCount,
  parseModel,
} from './model/config.js'
export type { GenerateOptions } from './model/generate.js'
export { type ForwardOptions, GPT2, type KVCache, type ModelOptions } from './model/gpt2.js'
export { type EvaluateOptions, type EvaluateResult, evaluate } from './train/evaluate.js'
export type { EvalRow, ModelSummary, RunPlan, StepRow, TrainHooks, TrainResult } from './train/hooks.js'
export { type MainJobOptions, type MainJobReport, mainJob } from './train/main-job.js'
export { DISTILL_DEFAULTS, type DistillWeights } from './train/objectives.js'
export { type DistillOptions, type PretrainOptions, TRAIN_DEFAULTS, type TrainOptions } from './train/options.js'
export { distill, planDistill, planPretrain, pretrain } from './train/run.js'
export { SCHEDULES, type ScheduleName } from './train/schedule.js'
