import { currentDevice, type Device } from './device.js'
import { native } from './native.js'
import { ownScope, scope, type Tensor } from './tensor.js'

/** A captured step: call it instead of the function it was made from. */
export interface CapturedStep<T> {
  (): T
  /** Gives the recording's memory back, what it returned included; the next call starts anew. */
  free(): void
}

interface Recording {
  readonly handle: number
  /** what the step made and returned: it belongs to the recording */
  readonly owned: readonly Tensor[]
}

/** A captured step that is garbage gives its memory back; what it returned lives on as long as it is used. */
const garbage = new FinalizationRegistry<Recording>(({ handle, owned }) => {
  native().binding.capture('free', handle)
  for (const tensor of owned) tensor.watch()
})

/**
 * Makes a static graph of a training step. The first call runs `step` as it is (buffers that are made on demand come into being), the
 * second records it, the third runs it again only to verify that it makes the same calls, word for word, and from then on each call
 * replays the recording in one crossing. What changes between steps (batch, learning rate, step number, random counter) must be a
 * tensor that is written between the calls.
 *
 * @param step synchronous; may not read or write tensors from the host. It is run inside {@link scope}
 * @returns from the second call on always the same tensors, which hold the newest step's values; no scope around the call frees them,
 *   `free()` of the captured step does
 * @throws TrainCoreError ERR_CAPTURE when the step changes from one call to the next; the call after that starts anew
 */
export function capture<T extends Tensor | readonly Tensor[] | Record<string, Tensor>>(
  step: () => T,
  options: { device?: Device } = {},
): CapturedStep<T> {
  const device = options.device ?? currentDevice()
  const { binding } = native()
  let ran = false
  let verified = false
  let recording: Recording | undefined
  let result: T

  const orAbandon = <R>(body: () => R): R => {
    try {
      return body()
    } catch (error) {
      binding.capture('abandon')
      throw error
    }
  }
  const record = (): void => {
    binding.capture('begin', device.index)
    const { value, owned } = orAbandon(() => ownScope(step))
    recording = { handle: binding.capture('end'), owned }
    garbage.register(captured, recording, recording)
    result = value
  }
  const verify = ({ handle }: Recording): void => {
    binding.capture('verify', handle)
    orAbandon(() =>
      scope(() => {
        step()
      }),
    )
    binding.capture('end_verify')
    verified = true
  }

  const captured = (): T => {
    if (!ran) {
      const value = scope(step)
      ran = true
      return value
    }
    if (!recording) {
      record()
      return result
    }
    try {
      if (!verified) verify(recording)
    } catch (error) {
      captured.free()
      throw error
    }
    binding.capture('replay', recording.handle)
    return result
  }
  captured.free = () => {
    if (recording) {
      binding.capture('free', recording.handle)
      for (const tensor of recording.owned) tensor.free()
      garbage.unregister(recording)
    }
    recording = undefined
    ran = verified = false
  }
  return captured
}
