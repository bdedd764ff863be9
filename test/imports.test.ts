// The direction of imports: each file only from its own layer and the layers below it.
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { root } from './process/run-node.js'

// The lowest first. A name ending in / is a folder.
const layers: string[][] = [
  ['errors', 'nearest', 'dtype', 'durable-file'],
  ['data/', 'native-loader'], // data: of the lowest layer alone
  ['native'],
  ['doctor/run-case', 'doctor/case', 'doctor/cases', 'doctor/loss-cases', 'doctor/formulas', 'doctor/first-use'],
  ['device'],
  ['tensor'],
  ['tape', 'step'],
  ['ops/', 'doctor/'],
  ['kernels', 'model/'],
  ['train/'],
  ['index'],
  ['cli/'],
]

function layerOf(file: string): number {
  const name = file.replace(/^lib\//, '').replace(/\.[jt]s$/, '')
  const layer = layers.findIndex(names => names.some(n => (n.endsWith('/') ? name.startsWith(n) : name === n)))
  assert.notEqual(layer, -1, `${file} is in no layer: add it to this list`)
  return layer
}

function filesOf(folder: string, ending: RegExp): string[] {
  const all = readdirSync(path.join(root, folder), { recursive: true }).map(file =>
    path.posix.join(folder, String(file)),
  )
  return all.filter(file => ending.test(file))
}

// What a file imports from this repository, as paths from its root; erased imports (of types alone) do not count.
function importsOf(file: string, pattern: RegExp): string[] {
  const text = readFileSync(path.join(root, file), 'utf8')
  const found = [...text.matchAll(pattern)].map(match => match[1] ?? match[2]!)
  return found.map(name => path.posix.join(path.posix.dirname(file), name))
}

test('lib imports downwards: cli -> train -> model -> ops -> tape -> tensor -> native; data apart', () => {
  const wrong: string[] = []
  let edges = 0
  for (const file of filesOf('lib', /\.ts$/))
    for (const to of importsOf(
      file,
      /^(?:import|export)\s(?!type\s)(?:[^'"]*?\sfrom\s)?'(\.[^']+)'|\bimport\('(\.[^']+)'\)/gm,
    )) {
      edges++
      const up = !to.startsWith('lib/') || layerOf(to) > layerOf(file)
      const sideways =
        layerOf(file) === 1 && layerOf(to) === 1 && to.startsWith('lib/data/') !== file.startsWith('lib/data/')
      if (up || sideways) wrong.push(`${file} imports ${to}`)
    }
  assert.ok(edges > 100, `${edges} imports found`)
  assert.deepEqual(wrong, [])
})

test('csrc includes nothing of lib or bench; no backend includes another', () => {
  const wrong: string[] = []
  let edges = 0
  for (const file of filesOf('csrc', /\.(cc|h|cu|cuh|mm|metal|def)$/))
    for (const to of importsOf(file, /^\s*#include "([^"]+)"/gm)) {
      edges++
      const [from, into] = [file, to].map(name => /^csrc\/(cpu|cuda|metal)\//.exec(name)?.[1])
      const plain = /^csrc\/cpu\/(bf16|f16)\.h$/.test(to) // conversions of numbers, no kernels
      if (!to.startsWith('csrc/') || (from && into && from !== into && !plain)) wrong.push(`${file} includes ${to}`)
    }
  assert.ok(edges > 100, `${edges} includes found`)
  assert.deepEqual(wrong, [])
})
