// The machine's ceilings as measured here: the fastest matrix product and the fastest sweep over memory that this build attains.
import type { Device } from '../lib/device.js'
import { type CallSpec, input, type Precision } from './case.js'
import { readyOp } from './case-run.js'
import { type MeasureOptions, measure } from './measure.js'
import type { Peaks } from './statistics.js'

type Shape = readonly [M: number, N: number, K: number]
/** Large enough to fill the machine; the best of them counts. */
const GEMM_SHAPES: readonly Shape[] = [
  [1024, 3072, 768],
  [1024, 768, 3072],
  [2048, 2048, 2048],
]
/** It takes this to fill a GPU. */
const GPU_SHAPES: readonly Shape[] = [...GEMM_SHAPES, [8192, 8192, 8192]]
/** Elements of a sweep: 256 MiB in f32, beyond any last-level cache. */
const SWEEP = 1 << 26

function product(p: Precision, [M, N, K]: Shape): CallSpec {
  return {
    op: 'matmul',
    inputs: [input(p, [M, K]), input(p, [K, N]), null, null, null],
    outputs: ['new', 'skip'],
    scalars: [0, 0, 0, -1, 0],
  }
}

/** GB/s: a copy (scale by 1: read and write), and a plain read (a sum of squares). */
const SWEEPS: readonly { call: CallSpec; bytes: number }[] = [
  {
    call: { op: 'scale', inputs: [input('f32', [SWEEP]), null], outputs: [input('f32', [SWEEP])], scalars: [1] },
    bytes: SWEEP * 8,
  },
  { call: { op: 'global_norm', inputs: [input('f32', [SWEEP])], outputs: ['new'], scalars: [] }, bytes: SWEEP * 4 },
]

async function fastest(call: CallSpec, device: Device, cacheBytes: number, options: MeasureOptions): Promise<number> {
  const ready = readyOp(call, device, cacheBytes)
  try {
    return Math.min(...(await measure(ready, options)))
  } finally {
    ready.free()
  }
}

/** Measures the ceilings; a ceiling is the fastest sample, not the median. */
export async function measurePeaks(
  device: Device,
  cacheBytes: number,
  precisions: readonly Precision[],
  options: MeasureOptions,
): Promise<Peaks> {
  const gemm: Record<string, number> = {}
  for (const p of precisions)
    for (const shape of device.name.startsWith('cpu') ? GEMM_SHAPES : GPU_SHAPES) {
      const ms = await fastest(product(p, shape), device, 0, options)
      const flops = 2 * shape[0] * shape[1] * shape[2]
      gemm[p] = Math.max(gemm[p] ?? 0, flops / (ms * 1e6))
    }
  let memory = 0
  for (const { call, bytes } of SWEEPS)
    memory = Math.max(memory, bytes / ((await fastest(call, device, cacheBytes, options)) * 1e6))
  return { gemm, memory }
}
