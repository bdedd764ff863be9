import { existsSync } from 'node:fs'
import { type FileHandle, mkdir, open, readdir, readFile } from 'node:fs/promises'
import path from 'node:path'
import { crc32 } from 'node:zlib'
import { f16ToFloat32, float32ToF16 } from '../dtype.js'
import { fileError, readAll, writeJson } from '../durable-file.js'
import { TrainCoreError } from '../errors.js'
import { hashConfig, hashFile } from './checkpoint.js'
import { type CachedRows, idType } from './trainer.js'

/** What a cache is of. All of it must be the same for a cache to be used again. */
export interface CacheKey {
  /** SHA-256 of the teacher's weights and configuration */
  readonly teacher: string
  /** SHA-256 of the tokenizer, and of the tokens */
  readonly tokenizer: string
  readonly data: string
  readonly order: string
  readonly packDocuments: boolean
  /** T */
  readonly seqLen: number
  readonly vocabSize: number
  readonly temperature: number
  /** K */
  readonly topK: number
  readonly precision: string
}

const SETTINGS = 'teacher-cache.json'
const RECORDS = 'records.bin'
const DONE = 'done.bin'
const FORMAT = 1

/**
 * A teacher's most probable tokens for windows of T tokens, on the disk: for each token K ids (u16, or i32 for large vocabularies), K
 * log-probs (f16) at the loss's temperature, and the mass of all others (f32). Sparse logits after TinyViT (Wu et al. 2022, arXiv
 * 2207.10666, section 3.2), with one bucket for the rest.
 *
 * `records.bin` has one record a window, with a CRC-32 at its end, at a place that follows from the window's number; `done.bin` has one
 * byte a window, set after the record is on the disk. So making a cache can stop anywhere and go on.
 */
export class TeacherCache {
  readonly folder: string
  readonly key: CacheKey
  readonly #records: FileHandle
  readonly #done: FileHandle
  readonly #written: Set<number>
  #pending: number[] = []

  /** Use {@link openTeacherCache}. */
  constructor(folder: string, key: CacheKey, records: FileHandle, done: FileHandle, written: Set<number>) {
    this.folder = folder
    this.key = key
    this.#records = records
    this.#done = done
    this.#written = written
  }

  /** On the disk [bytes], for each token of text. */
  get bytesPerToken(): number {
    const { topK, vocabSize } = this.key
    return topK * (idBytes(vocabSize) + 2) + 4
  }

  /** Windows that are there. */
  get windows(): number {
    return this.#written.size
  }

  has(window: number): boolean {
    return this.#written.has(window)
  }

  /** Writes one window's rows (T of them). Call {@link flush} after the last one. @throws TrainCoreError ERR_FILE */
  async write(window: number, rows: CachedRows): Promise<void> {
    const { ids, logProbs, tail } = rows
    const parts = [ids, float32ToF16(logProbs), tail]
    const body = Buffer.concat(parts.map(part => new Uint8Array(part.buffer, part.byteOffset, part.byteLength)))
    const record = Buffer.alloc(this.#recordBytes)
    body.copy(record)
    record.writeUInt32LE(crc32(body), body.length)
    await this.#attempt('write', () => this.#records.write(record, 0, record.length, window * record.length))
    this.#pending.push(window)
    if (this.#pending.length >= 64) await this.flush()
  }

  /** Makes what was written durable, and counts it as there. @throws TrainCoreError ERR_FILE */
  async flush(): Promise<void> {
    const windows = this.#pending.splice(0)
    if (!windows.length) return
    await this.#attempt('write', async () => {
      await this.#records.sync()
      for (const window of windows) await this.#done.write(Uint8Array.of(1), 0, 1, window)
      await this.#done.sync()
    })
    for (const window of windows) this.#written.add(window)
  }

