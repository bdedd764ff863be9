// The README's JavaScript runs as it stands.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { packageRoot } from '../lib/native-loader.js'

const blocks = [...readFileSync(join(packageRoot(), 'README.md'), 'utf8').matchAll(/^```js\n([\s\S]*?)^```/gm)]

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
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  })
