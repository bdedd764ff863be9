// Tests the tests: breaks the kernels one line at a time (a barrier removed, a guard dropped, a mask off by one) and asks whether the
// op tests on emulated Metal notice. All of them with TRAIN_CORE_TEST_ALL=1, one of each kind otherwise.
import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { packageRoot } from '../../lib/native-loader.js'
import { all } from '../devices.js'
import { emulatorReason, runEmulated } from './emulated.js'
import { emulatorWith } from './rebuild.js'

const root = packageRoot()
const kernels = path.join(root, 'csrc/metal')

/** A line of a family's file that holds `find` gets `put` in its place. `quick`: run with every `npm test`. */
interface Rule {
  readonly family: string
  readonly find: string | RegExp
  readonly put: string
  readonly quick?: string
}

const ANY_BARRIER = /^(\s*)(?:threadgroup|simdgroup)_barrier\([^;]*\);/
const RULES: readonly Rule[] = [
  {
    family: 'elementwise',
    find: 'last = min(n, (group + 1) * THREADS * EACH)',
    put: 'last = (group + 1) * THREADS * EACH',
  },
  { family: 'elementwise', find: 'if (tid != 0) return;', put: '' },
  { family: 'norm', find: 'if (row >= p.rows) return;', put: '', quick: 'guard' },
  { family: 'norm', find: 'if (c < p.columns)', put: '' },
  { family: 'norm', find: 'if (simdgroup != 0 || c >= p.columns) return;', put: 'if (c >= p.columns) return;' },
  { family: 'norm', find: 'if (lane == 0) {', put: '{' },
  { family: 'norm', find: 'simd_sum(squares)', put: '(lane < 31 ? simd_sum(squares) : squares)', quick: 'divergence' },
  { family: 'matmul', find: 'row < p.M && k < p.K ?', put: 'k < p.K ?' },
  { family: 'matmul', find: 'column < p.N && k < p.K', put: 'k < p.K' },
  { family: 'matmul', find: 'row + e / 8 < p.M && column', put: 'column' },
  { family: 'matmul', find: 'own_column = simdgroup % 2 * 32', put: 'own_column = simdgroup % 2 * 24' },
  { family: 'matmul', find: /^ {4}threadgroup_barrier/, put: '    if (tid < 64) threadgroup_barrier' },
  { family: 'embedding', find: 'token >= 0 && token < p.vocab', put: 'token >= 0' },
  { family: 'embedding', find: 'position >= 0 && position < p.positions', put: 'position >= 0' },
  { family: 'embedding', find: 'if (c >= p.columns || !first[r]) return;', put: 'if (c >= p.columns) return;' },
  { family: 'embedding', find: 'first[r] = is_first;', put: 'if (is_first) first[r] = is_first;' },
  { family: 'random', find: 'k < 4 && i < n', put: 'k < 4 && i <= n' },
  { family: 'optim', find: 'if (i >= p.n) return;', put: '' },
  { family: 'optim', find: 'if (tid >= 3) return;', put: 'if (tid >= 2) return;', quick: 'uninitialised' },
  { family: 'optim', find: 'if (!is_finite(total)) return;', put: '' },
  {
    family: 'sample',
    find: 'if (lane == 0) scratch[simdgroup] = v;',
    put: 'if (lane == 0 && simdgroup != 1) scratch[simdgroup] = v;',
  },
  { family: 'sample', find: 'wanted = k - group_sum', put: 'wanted = 1 + k - group_sum' },
  { family: 'sample', find: '(other == rank && i < k)', put: '(other == rank && i <= k)' },
  { family: 'attention', find: 'if (i >= p.q_time) return;', put: '' },
  { family: 'attention', find: 'if (j >= p.k_time) return;', put: '' },
  { family: 'attention', find: 'seen = j < keys &&', put: 'seen = j <= keys &&' },
  { family: 'attention', find: 'at < until[', put: 'at <= until[' },
  { family: 'attention', find: 'min(int(p.k_time), at + 1)', put: 'at + 1' },
  { family: 'attention', find: 'max(0, int(j) - head.past)', put: 'max(0, int(j) - head.past + 1)' },
  { family: 'attention', find: 'if (w_k == 0.0f) continue;', put: '' },
  { family: 'attention_simdgroup', find: 'row < end ?', put: 'row <= end ?' },
  { family: 'attention_simdgroup', find: 'exists ? float2(', put: 'true ? float2(' },
  { family: 'attention_simdgroup', find: 'j < keys ? until[j] : 0', put: 'until[j]' },
  { family: 'attention_simdgroup', find: 'int(q0)) continue', put: 'int(q0) + 1) continue' },
  { family: 'attention_simdgroup', find: 'key <= at && key', put: 'key <= at + 1 && key' },
  { family: 'attention_simdgroup', find: '&& key < keys', put: '' },
  { family: 'attention_simdgroup', find: 'at < until[key]', put: 'at <= until[key]' },
  { family: 'attention_simdgroup', find: 'e[i] == LOWEST ? 0.0f :', put: '' },
  { family: 'attention_simdgroup', find: 'elements(acc[d]) *= fade', put: '' },
  { family: 'attention_simdgroup', find: 'if (i >= p.q_time) return;', put: '' },
  { family: 'attention_simdgroup', find: 'if (!exists) return;', put: '' },
  { family: 'attention_simdgroup', find: 'if (column == 0)', put: '' },
  { family: 'attention_simdgroup', find: 'none ? 0.0f : 1.0f / s.l', put: '1.0f / s.l' },
  { family: 'attention_simdgroup', find: 'exists ? lse[', put: 'true ? lse[' },
  { family: 'attention_simdgroup', find: 'exists && column == 0', put: 'exists' },
  { family: 'attention_simdgroup', find: 'exists && column == 0', put: 'column == 0' },
  { family: 'attention_simdgroup', find: '= seen ?', put: '= true ?' },
  { family: 'attention_simdgroup', find: 'if (drops) dw', put: 'if (false) dw' },
  { family: 'attention_simdgroup', find: 'end = exists ? until[key] : 0', put: 'end = until[key]' },
  { family: 'attention_simdgroup', find: 'lane) - head.past', put: 'lane) - head.past - 1' },
  { family: 'attention_simdgroup', find: 'max(0, int(k0) - head.past)', put: 'max(0, int(k0) - head.past + 1)' },
  { family: 'attention_simdgroup', find: 'int(tid) < last', put: 'int(tid) <= last' },
  { family: 'attention_simdgroup', find: 'if (tid < R)', put: '' },
  { family: 'attention_simdgroup', find: 'at < end;', put: 'at <= end;' },
  { family: 'attention_simdgroup', find: 'simdgroup * 8 + fragment_row', put: 'simdgroup * 4 + fragment_row' },
  { family: 'loss', find: 'if (!p.has_d) return;', put: '' },
  { family: 'loss', find: 'if (top && (named[v / 32] >> (v % 32) & 1)) continue;', put: '' },
  { family: 'loss', find: 'if (target < 0 || uint(target) >= V) weight = 0.0f;', put: '' },
  { family: 'loss', find: 'v < p.columns; v += threads) d[v]', put: 'v <= p.columns; v += threads) d[v]' },
  {
    family: 'loss',
    find: 'if (lane == 0) scratch[k * 32 + simdgroup]',
    put: 'if (lane == 0 && simdgroup == 0) scratch[k * 32 + simdgroup]',
  },
]

