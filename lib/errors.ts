/** The codes a {@link TrainCoreError} may carry; each names a family of causes, never one call site. */
export type ErrorCode =
  | 'ERR_SHAPE'
  | 'ERR_DTYPE'
  | 'ERR_ARGUMENT'
  | 'ERR_FREED'
  | 'ERR_UNSUPPORTED'
  | 'ERR_MEMORY'
  | 'ERR_DEVICE'
  | 'ERR_CAPTURE'
  | 'ERR_FILE'
  | 'ERR_DATA'
  | 'ERR_CONFIG'
  | 'ERR_ABORTED'

/**
 * Every error that train-core throws or rejects with.
 *
 * The message says what was wanted and what was got; `help`, where there is one, says what to do and is part of the
 * message too (after `help: `).
 */
export class TrainCoreError extends Error {
  override readonly name = 'TrainCoreError'
  readonly code: ErrorCode

  constructor(code: ErrorCode, message: string, options: { help?: string; cause?: unknown } = {}) {
    super(options.help ? `${message}; help: ${options.help}` : message, { cause: options.cause })
    this.code = code
  }
}
