// npm run bench
import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { barLines, barsTable } from './bars.js'
import { type BenchCase, caseName } from './case.js'
import { benchCases } from './cases.js'
import { barCases } from './cases-bars.js'
import { type BenchOptions, type Command, parseCommand } from './options.js'
import { peaksText, rowsTable, table } from './report.js'
import { checkWritable, writeResults } from './results-file.js'
import { type Row, runCases } from './runner.js'
import type { Peaks } from './statistics.js'
import { barChart, rooflineChart } from './svg.js'

function chosen({ filter, precisions, device, bars }: BenchOptions): BenchCase[] {
  const cases = (bars ? barCases() : benchCases(precisions)).filter(
    c => !filter.length || filter.some(part => caseName(c, device).includes(part)),
  )
  if (!cases.length) throw new Error(`no case matches ${filter.join(', ')}; --list names them all`)
  return cases
}

/** The files of `--svg`, in a folder that is made. */
function charts(folder: string): [roofline: string, bars: string] {
  try {
    mkdirSync(folder, { recursive: true })
  } catch (error) {
    throw new Error(`--svg ${folder} can't be made: ${(error as Error).message}`)
  }
  return [path.join(folder, 'roofline.svg'), path.join(folder, 'bars.svg')]
}

function writeCharts(folder: string, rows: readonly Row[], peaks: Peaks): void {
  const [roofline, bars] = charts(folder)
  writeFileSync(roofline, rooflineChart(rows, peaks))
  writeFileSync(bars, barChart(rows))
}

async function bench(options: BenchOptions): Promise<void> {
  const cases = chosen(options)
  if (options.list) {
    const lines = cases.map(c => [caseName(c, options.device), c.why])
    process.stdout.write(`${table(['case', 'stands for'], lines, 2)}\n`)
    return
  }
  checkWritable('json', options.json)
  if (options.svg !== undefined) for (const chart of charts(options.svg)) checkWritable('svg', chart)
  const { rows, peaks, failed } = await runCases(cases, options, (rows, peaks) => {
    const { name, median_ms } = rows.at(-1)!
    process.stderr.write(`bench: ${name} ${median_ms.toFixed(3)} ms\n`)
    if (options.json) writeResults(options.json, `${JSON.stringify({ peaks, rows }, null, 2)}\n`)
  })
  if (!rows.length) throw new Error('every case failed')
  process.stdout.write(
    `${rows[0].machine}; commit ${rows[0].commit}\nceilings: ${peaksText(peaks)}\n\n${rowsTable(rows)}\n`,
  )
  if (options.bars) process.stdout.write(`\n${barsTable(barLines(rows, barCases()))}\n`)
  if (options.svg) writeCharts(options.svg, rows, peaks)
  if (failed) throw new Error(`${failed} of ${cases.length} cases failed`)
}

function parse(): Command | null {
  try {
    return parseCommand(process.argv.slice(2))
  } catch (error) {
    process.stderr.write(`bench: ${(error as Error).message}\n`)
    process.exit(2)
  }
}

const command = parse()
try {
  if (command?.name === 'bench') await bench(command.options)
  if (command?.name === 'profile') await (await import('./profile-command.js')).profileCommand(command.options)
} catch (error) {
  process.stderr.write(`bench: ${(error as Error).message}\n`)
  process.exitCode = 1
}
