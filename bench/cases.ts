// What is measured, as pure data: each heavy op at the shapes of GPT-2 124M and 355M, forward and backward apart, some odd shapes, and
// whole steps. Case names: op/shape/dtype/device[/variant].
import { type BenchCase, PRECISIONS, type Precision } from './case.js'
import { attentionCases } from './cases-attention.js'
import { headLossCases } from './cases-loss.js'
import { matmulCases } from './cases-matmul.js'
import { otherCases } from './cases-other.js'
import { stepCases } from './cases-step.js'

/** All cases of the precisions asked for. */
export function benchCases(precisions: readonly Precision[] = PRECISIONS): BenchCase[] {
  return [matmulCases, attentionCases, headLossCases, otherCases, stepCases].flatMap(make => precisions.flatMap(make))
}
