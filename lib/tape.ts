import { TrainCoreError } from './errors.js'
import { type Folding, keep, NEW, run, SKIP, scope, type TapeNode, Tensor } from './tensor.js'

let recording = true

/** Runs `body` without noting anything for backward: a teacher, an evaluation. */
export function noGrad<T>(body: () => T): T {
  return withRecording(false, body)
}

function withRecording<T>(on: boolean, body: () => T): T {
  const before = recording
  recording = on
  try {
    return body()
  } finally {
    recording = before
  }
}

/** Whether ops note how their outputs came about; false inside {@link noGrad} and during backward. */
export function isRecording(): boolean {
  return recording
}

/** Whether a gradient must flow into the tensor: it is a parameter, or was computed from one. */
export function needsGrad(tensor: Tensor | null | undefined): boolean {
  return recording && !!tensor && (tensor.requiresGrad || tensor.node !== null)
}

/**
 * Notes how `out` came about, when any of its inputs needs a gradient.
 *
 * @param backward gets d loss / d out and returns the gradients of the inputs, in order (null: none, or already in `.grad`): d loss /
 *   d out itself, or tensors made for it, which are freed once they have been used
 * @param saved tensors that only backward needs (a mean, a pre-activation)
 */
export function differentiable(
  name: string,
  out: Tensor,
  inputs: readonly (Tensor | null | undefined)[],
  backward: (dOut: Tensor, folding: Folding) => (Tensor | null)[],
  saved: readonly (Tensor | null)[] = [],
): Tensor {
  if (inputs.some(needsGrad))
    out.node = {
      name,
      inputs: inputs.map(x => (needsGrad(x) ? x! : null)),
      backward,
      saved: saved.filter(t => t !== null),
    }
  return out
}

/**
 * Where a kernel may add the gradient of `tensor` directly: the f32 `.grad` of a parameter (made of zeros at first use), or NEW for
 * an intermediate, SKIP where none is needed. A backward function returns null for an input whose gradient went into `.grad`.
 */
export function accumulator(tensor: Tensor | null | undefined): Tensor | typeof NEW | typeof SKIP {
  if (!tensor || !(tensor.requiresGrad || tensor.node)) return SKIP
  return tensor.requiresGrad ? gradientOf(tensor) : NEW
}

/** The f32 gradient buffer of a parameter. */
export function gradientOf(parameter: Tensor): Tensor {
  parameter.grad ??= keep(Tensor.zeros(parameter.shape, { dtype: 'f32', device: parameter.device }))
  return parameter.grad
}

/** The same elements in another shape; the gradient passes through. */
export function reshape(x: Tensor, shape: readonly number[]): Tensor {
  const out = x.view(shape)
  if (out.size !== x.size)
    throw new TrainCoreError(
      'ERR_SHAPE',
      `[reshape] [${shape.join(', ')}] must have ${x.size} elements; got ${out.size}`,
    )
  return differentiable('reshape', out, [x], dOut => [dOut.view(x.shape)])
}

/**
 * Runs `body` without keeping what is inside it for backward, and runs it once more when backward comes: memory for time.
 * `body` must give the same result both times (random masks come from the same rng tensor, so they do).
 *
 * @param body from the inputs to one output; it may use parameters freely
 */
export function checkpoint(body: (...inputs: Tensor[]) => Tensor, inputs: readonly Tensor[]): Tensor {
  const out = noGrad(() =>
    scope(() => {
      const y = body(...inputs)
      return y.node || y.requiresGrad || inputs.includes(y) ? y.view(y.shape) : y // noted below as made here
    }),
  )
  if (!recording) return out
  const node = (dOut: Tensor): (Tensor | null)[] =>
    withRecording(true, () =>
      scope(() => {
        const gradients: (Tensor | null)[] = inputs.map(() => null)
        const leaves = inputs.map((input, k) => {
          if (!input.node) return input // a parameter's gradient goes straight into its .grad
          const leaf = input.view(input.shape)
          leaf.node = {
            name: 'checkpoint_input',
            inputs: [],
            saved: [],
            backward: d => {
              gradients[k] = d.view(d.shape)
              return []
            },
          }
          return leaf
        })
        const y = body(...leaves)
        if (needsGrad(y)) backward([y], [dOut], { release: true })
        return gradients
      }),
    )
  out.node = { name: 'checkpoint', inputs: inputs.map(x => (needsGrad(x) ? x : null)), backward: node, saved: [] }
  return out
}

/**
 * Runs backward from `roots`: adds d / d parameter into every parameter's `.grad`.
 *
 * @param roots tensors whose gradients are known; a loss is [1] and takes the gradient 1 unless `seeds` says otherwise
 * @param seeds d loss / d root, same shape and dtype; null: ones
 * @param options.release frees each activation as soon as its backward has run (roots are kept); the graph can't be used again
 */
