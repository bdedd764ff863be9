import { existsSync } from 'node:fs'
import { type FileHandle, open, readFile } from 'node:fs/promises'
import path from 'node:path'
import { bf16ToFloat32, f16ToFloat32 } from '../dtype.js'
import { fileError, readAll } from '../durable-file.js'
import { TrainCoreError } from '../errors.js'
import {
  isRecord,
  MAX_HEADER_BYTES,
  parseSafetensorsHeader,
  quote,
  type SafetensorsHeader,
  type TensorEntry,
} from './safetensors-header.js'

export {
  type FileDType,
  parseSafetensorsHeader,
  type SafetensorsHeader,
  type TensorEntry,
} from './safetensors-header.js'
export { type TensorSource, writeModelTensors, writeSafetensors } from './safetensors-write.js'

/** Names of a model's files in Hugging Face layout. */
export const SINGLE_FILE = 'model.safetensors'
export const INDEX_FILE = 'model.safetensors.index.json'

/** An open file. Tensors are read one at a time, from where they lie; the file is never whole in memory. */
export class SafetensorsFile {
  readonly path: string
  /** in the order in which they lie */
  readonly tensors: ReadonlyMap<string, TensorEntry>
  readonly metadata: Readonly<Record<string, string>>
  readonly #handle: FileHandle

  constructor(file: string, header: SafetensorsHeader, handle: FileHandle) {
    this.path = file
    this.tensors = header.tensors
    this.metadata = header.metadata
    this.#handle = handle
  }

  /**
   * The bytes of a tensor: little-endian, row-major.
   *
   * @param into filled and returned, where given; of the tensor's byteLength
   * @throws TrainCoreError ERR_FILE, ERR_ARGUMENT (no such tensor), ERR_SHAPE (`into`), ERR_MEMORY
   */
  async read(name: string, into?: Uint8Array): Promise<Uint8Array> {
    const { offset, byteLength } = this.#entry(name)
    if (into && into.byteLength !== byteLength)
      throw new TrainCoreError(
        'ERR_SHAPE',
        `${this.path}: tensor ${quote(name)} has ${byteLength} bytes; got room for ${into.byteLength}`,
      )
    const bytes = into ?? this.#allocate(name, byteLength)
    let got: number
    try {
      got = await readAll(this.#handle, bytes, offset)
    } catch (cause) {
      throw fileError(`cannot read tensor ${quote(name)} of ${this.path}`, cause)
    }
    if (got < byteLength)
      throw new TrainCoreError('ERR_FILE', `${this.path} was cut short while tensor ${quote(name)} was being read`)
    return bytes
  }

  /**
   * A tensor as f32; F16 and BF16 are widened, F64 is rounded.
   *
   * @throws TrainCoreError as {@link read}, and ERR_DTYPE for other dtypes
   */
  async readFloat32(name: string): Promise<Float32Array> {
    const { dtype } = this.#entry(name)
    if (dtype !== 'F32' && dtype !== 'F16' && dtype !== 'BF16' && dtype !== 'F64')
      throw new TrainCoreError(
        'ERR_DTYPE',
        `${this.path}: tensor ${quote(name)} must be F32, F16, BF16 or F64; got ${dtype}`,
      )
    const { buffer } = await this.read(name)
    if (dtype === 'F32') return new Float32Array(buffer)
    if (dtype === 'F64') return Float32Array.from(new Float64Array(buffer))
    return dtype === 'BF16' ? bf16ToFloat32(new Uint16Array(buffer)) : f16ToFloat32(new Uint16Array(buffer))
  }

  async close(): Promise<void> {
    await this.#handle.close()
  }

  #entry(name: string): TensorEntry {
    const entry = this.tensors.get(name)
    if (!entry) throw new TrainCoreError('ERR_ARGUMENT', `${this.path} has no tensor ${quote(name)}`)
    return entry
  }

  #allocate(name: string, byteLength: number): Uint8Array {
    try {
      return new Uint8Array(byteLength)
    } catch (cause) {
      const message = `${this.path}: no memory for the ${byteLength} bytes of tensor ${quote(name)}`
      throw new TrainCoreError('ERR_MEMORY', message, { cause })
    }
  }
}

/**
 * Opens a safetensors file and checks its header; close it after use.
 *
 * @throws TrainCoreError ERR_FILE naming the file, the tensor and the reason
 */
