import { TrainCoreError } from '../errors.js'
import { differentiable, gradientOf } from '../tape.js'
import { NEW, run, SKIP, type Tensor } from '../tensor.js'

/** Options of {@link embedding}. */
export interface EmbeddingOptions {
  /** V: ids from V on are an error; default: all rows of wte */
  vocab?: number
  /** i32 [B,T]; default: past + 0, 1, 2, ... */
  positions?: Tensor | null
  /** i32 [1]; default 0 */
  past?: Tensor | null
}

/**
 * wte[token] + wpe[position]; differentiable in both tables, which must be parameters (or take no gradient).
 *
 * @param tokens i32 [B,T]
 * @param wte [Vp,C], f32 or bf16
 * @param wpe [P,C]; absent: no positions
 * @returns [B,T,C]
 * @throws TrainCoreError ERR_SHAPE, ERR_DTYPE; at the next read: ERR_DATA for an id outside the vocabulary or a position outside P
 */
export function embedding(tokens: Tensor, wte: Tensor, wpe?: Tensor | null, options: EmbeddingOptions = {}): Tensor {
  const vocab = options.vocab ?? wte.shape[0]!
  const { positions, past } = options
  if (wte.node || wpe?.node)
    throw new TrainCoreError('ERR_ARGUMENT', '[embedding] wte and wpe must be parameters or constants, not results of other ops')
  const out = run('embedding_forward', [tokens, wte, wpe, positions, past], [NEW], [vocab])[0]!
  if (past && (wte.requiresGrad || wpe?.requiresGrad)) return out
  return differentiable('embedding', out, [wte, wpe], dOut => {
    const dWte = wte.requiresGrad ? gradientOf(wte) : NEW
    const dWpe = wpe?.requiresGrad ? gradientOf(wpe) : SKIP
    const made = run('embedding_backward', [dOut, tokens, positions], [dWte, dWpe], [vocab])
    if (dWte === NEW) made[0]!.free()
    return [null, null]
  })
}
