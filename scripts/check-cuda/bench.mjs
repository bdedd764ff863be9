// The benchmark as a stage of check:cuda: each bar beside what was measured.
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { run } from './run.mjs'

/** The cases with a bar whose names hold one of `filter`; all cases of the benchmark where it is null. */
export async function benchStage(context, filter) {
  const { root, results, words } = context
  if (Date.now() > context.deadline) return results.add({ name: 'bench', ok: null, measured: 'no time left' })
  const folder = mkdtempSync(path.join(os.tmpdir(), 'train-core-check-'))
  const json = path.join(folder, 'rows.json')
  const flags = ['--device', 'cuda', '--keep-going', '--rivals', '--json', json]
  const cases = filter ? ['--bars', ...(words.length ? words : filter)] : words
  const command = [path.join(root, 'dist/bench/main.js'), ...flags, ...cases]
  const done = await run(process.execPath, command, context, { onStart: child => child.stderr.pipe(process.stderr) })
  const rows = existsSync(json) ? JSON.parse(readFileSync(json, 'utf8')).rows : []
  rmSync(folder, { recursive: true })
  results.addBench(rows)
  const ok = done.late ? null : done.status === 0
  if (ok !== true) results.keep('bench', done)
  results.add({
    name: 'cases',
    ok,
    measured: `${rows.length} measured${done.late ? ', no time left' : ''}`,
    seconds: done.seconds,
  })
  if (filter) for (const line of await barsOf(root, rows)) results.add(line)
  for (const { name, rivals } of rows)
    for (const { rival, mode, ratio } of rivals)
      results.add({ name: `${name} against ${rival} ${mode}`, ok: true, measured: `${ratio.toFixed(2)} x its speed` })
}

async function barsOf(root, rows) {
  const load = file => import(pathToFileURL(path.join(root, 'dist/bench', file)).href)
  const [{ barLines }, { barCases }] = await Promise.all([load('bars.js'), load('cases-bars.js')])
  return barLines(rows, barCases())
}
