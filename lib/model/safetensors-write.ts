import { readdir, rm } from 'node:fs/promises'
import path from 'node:path'
import { fileError, syncFolder, writeAll, writeDurably, writeJson } from '../durable-file.js'
import { TrainCoreError } from '../errors.js'
import {
  dtypeBits,
  type FileDType,
  isCount,
  isFileDType,
  MAX_HEADER_BYTES,
  quote,
  tensorBytes,
} from './safetensors-header.js'

/** A tensor to be written. */
export interface TensorSource {
  readonly name: string
  /** as in the file: F32, F16, BF16, I32, I64, U8, ... */
  readonly dtype: string
  readonly shape: readonly number[]
  /** its elements, little-endian and row-major; called when its turn comes, so that one tensor at a time need be in memory */
  readonly data: () => Promise<ArrayBufferView> | ArrayBufferView
}

type Metadata = Readonly<Record<string, string>>

const PYTORCH: Metadata = { format: 'pt' }

/**
 * Writes a safetensors file, one tensor at a time. Tensors with wider elements lie first (so that all are aligned), otherwise in the
 * order given: the same tensors give the same bytes. Its name only ever stands for a whole file.
 *
 * @param metadata free text in the header; `{"format":"pt"}` is what transformers wants
 * @throws TrainCoreError ERR_FILE (a full disk, say; nothing partial is left), ERR_ARGUMENT, ERR_DTYPE or ERR_SHAPE for wrong tensors
 */
export async function writeSafetensors(
  file: string,
  tensors: readonly TensorSource[],
  metadata: Metadata = PYTORCH,
): Promise<void> {
  const sizes = checkedSizes(tensors)
  const ordered = [...tensors].sort((a, b) => dtypeBits(b.dtype as FileDType) - dtypeBits(a.dtype as FileDType))
  const header = headerBytes(file, ordered, sizes, metadata)
  await writeDurably(file, async handle => {
    await writeAll(handle, header)
    for (const { name, data } of ordered) {
      const view = await data()
      if (view.byteLength !== sizes.get(name))
        throw new TrainCoreError(
          'ERR_SHAPE',
          `tensor ${quote(name)} takes ${sizes.get(name)} bytes; got ${view.byteLength}`,
        )
      await writeAll(handle, new Uint8Array(view.buffer, view.byteOffset, view.byteLength))
    }
  })
}

/**
 * Writes a model's tensors as `model.safetensors` or, above `maxShardBytes` of tensor data, as `model-00001-of-0000N.safetensors` with
 * `model.safetensors.index.json`; then removes what an earlier model of the other kind left in the folder.
 *
 * @param options.maxShardBytes a tensor is never split, so a larger one makes a larger shard; default 5 GB, transformers' own
 * @throws TrainCoreError as {@link writeSafetensors}
 */
export async function writeModelTensors(
  folder: string,
  tensors: readonly TensorSource[],
  options: { maxShardBytes?: number; metadata?: Metadata } = {},
): Promise<void> {
  const { maxShardBytes = 5e9, metadata } = options
  if (!(maxShardBytes > 0))
    throw new TrainCoreError('ERR_ARGUMENT', `maxShardBytes must be above 0; got ${maxShardBytes}`)
  const shards = splitIntoShards(tensors, checkedSizes(tensors), maxShardBytes)
  const names = shards.map((_, k) =>
    shards.length === 1
      ? 'model.safetensors'
      : `model-${fiveDigits(k + 1)}-of-${fiveDigits(shards.length)}.safetensors`,
  )
  for (const [k, shard] of shards.entries()) await writeSafetensors(path.join(folder, names[k]), shard, metadata)
  const kept = new Set(names)
  if (shards.length > 1) {
    const index = 'model.safetensors.index.json'
    await writeJson(path.join(folder, index), indexOf(shards, names))
    kept.add(index)
  }
  try {
    for (const name of await readdir(folder))
      if (/^model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?$/.test(name) && !kept.has(name))
        await rm(path.join(folder, name))
    await syncFolder(folder)
  } catch (cause) {
    throw fileError(`cannot remove earlier weights in ${folder}`, cause)
  }
}

function indexOf(shards: readonly (readonly TensorSource[])[], names: readonly string[]): unknown {
  const owners = shards.flatMap((shard, k) => shard.map(({ name }) => [name, names[k]] as const))
  const total = shards.flat().reduce((sum, { dtype, shape }) => sum + tensorBytes(dtype as FileDType, shape)!, 0)
  return { metadata: { total_size: total }, weight_map: Object.fromEntries(owners) }
}

function splitIntoShards(
  tensors: readonly TensorSource[],
  sizes: ReadonlyMap<string, number>,
  maxBytes: number,
): TensorSource[][] {
  const shards: TensorSource[][] = [[]]
  let bytes = 0
  for (const tensor of tensors) {
    const size = sizes.get(tensor.name)!
    if (bytes > 0 && bytes + size > maxBytes) {
      shards.push([])
      bytes = 0
    }
    shards.at(-1)!.push(tensor)
    bytes += size
  }
  return shards
}

/** Bytes of each tensor; everything that makes a set of tensors unwritable is found here. */
function checkedSizes(tensors: readonly TensorSource[]): Map<string, number> {
  const sizes = new Map<string, number>()
  for (const { name, dtype, shape } of tensors) {
    if (name === '__metadata__' || sizes.has(name))
      throw new TrainCoreError(
        'ERR_ARGUMENT',
        `a file can't hold a tensor named ${quote(name)} ${sizes.has(name) ? 'twice' : ''}`.trim(),
      )
    if (!isFileDType(dtype))
      throw new TrainCoreError('ERR_DTYPE', `tensor ${quote(name)} has the unknown dtype ${quote(dtype)}`)
    const size = shape.every(isCount) ? tensorBytes(dtype, shape) : undefined
    if (size === undefined)
      throw new TrainCoreError(
        'ERR_SHAPE',
        `tensor ${quote(name)} has a shape that can't be written: ${quote(shape)} ${dtype}`,
      )
    sizes.set(name, size)
  }
  return sizes
}

/** The length and the JSON, padded with spaces so that the tensors begin at a multiple of 8. */
function headerBytes(
  file: string,
  tensors: readonly TensorSource[],
  sizes: ReadonlyMap<string, number>,
  metadata: Metadata,
): Buffer {
  let end = 0
  const parts = tensors.map(({ name, dtype, shape }) => {
    const begin = end
    end += sizes.get(name)!
    return `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [begin, end] })}`
  })
  if (Object.keys(metadata).length) parts.unshift(`"__metadata__":${JSON.stringify(metadata)}`)
  const json = Buffer.from(`{${parts.join(',')}}`)
  const header = Buffer.alloc(8 + Math.ceil(json.length / 8) * 8, ' ')
  if (header.length - 8 > MAX_HEADER_BYTES)
    throw new TrainCoreError(
      'ERR_ARGUMENT',
      `${file} would have a header of ${header.length - 8} bytes, more than ${MAX_HEADER_BYTES}`,
    )
  header.writeBigUInt64LE(BigInt(header.length - 8))
  json.copy(header, 8)
  return header
}

function fiveDigits(count: number): string {
  return String(count).padStart(5, '0')
}
