import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { backends } from '../../lib/device.js'
import { type RunOptions, scratch, trainCore } from './command-line.js'

const place = (name: string): string => join(scratch(), name)
writeFileSync(place('data.txt'), 'the cat sat on the mat and the dog sat on the log. '.repeat(60))
const SIZE = ['--tokenizer', 'byte', '--device', 'cpu', '--batch-size', '2', '--seq-len', '16', '--steps', '4']
const from = (data: string, ...more: string[]): string[] => [
  ...['pretrain', '--model', 'L=1,H=1,C=8', '--data', data, ...SIZE],
  ...more,
]
const pretrain = (...more: string[]): string[] => from('data.txt', ...more)

/** Fails with exit 1 and one line, without a stack; what came before it on stderr are lines of progress and warnings. */
async function fails(args: readonly string[], message: RegExp, options: RunOptions = {}): Promise<string> {
  const { code, stdout, stderr } = await trainCore([...args, '--quiet'], options)
  const call = `train-core ${args.join(' ')}\n${stdout}${stderr}`
  assert.equal(code, 1, call)
  assert.equal(stdout, '', call)
  const lines = stderr.trimEnd().split('\n')
  assert.match(lines.at(-1)!, /^train-core: /, call)
  assert.match(lines.at(-1)!, message)
  assert.ok(
    lines.slice(0, -1).every(line => line.startsWith('warning: ')),
    call,
  )
  return stderr
}

const model = place('model')
await trainCore(pretrain('--out', 'model-run', '--quiet')).then(({ code, stderr }) => assert.equal(code, 0, stderr))
cpSync(place('model-run/final'), model, { recursive: true })
const evaluate = (folder: string, data = 'data.txt'): string[] => ['eval', '--model', folder, '--data', data]

test('data: missing, of unknown kind, empty, not UTF-8, compressed and cut short', async () => {
  await fails(from('nowhere.txt'), /no file or directory nowhere\.txt/)
  await fails(from('*.jsonl'), /pattern \*\.jsonl/)
  copyFileSync(place('data.txt'), place('data.csv'))
  await fails(from('data.csv'), /a file of kind \.txt.*got data\.csv/)
  writeFileSync(place('empty.txt'), '')
  await fails(from('empty.txt'), /text is wanted; there is none in empty\.txt/)
  writeFileSync(place('latin1.txt'), Buffer.from([0x61, 0xe9, 0x62]))
  await fails(from('latin1.txt'), /latin1\.txt is not UTF-8/)
  writeFileSync(place('cut.txt.gz'), Buffer.from([0x1f, 0x8b, 8, 0, 0, 0]))
  await fails(from('cut.txt.gz'), /cut\.txt\.gz is not whole, valid gzip/)
  mkdirSync(place('nothing'), { recursive: true })
  await fails(from('nothing'), /the directory nothing has no file of kind/)
})

test('data: a row that can not be read is named with file and line, and skipped; all of them are an error', async () => {
  const good = JSON.stringify({ text: 'a text of more than sixteen tokens, so that it makes a row' })
  writeFileSync(place('rows.jsonl'), `${good}\n{"text": 5}\nnot json\n${good}\n`)
  const { code, stderr, stdout } = await trainCore(from('rows.jsonl', '--json', '--quiet', '--out', 'rows'))
  assert.equal(code, 0, stderr)
  assert.equal(JSON.parse(stdout).steps, 4)
  assert.match(stderr, /^warning: rows\.jsonl:2: row skipped: field "text" is not a string$/m)
  assert.match(stderr, /^warning: rows\.jsonl:3: row skipped: not JSON/m)
  assert.match(stderr, /^warning: rows\.jsonl: 2 of 4 rows skipped$/m)
  await fails(from('rows.jsonl', '--text-field', 'body'), /none of the 4 rows.*no field "body".*--text-field/)
})

test('data: token ids outside the vocabulary', async () => {
  writeFileSync(place('ids.bin'), Uint16Array.of(1, 2, 3, 300, 5))
  await fails(from('ids.bin'), /ids\.bin: token ids below 257.*got 300 at token 3; help:/)
})