  /**
   * The rows of several windows, one behind the other.
   *
   * @throws TrainCoreError ERR_FILE for a window that is not there or a record that was damaged
   */
  async read(windows: readonly number[]): Promise<CachedRows> {
    const { seqLen: T, topK: K, vocabSize } = this.key
    const R = windows.length * T
    const ids = idType(vocabSize) === 'u16' ? new Uint16Array(R * K) : new Int32Array(R * K)
    const rows = { ids, logProbs: new Float32Array(R * K), tail: new Float32Array(R) }
    await Promise.all(windows.map((window, at) => this.#readWindow(window, at * T, rows)))
    return rows
  }

  async close(): Promise<void> {
    await this.#records.close()
    await this.#done.close()
  }

  async #readWindow(window: number, row: number, into: CachedRows): Promise<void> {
    const { seqLen: T, topK: K } = this.key
    const record = Buffer.from(new ArrayBuffer(this.#recordBytes))
    const got = await this.#attempt('read', () => readAll(this.#records, record, window * record.length))
    const bodyBytes = this.#recordBytes - 4
    const whole = got === record.length && crc32(record.subarray(0, bodyBytes)) === record.readUInt32LE(bodyBytes)
    if (!this.has(window) || !whole)
      throw new TrainCoreError(
        'ERR_FILE',
        `${path.join(this.folder, RECORDS)}: window ${window} is missing or damaged`,
        {
          help: 'delete the folder and let the cache be made anew',
        },
      )
    const { buffer } = record
    const ofRow = (size: number): [number, number] => [size, T * K]
    const idSize = into.ids.BYTES_PER_ELEMENT
    const ids = into.ids instanceof Uint16Array ? new Uint16Array(buffer, 0, T * K) : new Int32Array(buffer, 0, T * K)
    into.ids.set(ids, row * K)
    into.logProbs.set(f16ToFloat32(new Uint16Array(buffer, ...ofRow(T * K * idSize))), row * K)
    // The tail may lie at no multiple of 4: it is copied.
    const tailAt = T * K * (idSize + 2)
    into.tail.set(new Float32Array(buffer.slice(tailAt, tailAt + T * 4)), row)
  }

  get #recordBytes(): number {
    return this.key.seqLen * this.bytesPerToken + 4
  }

  async #attempt<T>(verb: string, action: () => Promise<T>): Promise<T> {
    try {
      return await action()
    } catch (cause) {
      throw fileError(`cannot ${verb} the teacher cache ${this.folder}`, cause)
    }
  }
}

function idBytes(vocabSize: number): number {
  return idType(vocabSize) === 'u16' ? 2 : 4
}

/**
 * Opens a teacher cache, or makes an empty one.
 *
 * @throws TrainCoreError ERR_CONFIG where the folder holds a cache of something else, naming what differs; ERR_FILE
 */
export async function openTeacherCache(folder: string, key: CacheKey): Promise<TeacherCache> {
  try {
    await checkTeacherCache(folder, key)
    await mkdir(folder, { recursive: true })
    const file = path.join(folder, SETTINGS)
    if (!existsSync(file)) await writeJson(file, { format: FORMAT, rule: 'bucket', ...key })
    const [records, done] = await Promise.all([RECORDS, DONE].map(name => openForUpdate(path.join(folder, name))))
    const flags = await readFile(path.join(folder, DONE))
    const written = new Set<number>()
    for (const [window, flag] of flags.entries()) if (flag === 1) written.add(window)
    return new TeacherCache(folder, key, records, done, written)
  } catch (cause) {
    throw fileError(`cannot open the teacher cache ${folder}`, cause)
  }
}

/**
 * Looks whether a folder can hold a teacher cache of this key; writes nothing.
 *
 * @throws TrainCoreError as {@link openTeacherCache}
 */
export async function checkTeacherCache(folder: string, key: CacheKey): Promise<void> {
  const file = path.join(folder, SETTINGS)
  if (existsSync(file)) return await checkKey(file, key)
  const names = existsSync(folder) ? await readdir(folder) : []
  if (names.some(name => !name.endsWith('.partial')))
    throw new TrainCoreError('ERR_CONFIG', `--teacher-cache must be a new or an earlier cache; ${folder} holds others`)
}

async function openForUpdate(file: string): Promise<FileHandle> {
  // 'a+' would write at the end only; 'w+' would empty it.
  if (!existsSync(file)) await (await open(file, 'w')).close()
  return await open(file, 'r+')
}

async function checkKey(file: string, key: CacheKey): Promise<void> {
  let found: Record<string, unknown>
  try {
    found = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>
  } catch (cause) {
    throw new TrainCoreError('ERR_FILE', `${file} is not readable JSON`, { cause })
  }
  const wanted: Record<string, unknown> = { format: FORMAT, rule: 'bucket', ...key }
  const different = Object.keys(wanted).find(name => found[name] !== wanted[name])
  if (different)
    throw new TrainCoreError(
      'ERR_CONFIG',
      `the teacher cache ${path.dirname(file)} was made with another ${different}: ${String(found[different])}; wanted ${String(wanted[different])}`,
      { help: 'name another folder with --teacher-cache' },
    )
}

/** SHA-256 of a model folder's weights and configuration. @throws TrainCoreError ERR_FILE */
export async function hashModelFolder(folder: string): Promise<string> {
  const all = await readdir(folder).catch((cause: unknown) => {
    throw fileError(`cannot read ${folder}`, cause)
  })
  const names = all.filter(name => name === 'config.json' || name.endsWith('.safetensors')).sort()
  const hashes: [string, string][] = []
  for (const name of names) hashes.push([name, await hashFile(path.join(folder, name))])
  return hashConfig(hashes)
}
