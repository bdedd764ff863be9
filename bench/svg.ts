// Results as pictures: a roofline and bars, plain SVG without scripts or fonts of their own.
import { short } from './report.js'
import type { Row } from './runner.js'
import type { Peaks } from './statistics.js'

/** Families in the order of the legend, by how an op's name begins. Colours: Okabe and Ito, told apart by the colour-blind. */
const FAMILIES: readonly (readonly [name: string, colour: string, starts: readonly string[]])[] = [
  ['matmul', '#0072b2', ['matmul', 'column_sum']],
  ['attention', '#d55e00', ['attention', 'kv_']],
  ['loss', '#cc79a7', ['loss', 'head_loss', 'cosine']],
  ['norm', '#009e73', ['layernorm']],
  ['step', '#000000', ['train_step', 'distill_step']],
  ['other', '#8c8c8c', ['']],
]
const INK = '#333333'

function familyOf(row: Row): (typeof FAMILIES)[number] {
  return FAMILIES.find(([, , starts]) => starts.some(start => row.name.startsWith(start)))!
}

function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
}

function text(x: number, y: number, content: string, more = ''): string {
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${escaped(content)}</text>`
}
function line(x1: number, y1: number, x2: number, y2: number, colour: string, more = ''): string {
  const at = [x1, y1, x2, y2].map(v => v.toFixed(1))
  return `<line x1="${at[0]}" y1="${at[1]}" x2="${at[2]}" y2="${at[3]}" stroke="${colour}" ${more}/>`
}

function picture(width: number, height: number, body: readonly string[]): string {
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="DejaVu Sans, Arial, sans-serif" font-size="11" fill="${INK}">`,
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    ...body,
    '</svg>\n',
  ].join('\n')
}

/** What the picture is of; two lines at its top. */
function heading(title: string, row: Row): string[] {
  return [
    text(20, 24, title, 'font-size="15" font-weight="bold"'),
    text(20, 42, `${row.machine}; commit ${row.commit}; ${row.date.slice(0, 10)}`, 'fill="#666666"'),
  ]
}

/** A logarithmic axis over whole decades. */
class Axis {
  readonly low: number
  readonly high: number
  readonly #from: number
  readonly #to: number

  constructor(values: readonly number[], from: number, to: number) {
    this.low = Math.floor(Math.log10(Math.min(...values)))
    this.high = Math.max(this.low + 1, Math.ceil(Math.log10(Math.max(...values))))
    this.#from = from
    this.#to = to
  }

  at(value: number): number {
    return this.#from + ((Math.log10(value) - this.low) / (this.high - this.low)) * (this.#to - this.#from)
  }

  decades(): number[] {
    return Array.from({ length: this.high - this.low + 1 }, (_, k) => 10 ** (this.low + k))
  }
}

/** Text that stays readable across lines. */
const HALO = 'stroke="#ffffff" stroke-width="3" paint-order="stroke"'

interface Box {
  x: number
  y: number
  width: number
}

/** Moves a label up or down from where it belongs until it covers none of those placed; notes it among them. */
function placed(label: Box, taken: Box[]): Box {
  const free = (y: number): boolean =>
    taken.every(one => Math.abs(one.y - y) >= 11 || one.x + one.width < label.x || label.x + label.width < one.x)
  for (let k = 0; ; k++) {
    const y = label.y + (k % 2 ? 1 : -1) * Math.ceil(k / 2) * 6
    if (!free(y)) continue
    const box = { ...label, y }
    taken.push(box)
    return box
  }
}

/** Points that may share a label's place would cover each other: with more than these, only steps are named. */
const FEW = 16

