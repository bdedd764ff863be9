import assert from 'node:assert/strict'
import { beforeEach, test } from 'node:test'
import { compact, duration, mebibytes, table } from '../../lib/cli/output.js'
import { Progress, type Screen } from '../../lib/cli/progress.js'
import { editDistance, nearest } from '../../lib/nearest.js'

let clock = 0
const now = (): number => clock
beforeEach(() => {
  clock = 0
  delete process.env.NO_COLOR
  process.env.TERM = 'xterm'
})

class FakeScreen implements Screen {
  written = ''
  readonly isTTY: boolean
  readonly columns: number

  constructor(columns: number) {
    this.isTTY = columns > 0
    this.columns = columns
  }

  write(text: string): void {
    this.written += text
  }
}

const FACTS = ['loss 3.1416', '12.3 k tokens/s', '99.5 MiB']
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const visible = (text: string): string => text.replace(/\x1b\[[\d;]*[A-Za-z]|\r/g, '')

test('off a terminal: the first line, then one every few seconds, then the last; no control characters', () => {
  const screen = new FakeScreen(0)
  const bar = new Progress('step', 100, screen, now)
  for (let step = 1; step <= 100; step++) {
    clock += 200
    bar.update(step, FACTS)
  }
  bar.end()
  assert.deepEqual(
    screen.written.split('\n').map(line => line.split('  ')[0]),
    ['step 1/100', 'step 26/100', 'step 51/100', 'step 76/100', 'step 100/100', ''],
  )
  assert.equal(screen.written.split('\n')[1], 'step 26/100  loss 3.1416  12.3 k tokens/s  ETA 15s  99.5 MiB')
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  assert.doesNotMatch(screen.written, /[\x1b\r]/)
})

test('on a terminal: one line in place, never wider than it; the narrower, the fewer facts', () => {
  for (let columns = 20; columns <= 200; columns++) {
    const screen = new FakeScreen(columns)
    const bar = new Progress('step', 1000, screen, now)
    clock += 1000
    bar.update(421, FACTS)
    assert.equal(screen.written.split('\r').length, 2)
    const line = visible(screen.written)
    assert.ok(line.length < columns, `${columns}: ${line.length}`)
    assert.ok(line.startsWith('step 421/1000'), line)
    assert.equal(line.includes('loss'), columns >= 27, line)
    assert.equal(line.includes('MiB'), columns >= 64, line)
    if (columns >= 77) assert.match(line, /\[=+ +\]/)
  }
})

test('the bar is filled as far as the work is done, and drawn ten times a second at most', () => {
  const screen = new FakeScreen(120)
  const bar = new Progress('step', 4, screen, now)
  bar.update(1, FACTS)
  clock = 50
  bar.update(2, FACTS)
  clock = 150
  bar.update(3, FACTS)
  bar.update(4, FACTS)
  bar.end()
  const drawn = visible(screen.written.replaceAll('\r', '\n')).split('\n').filter(Boolean)
  const filled = drawn.map(line => line.split('=').length - 1)
  assert.deepEqual(
    drawn.map(line => line.slice(0, 8)),
    ['step 1/4', 'step 3/4', 'step 4/4'],
  )
  const full = filled[2]!
  assert.ok(full > 20)
  assert.ok(filled[0]! < full / 2 && filled[1]! > full / 2 && filled[1]! < full, filled.join())
})

test('NO_COLOR and TERM=dumb: no colours', () => {
  const colours = (): boolean => {
    const screen = new FakeScreen(120)
    new Progress('step', 10, screen, now).update(5, FACTS)
    return screen.written.includes('\x1b[3')
  }
  assert.equal(colours(), true)
  process.env.NO_COLOR = '1'
  assert.equal(colours(), false)
  delete process.env.NO_COLOR
  process.env.TERM = 'dumb'
  assert.equal(colours(), false)
})

test('a line of its own leaves no rest of the bar, and the bar comes back', () => {
  const screen = new FakeScreen(100)
  const bar = new Progress('step', 10, screen, now)
  bar.update(1, FACTS)
  bar.log('saved it')
  bar.update(2, FACTS)
  assert.ok(screen.written.includes('\r\x1b[Ksaved it\n\rstep 2/10'), JSON.stringify(screen.written))
})

test('the time left is reckoned from what this job did, not from what was done before', () => {
  const screen = new FakeScreen(0)
  const bar = new Progress('step', 1000, screen, now)
  clock = 10_000
  bar.update(910, FACTS, 900)
  assert.match(screen.written, /ETA 1m30s/)
})

test('nothing is written without a screen; a total that is not known has no bar', () => {
  new Progress('step', 10, null, now).update(1, FACTS)
  const screen = new FakeScreen(100)
  new Progress('file', null, screen, now).update(7, ['1.0 MiB'])
  assert.equal(visible(screen.written), 'file 7  1.0 MiB')
})

test('numbers, sizes, times and tables', () => {
  assert.deepEqual([0, 999, 9999, 12345, 999_999, 1_234_567, 124_439_808, 2.5e9].map(compact), [
    '0',
    '999',
    '9999',
    '12.3 k',
    '1.00 M',
    '1.23 M',
    '124 M',
    '2.50 G',
  ])
  assert.deepEqual([3.21, 59.6, 61, 3599, 7380].map(duration), ['3.2s', '60s', '1m01s', '59m59s', '2h03m'])
  assert.deepEqual([1 << 20, 3 * 2 ** 30].map(mebibytes), ['1.0 MiB', '3.0 GiB'])
  assert.equal(
    table(
      [
        ['a', 'n'],
        ['long', '10'],
        ['b', '9'],
      ],
      [1],
    ),
    'a      n\nlong  10\nb      9',
  )
})

test('the nearest name', () => {
  assert.deepEqual(
    [
      ['kitten', 'sitting'],
      ['', 'abc'],
      ['steps', 'steps'],
    ].map(([a, b]) => editDistance(a!, b!)),
    [3, 3, 0],
  )
  assert.equal(nearest('Batch-Sise', ['steps', 'batch-size', 'beta1']), 'batch-size')
  assert.equal(nearest('x', []), undefined)
})
