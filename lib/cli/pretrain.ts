import { type PretrainOptions, resolvePretrain } from '../train/options.js'
import { planPretrain, pretrain } from '../train/run.js'
import { demand, type Invocation, libraryOptions } from './command.js'
import { runTraining } from './training.js'

/** `train-core pretrain`. */
export async function run(invocation: Invocation): Promise<undefined> {
  demand(invocation.values, 'model', 'data')
  const options = libraryOptions(invocation.values) as unknown as PretrainOptions
  await runTraining(invocation, {
    check: () => resolvePretrain(options),
    plan: hooks => planPretrain(options, hooks),
    train: hooks => pretrain(options, hooks),
  })
}
