import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, beforeEach, test } from 'node:test'
import { TrainCoreError } from '../../lib/errors.js'
import { resolveWeights } from '../../lib/model/hub.js'

const root = mkdtempSync(join(tmpdir(), 'train-core-hub-'))
const COMMIT = 'c0ffee'
const WEIGHTS = Buffer.from(Array.from({ length: 300_000 }, (_, k) => (k * 7919) % 251))
const FILES: Record<string, Buffer> = {
  'config.json': Buffer.from('{"model_type":"gpt2"}'),
  'model.safetensors': WEIGHTS,
  'tokenizer.json': Buffer.from('{}'),
}
const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

interface Request {
  method: string
  path: string
  range: string | undefined
}

/** What the server does with a request before answering as the hub does; true: it has answered. */
type Trick = (file: string, request: IncomingMessage, response: ServerResponse) => boolean

let trick: Trick = () => false
const seen: Request[] = []
const server: Server = createServer((request, response) => {
  const path = request.url!
  seen.push({ method: request.method!, path, range: request.headers.range })
  const file = path.split('/').at(-1)!
  if (trick(file, request, response)) return
  const content = FILES[file]
  if (!content) return void response.writeHead(404).end()
  // Large files lie elsewhere; the hub's own headers come with the redirect.
  if (path.includes('/resolve/') && file === 'model.safetensors')
    return void response
      .writeHead(302, {
        location: `/elsewhere/${file}`,
        'x-repo-commit': COMMIT,
        'x-linked-size': content.length,
        'x-linked-etag': `"${sha256(content)}"`,
      })
      .end()
  send(request, response, content)
})

function send(request: IncomingMessage, response: ServerResponse, content: Buffer): void {
  const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
  const headers = {
    etag: '"small"',
    'x-repo-commit': COMMIT,
    'content-length': content.length - start,
    ...(start && { 'content-range': `bytes ${start}-${content.length - 1}/${content.length}` }),
  }
  response.writeHead(start ? 206 : 200, headers)
  response.end(request.method === 'HEAD' ? undefined : content.subarray(start))
}

await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
const home = process.cwd()
after(() => {
  server.closeAllConnections()
  server.close()
  process.chdir(home)
  rmSync(root, { recursive: true, force: true })
})

let place = ''
beforeEach(() => {
  place = mkdtempSync(join(root, 'case-'))
  process.chdir(place)
  for (const name of ['HF_HUB_OFFLINE', 'HF_HUB_CACHE', 'HF_HOME']) delete process.env[name]
  Object.assign(process.env, {
    HF_ENDPOINT: endpoint,
    XDG_CACHE_HOME: join(place, 'xdg'),
    TRAIN_CORE_CACHE: join(place, 'own'),
  })
  trick = () => false
  seen.length = 0
})

const own = (): string => join(place, 'own', 'models', 'gpt2-medium')

function makeModel(folder: string): string {
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'config.json'), '{}')
  writeFileSync(join(folder, 'model.safetensors'), '')
  return folder
}

test('a folder is itself, and stands before the preset of its name', async () => {
  assert.equal(await resolveWeights(makeModel(join(place, 'mine'))), join(place, 'mine'))
  makeModel('gpt2-medium')
  assert.equal(await resolveWeights('gpt2-medium'), 'gpt2-medium')
  assert.equal(seen.length, 0)
})

test("the Hugging Face cache is looked through: main's snapshot first, an incomplete one never", async () => {
  const repository = 'models--openai-community--gpt2-medium'
  for (const [variable, cache] of [
    ['HF_HUB_CACHE', join(place, 'a')],
    ['HF_HOME', join(place, 'b', 'hub')],
    ['XDG_CACHE_HOME', join(place, 'xdg', 'huggingface', 'hub')],
  ] as const) {
    for (const name of ['HF_HUB_CACHE', 'HF_HOME']) delete process.env[name]
    if (variable !== 'XDG_CACHE_HOME') process.env[variable] = variable === 'HF_HOME' ? join(place, 'b') : cache
    const snapshots = join(cache, repository, 'snapshots')
    makeModel(join(snapshots, 'aaa'))
    const main = makeModel(join(snapshots, 'bbb'))
    mkdirSync(join(cache, repository, 'refs'))
    writeFileSync(join(cache, repository, 'refs', 'main'), 'bbb')
    assert.equal(await resolveWeights('gpt2-medium'), main, variable)
    rmSync(join(main, 'model.safetensors'))
    assert.equal(await resolveWeights('gpt2-medium'), join(snapshots, 'aaa'), variable)
  }
  assert.equal(seen.length, 0)
})

