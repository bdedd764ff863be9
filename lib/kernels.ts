// `train-core/kernels`: tensors, autograd and every op; nothing of models, data or training.
export { availableDevices, backends, currentDevice, Device, device, opTable, setDefaultDevice } from './device.js'
export { type ErrorCode, TrainCoreError } from './errors.js'
export type { BackendReport, DeviceInfo, OpRow } from './native.js'
export { type AttentionOptions, attention, attentionCached, kvAppend } from './ops/attention.js'
export { add, cast, fill, fullLike, gelu, scale, weightedSum } from './ops/elementwise.js'
export { type EmbeddingOptions, embedding } from './ops/embedding.js'
export {
  type CachedTeacher,
  type CosineOptions,
  cosineLoss,
  crossEntropy,
  distillLoss,
  type HeadLossOptions,
  type HeadTeacher,
  headLoss,
  headLossBackward,
  headTopK,
  type Loss,
  type LossOptions,
} from './ops/loss.js'
export { type LinearOptions, linear, type MatmulOptions, matmul, mlp } from './ops/matmul.js'
export { type LayernormOptions, layernorm } from './ops/norm.js'
export { type AdamWOptions, type AdamWState, adamw, globalNorm } from './ops/optim.js'
export {
  createRng,
  type DropoutOptions,
  dropout,
  randomNormal,
  randomUniform,
  setRngStep,
} from './ops/random.js'
export { argmax, type SampleOptions, sample } from './ops/sample.js'
export { type CapturedStep, capture } from './step.js'
export { backward, checkpoint, gradientOf, isRecording, noGrad, reshape } from './tape.js'
export { type DType, keep, type RawData, scope, Tensor, type TensorData, type TensorOptions } from './tensor.js'
