// Where a step's time and memory go: the kernels that one step launched, counted, grouped and ranked.
import type { KernelTime } from '../lib/native.js'
import { bytesOf, type Cost, costOf } from './cost.js'
import { type Peaks, type RoofName, roofline } from './statistics.js'

export type Phase = 'forward' | 'loss' | 'backward' | 'optimizer'

/** A kernel with its place in the step. */
export interface Launch {
  readonly time: KernelTime
  readonly phase: Phase
  /** the op, and which of a product's uses it is */
  readonly label: string
  readonly cost: Cost
}

/** Products by what they do in a step: with a transposed operand they are gradients. */
function labelOf({ op, scalars, inputs, outputs }: KernelTime): string {
  if (op !== 'matmul') return op
  const [transA, transB, epilogue] = scalars
  if (transA) return 'matmul wgrad'
  if (transB) return epilogue ? "matmul dgrad x GELU'" : 'matmul dgrad'
  return epilogue ? 'matmul + GELU' : inputs[3] && outputs[0] ? 'matmul + residual' : 'matmul'
}

const OPTIMIZER = new Set(['global_norm', 'adamw'])

/** The phase of each kernel: by its name where that says it, else the phase under way. */
export function launchesOf(times: readonly KernelTime[]): Launch[] {
  let phase: Phase = 'forward'
  return times.map(time => {
    if (OPTIMIZER.has(time.op)) phase = 'optimizer'
    else if (time.op === 'embedding_forward') phase = 'forward'
    else if (/loss/.test(time.op)) phase = 'loss'
    else if (time.op.endsWith('_backward') || (time.op === 'matmul' && (time.scalars[0] || time.scalars[1])))
      phase = 'backward'
    return { time, phase, label: labelOf(time), cost: costOf(time) }
  })
}

/** All launches of one op in one phase. */
export interface Group {
  readonly label: string
  readonly phase: Phase
  readonly count: number
  readonly ms: number
  readonly flops: number
  readonly bytes: number
  /** what the op's launches made in one step: new outputs and workspaces, bytes */
  readonly made: number
  /** the most that one of them had at once, inputs included */
  readonly footprint: number
  readonly roof: RoofName
  readonly percent_of_roof: number
}

export function groupLaunches(launches: readonly Launch[], precision: string, peaks: Peaks): Group[] {
  const groups = new Map<string, Launch[]>()
  for (const launch of launches) {
    const key = `${launch.phase} ${launch.label}`
    groups.set(key, [...(groups.get(key) ?? []), launch])
  }
  const sum = (list: readonly Launch[], of: (launch: Launch) => number): number =>
    list.reduce((total, one) => total + of(one), 0)
  return [...groups.values()].map(list => {
    const ms = sum(list, ({ time }) => time.end - time.begin)
    const cost = { flops: sum(list, one => one.cost.flops), bytes: sum(list, one => one.cost.bytes) }
    const { roof, floor } = roofline(cost, precision, peaks)
    return {
      label: list[0].label,
      phase: list[0].phase,
      count: list.length,
      ms,
      ...cost,
      made: sum(list, madeBy),
      footprint: Math.max(...list.map(one => heldBy(one))),
      roof,
      percent_of_roof: ms > 0 ? (100 * floor) / ms : 0,
    }
  })
}

function madeBy({ time }: Launch): number {
  return time.outputs.reduce((total, out, k) => total + (time.fresh[k] ? bytesOf(out) : 0), time.workspace)
}
function heldBy({ time }: Launch): number {
  return [...time.inputs, ...time.outputs].reduce((total, one) => total + bytesOf(one), time.workspace)
}

export function heaviestInTime(groups: readonly Group[]): Group[] {
  return [...groups].sort((a, b) => b.ms - a.ms)
}
export function heaviestInSpace(groups: readonly Group[]): Group[] {
  return [...groups].sort((a, b) => b.made - a.made || b.footprint - a.footprint)
}

/** An event of the Chrome trace format (Trace Event Format, "X" complete events; times in µs). */
export interface TraceEvent {
  name: string
  cat: Phase
  ph: 'X'
  ts: number
  dur: number
  pid: number
  tid: number
  args: Record<string, unknown>
}

export function chromeTrace(
  launches: readonly Launch[],
  device: string,
): { traceEvents: TraceEvent[]; displayTimeUnit: string; otherData: object } {
  const start = launches[0]?.time.begin ?? 0
  const shape = (one: { dtype: string; shape: readonly number[] } | null): string | null =>
    one ? `${one.dtype}[${one.shape.join(',')}]` : null
  const traceEvents = launches.map(({ time, phase, label, cost }): TraceEvent => {
    const dur = (time.end - time.begin) * 1000
    return {
      name: label,
      cat: phase,
      ph: 'X',
      ts: (time.begin - start) * 1000,
      dur,
      pid: 1,
      tid: 1,
      args: {
        op: time.op,
        inputs: time.inputs.map(shape),
        outputs: time.outputs.map(shape),
        scalars: time.scalars,
        workspace_bytes: time.workspace,
        flops: cost.flops,
        bytes: cost.bytes,
        gflops: dur > 0 ? cost.flops / (dur * 1e3) : 0,
      },
    }
  })
  return { traceEvents, displayTimeUnit: 'ms', otherData: { device } }
}
