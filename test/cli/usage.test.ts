import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { COMMANDS } from '../../lib/cli/commands.js'
import { COMMON, type Option } from '../../lib/cli/options.js'
import { checkedValue } from '../../lib/cli/values.js'
import { packageVersion } from '../../lib/native-loader.js'
import { type Ended, type RunOptions, scratch, trainCore } from './command-line.js'

/** The command must fail with one line, without a stack, and with nothing on stdout. */
async function fails(args: readonly string[], code: number, message: RegExp, options: RunOptions = {}): Promise<void> {
  const ended = await trainCore(args, options)
  const call = `train-core ${args.join(' ')}\n${ended.stdout}${ended.stderr}`
  assert.equal(ended.code, code, call)
  assert.equal(ended.stdout, '', call)
  const lines = ended.stderr.split('\n').filter(Boolean)
  assert.equal(lines.length, 1, call)
  assert.match(lines[0]!, /^train-core: /)
  assert.match(lines[0]!, message)
  assert.doesNotMatch(ended.stderr, /^\s+at |internal error/m, call)
}

const file = (name: string, content: string): string => {
  const path = join(scratch(), name)
  writeFileSync(path, content)
  return path
}
const modelFolder = (): string => {
  mkdirSync(join(scratch(), 'a-model'), { recursive: true })
  return dirname(file('a-model/config.json', '{}'))
}
const data = (): string => file('data.txt', 'some text, and some more of it. '.repeat(50))
const pretrain = (...more: string[]): string[] => ['pretrain', '--model', 'L=1,H=1,C=8', '--data', data(), ...more]

test('--version and --help', async () => {
  const version = await trainCore(['--version'])
  assert.deepEqual([version.code, version.stdout], [0, `${packageVersion()}\n`])
  const help = await trainCore(['--help'])
  assert.equal(help.code, 0)
  for (const { name, describe } of COMMANDS) {
    assert.ok(help.stdout.includes(describe.slice(0, 30)), describe)
    const own = await trainCore([...(name ? [name] : []), '--help'])
    assert.equal(own.code, 0, name)
    for (const flag of ['--device', '--json', '--config', ...(name === 'pretrain' ? ['--batch-size', '--keep'] : [])])
      assert.ok(own.stdout.includes(flag), `${name} ${flag}`)
  }
})

test('help, env and build answer without the native binary; what needs it says how to get it', async () => {
  const options = { env: { TRAIN_CORE_BINARY: 'nonsense' } }
  for (const args of [['--help'], ['pretrain', '--help'], ['--version'], ['build', '--dry-run'], ['env']]) {
    const ended = await trainCore(args, options)
    assert.equal(ended.code, 0, args.join(' '))
    assert.equal(ended.stderr, '')
  }
  const env = JSON.parse((await trainCore(['env', '--json'], options)).stdout)
  assert.match(env.binary_error, /TRAIN_CORE_BINARY=nonsense/)
  await fails(['ops'], 1, /nonsense could not be loaded.*help:/, options)
  await fails(['doctor'], 1, /nonsense could not be loaded.*help:/, options)
  await fails(pretrain(), 1, /nonsense could not be loaded.*help:/, options)
  await fails([], 1, /nonsense could not be loaded.*help:/, options)
})

