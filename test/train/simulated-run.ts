import { createHash } from 'node:crypto'
import { mkdir, open, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { hashConfig } from '../../lib/train/checkpoint.js'
import { openRun } from '../../lib/train/run-directory.js'

/** A run without a model: weights are a chain of hashes, so that going on from anywhere but the right place shows. */
export interface SimulatedRun {
  steps: number
  saveEvery: number
  keep?: number
  /** bytes of weights */
  size?: number
  /** between steps, in ms */
  pause?: number
  /** the checkpoint of this step is complete */
  onSaved?: (step: number) => void
}

export const CONFIG = { model: 'L=1,H=1,C=8', lr: 0.001 }
export const CONFIG_HASH: string = hashConfig(CONFIG)

/** Weights after `step` steps. */
export function weightsAfter(step: number, size = 64): Buffer {
  let weights: Buffer = Buffer.alloc(size)
  for (let s = 1; s <= step; s++) weights = trained(weights, s)
  return weights
}

function trained(weights: Buffer, step: number): Buffer {
  const digest = createHash('sha256').update(weights).update(String(step)).digest()
  return Buffer.alloc(weights.length, digest)
}

/** The log of a run that was never interrupted. */
export function wholeLog(steps: number, size = 64): string {
  let text = ''
  let weights: Buffer = Buffer.alloc(size)
  for (let step = 1; step <= steps; step++) {
    weights = trained(weights, step)
    text += `${JSON.stringify(row(step, weights))}\n`
  }
  return text
}

function row(step: number, weights: Buffer): { step: number; loss: number } {
  return { step, loss: weights.readUInt32LE(0) / 2 ** 32 }
}

async function writeModel(folder: string, weights: Buffer): Promise<void> {
  await writeFile(join(folder, 'model.bin'), weights)
  await mkdir(join(folder, 'nested'))
  const handle = await open(join(folder, 'nested', 'optimizer.bin'), 'w')
  try {
    await handle.write(weights.subarray(0, 32), 0, 32)
  } finally {
    await handle.close()
  }
}

/** Trains, or goes on from the newest complete checkpoint; gives the warnings of opening. */
export async function simulateRun(path: string, options: SimulatedRun): Promise<string[]> {
  const { steps, saveEvery, keep = 2, size = 64, pause, onSaved } = options
  const { run, checkpoint, warnings } = await openRun(path, { config: CONFIG, identity: CONFIG, keep })
  let weights: Buffer = checkpoint ? await readFile(join(checkpoint.path, 'model.bin')) : Buffer.alloc(size)
  for (let step = (checkpoint?.state.step ?? 0) + 1; step <= steps; step++) {
    if (pause) await sleep(pause)
    weights = trained(weights, step)
    run.log(row(step, weights))
    if (step % saveEvery !== 0) continue
    const now = weights
    const state = { step, tokens: step * 64, data: { position: step }, rng: { seed: 1, step }, bestMetric: 1 / step }
    await run.save(state, folder => writeModel(folder, now))
    onSaved?.(step)
  }
  await run.saveFinal(folder => writeModel(folder, weights))
  run.close()
  return warnings
}

/** SHA-256 of every file below a folder by its path; env.json and the log of an earlier attempt left out. */
export async function snapshot(root: string, prefix = ''): Promise<Record<string, string>> {
  const files: Record<string, string> = {}
  for (const entry of await readdir(join(root, prefix), { withFileTypes: true })) {
    const path = `${prefix}${entry.name}`
    if (entry.isDirectory()) Object.assign(files, await snapshot(root, `${path}/`))
    else if (path !== 'env.json' && path !== 'log.previous.jsonl')
      files[path] = createHash('sha256')
        .update(await readFile(join(root, path)))
        .digest('hex')
  }
  return files
}
