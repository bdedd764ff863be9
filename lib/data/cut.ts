const BOUNDARY = /(?<=\P{White_Space})(?=\p{White_Space})/gu

/**
 * Where to cut `text` at or after `wanted` (above `from`): before white space that follows a non-space, or at the end
 * where there is no such place. No pre-token of GPT-2 spans that point, so both parts encode as they would together.
 */
export function cutBeforeSpace(text: string, from: number, wanted: number): number {
  if (wanted >= text.length) return text.length
  BOUNDARY.lastIndex = Math.max(wanted, from + 1)
  return BOUNDARY.exec(text)?.index ?? text.length
}
