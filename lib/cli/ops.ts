import { backends, opTable } from '../device.js'
import type { Invocation } from './command.js'
import { table } from './output.js'

/** `train-core ops`: which device has a kernel for which op, and in which precisions. */
export async function run({ result }: Invocation): Promise<undefined> {
  const lacks = new Map(backends().map(({ name, missing }) => [name, new Set(missing.split(' '))]))
  const has = (device: string, op: string): 'yes' | 'missing' =>
    lacks.get(device)?.has(op) === false ? 'yes' : 'missing'
  const ops = opTable().map(({ name }) => ({
    name,
    cpu: has('cpu', name),
    cuda: has('cuda', name),
    metal: has('metal', name),
  }))
  const precisions = Object.fromEntries(backends().map(({ name, precisions }) => [name, precisions.split(' ')]))
  const names = Object.keys(precisions)
  const words = ['precisions', ...names.map(name => precisions[name]!.join(' ') || 'none')]
  result({ ops, precisions }, table([['op', ...names], ...ops.map(row => Object.values(row)), words]))
}