test('usage errors: one line, the nearest name, exit 2', async () => {
  await fails(['pretrian'], 2, /unknown command pretrian; did you mean pretrain\?/)
  for (const [typed, meant] of Object.entries({ distil: 'distill', evaluate: 'eval', train: 'pretrain' }))
    await fails([typed, '--data', 'x'], 2, new RegExp(`unknown command ${typed}; did you mean ${meant}\\?`))
  await fails(['ops', '--jsn'], 2, /unknown option --jsn; did you mean --json\?/)
  await fails(pretrain('--batchsize', '3'), 2, /unknown option --batchsize; did you mean --batch-size\?/)
  await fails(pretrain('--sets=3'), 2, /unknown option --sets; did you mean --steps\?/)
  await fails(pretrain('--no-jsn'), 2, /unknown option --no-jsn/)
  await fails(pretrain('-x'), 2, /unknown option -x/)
  await fails(['ops', 'extra'], 2, /unexpected argument extra/)
  await fails(['ops', '--', 'extra'], 2, /unexpected argument extra/)
  await fails(pretrain('--steps'), 2, /--steps wants a value; got none/)
  await fails(pretrain('--steps='), 2, /--steps must be a number; got nothing/)
  await fails(pretrain('--steps', 'many'), 2, /--steps must be a number; got many/)
  await fails(pretrain('--steps', '0x10'), 2, /--steps must be a number; got 0x10/)
  await fails(pretrain('--steps', '1.5'), 2, /--steps must be .*got 1.5/)
  await fails(pretrain('--steps', '-3'), 2, /--steps must be .*got -3/)
  await fails(pretrain('--json=maybe'), 2, /--json must be true or false; got maybe/)
  await fails(pretrain('--precision', 'f64'), 2, /--precision must be one of auto, f32, bf16, f16; got f64/)
  await fails(pretrain('--schedule', 'exp'), 2, /--schedule must be one of cosine, .*; got exp/)
  await fails(pretrain('--device', 'gpu'), 2, /--device must be auto, cpu, cuda, cuda:N or metal; got gpu/)
  await fails(pretrain('--beta1', '1'), 2, /--beta1 must be from 0 to below 1; got 1/)
  await fails(['pretrain', '--data', data()], 2, /--model must be given/)
  await fails(['pretrain', '--model', 'L=1,H=1,C=8'], 2, /--data must be given/)
  await fails(['distill', '--teacher', 'x', '--data', data()], 2, /--student must be given/)
  const distill = ['distill', '--teacher', 'x', '--student', 'L=1,H=1,C=8', '--data', data()]
  await fails([...distill, '--layer-map', '0,x'], 2, /--layer-map must be a list of whole numbers .*; got 0,x/)
  await fails([...distill, '--layer-map', '0'], 2, /--layer-map is of --init teacher-layers; got it with --init random/)
  const copied = ['--init', 'teacher-layers', '--student', modelFolder()]
  await fails([...distill, ...copied], 2, /--init teacher-layers wants a student given by its shape; got the folder/)
  await fails(pretrain('--eval-every', '5'), 2, /--eval-every 5 wants --eval-data; got none/)
  await fails([...distill, '--kl', '0', '--ce', '0', '--cos', '0'], 2, /one of --kl.*must be above 0/)
  await fails(['eval', '--data', data()], 2, /--model must be given/)
  const evaluate = ['eval', '--model', 'x', '--data', data()]
  await fails([...evaluate, '--batch-size', '0'], 2, /--batch-size must be an integer of 1 or more; got 0/)
  await fails([...evaluate, '--seq-len', '1.5'], 2, /--seq-len must be an integer of 1 or more; got 1.5/)
  await fails([...evaluate, '--threads', '1025'], 2, /--threads must be an integer from 0 to 1024; got 1025/)
  await fails(
    ['generate', '--model', 'x', '--top-p', '1.1'],
    2,
    /--top-p must be a number above 0 and at most 1; got 1.1/,
  )
  await fails(
    ['generate', '--model', 'x', '--temperature', '-1'],
    2,
    /--temperature must be a number of 0 or more; got -1/,
  )
  await fails(['--seed', '-1'], 2, /--seed must be an integer/)
})

test('a number out of range: the bound that it exceeds is named', async () => {
  const { 'top-p': topP, temperature } = await COMMANDS.find(({ name }) => name === 'generate')!.options()
  const refused = (option: Option | undefined, raw: string, message: string): void => {
    assert.throws(() => checkedValue(option!, raw, true, '--x'), { name: 'UsageError', message })
  }
  refused(topP, '0', '--x must be a number above 0 and at most 1; got 0')
  refused(temperature, '-1', '--x must be a number of 0 or more; got -1')
  refused(temperature, '1e39', '--x must be a number from 0 to 3.4e+38; got 1e39')
  refused(COMMON.seed, '-1', '--x must be an integer of 0 or more; got -1')
  refused(COMMON.seed, '0.5', '--x must be an integer of 0 or more; got 0.5')
  const most = '9007199254740991'
  refused(COMMON.seed, '9007199254740993', `--x must be an integer from 0 to ${most}; got 9007199254740993`)
  for (const [option, raw] of [
    [topP, '1'],
    [topP, '1e-9'],
    [temperature, '1e30'],
    [COMMON.seed, most],
  ] as const)
    assert.equal(checkedValue(option!, raw, true, '--x'), Number(raw))
})

test('of an option given twice the last counts', async () => {
  const { stdout } = await trainCore(
    pretrain('--steps', '7', '--steps', '8', '--dry-run', '--json', '--tokenizer', 'byte'),
  )
  assert.equal(JSON.parse(stdout).options.steps, 8)
})

test('--config: YAML and JSON, flags win, every spelling of a name', async () => {
  const yaml = file(
    'run.yaml',
    `model: L=1,H=1,C=8\ndata: [${data()}]\nbatch-size: 3\nsteps: 50 # fifty\nminLr: 1.0e-5\n`,
  )
  const json = file('run.json', JSON.stringify({ model: 'L=1,H=1,C=8', data: data(), grad_accum: 5 }))
  const plan = async (...args: string[]): Promise<Record<string, unknown>> => {
    const ended = await trainCore(['pretrain', '--dry-run', '--json', '--tokenizer', 'byte', ...args])
    assert.equal(ended.code, 0, ended.stderr)
    return JSON.parse(ended.stdout).options
  }
  const fromYaml = await plan('--config', yaml, '--steps', '60')
  assert.deepEqual([fromYaml.batchSize, fromYaml.steps, fromYaml.minLr], [3, 60, 1e-5])
  assert.equal((await plan('--config', json)).gradAccum, 5)
  assert.equal(
    (await plan('--config', file('empty.yaml', '# nothing\n'), '--model', 'L=1,H=1,C=8', '--data', data())).steps,
    1000,
  )
})

