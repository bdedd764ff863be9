import assert from 'node:assert/strict'
import { once } from 'node:events'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { type RunOptions, scratch, trainCore } from './command-line.js'

const place = (name: string): string => join(scratch(), name)
writeFileSync(place('data.txt'), 'the cat sat on the mat and the dog sat on the log. '.repeat(10))
const SIZE = ['--data', 'data.txt', '--batch-size', '2', '--seq-len', '16', '--steps', '2']

// A hub whose gpt2 is a tiny model of ours.
let body: ((file: string, content: Buffer, response: ServerResponse) => void) | null = null
const server = createServer((request, response) => {
  const file = request.url!.split('/').at(-1)!
  const path = place(join('tiny', 'final', file))
  if (!request.url!.startsWith('/openai-community/gpt2/') || !existsSync(path))
    return void response.writeHead(404).end()
  const content = readFileSync(path)
  response.writeHead(200, { 'content-length': content.length, etag: `"${file}"`, 'x-repo-commit': 'abc' })
  if (request.method === 'HEAD') response.end()
  else if (body && file === 'model.safetensors') body(file, content, response)
  else response.end(content)
}).listen(0, '127.0.0.1')
await once(server, 'listening')
after(() => {
  server.closeAllConnections()
  server.close()
})
const made = await trainCore(['pretrain', '--model', 'L=2,H=2,C=64', '--tokenizer', 'byte', ...SIZE, '--out', 'tiny'])
assert.equal(made.code, 0, made.stderr)

const hub = (cache: string): RunOptions => ({
  env: {
    HF_ENDPOINT: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    HF_HUB_OFFLINE: '',
    HF_HOME: place('no-such-cache'),
    TRAIN_CORE_CACHE: place(cache),
  },
})
const evaluate = ['eval', '--model', 'gpt2', '--data', 'data.txt', '--json']

test('a preset is downloaded, shown, used, and there the next time', async () => {
  const local = await trainCore(['eval', '--model', 'tiny/final', '--data', 'data.txt', '--json'])
  const first = await trainCore(evaluate, hub('cache'))
  assert.equal(first.code, 0, first.stderr)
  assert.equal(first.stdout, local.stdout)
  assert.match(first.stderr, /^openai-community\/gpt2 is not on this machine: fetching it from http:.*$/m)
  assert.match(first.stderr, /^model\.safetensors (\d+)\/\1 {2}0\.\d MiB$/m)
  const offline = hub('cache')
  const second = await trainCore([...evaluate, '--quiet'], { ...offline, env: { ...offline.env, HF_HUB_OFFLINE: '1' } })
  assert.deepEqual([second.code, second.stdout, second.stderr], [0, local.stdout, ''])
})

test('a preset as teacher', async () => {
  const distill = ['distill', '--teacher', 'gpt2', '--student', 'L=1,H=2,C=16', ...SIZE, '--json']
  const { code, stdout, stderr } = await trainCore(distill, hub('teacher-cache'))
  assert.equal(code, 0, stderr)
  assert.equal(JSON.parse(stdout).steps, 2)
})

test('a download that breaks is one line and exit 1, and goes on the next time', async () => {
  body = (_, content, response) => response.write(content.subarray(0, 50_000), () => response.destroy())
  const broken = await trainCore([...evaluate, '--quiet'], hub('broken-cache'))
  assert.deepEqual([broken.code, broken.stdout], [1, ''])
  assert.match(
    broken.stderr,
    /^train-core: cannot fetch http.*model\.safetensors: the connection (broke|ended) after \d+ of \d+ bytes; help: .*\n$/,
  )
  body = null
  assert.equal((await trainCore(evaluate, hub('broken-cache'))).code, 0)
})

test('SIGINT ends a download with 130', async () => {
  // The rest never comes.
  body = (_, content, response) => void response.write(content.subarray(0, 50_000))
  let sent = 0
  const { code, stdout } = await trainCore(evaluate, {
    ...hub('stopped-cache'),
    onOutput: ({ stderr }, kill) => {
      if (stderr.includes('model.safetensors') && sent++ === 0) kill('SIGINT')
    },
  })
  body = null
  assert.deepEqual([code, stdout], [130, ''])
})
