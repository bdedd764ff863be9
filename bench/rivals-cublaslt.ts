// cuBLASLt, through bench/rivals/cublaslt.cu: built beside the CUDA library, opens NVIDIA's where it is installed.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import path from 'node:path'
import { packageRoot } from '../lib/native-loader.js'
import type { BenchCase } from './case.js'
import { LineProcess } from './line-process.js'
import type { Rival } from './rivals.js'

/** What it is asked to do for a case; null where it has no such product. */
export function cublasLtRequest(c: BenchCase, sets: number): string | null {
  if (c.op !== 'matmul' || c.dtype !== 'bf16' || !c.call) return null
  const { M, N, K } = c.axes
  const [transA, transB, epilogue, , accumulate] = c.call.scalars
  if (!accumulate && c.variant === 'head') return null // f32 out of bf16, without a sum to add to
  const [, , bias, residual] = c.call.inputs
  const kind = accumulate ? 'add' : (['', 'gelu', 'dgelu'][epilogue] ?? '')
  const plain = residual ? 'residual' : bias ? 'bias' : 'plain'
  return `prepare ${M} ${N} ${K} ${transA} ${transB} ${kind || plain} ${sets}`
}

/** Where a Python that has PyTorch keeps the library; empty where it does not say. */
function besideTorch(): string {
  const python = process.env.TRAIN_CORE_PYTHON
  if (!python) return ''
  const code = `import glob, sys
print(next((f for p in sys.path for f in glob.glob(p + '/nvidia/**/libcublasLt.so.1*', recursive=True)), ''))`
  return spawnSync(python, ['-c', code], { encoding: 'utf8' }).stdout?.trim() ?? ''
}

/** cuBLASLt set up for a case on CUDA; null where it is not there or has nothing like the case. */
export async function cublasLtRival(c: BenchCase, sets: number): Promise<Rival | null> {
  const request = cublasLtRequest(c, sets)
  const helper = path.join(packageRoot(), 'build/Release/train_core_cublaslt')
  if (!request || !existsSync(helper)) return null
  const env = { ...process.env, TRAIN_CORE_CUBLASLT: process.env.TRAIN_CORE_CUBLASLT ?? besideTorch() }
  const child = await LineProcess.open('cuBLASLt', helper, [], env)
  if (!child) return null
  const { mode } = await child.ask(request)
  return {
    name: `cublasLt ${child.hello.version}`,
    mode: String(mode),
    lastCpuMs: 0,
    async run(count) {
      await child.ask(`run ${count}`)
    },
    close: () => child.close(),
  }
}
