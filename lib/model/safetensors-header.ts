import { TrainCoreError } from '../errors.js'

/** Bits of an element of each dtype of the format (huggingface/safetensors, safetensors/src/tensor.rs). */
const DTYPE_BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  F64: 64,
  I64: 64,
  U64: 64,
  C64: 64,
} as const

/** Element type of a tensor in a file. */
export type FileDType = keyof typeof DTYPE_BITS

/** Largest header in bytes, as in the reference implementation. */
export const MAX_HEADER_BYTES = 100_000_000

/** Where one tensor lies. */
export interface TensorEntry {
  readonly dtype: FileDType
  readonly shape: readonly number[]
  /** first byte, counted from the beginning of the file */
  readonly offset: number
  readonly byteLength: number
}

/** What the beginning of a file says: tensors in the order in which they lie, and free text. */
export interface SafetensorsHeader {
  readonly tensors: ReadonlyMap<string, TensorEntry>
  readonly metadata: Readonly<Record<string, string>>
}

type Fail = (reason: string) => TrainCoreError

/**
 * Reads and checks a header (https://huggingface.co/docs/safetensors, "Format"): everything that a damaged file could have wrong, short
 * of the numbers themselves, is found here, before a tensor is read.
 *
 * @param bytes the file from its beginning, at least up to the end of the header
 * @param fileSize bytes of the whole file
 * @param source the file's name, for messages
 * @throws TrainCoreError ERR_FILE naming the source, the tensor and the reason
 */
export function parseSafetensorsHeader(bytes: Uint8Array, fileSize: number, source = 'safetensors'): SafetensorsHeader {
  const fail: Fail = reason => new TrainCoreError('ERR_FILE', `${source} is not a valid safetensors file: ${reason}`)
  const length = headerLength(bytes, fileSize, fail)
  const header = parseObject(bytes.subarray(8, 8 + length), fail)
  let metadata: Record<string, string> = {}
  const entries: [string, TensorEntry][] = []
  for (const [name, value] of Object.entries(header)) {
    if (name === '__metadata__') {
      if (!isRecord(value) || Object.values(value).some(text => typeof text !== 'string'))
        throw fail('its __metadata__ must be an object of strings')
      metadata = value as Record<string, string>
    } else entries.push([name, parseEntry(name, value, 8 + length, fail)])
  }
  entries.sort(([, a], [, b]) => a.offset - b.offset || a.byteLength - b.byteLength)
  let end = 8 + length
  for (const [name, { offset, byteLength }] of entries) {
    const start = 8 + length
    if (offset !== end)
      throw fail(
        `tensor ${quote(name)} ${offset < end ? 'overlaps another' : 'leaves a gap'}: ` +
          `its data begin at ${offset - start}, wanted ${end - start}`,
      )
    end += byteLength
  }
  if (end !== fileSize)
    throw fail(
      `its tensors end at byte ${end}, but the file has ${fileSize} bytes${end > fileSize ? ' (cut short?)' : ''}`,
    )
  return { tensors: new Map(entries), metadata }
}

function headerLength(bytes: Uint8Array, fileSize: number, fail: Fail): number {
  if (bytes.length < 8 || fileSize < 8) throw fail(`it has ${fileSize} bytes, too few for the length of a header`)
  const wide = new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true)
  if (wide > MAX_HEADER_BYTES)
    throw fail(`its first 8 bytes ask for a header of ${wide} bytes, more than ${MAX_HEADER_BYTES}`)
  const length = Number(wide)
  if (bytes.length < 8 + length)
    throw fail(`a header of ${length} bytes does not fit into the file's ${fileSize} bytes (cut short?)`)
  return length
}

function parseObject(json: Uint8Array, fail: Fail): Record<string, unknown> {
  if (json[0] !== 0x7b) throw fail('its header does not begin with {')
  let text: string
  let header: unknown
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(json)
    header = JSON.parse(text)
  } catch {
    throw fail('its header is not JSON')
  }
  if (!isRecord(header)) throw fail('its header is not a JSON object')
  const twice = duplicateKey(text)
  if (twice !== undefined) throw fail(`its header has the name ${quote(twice)} twice`)
  return header
}

/** The first key that an object of a valid JSON text has twice; JSON.parse would silently keep the last one. */
function duplicateKey(text: string): string | undefined {
  const scopes: (Set<string> | null)[] = []
  let keyNext = false
  for (let i = 0; i < text.length; i++) {
    const char = text[i]
    if (char === '"') {
      const start = i++
      while (text[i] !== '"') i += text[i] === '\\' ? 2 : 1
      const keys = scopes.at(-1)
      if (!keyNext || !keys) continue
      const key = JSON.parse(text.slice(start, i + 1)) as string
      if (keys.has(key)) return key
      keys.add(key)
      keyNext = false
    } else if (char === '{' || char === '[') {
      scopes.push(char === '{' ? new Set() : null)
      keyNext = char === '{'
    } else if (char === '}' || char === ']') scopes.pop()
    else if (char === ',') keyNext = true
  }
  return undefined
}

function parseEntry(name: string, value: unknown, start: number, fail: Fail): TensorEntry {
  const bad = (reason: string): TrainCoreError => fail(`tensor ${quote(name)} ${reason}`)
  if (!isRecord(value)) throw bad('is not described by an object')
  const { dtype, shape, data_offsets: offsets } = value
  if (!isFileDType(dtype)) throw bad(`has the unknown dtype ${quote(dtype)}`)
  if (!Array.isArray(shape) || !shape.every(isCount)) throw bad(`has the shape ${quote(shape)}, wanted counts`)
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount) || offsets[0] > offsets[1])
    throw bad(`has the data_offsets ${quote(offsets)}, wanted [begin, end]`)
  const byteLength = tensorBytes(dtype, shape)
  if (byteLength === undefined) throw bad(`is ${quote(shape)} ${dtype}: no whole number of bytes that fits into a file`)
  if (offsets[1] - offsets[0] !== byteLength)
    throw bad(`is ${quote(shape)} ${dtype}, ${byteLength} bytes, but its data_offsets ${quote(offsets)} span others`)
  return { dtype, shape, offset: start + offsets[0], byteLength }
}

/** Bytes of a tensor; undefined where the count overflows 2^53 or is not whole. */
export function tensorBytes(dtype: FileDType, shape: readonly number[]): number | undefined {
  let count: number = DTYPE_BITS[dtype]
  for (const dim of shape) {
    count *= dim
    if (!Number.isSafeInteger(count)) return undefined
  }
  return count % 8 === 0 ? count / 8 : undefined
}

/** Bits of one element. */
export function dtypeBits(dtype: FileDType): number {
  return DTYPE_BITS[dtype]
}

export function isFileDType(value: unknown): value is FileDType {
  return typeof value === 'string' && Object.hasOwn(DTYPE_BITS, value)
}

export function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** A value from a file, for a one-line message: as JSON, clipped. */
export function quote(value: unknown): string {
  const text = JSON.stringify(value) ?? 'nothing'
  return text.length > 80 ? `${text.slice(0, 77)}...` : text
}