test('models: no such thing, not a model, a key that is not supported, tensors missing or cut short', async () => {
  mkdirSync(place('hollow'))
  await fails(evaluate('nowhere'), /no weights are called nowhere; help: .*gpt2-medium/)
  await fails(evaluate('hollow'), /hollow has no config\.json/)
  await fails(pretrain('--model', 'nowhere'), /no model is called nowhere/)
  await fails(pretrain('--model', 'L=1,H=1'), /L=1,H=1.*lacks C/)
  await fails(pretrain('--model', 'L=1,H=3,C=32'), /32 \/ 3/)
  const changed = (name: string, change: (folder: string) => void): string => {
    cpSync(model, place(name), { recursive: true })
    change(place(name))
    return name
  }
  const config = (change: (json: Record<string, unknown>) => void) => (folder: string) => {
    const json = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))
    change(json)
    writeFileSync(join(folder, 'config.json'), JSON.stringify(json))
  }
  const gelu = changed(
    'gelu',
    config(json => Object.assign(json, { activation_function: 'gelu' })),
  )
  await fails(evaluate(gelu), /config\.json: activation_function must be gelu_new.*got "gelu"/)
  const wide = changed(
    'wide',
    config(json => Object.assign(json, { n_embd: 16 })),
  )
  await fails(evaluate(wide), /wide.*shape|wide.*wte/)
  const broken = changed('broken', folder => writeFileSync(join(folder, 'config.json'), '{'))
  await fails(evaluate(broken), /config\.json is not JSON/)
  const short = changed('short', folder => truncateSync(join(folder, 'model.safetensors'), 3000))
  await fails(evaluate(short), /short.model\.safetensors/)
  await fails(['generate', '--model', 'short', '--prompt', 'a'], /short.model\.safetensors/)
  await fails(['pretrain', '--model', 'short', '--data', 'data.txt', ...SIZE], /short.model\.safetensors/)
  const teacher = ['distill', '--teacher', 'short', '--student', 'L=1,H=1,C=8', '--data', 'data.txt', ...SIZE.slice(2)]
  await fails(teacher, /short.model\.safetensors/)
  await fails(
    evaluate('model').concat('--tokenizer', 'gpt2'),
    /the model has 257 tokens, the tokenizer gpt2 50257; help: /,
  )
  await fails(evaluate('model').concat('--seq-len', '17'), /--seq-len must be at most the model's 16/)
  await fails(['generate', '--model', 'model', '--prompt', 'a text of more than sixteen tokens'], /16 positions/)
  const hollow = changed('no-weights', folder => rmSync(join(folder, 'model.safetensors')))
  for (const bad of [short, hollow]) await fails(evaluate(bad).concat('--dry-run'), new RegExp(`${bad}.*safetensors`))
  await fails(['generate', '--model', wide, '--prompt', 'a', '--dry-run'], /wide.*wrong shape/)
  writeFileSync(place('one.txt'), 'a')
  await fails(evaluate('model', 'one.txt').concat('--dry-run'), /at least 2 tokens are wanted; got 1/)
  await fails(evaluate('model').concat('--seq-len', '17', '--dry-run'), /--seq-len must be at most the model's 16/)
  await fails(evaluate('gpt2'), /weights of gpt2 are not on this machine/)
})

for (const { name, available } of backends())
  test(`--device ${name} where it is not`, { skip: available && `${name} is here` }, async () => {
    await fails(pretrain('--device', name, '--out', 'no-device'), new RegExp(`^train-core: ${name}: .*help: `))
    assert.equal(existsSync(place('no-device')), false)
  })

test('out of memory: need, have, peak and what is largest; checkpoints stay', async () => {
  const env = { TRAIN_CORE_MEMORY_LIMIT: '1M' }
  const big = ['pretrain', '--model', 'L=2,H=2,C=64', '--data', 'data.txt', ...SIZE, '--out', 'big']
  await fails(big, /out of memory: need \S+ MiB, have .*peak .*largest: .*help: use a smaller batch size/, { env })
  await fails(pretrain(), /TRAIN_CORE_MEMORY_LIMIT must be/, { env: { TRAIN_CORE_MEMORY_LIMIT: 'lots' } })
})

test('a run directory that can not be made; a checkpoint that is not one', async () => {
  writeFileSync(place('a-file'), '')
  await fails(pretrain('--out', 'a-file/run'), /a-file.run.*: a part of its path is not a folder/)
  await fails(pretrain('--resume', 'data.txt', '--out', 'fresh'), /data\.txt: not a complete checkpoint/)
})

/** A file system of one megabyte, where this process may make one. */
function smallDisk(): { folder: string; skip: false } | { skip: string } {
  const folder = place('small-disk')
  mkdirSync(folder)
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder], { stdio: 'pipe' })
  } catch {
    return { skip: 'mounting a small file system needs root' }
  }
  after(() => execFileSync('umount', [folder]))
  return { folder, skip: false }
}
const disk = smallDisk()

test('a full disk: one line, and the last complete checkpoint goes on once there is room', {
  skip: disk.skip,
}, async () => {
  assert.ok(disk.skip === false)
  const out = join(disk.folder, 'run')
  // A checkpoint has about 150 kB: the disk holds a few.
  const args = [
    'pretrain',
    '--model',
    'L=1,H=2,C=32',
    '--data',
    'data.txt',
    ...SIZE,
    '--steps',
    '40',
    '--save-every',
    '2',
    '--keep',
    '0',
    '--out',
    out,
  ]
  await fails(args, /the disk is full/)
  const saved = readdirSync(join(out, 'checkpoints')).filter(name => !name.startsWith('.'))
  assert.ok(saved.length > 1, saved.join())
  assert.equal(readdirSync(join(out, 'checkpoints')).length, saved.length, 'nothing half written stays')
  const again = await trainCore([...args, '--keep', '1', '--json'])
  assert.equal(again.code, 0, again.stderr)
  assert.match(again.stderr, /going on from step \d+$/m)
})
