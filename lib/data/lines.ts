/** A line without its line feed; `bytes` is undefined where the line is longer than the limit. */
export interface Line {
  /** Counted from 1. */
  number: number
  bytes: Uint8Array | undefined
}

/** Longest line kept whole [bytes]. */
export const LONGEST_LINE: number = 64 << 20

/** Splits a stream of bytes into lines; holds one line at most. A last line without line feed counts. */
export async function* readLines(
  chunks: AsyncIterable<Uint8Array>,
  longest: number = LONGEST_LINE,
): AsyncGenerator<Line> {
  let parts: Uint8Array[] = []
  let length = 0
  let number = 1
  const add = (part: Uint8Array) => {
    length += part.length
    if (length > longest) parts = []
    else if (part.length > 0) parts.push(part)
  }
  const take = (): Line => {
    const bytes = length > longest ? undefined : parts.length === 1 ? parts[0] : Buffer.concat(parts)
    parts = []
    length = 0
    return { number: number++, bytes }
  }
  for await (const chunk of chunks) {
    let at = 0
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, at)) {
      add(chunk.subarray(at, end))
      yield take()
      at = end + 1
    }
    add(chunk.subarray(at))
  }
  if (length > 0) yield take()
}