test('--config: what is wrong with a file is named with its line, exit 2', async () => {
  const config = (content: string, name = 'bad.yaml'): string[] => pretrain('--config', file(name, content))
  await fails(
    config('steps: 3\nbatch-sise: 2\n'),
    2,
    /bad\.yaml:2: unknown key "batch-sise"; did you mean "batch-size"\?/,
  )
  await fails(config('steps: many\n'), 2, /bad\.yaml:1: steps must be a number; got many/)
  await fails(config('steps: "3"\n'), 2, /bad\.yaml:1: steps must be a number; got 3/)
  await fails(config('tokenizer: 5\n'), 2, /bad\.yaml:1: tokenizer must be a text; got 5/)
  await fails(config('data: {a: 1}\n'), 2, /bad\.yaml:1: data must be a text or a list of texts/)
  await fails(config('json: 1\n'), 2, /bad\.yaml:1: json must be true or false; got 1/)
  await fails(config('precision: f64\n'), 2, /bad\.yaml:1: precision must be one of/)
  await fails(config('config: other.yaml\n'), 2, /unknown key "config"/)
  await fails(config('steps: 3\nsteps: 4\n'), 2, /bad\.yaml:2: .*unique/)
  await fails(config('batch-size: 3\nbatchSize: 4\n'), 2, /bad\.yaml:2: batchSize is given twice/)
  await fails(config('steps: [3\n'), 2, /bad\.yaml:\d: /)
  await fails(config('- a\n- b\n'), 2, /bad\.yaml must hold options/)
  await fails(config('steps: null\n'), 2, /steps must be a number; got null/)
  await fails(config('{"steps": 3,}', 'bad.json'), 2, /bad\.json is not JSON/)
  await fails(config('[1]', 'bad.json'), 2, /bad\.json must hold an object/)
  await fails(config('{"stps": 3}', 'bad.json'), 2, /bad\.json: unknown key "stps"; did you mean "steps"/)
  await fails(pretrain('--config', 'nowhere.yaml'), 1, /cannot read --config nowhere\.yaml: no such file/)
  mkdirSync(join(scratch(), 'folder.yaml'), { recursive: true })
  await fails(pretrain('--config', 'folder.yaml'), 1, /cannot read --config folder\.yaml: it is a folder/)
})

const json = (ended: Ended): Record<string, unknown> => {
  assert.equal(ended.code, 0, ended.stderr)
  assert.equal(ended.stdout.split('\n').length, 2, 'one line and nothing else')
  return JSON.parse(ended.stdout) as Record<string, unknown>
}

test('ops: a row for each op, and JSON as promised', async () => {
  const { ops, precisions } = json(await trainCore(['ops', '--json'])) as {
    ops: Record<string, string>[]
    precisions: Record<string, string[]>
  }
  assert.ok(ops.length > 20)
  for (const op of ops) {
    assert.deepEqual(Object.keys(op), ['name', 'cpu', 'cuda', 'metal'])
    for (const device of ['cpu', 'cuda', 'metal']) assert.match(op[device]!, /^(yes|missing)$/)
    assert.equal(op.cpu, 'yes', op.name)
  }
  const { stdout } = await trainCore(['ops'])
  assert.equal(stdout.trim().split('\n').length, ops.length + 2)
  assert.deepEqual(
    [precisions.cpu, precisions.metal],
    [
      ['f32', 'bf16'],
      ['f32', 'bf16', 'f16'],
    ],
  )
  assert.match(stdout, /^precisions +f32 bf16 .*f32 bf16 f16$/m)
  assert.match(stdout, /^matmul +yes +/m)
})

test('env: versions, device and backends with reasons', async () => {
  const env = json(await trainCore(['env', '--json'], { env: { TRAIN_CORE_THREADS: '1' } }))
  assert.equal(env.version, packageVersion())
  assert.equal(env.node, process.version)
  assert.equal(env.threads, 1)
  assert.deepEqual((env.settings as Record<string, string>).TRAIN_CORE_THREADS, '1')
  for (const { name, available, reason } of env.backends as { name: string; available: boolean; reason?: string }[])
    assert.ok(available || reason, `${name} says why it is not there`)
  const { stdout } = await trainCore(['env'])
  assert.match(stdout, /^binary +\S+train_core\.node$/m)
  assert.match(stdout, /^backend cpu +works$/m)
})

test('a reader that goes away ends the command quietly; a full disk is an error', async () => {
  const piped = await trainCore(['ops'], { closeStdout: true })
  assert.deepEqual([piped.code, piped.stderr], [0, ''])
  const full = await trainCore(['ops'], { stdoutFile: '/dev/full' })
  assert.equal(full.code, 1)
  assert.match(full.stderr, /^train-core: cannot write to stdout: .*ENOSPC.*\n$/)
})

test('--verbose adds the stack', async () => {
  const { code, stderr } = await trainCore(['eval', '--model', 'nowhere', '--data', 'nothing.txt', '--verbose'])
  assert.equal(code, 1)
  assert.match(stderr, /^train-core: .*\n(.*\n)*\s+at /)
})
