// The command line of check:cuda: stages, refusal, time, the file of rows and its table. What the stages do needs a GPU.
import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { after, test } from 'node:test'
import { noStandIn, standIn } from '../cuda-emu/stand-in.js'
import { checkCuda, rowsOf } from './check-cuda.js'

const folder = mkdtempSync(path.join(os.tmpdir(), 'train-core-check-test-'))
after(() => rmSync(folder, { recursive: true }))
const at = (name: string): string => path.join(folder, name)
const hasDriver = existsSync('/proc/driver/nvidia/version') || existsSync('/dev/dxg')

test('stages are listed; what is none, or no number, is a usage error', () => {
  const { status, stdout } = checkCuda(['--list'])
  assert.equal(status, 0)
  assert.match(stdout, /^size .*12 MB\n(.*\n)*training .*\n(.*\n)*memcheck .*\n(.*\n)*bench-all .*only when asked for/)
  for (const [words, message] of [
    [['--stage', 'opps'], /no stage is called opps; they are size, ops,/],
    [['--skip=ops,nothing'], /no stage is called nothing/],
    [['--minutes', 'ten'], /--minutes must be a number above 0/],
    [['--jobs=0'], /--jobs must be a number above 0/],
    [['--limit=-1'], /--limit must be a number above 0/],
    [['--stages', 'ops'], /--stages/],
  ] as const) {
    const wrong = checkCuda(words)
    assert.equal(wrong.status, 2, wrong.stderr)
    assert.match(wrong.stderr, message)
  }
})

test('without a driver it refuses before it builds', { skip: hasDriver && 'this machine has a driver' }, () => {
  const { status, stderr } = checkCuda(['--json', at('none.json')], { TRAIN_CORE_CUDA_LIBRARY: '', PATH: '' })
  assert.equal(status, 1)
  assert.equal(stderr, 'train-core: check:cuda needs an NVIDIA GPU; this machine has no NVIDIA driver\n')
  assert.ok(!existsSync(at('none.json')))
})

test('a library that can not be used is refused with its reason', { skip: noStandIn }, () => {
  const env = { TRAIN_CORE_CUDA_LIBRARY: standIn('train_core_cuda_stub') }
  const check = (fault: string) =>
    checkCuda(['--no-build', '--json', at('none.json')], { ...env, TRAIN_CORE_STUB: fault })
  for (const [fault, reason] of [
    ['no-device', /needs an NVIDIA GPU; the stub has no device/],
    ['open', /needs an NVIDIA GPU; cuda:0: the stub does not open/],
  ] as const) {
    const { status, stderr } = check(fault)
    assert.equal(status, 1)
    assert.match(stderr, reason)
  }
})

test('rows of several calls come together; a stage that is run again replaces its own; time runs out', {
  skip: noStandIn,
}, () => {
  const json = at('rows.json')
  const env = { TRAIN_CORE_CUDA_LIBRARY: standIn('train_core_cuda_stub') }
  const check = (...words: string[]) => checkCuda(['--no-build', '--json', json, ...words], env)
  const late = check('--stage=eager,bench-steps', '--minutes', '1e-9')
  assert.equal(late.status, 0, late.stderr)
  assert.match(late.stdout, /0 passed, 0 failed, 3 not run/)
  const found = check('--stage=size')
  assert.equal(found.status, 0, found.stderr)
  const rows = rowsOf(json)
  assert.deepEqual(
    rows.map(({ stage, ok, measured }) => [stage, ok, stage === 'size' || measured]),
    [
      ['eager', null, 'no time left'],
      ['eager', null, 'no time left'],
      ['bench-steps', null, 'no time left'],
      ['size', true, true],
    ],
  )
  // The stub has no kernels, so the tests of a stage fail, and with them the command.
  const failed = check('--stage=eager', 'capture')
  assert.equal(failed.status, 1)
  assert.deepEqual(
    rowsOf(json).map(({ stage, ok }) => [stage, ok]),
    [
      ['bench-steps', null],
      ['size', true],
      ['eager', false],
    ],
  )
  const other = JSON.parse(readFileSync(json, 'utf8')) as { commit: string }
  writeFileSync(json, JSON.stringify({ ...other, commit: 'another' }))
  check('--stage=size')
  assert.equal(rowsOf(json).length, 1)
})

