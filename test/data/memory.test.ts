import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { gzipSync } from 'node:zlib'

const MIB = 2 ** 20
/** Size of the data [MiB]; held whole it would cost a multiple of the limit. */
const SIZE = 96
const LIMIT = 220

let dir: string
before(() => {
  dir = mkdtempSync(join(tmpdir(), 'train-core-memory-'))
})
after(() => rmSync(dir, { recursive: true }))

/** Opens a file in a process of its own and reads some batches; its tokens and largest memory [MiB]. */
const SCRIPT = `
  const { BatchSource, openDataset, Tokenizer } = await import(process.argv[1])
  const tokenizer = await Tokenizer.load('byte')
  const dataset = await openDataset({ files: [process.argv[2]], tokenizer, cacheDir: process.argv[3] })
  const source = new BatchSource(dataset, { batchSize: 8, seqLen: 512 })
  for (let i = 0; i < 500; i++) await source.next()
  await dataset.close()
  console.log(JSON.stringify({ tokens: dataset.tokens, mib: process.resourceUsage().maxRSS / 1024 }))
`

const line = `${JSON.stringify({ text: 'the cat sat on the mat and the dog on the log; '.repeat(20) })}\n`
const block = line.repeat(Math.ceil(MIB / line.length))
const member = gzipSync(block)
const gzip = Buffer.concat(Array.from({ length: SIZE }, () => member))

for (const name of ['data.txt.gz', 'data.jsonl.gz']) {
  test(`${name}: ${SIZE} MiB of text are read in less than ${LIMIT} MiB of memory`, async t => {
    writeFileSync(join(dir, name), gzip)
    const library = new URL('../../lib/data/index.js', import.meta.url).href
    const args = ['--input-type=module', '-e', SCRIPT, library, join(dir, name), join(dir, 'cache')]
    const { stdout } = await promisify(execFile)(process.execPath, args)
    const { tokens, mib } = JSON.parse(stdout) as { tokens: number; mib: number }
    t.diagnostic(`${Math.round(mib)} MiB for ${tokens} tokens`)
    assert.ok(tokens > SIZE * MIB * 0.9)
    assert.ok(mib < LIMIT, `${mib} MiB`)
  })
}
