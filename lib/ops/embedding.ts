import { TrainCoreError } from '../errors.js'
import { accumulator, differentiable, needsGrad } from '../tape.js'
import { dtypeNumber, NEW, run, SKIP, Tensor } from '../tensor.js'

/** Options of {@link embedding}. */
export interface EmbeddingOptions {
  /** number of real tokens, V; default all rows of wte. An id outside it is ERR_DATA */
  vocab?: number
  /** i32 of tokens' shape: the row of wpe for each token (a document's own count, a tree's depth) */
  positions?: Tensor | null
  /** i32 [1]: without `positions`, token t has the position past + t; for generation, not for training */
  past?: Tensor | null
}

/**
 * wte[token] + wpe[position]; differentiable in both tables.
 *
 * @param tokens i32 [B,T]
 * @param wte [Vp,C], f32, bf16 or f16: Vp >= vocab, the rows from vocab on are padding
 * @param wpe [P,C] of wte's dtype, or null: no positions
 * @returns [B,T,C] of wte's dtype
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT; the next read rejects with ERR_DATA, naming row and id, when a token is
 *   outside the vocabulary or a position outside wpe
 */
export function embedding(tokens: Tensor, wte: Tensor, wpe?: Tensor | null, options: EmbeddingOptions = {}): Tensor {
  const { vocab = wte.shape[0] ?? 0, positions, past } = options
  if (past && needsGrad(wpe))
    throw new TrainCoreError(
      'ERR_ARGUMENT',
      '[embedding] past is for generation; got it with a wpe that takes a gradient',
      {
        help: 'give positions instead, or run inside noGrad()',
      },
    )
  const [out] = run('embedding_forward', [tokens, wte, wpe, positions, past], [NEW], [vocab])
  return differentiable('embedding', out!, [wte, wpe], dOut => {
    const tokenSum = new TableGradient(wte)
    const positionSum = wpe ? new TableGradient(wpe) : null
    run(
      'embedding_backward',
      [dOut, tokens, positions],
      [tokenSum.target, positionSum?.wanted ? positionSum.target : SKIP],
      [vocab],
    )
    return [tokenSum.finish(), positionSum?.finish() ?? null]
  })
}

/** Where the gradient of a table goes: a parameter's `.grad`, or zeros of the table's shape. */
class TableGradient {
  readonly target: Tensor
  readonly wanted: boolean
  private readonly table: Tensor
  private readonly own: boolean

  constructor(table: Tensor) {
    const into = accumulator(table)
    this.table = table
    this.wanted = into !== SKIP
    this.own = !(into instanceof Tensor)
    this.target = into instanceof Tensor ? into : Tensor.zeros(table.shape, { device: table.device })
  }

  /** What the tape is to pass on: null where it went into `.grad` or nobody asked. */
  finish(): Tensor | null {
    if (!this.own) return null
    if (this.wanted && this.table.dtype === 'f32') return this.target
    const cast = this.wanted ? run('cast', [this.target], [NEW], [dtypeNumber(this.table.dtype)])[0]! : null
    this.target.free()
    return cast
  }
}