// As compute-sanitizer: knows some flags, writes down what it is given, starts a child that hangs.
const SANITIZER = `#!/bin/sh
if [ "$1" = --help ]; then echo '  --padding arg  --kernel-regex-exclude arg'; exit; fi
echo "$*" >> "$SEEN"
[ -z "$HANGS" ] || { echo '# Subtest: the last one'; echo 'to the log' >&2; sleep 60 & echo $! >> "$SEEN"; wait; }
exit 9
`

test('the sanitizer gets the flags that it knows; a child that hangs is stopped with its own and kept in the log', {
  skip: noStandIn,
}, () => {
  writeFileSync(at('compute-sanitizer'), SANITIZER, { mode: 0o755 })
  const [json, seen] = [at('sanitizer.json'), at('seen')]
  const library = standIn('train_core_cuda_stub')
  const env = { TRAIN_CORE_CUDA_LIBRARY: library, SEEN: seen, PATH: `${folder}:${process.env.PATH}` }
  const check = (extra: Record<string, string>, ...words: string[]) =>
    checkCuda(['--no-build', '--json', json, '--limit', '0.2', ...words, 'ops/cosine'], { ...env, ...extra })
  assert.equal(check({}, '--stage=memcheck,racecheck').status, 1)
  const flags = readFileSync(seen, 'utf8').trim().split('\n')
  assert.match(flags[0]!, /^--tool memcheck --error-exitcode 9 --padding 1024 \S*node \S*cosine_loss\.test\.js$/)
  assert.match(flags[1]!, /^--tool racecheck --error-exitcode 9 --kernel-regex-exclude kns=_sm90_cu \S*node /)
  const began = performance.now()
  assert.equal(check({ HANGS: '1' }, '--stage=synccheck').status, 1)
  assert.ok(performance.now() - began < 30_000, 'it waits for nothing that a child left behind')
  assert.deepEqual(
    rowsOf(json).map(({ stage, ok, measured }) => [stage, ok, measured]),
    [
      ['memcheck', false, '0 tests'],
      ['racecheck', false, '0 tests'],
      ['synccheck', false, 'hangs after the last one'],
    ],
  )
  assert.match(
    readFileSync(`${json}.log`, 'utf8'),
    /==== synccheck ops\/cosine_loss: ended with SIGKILL\n.*\nto the log/,
  )
  const sleeper = Number(readFileSync(seen, 'utf8').trim().split('\n').at(-1))
  const stat = `/proc/${sleeper}/stat`
  assert.ok(!existsSync(stat) || / Z /.test(readFileSync(stat, 'utf8')), 'it is gone, or waits to be buried')
})

test('the table of a file', () => {
  const rows = [
    { stage: 'size', name: 'train_core_cuda.so', ok: true, wanted: '< 12 MB', measured: '3.10 MB', seconds: 0 },
    { stage: 'bench-ops', name: 'CE on given logits', ok: false, wanted: '<= 2.4 ms', measured: '3.00 ms', seconds: 0 },
    { stage: 'racecheck', name: 'ops/loss', ok: null, wanted: '', measured: 'no time left', seconds: 0 },
  ]
  writeFileSync(
    at('canned.json'),
    JSON.stringify({ device: 'cuda:0: a GPU', commit: 'abc', date: 'today', rows, bench: [] }),
  )
  const { status, stdout } = checkCuda(['--report', '--json', at('canned.json')])
  assert.equal(status, 1)
  assert.equal(
    stdout.trim(),
    `cuda:0: a GPU; commit abc; today

stage      what                measured      wanted
size       train_core_cuda.so  3.10 MB       < 12 MB    ok
bench-ops  CE on given logits  3.00 ms       <= 2.4 ms  FAILED
racecheck  ops/loss            no time left             not run

1 passed, 1 failed, 1 not run`,
  )
})
