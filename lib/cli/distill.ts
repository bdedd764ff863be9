import { type DistillOptions, resolveDistill } from '../train/options.js'
import { distill, planDistill } from '../train/run.js'
import { demand, type Invocation, libraryOptions } from './command.js'
import { runTraining } from './training.js'

/** `train-core distill`. */
export async function run(invocation: Invocation): Promise<undefined> {
  demand(invocation.values, 'teacher', 'student', 'data')
  const options = libraryOptions(invocation.values) as unknown as DistillOptions
  await runTraining(invocation, {
    check: () => resolveDistill(options),
    plan: hooks => planDistill(options, hooks),
    train: hooks => distill(options, hooks),
  })
}
