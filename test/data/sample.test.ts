import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { sampleText } from '../../lib/data/sample.js'

test('the sample text is the whole book in plain ASCII, the same everywhere', async () => {
  const { name, text, licence } = await sampleText()
  assert.match(name, /Moby Dick/)
  assert.match(licence, /public domain/)
  assert.match(text, /^CHAPTER 1\. Loomings\.\n\nCall me Ishmael\. Some years ago--never mind how long precisely--/)
  assert.match(text, /only found another orphan\.\s*$/)
  assert.equal(text.match(/^CHAPTER \d+\./gm)?.length, 135)
  assert.match(text, /^[\n\x20-\x7e]*$/)
  assert.ok(!/ {2}|\n{3}| \n|\n /.test(text))
  assert.equal(text.length, Buffer.byteLength(text))
  assert.equal(createHash('sha256').update(text).digest('hex'), SHA256)
})

const SHA256 = '22ca4d02af8e1635db6c3e2e8923bda9a638a43288f92b9da9e3a3c2a52f3785'
