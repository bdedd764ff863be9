import { currentDevice, type Device } from './device.js'
import { native } from './native.js'
import { scope, type Tensor } from './tensor.js'

/** A captured step: call it instead of the function it was made from. */
export interface CapturedStep<T> {
  (): T
  /** Gives the recording's memory back; the next call starts anew. */
  free(): void
}

/**
 * Makes a static graph of a training step. The first call runs `step` as it is (buffers that are made on demand come into being), the
 * second records it, the third runs it again only to verify that it makes the same calls, word for word, and from then on each call
 * replays the recording in one crossing. What changes between steps (batch, learning rate, step number, random counter) must be a
 * tensor that is written between the calls.
 *
 * @param step synchronous; may not read or write tensors from the host. It is run inside {@link scope}
 * @returns from the second call on always the same tensors, which hold the newest step's values
 * @throws TrainCoreError ERR_CAPTURE when the step changes from one call to the next
 */
export function capture<T extends Tensor | readonly Tensor[] | Record<string, Tensor>>(
  step: () => T,
  options: { device?: Device } = {},
): CapturedStep<T> {
  const device = options.device ?? currentDevice()
  const { binding } = native()
  let calls = 0
  let recording = 0
  let result: T

  const guarded = (begin: () => void, end: () => void): T => {
    begin()
    try {
      const value = scope(step)
      end()
      return value
    } catch (error) {
      binding.capture('abandon')
      throw error
    }
  }

  const captured = (): T => {
    calls++
    if (calls === 1) return scope(step)
    if (!recording) {
      result = guarded(
        () => binding.capture('begin', device.index),
        () => {
          recording = binding.capture('end')
        },
      )
      return result
    }
    if (calls === 3) {
      const standIns = guarded(
        () => binding.capture('verify', recording),
        () => binding.capture('end_verify'),
      )
      freeAll(standIns)
    }
    binding.capture('replay', recording)
    return result
  }
  captured.free = () => {
    if (recording) binding.capture('free', recording)
    recording = 0
    calls = 0
  }
  return captured
}

function freeAll(value: Tensor | readonly Tensor[] | Record<string, Tensor>): void {
  const list = Array.isArray(value) ? value : 'id' in value ? [value as Tensor] : Object.values(value)
  for (const tensor of list as Tensor[]) tensor.free()
}
