/** What was typed can't be meant: exit code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}
