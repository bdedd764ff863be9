import { backends, opTable } from '../device.js'
import type { Invocation } from './command.js'
import { table } from './output.js'

/** `train-core ops`: which device has a kernel for which op. */
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
  result({ ops }, table([['op', 'cpu', 'cuda', 'metal'], ...ops.map(row => Object.values(row))]))
}