test('a preset is fetched once, all files from one commit, and kept', async () => {
  const progress: [string, number, number | null][] = []
  const notices: string[] = []
  const folder = await resolveWeights('gpt2-medium', {
    onProgress: (...args) => progress.push(args),
    onNotice: notice => notices.push(notice),
  })
  assert.equal(folder, own())
  for (const [name, content] of Object.entries(FILES)) assert.deepEqual(readFileSync(join(folder, name)), content)
  assert.deepEqual(readdirSync(folder).sort(), Object.keys(FILES).sort())
  assert.deepEqual(readdirSync(join(folder, '..')), ['gpt2-medium'])
  assert.ok(progress.some(([file, done, total]) => file === 'model.safetensors' && done === total))
  assert.match(notices[0]!, /openai-community\/gpt2-medium/)
  const revisions = seen.filter(({ path }) => path.includes('resolve')).map(({ path }) => path.split('/').at(-2))
  assert.deepEqual([...new Set(revisions)], ['main', COMMIT])
  const before = seen.length
  assert.equal(await resolveWeights('gpt2-medium'), folder)
  assert.equal(seen.length, before, 'the second time nothing is asked for')
})

test('a body cut short is gone on with, not begun anew', async () => {
  let cuts = 2
  trick = (file, request, response) => {
    if (file !== 'model.safetensors' || request.method === 'HEAD' || request.url!.includes('resolve') || !cuts)
      return false
    cuts--
    const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
    const rest = WEIGHTS.length - start
    const range = start ? { 'content-range': `bytes ${start}-${WEIGHTS.length - 1}/${WEIGHTS.length}` } : {}
    response.writeHead(start ? 206 : 200, { 'content-length': rest, ...range })
    response.write(WEIGHTS.subarray(start, start + 70_000), () => setTimeout(() => response.destroy(), 20))
    return true
  }
  const folder = await resolveWeights('gpt2-medium')
  assert.deepEqual(readFileSync(join(folder, 'model.safetensors')), WEIGHTS)
  const ranges = seen.filter(({ method, path }) => method === 'GET' && path.startsWith('/elsewhere')).map(r => r.range)
  assert.deepEqual(ranges, [undefined, 'bytes=70000-', 'bytes=140000-'])
})

test('what a process that is gone left is gone on with, but only of the same contents', async () => {
  const partial = `${own()}.partial`
  mkdirSync(partial, { recursive: true })
  // No process has this number: it is above the highest that Linux gives.
  writeFileSync(join(partial, `model.safetensors.${sha256(WEIGHTS)}.99999999.partial`), WEIGHTS.subarray(0, 1000))
  writeFileSync(join(partial, 'model.safetensors.othercontents.99999999.partial'), WEIGHTS.subarray(0, 5000))
  const folder = await resolveWeights('gpt2-medium')
  assert.deepEqual(readFileSync(join(folder, 'model.safetensors')), WEIGHTS)
  assert.ok(seen.some(({ range }) => range === 'bytes=1000-'))
})

test('a damaged beginning is noticed by its hash and fetched anew', async () => {
  const partial = `${own()}.partial`
  mkdirSync(partial, { recursive: true })
  writeFileSync(join(partial, `model.safetensors.${sha256(WEIGHTS)}.99999999.partial`), Buffer.alloc(1000, 1))
  const notices: string[] = []
  const folder = await resolveWeights('gpt2-medium', { onNotice: notice => notices.push(notice) })
  assert.deepEqual(readFileSync(join(folder, 'model.safetensors')), WEIGHTS)
  assert.ok(notices.some(notice => /SHA-256/.test(notice)))
})

async function failure(): Promise<TrainCoreError> {
  const error: unknown = await resolveWeights('gpt2-medium').then(
    () => assert.fail('it should have failed'),
    cause => cause,
  )
  assert.ok(error instanceof TrainCoreError, String(error))
  assert.doesNotMatch(error.message, /\n/)
  assert.ok(!existsSync(own()), 'the name never stands for something incomplete')
  return error
}