export function backward(
  roots: Tensor | readonly Tensor[],
  seeds?: Tensor | null | readonly (Tensor | null)[],
  options: { release?: boolean } = {},
): void {
  const rootList = roots instanceof Tensor ? [roots] : roots
  const seedList = seeds instanceof Tensor ? [seeds] : (seeds ?? rootList.map(() => null))
  checkRoots(rootList, seedList)
  const pending = new Gradients()
  rootList.forEach((root, k) => {
    const seed = seedList[k] ?? run('fill', [root], [NEW], [1])[0]!
    pending.hold(seed)
    if (seedList[k]) pending.hold(seed) // the caller's, never freed here
    if (root.requiresGrad) addToParameter(root, seed)
    else pending.add(root, seed)
    pending.release(seed)
  })
  const keepAlive = new Set(rootList)
  for (const tensor of topologicalOrder(rootList)) {
    const node = tensor.node!
    const dOut = pending.take(tensor)
    if (dOut) passOn(node, dOut, pending)
    if (!options.release) continue
    tensor.node = null
    for (const saved of node.saved) saved.free()
    if (!keepAlive.has(tensor)) tensor.free()
  }
}

function checkRoots(roots: readonly Tensor[], seeds: readonly (Tensor | null)[]): void {
  if (!roots.length) throw new TrainCoreError('ERR_ARGUMENT', '[backward] one root or more must be given; got none')
  if (seeds.length !== roots.length)
    throw new TrainCoreError(
      'ERR_SHAPE',
      `[backward] there must be one seed (or null) for each of ${roots.length} roots; got ${seeds.length}`,
    )
  roots.forEach((root, k) => {
    if (!needsGrad(root))
      throw new TrainCoreError('ERR_ARGUMENT', `[backward] root ${k} depends on no tensor with requiresGrad`)
    const seed = seeds[k]
    if (!seed && root.size !== 1)
      throw new TrainCoreError(
        'ERR_SHAPE',
        `[backward] a root without a seed must have 1 element; got ${root}; help: give its gradient`,
      )
    if (seed && (seed.dtype !== root.dtype || seed.shape.join() !== root.shape.join()))
      throw new TrainCoreError('ERR_SHAPE', `[backward] the seed of root ${k} must be ${root}; got ${seed}`)
  })
}

/** Runs one node's backward and adds what it returns to the gradients of its inputs. */
function passOn(node: TapeNode, dOut: Tensor, pending: Gradients): void {
  const folding: Folding = {
    take: k => (node.inputs[k]?.requiresGrad ? null : pending.takeForFolding(node.inputs[k])),
  }
  const gradients = noGrad(() => node.backward(dOut, folding))
  const owned = gradients.filter((gradient, k) => gradient && gradient !== node.inputs[k]?.grad) as Tensor[]
  for (const gradient of owned) pending.hold(gradient)
  gradients.forEach((gradient, k) => {
    const input = node.inputs[k]
    if (!gradient || !input) return
    if (input.requiresGrad) addToParameter(input, gradient)
    else pending.add(input, gradient)
  })
  for (const gradient of owned) pending.release(gradient)
  pending.release(dOut)
  pending.releaseFolded()
}

function addToParameter(parameter: Tensor, gradient: Tensor): void {
  const total = gradientOf(parameter)
  if (gradient === total) return
  const widened = gradient.dtype === 'f32' ? gradient : run('cast', [gradient], [NEW], [0])[0]!
  run('add', [total, widened], [total])
  if (widened !== gradient) widened.free()
}

/** Gradients under way, and how many places hold each: a residual passes one tensor on to two places. */
class Gradients {
  private readonly of = new Map<Tensor, Tensor>()
  private readonly holders = new Map<Tensor, number>()
  private readonly folded: Tensor[] = []

  hold(gradient: Tensor): void {
    this.holders.set(gradient, (this.holders.get(gradient) ?? 0) + 1)
  }

  /** Frees what nobody holds any more. */
  release(gradient: Tensor): void {
    const left = this.holders.get(gradient)! - 1
    this.holders.set(gradient, left)
    if (left > 0) return
    this.holders.delete(gradient)
    gradient.free()
  }

  add(tensor: Tensor, gradient: Tensor): void {
    const before = this.of.get(tensor)
    const total = before ? run('add', [before, gradient], [NEW])[0]! : gradient
    this.of.set(tensor, total)
    this.hold(total)
    if (before) this.release(before)
  }

  /** The gradient of `tensor`, no longer pending; the caller is its holder now. */
  take(tensor: Tensor): Tensor | undefined {
    const gradient = this.of.get(tensor)
    this.of.delete(tensor)
    return gradient
  }

  takeForFolding(tensor: Tensor | null | undefined): Tensor | null {
    const gradient = tensor && this.take(tensor)
    if (gradient) this.folded.push(gradient)
    return gradient ?? null
  }

  releaseFolded(): void {
    for (const gradient of this.folded.splice(0)) this.release(gradient)
  }
}

/** Every tensor that came from an op, consumers before producers. Without recursion: a deep model must not overflow the stack. */
function topologicalOrder(roots: readonly Tensor[]): Tensor[] {
  const order: Tensor[] = []
  const seen = new Set<Tensor>()
  const stack: { tensor: Tensor; next: number }[] = []
  for (const root of roots) {
    if (root.node && !seen.has(root)) {
      seen.add(root)
      stack.push({ tensor: root, next: 0 })
    }
    while (stack.length) {
      const top = stack[stack.length - 1]!
      const inputs = top.tensor.node!.inputs
      if (top.next === inputs.length) {
        order.push(top.tensor)
        stack.pop()
        continue
      }
      const input = inputs[top.next++]
      if (input?.node && !seen.has(input)) {
        seen.add(input)
        stack.push({ tensor: input, next: 0 })
      }
    }
  }
  return order.reverse()
}
