import { Tokenizer } from '../data/index.js'
import { type Device, device as openDevice } from '../device.js'
import { type GPT2Config, parameterCount } from '../model/config.js'
import type { GPT2 } from '../model/gpt2.js'
import { resolveWeights } from '../model/hub.js'
import { checkWeights, loadGPT2, readConfig } from '../model/weights.js'
import type { Precision } from '../tensor.js'
import { checkVocabulary, resolvePrecision, tokenizerOf } from '../train/run.js'
import type { Invocation } from './command.js'
import { hubProgress } from './hub-progress.js'
import { compact } from './output.js'

/** A model as `eval` and `generate` name it: --model, --tokenizer, --device, --precision, --threads. */
export interface NamedModel {
  readonly folder: string
  readonly config: GPT2Config
  readonly device: Device
  readonly precision: Precision
  readonly tokenizer: Tokenizer
  /** Reads the weights; the caller frees the model. */
  load(): Promise<GPT2>
}

/** Finds a model, and what belongs to it; its weights are not read yet. @throws TrainCoreError ERR_FILE, ERR_CONFIG, ERR_DEVICE */
export async function openModel(invocation: Invocation): Promise<NamedModel> {
  const values = invocation.values as {
    model: string
    tokenizer?: string
    device?: string
    precision?: 'auto' | Precision
    threads?: number
  }
  const device = openDevice(values.device ?? 'auto', { threads: values.threads })
  const precision = resolvePrecision(device, values.precision ?? 'auto')
  const folder = await resolveWeights(values.model, hubProgress(invocation))
  const config = await readConfig(folder)
  const tokenizer = await Tokenizer.load(tokenizerOf(values.tokenizer, [folder]))
  checkVocabulary(config, tokenizer)
  await checkWeights(folder, config)
  invocation.note(
    `${folder} (${compact(parameterCount(config))} parameters) on ${device.info().description}, ${precision}`,
  )
  return {
    folder,
    config,
    device,
    precision,
    tokenizer,
    load: () => loadGPT2(folder, { device, precision, config, frozen: true }),
  }
}