const answer =
  (status: number, wanted: string): Trick =>
  (file, _, response) => {
    if (file === wanted) response.writeHead(status).end()
    return file === wanted
  }

test('404 names the file, and only a tokenizer may be missing', async () => {
  trick = answer(404, 'model.safetensors')
  assert.match((await failure()).message, /model\.safetensors: the server answered 404/)
  assert.equal(seen.filter(({ path }) => path.includes('model.safetensors')).length, 1, 'it is not asked for again')
  trick = answer(404, 'tokenizer.json')
  const folder = await resolveWeights('gpt2-medium')
  assert.deepEqual(readdirSync(folder).sort(), ['config.json', 'model.safetensors'])
})

test('500 is tried again, then an error', async () => {
  trick = answer(500, 'model.safetensors')
  const { code, message } = await failure()
  assert.equal(code, 'ERR_FILE')
  assert.match(message, /the server answered 500.*help:/)
  assert.equal(seen.filter(({ path }) => path.includes('model.safetensors')).length, 4)
})

test('a server that sends no parts is asked for the whole', async () => {
  let cuts = 1
  trick = (file, request, response) => {
    if (file !== 'model.safetensors' || request.method === 'HEAD' || request.url!.includes('resolve')) return false
    response.writeHead(200, { 'content-length': WEIGHTS.length })
    if (cuts-- > 0) response.write(WEIGHTS.subarray(0, 70_000), () => setTimeout(() => response.destroy(), 20))
    else response.end(WEIGHTS)
    return true
  }
  const folder = await resolveWeights('gpt2-medium')
  assert.deepEqual(readFileSync(join(folder, 'model.safetensors')), WEIGHTS)
})

test('a wrong hash and a wrong length are errors', async () => {
  const other = Buffer.from(WEIGHTS)
  other[5] ^= 1
  for (const content of [other, WEIGHTS.subarray(0, 1000), Buffer.concat([WEIGHTS, WEIGHTS])]) {
    trick = (file, request, response) => {
      const mine = file === 'model.safetensors' && request.url!.startsWith('/elsewhere') && request.method === 'GET'
      if (mine) response.writeHead(200, { 'content-length': content.length }).end(content)
      return mine
    }
    assert.match(
      (await failure()).message,
      /model\.safetensors: (its SHA-256|it should have 300000|the connection ended)/,
    )
  }
})

test('an endless redirect is an error', async () => {
  trick = (file, request, response) => {
    response.writeHead(302, { location: request.url! }).end()
    return file !== ''
  }
  assert.match((await failure()).message, /redirects/)
})

test('without a network one line says so; HF_HUB_OFFLINE asks nobody', async () => {
  // A port that was free a moment ago.
  const closed = createServer().listen(0, '127.0.0.1')
  await once(closed, 'listening')
  process.env.HF_ENDPOINT = `http://127.0.0.1:${(closed.address() as AddressInfo).port}`
  closed.close()
  assert.match((await failure()).message, /can't be reached \(ECONNREFUSED\); help: without a network/)
  process.env.HF_ENDPOINT = endpoint
  process.env.HF_HUB_OFFLINE = '1'
  assert.match((await failure()).message, /not on this machine .*HF_HUB_OFFLINE.*help:/)
  assert.equal(seen.length, 0)
})

test('a name that is no preset is refused with the list of those', async () => {
  await assert.rejects(resolveWeights('gpt3'), /no weights are called gpt3; help: .*distilgpt2/)
  mkdirSync('empty')
  await assert.rejects(resolveWeights('empty'), /empty has no config\.json/)
})

test('an aborted download keeps what it has', async () => {
  const controller = new AbortController()
  const hooks = {
    signal: controller.signal,
    onProgress: (file: string, done: number) => {
      if (file === 'model.safetensors' && done > 0) controller.abort(new Error('stop'))
    },
  }
  await assert.rejects(resolveWeights('gpt2-medium', hooks), { code: 'ERR_ABORTED' })
  assert.ok(readdirSync(`${own()}.partial`).some(name => name.startsWith('model.safetensors')))
})
