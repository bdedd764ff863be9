/** Insertions, deletions and substitutions that turn `a` into `b` (Levenshtein 1966), by rows of the table. */
export function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, k) => k)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let k = 1; k <= b.length; k++)
      next.push(Math.min(row[k]! + 1, next[k - 1]! + 1, row[k - 1]! + (a[i - 1] === b[k - 1] ? 0 : 1)))
    row = next
  }
  return row[b.length]!
}

/** The known name that is closest to `name`; of equally close ones the first. */
export function nearest(name: string, known: readonly string[]): string | undefined {
  const lower = name.toLowerCase()
  return known.map(word => ({ word, distance: editDistance(lower, word) })).sort((a, b) => a.distance - b.distance)[0]
    ?.word
}
