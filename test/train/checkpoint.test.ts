import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import fs, { existsSync } from 'node:fs'
import {
  appendFile,
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises'
import { syncBuiltinESMExports } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import {
  checkpointName,
  findResumable,
  hashConfig,
  pruneCheckpoints,
  readCheckpoint,
  type TrainerState,
  writeCheckpoint,
} from '../../lib/train/checkpoint.js'
import { openRun, type RunOptions } from '../../lib/train/run-directory.js'
import { openLog } from '../../lib/train/run-log.js'
import { randomSource } from '../data/helpers.js'
import { crashAt } from './crash.js'
import {
  CONFIG,
  CONFIG_HASH,
  type SimulatedRun,
  simulateRun,
  snapshot,
  weightsAfter,
  wholeLog,
} from './simulated-run.js'

const root = await mkdtemp(join(tmpdir(), 'train-core-checkpoint-'))
after(() => rm(root, { recursive: true }))
let folders = 0
const newFolder = (): string => join(root, `run-${folders++}`)

const stateAt = (step: number, configHash = CONFIG_HASH): TrainerState => {
  return { step, tokens: step * 64, data: { epoch: 1, row: step }, rng: [7, step], bestMetric: 2.5, configHash }
}
const writeOne = (folder: string): Promise<void> => writeFile(join(folder, 'model.bin'), 'weights')
const savedSteps = async (run: string): Promise<string[]> => (await readdir(join(run, 'checkpoints'))).sort()

test('a checkpoint is read as it was written', async () => {
  const run = newFolder()
  const written = await writeCheckpoint(run, stateAt(500), async folder => {
    await writeOne(folder)
    await mkdir(join(folder, 'tokenizer'))
    await writeFile(join(folder, 'tokenizer', 'vocab.json'), '{}')
  })
  assert.equal(written.path, join(run, 'checkpoints', 'step-000500'))
  assert.deepEqual(await readCheckpoint(written.path), written)
  assert.deepEqual(await findResumable(run, CONFIG_HASH), { checkpoint: written, warnings: [] })
  assert.deepEqual(JSON.parse(await readFile(join(written.path, 'trainer_state.json'), 'utf8')), {
    format: 1,
    step: 500,
    tokens: 32000,
    data: { epoch: 1, row: 500 },
    rng: [7, 500],
    best_metric: 2.5,
    config_hash: CONFIG_HASH,
    files: {
      'model.bin': { bytes: 7, sha256: '9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c' },
      'tokenizer/vocab.json': { bytes: 2, sha256: '44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a' },
    },
  })
  assert.deepEqual(await findResumable(newFolder(), CONFIG_HASH), { checkpoint: null, warnings: [] })
  assert.deepEqual([0, 7, 123456, 1234567].map(checkpointName), [
    'step-000000',
    'step-000007',
    'step-123456',
    'step-1234567',
  ])
})

test('the configuration decides by value, not by the order of its keys', () => {
  assert.equal(hashConfig({ a: 1, b: { c: [1, 2], d: 'x' } }), hashConfig({ b: { d: 'x', c: [1, 2] }, a: 1 }))
  assert.notEqual(hashConfig({ a: 1, b: [1, 2] }), hashConfig({ a: 1, b: [2, 1] }))
  assert.notEqual(hashConfig({ a: 1 }), hashConfig({ a: '1' }))
})

const stateFile = 'trainer_state.json'
async function editState(path: string, change: Record<string, unknown>): Promise<void> {
  const json: object = JSON.parse(await readFile(join(path, stateFile), 'utf8'))
  await writeFile(join(path, stateFile), JSON.stringify({ ...json, ...change }))
}

const TORN: [what: string, tear: (path: string) => Promise<unknown>, reason: RegExp][] = [
  ['no state', path => rm(join(path, stateFile)), /trainer_state.json is missing/],
  ['half a state', path => truncate(join(path, stateFile), 50), /trainer_state.json cannot be read/],
  ['an empty state', path => truncate(join(path, stateFile), 0), /trainer_state.json cannot be read/],
  ['null', path => writeFile(join(path, stateFile), 'null'), /no valid format \(wanted 1\)/],
  ['another format', path => editState(path, { format: 2 }), /no valid format/],
  ["another step's state", path => editState(path, { step: 5 }), /no valid step \(wanted that of step-000004\)/],
  ['no tokens', path => editState(path, { tokens: -1 }), /no valid tokens/],
  ['no hash', path => editState(path, { config_hash: 1 }), /no valid config_hash/],
  ['no files', path => editState(path, { files: 3 }), /no valid files/],
  ['a seal of nothing', path => editState(path, { files: { x: null } }), /no valid seal of x/],
  [
    'a file outside',
    path => editState(path, { files: { '../x': { bytes: 1, sha256: '' } } }),
    /no valid seal of ..\/x/,
  ],
  ['a missing file', path => rm(join(path, 'model.bin')), /model.bin is missing/],
  ['a short file', path => truncate(join(path, 'model.bin'), 3), /model.bin has 3 bytes, wanted 7/],
  ['a long file', path => appendFile(join(path, 'model.bin'), '!'), /model.bin has 8 bytes, wanted 7/],
  ['a changed file', path => writeFile(join(path, 'model.bin'), 'weightz'), /model.bin has changed since/],
]

test('a torn checkpoint is named with its reason and passed over', async () => {
  const run = newFolder()
  const older = await writeCheckpoint(run, stateAt(2), writeOne)
  const path = join(run, 'checkpoints', checkpointName(4))
  for (const [what, tear, reason] of TORN) {
    await rm(path, { recursive: true, force: true })
    await writeCheckpoint(run, stateAt(4), writeOne)
    await tear(path)
    const { checkpoint, warnings } = await findResumable(run, CONFIG_HASH)
    assert.deepEqual(checkpoint, older, what)
    assert.equal(warnings.length, 1, what)
    assert.ok(warnings[0].startsWith(`passed over ${path}: not a complete checkpoint: `), warnings[0])
    assert.match(warnings[0], reason, what)
    await assert.rejects(readCheckpoint(path), { code: 'ERR_FILE', message: reason })
    // Writing the step again moves the torn one aside; nothing is lost.
    await writeCheckpoint(run, stateAt(4), writeOne)
    assert.equal((await findResumable(run, CONFIG_HASH)).checkpoint?.state.step, 4, what)
    assert.ok(existsSync(`${path}.torn`), what)
  }
})

test('a checkpoint of another configuration is passed over, moved aside, never deleted', async () => {
  const run = newFolder()
  await writeCheckpoint(run, stateAt(4, 'other'), writeOne)
  const { checkpoint, warnings } = await findResumable(run, CONFIG_HASH)
  assert.equal(checkpoint, null)
  assert.match(warnings[0], /passed over .*step-000004: it was made with another configuration/)
  for (const step of [2, 4, 6]) await writeCheckpoint(run, stateAt(step), writeOne)
  await writeCheckpoint(run, stateAt(8, 'other'), writeOne)
  assert.deepEqual((await pruneCheckpoints(run, CONFIG_HASH, 6, 1)).length, 2)
  assert.deepEqual(await savedSteps(run), ['step-000004.other', 'step-000006', 'step-000008'])
  assert.equal((await findResumable(run, CONFIG_HASH)).checkpoint?.state.step, 6)
})

test('keep N counts complete checkpoints, by step and not by name', async () => {
  const run = newFolder()
  for (const step of [999_998, 999_999, 1_000_000, 1_000_001]) await writeCheckpoint(run, stateAt(step), writeOne)
  await truncate(join(run, 'checkpoints', 'step-1000001', 'model.bin'), 1)
  assert.deepEqual(await pruneCheckpoints(run, CONFIG_HASH, 1_000_001, 0), [])
  await pruneCheckpoints(run, CONFIG_HASH, 1_000_001, 2)
  assert.deepEqual(await savedSteps(run), ['step-1000000', 'step-1000001', 'step-999999'])
  await pruneCheckpoints(run, CONFIG_HASH, 1_000_001, 1)
  assert.equal((await findResumable(run, CONFIG_HASH)).checkpoint?.state.step, 1_000_000)
  await assert.rejects(pruneCheckpoints(run, CONFIG_HASH, 1, -1), { code: 'ERR_ARGUMENT' })
})

test('a checkpoint that went bad without changing its size never costs the newest good one', async () => {
  const run = newFolder()
  for (const step of [2, 4]) await writeCheckpoint(run, stateAt(step), writeOne)
  await writeFile(join(run, 'checkpoints', 'step-000004', 'model.bin'), 'weightz')
  const { run: opened, checkpoint, warnings } = await open(run, { keep: 1 })
  opened.close()
  assert.equal(checkpoint?.state.step, 2)
  assert.equal(warnings.length, 1)
  assert.deepEqual(await savedSteps(run), ['step-000002', 'step-000004'])
})

test('a write that fails leaves nothing partial and says why in one line', async () => {
  const run = newFolder()
  await writeCheckpoint(run, stateAt(1), writeOne)
  const full = Object.assign(new Error('ENOSPC: no space left\non device'), { code: 'ENOSPC' })
  const failing = async (folder: string): Promise<void> => {
    await writeOne(folder)
    throw full
  }
  const message = /^cannot write checkpoint .*step-000002: the disk is full$/
  await assert.rejects(writeCheckpoint(run, stateAt(2), failing), { code: 'ERR_FILE', message })
  const linked = (folder: string): Promise<void> => symlink('/', join(folder, 'link'))
  await assert.rejects(writeCheckpoint(run, stateAt(2), linked), { message: /link must be a regular file or a folder/ })
  await assert.rejects(writeCheckpoint(run, stateAt(1.5), writeOne), { code: 'ERR_ARGUMENT' })
  assert.deepEqual(await savedSteps(run), ['step-000001'])
  // The same state again is not written again.
  await writeCheckpoint(run, stateAt(1), () => Promise.reject(full))
})

test('the log goes on behind the checkpoint: later rows and a torn line are cut off', async () => {
  await mkdir(root, { recursive: true })
  const path = join(root, 'log.jsonl')
  const rows = (...steps: number[]): string => steps.map(step => `{"step":${step}}\n`).join('')
  const cases: [before: string, through: number, after: string, warnings: RegExp | null][] = [
    [rows(1, 2, 2, 3, 4), 2, rows(1, 2, 2), null],
    [rows(1, 2), 5, rows(1, 2), null],
    [`${rows(1, 2)}{"step":3,"lo`, 5, rows(1, 2), null],
    [`${rows(1, 2)}{"step":3}`, 5, rows(1, 2), null],
    [`${rows(1, 2)}\0\0\0\n`, 5, rows(1, 2), null],
    [rows(1, 2), -1, '', null],
    ['', 3, '', null],
    [`${rows(1)}note\n[1]\n${rows(2, 3)}`, 2, `${rows(1)}note\n[1]\n${rows(2)}`, /log.jsonl:2: not a row.*log.jsonl:3/],
  ]
  for (const [before, through, wanted, warning] of cases) {
    await writeFile(path, before)
    const { log, warnings } = await openLog(path, through)
    log.append({ step: 9, loss: Number.NaN })
    log.close()
    assert.equal(await readFile(path, 'utf8'), `${wanted}{"step":9,"loss":null}\n`)
    if (warning) assert.match(warnings.join(' '), warning)
    else assert.deepEqual(warnings, [])
    assert.throws(() => log.append({ step: 10 }), {
      code: 'ERR_FILE',
      message: /cannot write .*log.jsonl: it is closed/,
    })
  }
  const long = rows(...Array.from({ length: 20_000 }, (_, step) => step))
  await writeFile(path, long)
  ;(await openLog(path, 15_000)).log.close()
  assert.equal(await readFile(path, 'utf8'), long.slice(0, long.indexOf('{"step":15001}')))
})

test('a row that does not fit on the disk leaves no part of itself', async () => {
  const path = join(root, 'full.jsonl')
  const { log } = await openLog(path, 0)
  log.append({ step: 1 })
  const original = fs.writeSync
  fs.writeSync = ((fd: number, bytes: Uint8Array) => {
    original(fd, bytes, 0, 5)
    throw Object.assign(new Error('no'), { code: 'ENOSPC' })
  }) as unknown as typeof fs.writeSync
  syncBuiltinESMExports()
  try {
    assert.throws(() => log.append({ step: 2 }), { code: 'ERR_FILE', message: /full.jsonl: the disk is full$/ })
  } finally {
    fs.writeSync = original
    syncBuiltinESMExports()
  }
  log.append({ step: 3 })
  log.close()
  assert.equal(await readFile(path, 'utf8'), '{"step":1}\n{"step":3}\n')
})

const RUN: SimulatedRun = { steps: 7, saveEvery: 2 }
const uninterrupted = newFolder()
await simulateRun(uninterrupted, RUN)
const wanted = await snapshot(uninterrupted)

test('a run leaves its files', async () => {
  assert.deepEqual(Object.keys(wanted).sort(), [
    ...['4', '6'].flatMap(step =>
      ['model.bin', 'nested/optimizer.bin', stateFile].map(file => `checkpoints/step-00000${step}/${file}`),
    ),
    'config.json',
    'final/model.bin',
    'final/nested/optimizer.bin',
    'identity.json',
    'log.jsonl',
  ])
  const read = (name: string): Promise<string> => readFile(join(uninterrupted, name), 'utf8')
  assert.equal(await read('log.jsonl'), wholeLog(7))
  assert.deepEqual(JSON.parse(await read('config.json')), CONFIG)
  assert.equal(JSON.parse(await read('env.json')).node, process.version)
})

/** Runs to the end, without the milliseconds that flushing takes. */
const finish = (run: string): Promise<boolean> => crashAt(Number.POSITIVE_INFINITY, () => simulateRun(run, RUN))

/** Checks what a dead process left: everything that it had saved is there, whole. */
async function checkRemains(run: string, saved: number): Promise<void> {
  const { checkpoint } = await findResumable(run, CONFIG_HASH)
  assert.ok((checkpoint?.state.step ?? 0) >= saved, `step ${saved} was saved, but ${checkpoint?.path} was found`)
  if (!checkpoint) return
  const { step } = checkpoint.state
  assert.ok(weightsAfter(step).equals(await readFile(join(checkpoint.path, 'model.bin'))))
  assert.deepEqual(checkpoint.state.data, { position: step })
}

for (const powerCut of [false, true])
  test(`whatever change to the disk a run dies in${powerCut ? ', with the power cut' : ''}, it goes on as if it had not`, async () => {
    let at = 1
    for (; ; at++) {
      const run = newFolder()
      let saved = 0
      const onSaved = (step: number): void => {
        saved = step
      }
      const died = await crashAt(at, () => simulateRun(run, { ...RUN, onSaved }), powerCut)
      if (!died) break
      await checkRemains(run, saved)
      await finish(run)
      assert.deepEqual(await snapshot(run), wanted, `died in change ${at}`)
    }
    assert.ok(at > 80, `only ${at - 1} changes were tried`)
  })

test('a run that dies several times, while it recovers too, goes on as if it had not', async () => {
  const random = randomSource(3)
  for (let round = 0; round < 40; round++) {
    const run = newFolder()
    for (let deaths = 0; deaths < 5; deaths++)
      await crashAt(1 + Math.floor(random() * 60), () => simulateRun(run, RUN), random() < 0.5)
    await finish(run)
    assert.deepEqual(await snapshot(run), wanted, `round ${round}`)
  }
})

test('a real process, killed 30 times with SIGKILL, ends as one that was never interrupted', {
  timeout: 120_000,
}, async () => {
  const run = newFolder()
  const random = randomSource(5)
  const size = 100_000
  let saved = 0
  for (let round = 0; round < 30; round++) {
    saved = Math.max(saved, await runAndKill(run, size, 5 + random() * 60))
    const { checkpoint } = await findResumable(run, CONFIG_HASH)
    assert.ok((checkpoint?.state.step ?? 0) >= saved, `round ${round}: ${saved} was saved, ${checkpoint?.path} found`)
  }
  assert.ok(saved > 30, `only step ${saved} was reached`)
  const steps = saved + 10
  await simulateRun(run, { steps, size, saveEvery: 3 })
  assert.equal(await readFile(join(run, 'log.jsonl'), 'utf8'), wholeLog(steps, size))
  assert.ok(weightsAfter(steps, size).equals(await readFile(join(run, 'final', 'model.bin'))))
  assert.deepEqual((await savedSteps(run)).length, 2)
})

/** Starts the run as a process of its own, kills it `delay` ms after its first checkpoint; gives the last step it said it saved. */
function runAndKill(run: string, size: number, delay: number): Promise<number> {
  const script = join(import.meta.dirname, 'killed-run.js')
  const child = spawn(process.execPath, [script, run, '100000', String(size)], { stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  let timer: NodeJS.Timeout | undefined
  child.stdout.on('data', (chunk: Buffer) => {
    output += chunk
    timer ??= setTimeout(() => child.kill('SIGKILL'), delay)
  })
  return new Promise((resolve, reject) => {
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      if (signal !== 'SIGKILL') reject(new Error(`the process ended by itself with ${code}: ${output}`))
      else resolve(Number(output.match(/\d+(?=\n)/g)?.at(-1) ?? 0))
    })
  })
}

const open = (path: string, options: Partial<RunOptions> = {}): ReturnType<typeof openRun> =>
  openRun(path, { config: CONFIG, identity: CONFIG, ...options })

test('--resume: auto, never, a checkpoint, a run', async () => {
  const run = newFolder()
  await cp(uninterrupted, run, { recursive: true })
  const here = await open(run)
  assert.equal(here.checkpoint?.state.step, 6)
  here.run.close()
  assert.equal(await readFile(join(run, 'log.jsonl'), 'utf8'), wholeLog(6))
  await assert.rejects(open(run, { resume: 'never' }), {
    code: 'ERR_CONFIG',
    message: /already has step-000006; help: go on/,
  })

  const earlier = join(uninterrupted, 'checkpoints', 'step-000004')
  await assert.rejects(open(run, { resume: earlier }), {
    code: 'ERR_CONFIG',
    message: /already has step-000006, so it/,
  })
  for (const [resume, step] of [
    [earlier, 4],
    [uninterrupted, 6],
  ] as const) {
    const elsewhere = newFolder()
    const opened = await open(elsewhere, { resume })
    assert.equal(opened.checkpoint?.state.step, step)
    opened.run.close()
    assert.equal(await readFile(join(elsewhere, 'log.jsonl'), 'utf8'), wholeLog(step))
  }
  const same = await open(run, { resume: join(run, 'checkpoints', 'step-000006') })
  same.run.close()
  assert.equal(same.checkpoint?.state.step, 6)
  await assert.rejects(open(newFolder(), { resume: newFolder() }), {
    code: 'ERR_FILE',
    message: /trainer_state.json is missing/,
  })
  await mkdir(join(root, 'empty', 'checkpoints'), { recursive: true })
  await assert.rejects(open(newFolder(), { resume: join(root, 'empty') }), {
    code: 'ERR_FILE',
    message: /no checkpoint to resume/,
  })
  await assert.rejects(open(newFolder(), { resume: earlier, identity: { lr: 2 } }), {
    code: 'ERR_CONFIG',
    message: /another config/,
  })
})

test('beginning the same run again keeps the earlier log aside, and says what it passed over', async () => {
  const run = newFolder()
  await cp(uninterrupted, run, { recursive: true })
  for (const step of [4, 6]) await rm(join(run, 'checkpoints', checkpointName(step), 'model.bin'))
  const { run: opened, checkpoint, warnings } = await open(run, { environment: { device: 'cpu' } })
  opened.log({ step: 1 })
  opened.close()
  assert.equal(checkpoint, null)
  assert.equal(warnings.length, 2)
  assert.equal(await readFile(join(run, 'log.previous.jsonl'), 'utf8'), wholeLog(7))
  assert.equal(await readFile(join(run, 'log.jsonl'), 'utf8'), '{"step":1}\n')
  assert.equal(JSON.parse(await readFile(join(run, 'env.json'), 'utf8')).device, 'cpu')
  await rename(join(run, 'checkpoints'), join(run, 'gone'))
  await writeFile(join(run, 'checkpoints'), 'in the way')
  await assert.rejects(open(run), { code: 'ERR_FILE', message: /^cannot read .*checkpoints: a part of its path/ })
})

const OTHER = { ...CONFIG, lr: 0.002, seed: 1 }

test('a directory that holds another run is refused and left as it is', async () => {
  const parts = { whole: [], 'a model': ['checkpoints', 'log.jsonl'], 'a log': ['checkpoints', 'final'] }
  for (const [what, without] of Object.entries(parts)) {
    const run = newFolder()
    await cp(uninterrupted, run, { recursive: true })
    for (const name of without) await rm(join(run, name), { recursive: true })
    const before = await snapshot(run)
    const message =
      /run-\d+ holds another run, which differs in --lr \(0.001, now 0.002\), --seed \(not given, now 1\); help:/
    for (const resume of ['auto', join(uninterrupted, 'checkpoints', 'step-000004')])
      await assert.rejects(open(run, { identity: OTHER, resume }), {
        code: 'ERR_CONFIG',
        message: resume === 'auto' ? message : /another configuration/,
      })
    assert.deepEqual(await snapshot(run), before, what)
    // Whose run it is may not be known.
    await rm(join(run, 'identity.json'))
    await rm(join(run, 'checkpoints'), { recursive: true, force: true })
    await assert.rejects(open(run), { code: 'ERR_CONFIG', message: /holds another run; help: name another directory/ })
  }
  // A directory without a step done has nothing to lose.
  const begun = newFolder()
  ;(await open(begun)).run.close()
  ;(await open(begun, { identity: OTHER })).run.close()
  assert.deepEqual(JSON.parse(await readFile(join(begun, 'identity.json'), 'utf8')), OTHER)
})

test('--resume never puts another run aside, whole, wherever it dies', async () => {
  const begin = async (run: string): Promise<string[]> => {
    const opened = await open(run, { identity: OTHER, resume: 'never' })
    opened.run.close()
    return opened.warnings
  }
  let at = 1
  for (let died = true; died; at++) {
    const run = newFolder()
    await cp(uninterrupted, run, { recursive: true })
    died = await crashAt(at, () => begin(run))
    let warnings: string[] = []
    await crashAt(Number.POSITIVE_INFINITY, async () => {
      warnings = await begin(run)
    })
    if (at === 1) assert.deepEqual(warnings, [`the run in ${run} was put aside as ${join(run, 'previous-1')}`])
    assert.deepEqual(await snapshot(join(run, 'previous-1')), wanted, `died in change ${at}`)
    assert.deepEqual((await readdir(run)).sort(), [
      ...['checkpoints', 'config.json', 'env.json', 'identity.json', 'log.jsonl', 'previous-1'],
    ])
    assert.equal((await findResumable(join(run, 'previous-1'), CONFIG_HASH)).checkpoint?.state.step, 6)
  }
  assert.ok(at > 15, `only ${at - 1} changes were tried`)
  const run = newFolder()
  await cp(uninterrupted, run, { recursive: true })
  for (const identity of [OTHER, CONFIG, OTHER]) {
    const opened = await open(run, { identity, resume: 'never' })
    opened.run.log({ step: 1 })
    opened.run.close()
  }
  assert.deepEqual(
    (await readdir(run)).filter(name => name.startsWith('previous')),
    ['previous-1', 'previous-2', 'previous-3'],
  )
})
