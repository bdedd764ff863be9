// npm run bench
import { mkdirSync, renameSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { barLines, barsTable } from './bars.js'
import { type BenchCase, caseName } from './case.js'
import { benchCases } from './cases.js'
import { barCases } from './cases-bars.js'
import { type BenchOptions, type Command, parseCommand } from './options.js'
import { peaksText, rowsTable, table } from './report.js'
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

function writeCharts(folder: string, rows: readonly Row[], peaks: Peaks): void {
  mkdirSync(folder, { recursive: true })
  writeFileSync(path.join(folder, 'roofline.svg'), rooflineChart(rows, peaks))
  writeFileSync(path.join(folder, 'bars.svg'), barChart(rows))
}

async function bench(options: BenchOptions): Promise<void> {
  const cases = chosen(options)
  if (options.list) {
    const lines = cases.map(c => [caseName(c, options.device), c.why])
    process.stdout.write(`${table(['case', 'stands for'], lines, 2)}\n`)
    return
  }
  const { rows, peaks, failed } = await runCases(cases, options, (rows, peaks) => {
    const { name, median_ms } = rows.at(-1)!
    process.stderr.write(`bench: ${name} ${median_ms.toFixed(3)} ms\n`)
    if (!options.json) return
    writeFileSync(`${options.json}.part`, `${JSON.stringify({ peaks, rows }, null, 2)}\n`)
    renameSync(`${options.json}.part`, options.json)
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
