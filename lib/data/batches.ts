import { TrainCoreError } from '../errors.js'
import type { TokenDataset } from './dataset.js'
import { Permutation } from './permutation.js'

/** A micro-batch. Arrays are row-major [B,T] and belong to whoever receives them. */
export interface Batch {
  /** Which micro-batch this is, counted from 0. */
  index: number
  inputs: Int32Array
  /** The token after each input. */
  targets: Int32Array
  /** Weight of each target's loss; null: all 1. */
  weights: Float32Array | null
  /**
   * With `packDocuments`: token j of a row sees token i (i <= j) iff j < until[i], the end of i's document in the row.
   */
  until: Int32Array | null
  /** With `packDocuments`: how far each token is from the beginning of its document in the row. */
  positions: Int32Array | null
}

/** What a {@link BatchSource} takes. */
export interface BatchOptions {
  /** B: rows of a micro-batch. */
  batchSize: number
  /** T: tokens of a row. */
  seqLen: number
  /** `sequential`: the tokens in their order. `shuffled` (default): all windows in a random order, new in each epoch. */
  order?: 'shuffled' | 'sequential'
  /** Decides the shuffled order. Default 0. */
  seed?: number
  /**
   * Gives `until` and `positions`, so that no document sees another. A document begins with the end-of-text token that
   * separates it from the one before. Default false: plain causal rows.
   */
  packDocuments?: boolean
  /** Micro-batches read ahead. Default 4. */
  prefetch?: number
}

/**
 * Endless micro-batches from a dataset of N tokens, each a function of its index alone, so that seeking costs nothing.
 *
 * Sequential: row r of micro-batch k has T inputs at token (k·B + r)·T modulo N; behind the last token comes the first.
 * Shuffled: the floor((N-1)/T) windows at multiples of T are permuted anew in each epoch, keyed by seed and epoch;
 * row r of micro-batch k is window number k·B + r of that endless row of windows.
 */
export class BatchSource {
  readonly batchSize: number
  readonly seqLen: number
  /** Windows in an epoch. */
  readonly windows: number
  readonly #dataset: TokenDataset
  readonly #shuffled: boolean
  readonly #seed: number
  readonly #pack: boolean
  readonly #prefetch: number
  #position = 0
  #ahead: Promise<Batch>[] = []
  #permutations: Permutation[] = []
  #epochs: number[] = []

  /** Throws ERR_ARGUMENT for sizes that are no positive integers, ERR_DATA where the data is shorter than one window. */
  constructor(dataset: TokenDataset, options: BatchOptions) {
    const { batchSize, seqLen, prefetch = 4 } = options
    checkSize('batch size', batchSize, 1)
    checkSize('sequence length', seqLen, 1)
    checkSize('prefetch', prefetch, 0)
    if (dataset.tokens < seqLen + 1) {
      throw new TrainCoreError(
        'ERR_DATA',
        `[data] at least ${seqLen + 1} tokens are wanted (sequence length ${seqLen} and one target); got ${dataset.tokens}`,
        { help: 'use more data or a smaller --seq-len' },
      )
    }
    this.#dataset = dataset
    this.batchSize = batchSize
    this.seqLen = seqLen
    this.windows = Math.floor((dataset.tokens - 1) / seqLen)
    this.#shuffled = (options.order ?? 'shuffled') === 'shuffled'
    this.#seed = options.seed ?? 0
    this.#pack = options.packDocuments ?? false
    this.#prefetch = prefetch
  }

  /** How many different windows the first `count` micro-batches have. */
  windowsIn(count: number): number {
    const rows = count * this.batchSize
    return this.#shuffled ? Math.min(rows, this.windows) : rows
  }

  /** Index of the micro-batch that {@link next} gives. */
  get position(): number {
    return this.#position
  }

  /** Goes to micro-batch `index`; {@link next} gives it. */
  seek(index: number): void {
    checkSize('micro-batch index', index, 0)
    if (index === this.#position) return
    this.#position = index
    this.#ahead = []
  }

  /** The next micro-batch; the ones behind it are already being read. Throws as {@link TokenDataset.read}. */
  next(): Promise<Batch> {
    while (this.#ahead.length <= this.#prefetch) {
      const batch = this.at(this.#position + this.#ahead.length)
      // Its failure is told to the one who receives it; one that nobody asks for is of no interest.
      batch.catch(() => undefined)
      this.#ahead.push(batch)
    }
    this.#position++
    return this.#ahead.shift() as Promise<Batch>
  }

  /** Micro-batch `index`, without moving. Throws as {@link TokenDataset.read}. */
  async at(index: number): Promise<Batch> {
    const { batchSize: B, seqLen: T } = this
    const inputs = new Int32Array(B * T)
    const targets = new Int32Array(B * T)
    const readRow = async (row: number): Promise<void> => {
      const tokens = new Int32Array(T + 1)
      await this.#dataset.read(this.#offset(index * B + row), tokens)
      inputs.set(tokens.subarray(0, T), row * T)
      targets.set(tokens.subarray(1), row * T)
    }
    await Promise.all(Array.from({ length: B }, (_, row) => readRow(row)))
    const documents = this.#pack ? packRows(inputs, T, this.#dataset.eosId) : { until: null, positions: null }
    return { index, inputs, targets, weights: null, ...documents }
  }

  /**
   * What the rows of micro-batch `index` are: shuffled, the number of the window in the dataset; sequential, the number of the row since
   * the beginning. Rows of one number have the same tokens.
   */
  windowsOf(index: number): number[] {
    return Array.from({ length: this.batchSize }, (_, row) => this.#window(index * this.batchSize + row))
  }

  #window(number: number): number {
    if (!this.#shuffled) return number
    return this.#permutation(Math.floor(number / this.windows)).at(number % this.windows)
  }

  /** Token at which window `number` of the endless row of windows begins. */
  #offset(number: number): number {
    return (this.#window(number) * this.seqLen) % this.#dataset.tokens
  }

  /** Those of the last two epochs are kept: a batch may hold the end of one and the beginning of the next. */
  #permutation(epoch: number): Permutation {
    let at = this.#epochs.indexOf(epoch)
    if (at < 0) {
      this.#permutations = [...this.#permutations.slice(-1), new Permutation(this.windows, this.#seed, epoch)]
      this.#epochs = [...this.#epochs.slice(-1), epoch]
      at = this.#epochs.length - 1
    }
    return this.#permutations[at]
  }
}

/**
 * The documents of rows of ids [B,T]: where each token's document ends in its row, and the token's distance from its
 * beginning. An end-of-text token begins a document.
 */
export function packRows(ids: Int32Array, T: number, eosId: number): { until: Int32Array; positions: Int32Array } {
  const until = new Int32Array(ids.length)
  const positions = new Int32Array(ids.length)
  for (let row = 0; row < ids.length; row += T) {
    let end = T
    for (let t = T - 1; t >= 0; t--) {
      until[row + t] = end
      if (ids[row + t] === eosId) end = t
    }
    for (let t = 1; t < T; t++) positions[row + t] = ids[row + t] === eosId ? 0 : positions[row + t - 1] + 1
  }
  return { until, positions }
}

function checkSize(name: string, value: number, least: number): void {
  if (Number.isSafeInteger(value) && value >= least) return
  throw new TrainCoreError('ERR_ARGUMENT', `[data] ${name} is wanted as an integer of at least ${least}; got ${value}`)
}