interface Mutant {
  readonly family: string
  readonly line: number
  readonly was: string
  readonly text: string
  readonly quick: string | undefined
}

function linesOf(family: string): string[] {
  return readFileSync(path.join(kernels, `${family}.metal`), 'utf8').split('\n')
}

function mutantsOf(family: string): Mutant[] {
  const list: Mutant[] = []
  for (const [k, was] of linesOf(family).entries()) {
    const of = (text: string, quick?: string) => list.push({ family, line: k + 1, was: was.trim(), text, quick })
    if (ANY_BARRIER.test(was)) of(was.replace(ANY_BARRIER, '$1'), family === 'matmul' ? 'barrier' : undefined)
    for (const rule of RULES)
      if (rule.family === family && was.includes(String(rule.find))) of(was.replace(rule.find, rule.put), rule.quick)
  }
  return list
}

const TESTS: Readonly<Record<string, readonly string[]>> = {
  attention: ['attention', 'attention_laws'],
  attention_simdgroup: ['attention', 'attention_laws'],
  loss: ['loss', 'cosine_loss', 'head_loss'],
  sample: ['sample', 'head_top_k'],
}

/** What the tests say of the mutant; empty when they do not notice. */
async function findingOf(m: Mutant): Promise<string> {
  const folder = mkdtempSync(path.join(tmpdir(), 'train-core-mutant-'))
  try {
    const lines = linesOf(m.family)
    lines[m.line - 1] = m.text
    const env = { TRAIN_CORE_METAL_EMULATOR: await emulatorWith(m.family, lines.join('\n'), folder) }
    const plainFrom = linesOf('matmul').findIndex(line => line.includes('void matmul_plain('))
    const plain = m.family === 'attention' || (m.family === 'matmul' && m.line > plainFrom)
    const variant: Record<string, string> = plain ? { TRAIN_CORE_METAL_PLAIN: '1' } : {}
    for (const family of TESTS[m.family] ?? [m.family])
      try {
        await runEmulated(path.join(import.meta.dirname, `../ops/${family}.test.js`), { ...env, ...variant })
      } catch (error) {
        return (error as Error).message
      }
    return ''
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

const families = readdirSync(kernels)
  .filter(name => name.endsWith('.metal') && name !== 'prelude.metal')
  .map(name => path.basename(name, '.metal'))
const kinds = new Set<string>()
for (const m of families.flatMap(mutantsOf)) {
  if (!all && (!m.quick || kinds.has(m.quick))) continue
  if (m.quick) kinds.add(m.quick)
  test(`a change of ${m.family}.metal:${m.line} is noticed: ${m.was}`, { skip: emulatorReason() }, async context => {
    const finding = await findingOf(m)
    assert.notEqual(finding, '', 'the tests do not notice')
    context.diagnostic(
      /\[(race|out-of-bounds|uninitialised-read|divergence|host)\]/.exec(finding)?.[1] ?? 'a wrong value',
    )
  })
}
