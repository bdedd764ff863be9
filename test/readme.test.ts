// The README's JavaScript runs as it stands.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { backends, opTable } from '../lib/device.js'
import { packageRoot } from '../lib/native-loader.js'

const README = readFileSync(join(packageRoot(), 'README.md'), 'utf8')
const blocks = [...README.matchAll(/^```js\n([\s\S]*?)^```/gm)]

test('its table has every op of the op table once, and the CPU has them all', () => {
  const rows = [...README.matchAll(/^\| ([a-z_0-9 ]+) \| (?:f32|bf16)[^|]*\|$/gm)].flatMap(([, ops]) => ops.split(' '))
  assert.deepEqual(
    rows.sort(),
    opTable()
      .map(op => op.name)
      .sort(),
  )
  assert.equal(backends().find(backend => backend.name === 'cpu')!.missing, '')
})

test('its table says which devices have f16', () => {
  for (const { name, precisions } of backends()) {
    const rows = [...README.matchAll(new RegExp(`^\\| ${name}\\b[^|]*\\|[^|]*\\|[^|]*\\|[^|]*\\| (yes|no) \\|`, 'gm'))]
    assert.ok(rows.length > 0, name)
    if (precisions)
      // of a library that is here
      for (const [row, f16] of rows) assert.equal(f16, precisions.split(' ').includes('f16') ? 'yes' : 'no', row)
  }
})

test('there are examples', () => assert.equal(blocks.length, 2))

for (const [k, [, code]] of blocks.entries())
  test(`example ${k + 1} runs`, () => {
    const folder = mkdtempSync(join(tmpdir(), 'train-core-readme-'))
    try {
      mkdirSync(join(folder, 'node_modules'))
      symlinkSync(packageRoot(), join(folder, 'node_modules', 'train-core'))
      writeFileSync(join(folder, 'corpus.txt'), 'The sea, the sea, the open sea. '.repeat(100))
      writeFileSync(join(folder, 'example.mjs'), code)
      const env = { ...process.env, TRAIN_CORE_CACHE: join(folder, 'cache') }
      const { status, stdout, stderr } = spawnSync(process.execPath, ['example.mjs'], { cwd: folder, env })
      assert.equal(status, 0, String(stderr))
      assert.equal(String(stderr), '')
      assert.ok(stdout.length > 20)
      assert.doesNotMatch(String(stdout), /NaN/)
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  })
