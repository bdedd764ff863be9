// Packages that are rivals where a user has installed them beside train-core: onnxruntime-node and @tensorflow/tfjs. Never dependencies; both
// compute in f32, and are asked for plain products and norms.
import type { BenchCase } from './case.js'
import { type OnnxNode, onnxModel } from './onnx-model.js'
import type { Rival } from './rivals.js'

/** The part of onnxruntime-node that is used. */
interface Onnx {
  env: { versions: { node?: string } }
  Tensor: new (type: 'float32', data: Float32Array, shape: readonly number[]) => { data: Float32Array }
  InferenceSession: {
    create(
      model: Uint8Array,
      options: object,
    ): Promise<{
      run(feeds: Record<string, unknown>): Promise<Record<string, { data: Float32Array }>>
      release(): Promise<void>
    }>
  }
}
/** The part of tfjs that is used. */
interface Tfjs {
  version: { tfjs: string }
  ready(): Promise<void>
  getBackend(): string
  randomNormal(shape: readonly number[]): TfTensor
  matMul(a: TfTensor, b: TfTensor): TfTensor
}
interface TfTensor {
  data(): Promise<Float32Array>
  dispose(): void
}

async function installed<T>(name: string): Promise<T | null> {
  try {
    const loaded = (await import(name)) as { default?: T } & T
    return loaded.default ?? loaded
  } catch (error) {
    if ((error as { code?: string }).code === 'ERR_MODULE_NOT_FOUND') return null
    throw error
  }
}

/** The case as one ONNX node; null where it is something else. */
export function onnxNode(c: BenchCase): OnnxNode | null {
  const { M, N, K, R, C } = c.axes
  if (c.dtype !== 'f32' || (c.variant && c.variant !== 'bias')) return null
  if (c.op === 'matmul')
    return {
      op: 'MatMul',
      inputs: [
        { name: 'a', shape: [M, K] },
        { name: 'b', shape: [K, N] },
      ],
      output: [M, N],
    }
  if (c.op === 'layernorm_forward') {
    const inputs = [
      { name: 'x', shape: [R, C] },
      { name: 'w', shape: [C] },
      { name: 'b', shape: [C] },
    ]
    return { op: 'LayerNormalization', inputs, output: [R, C] }
  }
  return null
}

function random(count: number): Float32Array {
  return Float32Array.from(
    { length: count },
    () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random()),
  )
}

export async function onnxRival(c: BenchCase, threads: number): Promise<Rival | null> {
  const node = onnxNode(c)
  const ort = node && (await installed<Onnx>('onnxruntime-node'))
  if (!node || !ort) return null
  const options = { intraOpNumThreads: threads, interOpNumThreads: 1, executionProviders: ['cpu'] }
  const session = await ort.InferenceSession.create(onnxModel(node), options)
  const size = (shape: readonly number[]): number => shape.reduce((a, b) => a * b)
  const feeds = Object.fromEntries(
    node.inputs.map(({ name, shape }) => [name, new ort.Tensor('float32', random(size(shape)), shape)]),
  )
  return {
    name: `onnxruntime-node ${ort.env.versions.node ?? ''}`.trim(),
    mode: '',
    async run(count) {
      for (let k = 0; k < count; k++) await session.run(feeds)
    },
    close: () => session.release(),
  }
}

export async function tfjsRival(c: BenchCase): Promise<Rival | null> {
  const { M, N, K } = c.axes
  if (c.op !== 'matmul' || c.dtype !== 'f32' || (c.variant && c.variant !== 'bias')) return null
  const tf = await installed<Tfjs>('@tensorflow/tfjs')
  if (!tf) return null
  await tf.ready()
  const [a, b] = [tf.randomNormal([M, K]), tf.randomNormal([K, N])]
  return {
    name: `tfjs ${tf.version.tfjs}`,
    mode: tf.getBackend(),
    async run(count) {
      for (let k = 0; k < count; k++) {
        const out = tf.matMul(a, b)
        await out.data()
        out.dispose()
      }
    },
    close: () => {
      a.dispose()
      b.dispose()
    },
  }
}