/** GFLOP/s over FLOPs per byte, under the measured ceilings. */
export function rooflineChart(rows: readonly Row[], peaks: Peaks): string {
  const [width, height, left, right, top, bottom] = [940, 640, 70, 170, 84, 56]
  const points = rows.filter(row => row.flops > 0)
  const ceilings = Object.values(peaks.gemm)
  const x = new Axis([0.1, 1000, ...points.map(row => row.flops / row.bytes)], left, width - right)
  const y = new Axis([...ceilings, ...points.map(row => row.gflops)], height - bottom, top)
  const body = heading('Roofline: measured ceilings and what the kernels reach', rows[0])
  for (const value of x.decades()) {
    body.push(line(x.at(value), top, x.at(value), height - bottom, '#e5e5e5'))
    body.push(text(x.at(value), height - bottom + 16, String(Number(value.toPrecision(1))), 'text-anchor="middle"'))
  }
  for (const value of y.decades()) {
    body.push(line(left, y.at(value), width - right, y.at(value), '#e5e5e5'))
    body.push(text(left - 6, y.at(value) + 4, String(Number(value.toPrecision(1))), 'text-anchor="end"'))
  }
  body.push(text((left + width - right) / 2, height - 16, 'FLOPs per byte', 'text-anchor="middle"'))
  body.push(text(left, top - 8, 'GFLOP/s'))
  const highest = Math.max(...ceilings)
  const lowest = Math.max(10 ** y.low / peaks.memory, 10 ** x.low)
  const memoryEnd = highest / peaks.memory
  body.push(line(x.at(lowest), y.at(lowest * peaks.memory), x.at(memoryEnd), y.at(highest), INK, 'stroke-width="1.5"'))
  body.push(
    text(x.at(lowest * 2) + 10, y.at(2 * lowest * peaks.memory) + 8, `memory ${short(peaks.memory)} GB/s`, HALO),
  )
  for (const [precision, gflops] of Object.entries(peaks.gemm)) {
    body.push(line(x.at(gflops / peaks.memory), y.at(gflops), width - right, y.at(gflops), INK, 'stroke-width="1.5"'))
    body.push(text(width - right + 6, y.at(gflops) + 4, `${precision} ${short(gflops)}`))
  }
  const taken: Box[] = []
  for (const row of points) {
    const [cx, cy] = [x.at(row.flops / row.bytes), y.at(row.gflops)]
    const [name, colour] = familyOf(row)
    const hollow = row.name.includes('/f32/')
      ? `fill="#ffffff" stroke="${colour}" stroke-width="1.5"`
      : `fill="${colour}"`
    body.push(
      `<circle cx="${cx.toFixed(1)}" cy="${cy.toFixed(1)}" r="4" ${hollow}><title>${escaped(row.name)}: ${short(row.gflops)} GFLOP/s</title></circle>`,
    )
    if (points.length > FEW && name !== 'step') continue
    const label = placed({ x: cx + 8, y: cy + 3, width: row.name.length * 5.6 }, taken)
    body.push(text(label.x, label.y, row.name, `font-size="9" ${HALO}`))
  }
  FAMILIES.forEach(([name, colour], k) => {
    const at = top + 150 + 18 * k
    body.push(
      `<circle cx="${width - right + 20}" cy="${at}" r="4" fill="${colour}"/>`,
      text(width - right + 30, at + 4, name),
    )
  })
  body.push(text(width - right + 14, top + 150 + 18 * FAMILIES.length + 6, 'filled bf16, hollow f32'))
  return picture(width, height, body)
}

/** One bar a case: its share of the roof that binds it, with its time and what rivals take. */
export function barChart(rows: readonly Row[]): string {
  const [width, names, top, step] = [1100, 400, 84, 18]
  const bars = width - names - 300
  const height = top + step * rows.length + 30
  const body = heading('Share of the roof that binds each case (median time)', rows[0])
  const at = (percent: number): number => names + (bars * Math.min(percent, 110)) / 110
  for (const percent of [0, 25, 50, 75, 100]) {
    body.push(line(at(percent), top - 8, at(percent), height - 24, percent === 100 ? '#888888' : '#e5e5e5'))
    body.push(text(at(percent), top - 14, `${percent} %`, 'text-anchor="middle"'))
  }
  rows.forEach((row, k) => {
    const y = top + step * k
    const share = row.percent_of_roof
    body.push(text(names - 8, y + 10, row.name, 'text-anchor="end" font-size="10"'))
    body.push(
      `<rect x="${names}" y="${y}" width="${(at(share) - names).toFixed(1)}" height="13" fill="${familyOf(row)[1]}"/>`,
    )
    const rivals = row.rivals.map(r => `; ${r.rival.split(' ')[0]} takes ${r.ratio.toFixed(2)} x`)
    body.push(
      text(
        at(share) + 6,
        y + 10,
        `${share.toFixed(0)} % of ${row.roof}, ${short(row.median_ms)} ms${rivals.join('')}`,
        `font-size="10" ${HALO}`,
      ),
    )
  })
  return picture(width, height, body)
}
