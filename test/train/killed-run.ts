import { writeSync } from 'node:fs'
import { simulateRun } from './simulated-run.js'

/** A process to be killed: `node killed-run.js FOLDER STEPS SIZE`; says `saved N` when the checkpoint of step N is complete. */
const [, , path, steps, size] = process.argv
const onSaved = (step: number): void => {
  writeSync(1, `saved ${step}\n`)
}
await simulateRun(path, { steps: Number(steps), size: Number(size), saveEvery: 3, keep: 2, pause: 1, onSaved })
