// Before the first use of a Metal device: does this GPU compute right? Its kernels are written without one, and GPUs and compilers differ.
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { cacheFolder } from '../data/cache.js'
import { TrainCoreError } from '../errors.js'
import { type DeviceInfo, native } from '../native.js'
import { bindingPath } from '../native-loader.js'
import type { Case } from './case.js'
import { allCases } from './cases.js'
import { precisionsOf, runCase, worst } from './run-case.js'

/** Families of kernels and the ops that show whether they are right; each family stands on those before it. */
const FAMILIES: Readonly<Record<string, readonly string[]>> = {
  matmul: ['matmul', 'column_sum'],
  attention: ['attention_forward', 'attention_backward'],
  layernorm: ['layernorm_forward', 'layernorm_backward'],
  loss: ['loss_forward', 'loss_backward', 'head_loss_forward', 'head_loss_backward'],
}

/** Families whose special kernels are wrong on the device, and what was wrong; their plain ones are right. */
type Verdict = Readonly<Record<string, string>>

/**
 * Tests an open device, unless the same device, system and build of train-core were tested before; where the kernels of a family that
 * lean on special hardware are wrong, the device uses its plain ones from here on.
 *
 * @param device its index
 * @param again tests in any case
 * @returns one line that names the families whose plain kernels are used, and why; empty where there are none
 * @throws TrainCoreError ERR_DEVICE where kernels are wrong that have no others beside them
 */
export function proveDevice(device: number, again = false): string {
  const { binding } = native()
  const info = binding.deviceInfo(device)
  const file = path.join(cacheFolder(), 'self-test', `${keyOf(info)}.json`)
  const known = again ? null : readVerdict(file)
  const verdict = known ?? test(device, info)
  if (!known) writeVerdict(file, verdict)
  binding.resetPeak(device)
  for (const [family, problem] of Object.entries(verdict))
    binding.usePlain(device, family, `its other kernels are wrong here: ${problem}`)
  // What the user asked for is no news.
  const plain = binding
    .deviceInfo(device)
    .variants.filter(({ plainBecause }) => plainBecause && !plainBecause.startsWith('TRAIN_CORE_'))
  return plain.length
    ? `${info.name}: plain kernels for ${plain.map(each => `${each.family} (${each.plainBecause})`).join(', ')}`
    : ''
}

function test(device: number, { name, variants }: DeviceInfo): Verdict {
  const verdict: Record<string, string> = {}
  const cases = allCases()
  for (const [family, ops] of Object.entries(FAMILIES)) {
    const own = cases.filter(({ op }) => ops.includes(op))
    let problem = problemOf(own, device)
    if (!problem) continue
    if (variants.some(each => each.family === family && !each.plainBecause)) {
      verdict[family] = problem
      native().binding.usePlain(device, family, problem)
      problem = problemOf(own, device)
      if (!problem) continue
    }
    throw new TrainCoreError('ERR_DEVICE', `${name}: its self-test fails: ${problem}`, {
      help: `use --device cpu; npx train-core doctor --device ${name} shows more, for a report`,
    })
  }
  return verdict
}

/** The first thing that is wrong; empty where nothing is. */
function problemOf(cases: readonly Case[], device: number): string {
  for (const each of cases)
    for (const precision of precisionsOf(each, device)) {
      const label = `${each.op}${each.variant ? ` (${each.variant})` : ''} ${precision}`
      try {
        const got = runCase(each, precision, device)
        const { reason } = worst(got.outputs, each.want(got.inputs, got.before), precision)
        if (reason) return `${label}: ${reason}`
      } catch (error) {
        return `${label}: ${(error as Error).message}`
      }
    }
  return ''
}

/** Changes with the device, the system's build, and all kernels and host code: those are in the addon. */
function keyOf({ description, variants }: DeviceInfo): string {
  const hash = createHash('sha256').update(JSON.stringify([description, variants]))
  return hash.update(readFileSync(bindingPath())).digest('hex').slice(0, 32)
}

function readVerdict(file: string): Verdict | null {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as Verdict
  } catch {
    return null // not there, or torn
  }
}

/** Where it can't be written, the next process tests again. */
function writeVerdict(file: string, verdict: Verdict): void {
  try {
    mkdirSync(path.dirname(file), { recursive: true })
    const temporary = `${file}.${process.pid}`
    writeFileSync(temporary, JSON.stringify(verdict))
    renameSync(temporary, file)
  } catch {}
}
