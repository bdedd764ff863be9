/** As torch.amp.GradScaler: 2^16 at first, doubled after so many steps in a row that did not overflow. */
const START = 2 ** 16
const GROWTH_STEPS = 2000

/**
 * The factor of the loss in f16, whose numbers end at 65504 and lose bits below 6e-5: gradients of activations are computed times a power
 * of two, those of weights divided by it in f32 (Micikevicius et al. 2017, arXiv 1710.03740). It falls where they overflow, and rises again.
 */
export class LossScale {
  value: number = START
  /** steps since the last change */
  steps = 0

  /**
   * Takes note of how a step went.
   *
   * @returns whether the step is to be made again: its gradients overflowed, and there is a smaller scale to try
   */
  overflowed(figures: { readonly loss: number; readonly gradNorm: number }): boolean {
    if (Number.isFinite(figures.gradNorm)) {
      if (++this.steps === GROWTH_STEPS) this.change(2)
      return false
    }
    if (!Number.isFinite(figures.loss) || this.value === 1) return false
    this.change(0.5)
    return true
  }

  private change(factor: number): void {
    this.value *= factor
    this.steps = 0
  }
}