export async function openSafetensors(file: string): Promise<SafetensorsFile> {
  let handle: FileHandle | undefined
  try {
    handle = await open(file, 'r')
    const { size } = await handle.stat()
    const start = Buffer.alloc(8)
    await readAll(handle, start, 0)
    const wanted = Math.min(size, MAX_HEADER_BYTES + 8, 8 + Number(start.readBigUInt64LE()))
    const bytes = Buffer.alloc(wanted)
    await readAll(handle, bytes, 0)
    return new SafetensorsFile(file, parseSafetensorsHeader(bytes, size, file), handle)
  } catch (error) {
    await handle?.close()
    throw fileError(`cannot read ${file}`, error)
  }
}

/** All tensors of a model directory, from one file or from shards. */
export interface ModelTensors {
  readonly tensors: ReadonlyMap<string, TensorEntry>
  readonly shapes: ReadonlyMap<string, readonly number[]>
  /** path of the file that holds a tensor */
  pathOf(name: string): string
  /** as {@link SafetensorsFile.read} */
  read(name: string, into?: Uint8Array): Promise<Uint8Array>
  /** as {@link SafetensorsFile.readFloat32} */
  readFloat32(name: string): Promise<Float32Array>
  close(): Promise<void>
}

/**
 * Opens a model directory's `model.safetensors` or, where there is none, the shards that `model.safetensors.index.json` lists (the
 * order in which transformers looks).
 *
 * @throws TrainCoreError ERR_FILE
 */
export async function openModelTensors(folder: string): Promise<ModelTensors> {
  const index = existsSync(path.join(folder, SINGLE_FILE)) ? null : await readIndex(folder)
  const names = index ? [...new Set(index.values())].sort() : [SINGLE_FILE]
  const files: SafetensorsFile[] = []
  const close = async (): Promise<void> => {
    for (const file of files) await file.close()
  }
  const fileOf = new Map<string, SafetensorsFile>()
  try {
    for (const name of names) {
      const file = await openSafetensors(path.join(folder, name))
      files.push(file)
      for (const tensor of file.tensors.keys()) {
        if (index && index.get(tensor) !== name)
          throw new TrainCoreError(
            'ERR_FILE',
            `${file.path} has tensor ${quote(tensor)}, which ${INDEX_FILE} puts into ${index.get(tensor) ?? 'no file'}`,
          )
        fileOf.set(tensor, file)
      }
    }
    for (const [tensor, name] of index ?? [])
      if (!fileOf.has(tensor))
        throw new TrainCoreError(
          'ERR_FILE',
          `${path.join(folder, name)} lacks tensor ${quote(tensor)} of ${INDEX_FILE}`,
        )
  } catch (error) {
    await close()
    throw error
  }
  const fileWith = (name: string): SafetensorsFile => {
    const file = fileOf.get(name)
    if (!file) throw new TrainCoreError('ERR_ARGUMENT', `${folder} has no tensor ${quote(name)}`)
    return file
  }
  const tensors = new Map([...fileOf].map(([name, file]) => [name, file.tensors.get(name)!]))
  return {
    tensors,
    shapes: new Map([...tensors].map(([name, { shape }]) => [name, shape])),
    pathOf: name => fileWith(name).path,
    read: async (name, into) => await fileWith(name).read(name, into),
    readFloat32: async name => await fileWith(name).readFloat32(name),
    close,
  }
}

/** Tensor -> file name, as the index of a sharded model says. */
async function readIndex(folder: string): Promise<Map<string, string>> {
  const file = path.join(folder, INDEX_FILE)
  if (!existsSync(file))
    throw new TrainCoreError('ERR_FILE', `${folder} has neither ${SINGLE_FILE} nor ${INDEX_FILE}`, {
      help: 'weights are read from safetensors files in Hugging Face layout',
    })
  let json: unknown
  try {
    json = JSON.parse(await readFile(file, 'utf8'))
  } catch (cause) {
    if (cause instanceof SyntaxError) throw new TrainCoreError('ERR_FILE', `${file} is not JSON`, { cause })
    throw fileError(`cannot read ${file}`, cause)
  }
  const map = isRecord(json) && isRecord(json.weight_map) ? Object.entries(json.weight_map) : []
  if (!map.length) throw new TrainCoreError('ERR_FILE', `${file} must have a weight_map of tensor names to files`)
  for (const [tensor, name] of map)
    if (typeof name !== 'string' || !name || path.basename(name) !== name || name === '..' || name === '.')
      throw new TrainCoreError(
        'ERR_FILE',
        `${file} puts tensor ${quote(tensor)} into ${quote(name)}, wanted a file of the same folder`,
      )
  return new Map(map as [string, string][])
}
