import { type MainJobOptions, type MainJobPlan, type MainJobReport, mainJob, planMainJob } from '../train/main-job.js'
import { resolvePretrain } from '../train/options.js'
import { asUsage, type Invocation, libraryOptions } from './command.js'
import { compact, duration, mebibytes, table } from './output.js'
import { TrainingProgress } from './training.js'

/** `train-core` without a command. */
export async function run(invocation: Invocation): Promise<undefined> {
  const { values, signal, dryRun, result, note } = invocation
  const options = libraryOptions(values) as MainJobOptions
  asUsage(() => resolvePretrain({ model: 'the teacher', data: ['the sample text'], ...options }))
  const plan = await planMainJob(options)
  if (dryRun) {
    result(plan, planText(plan))
    return
  }
  note(planText(plan))
  let stage = ''
  const follower = new TrainingProgress(invocation, { label: () => stage, plans: false })
  const onStage = (name: string, steps: number): void => {
    follower.end()
    stage = name
    if (steps === 0) note(`${name}: from the cache`)
  }
  const report = await mainJob(options, { signal, ...follower.hooks, onStage }).finally(() => follower.end())
  result(report, reportText(report))
}

function planText({
  device,
  precision,
  text,
  dataTokens,
  evalTokens,
  tokensPerStep,
  models,
  out,
}: MainJobPlan): string {
  const count = (value: number): string => value.toLocaleString('en')
  const rows = models.map(({ name, parameters, steps }) => {
    const work = steps ? `${count(steps)} steps of ${count(tokensPerStep)} bytes` : 'from the cache'
    return `${name.padEnd(10)} ${compact(parameters)} parameters, ${work}`
  })
  return [
    'distils a small student from a small teacher, and trains the same student without it as a control',
    `text       ${text}: ${count(dataTokens)} bytes, ${count(evalTokens)} held out`,
    `device     ${device}, ${precision}`,
    ...rows,
    `directory  ${out}`,
  ].join('\n')
}

function reportText({ interrupted, rows, prompt, sample, final }: MainJobReport): string {
  if (interrupted) {
    const during = ['while the teacher was trained', 'while the student was trained', 'while the control was trained']
    return `interrupted ${during[rows.length]}: the same command goes on from there`
  }
  const none = 'cached'
  const cells = rows.map(row => [
    row.name,
    compact(row.parameters),
    row.loss.toFixed(4),
    row.tokensPerSecond === null ? none : compact(Math.round(row.tokensPerSecond)),
    row.peakBytes === null ? none : mebibytes(row.peakBytes),
    row.seconds === null ? none : duration(row.seconds),
  ])
  const head = ['model', 'parameters', 'held-out loss', 'tokens/s', 'peak memory', 'time']
  return [
    table([head, ...cells], [1, 2, 3, 4, 5]),
    `\nThe student goes on from "${prompt}":\n\n${prompt}${sample}\n`,
    `student in ${final}`,
  ].join('\n')
}
