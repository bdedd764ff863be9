// The workflows of .github are read by nobody here but this: every command in them exists.
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { parse } from 'yaml'
import { root, runNode } from '../process/run-node.js'

interface Step {
  uses?: string
  run?: string
}
interface Job {
  'runs-on': unknown
  needs?: string | string[]
  'timeout-minutes'?: number
  steps: Step[]
}

const folder = path.join(root, '.github/workflows')
const { scripts } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as {
  scripts: Record<string, string>
}

/** What is wrong with a command line of a step; empty where nothing is. */
function problemOf(line: string): string {
  const script = /^npm (?:run ([\w:]+)|(test|start)\b)/.exec(line)
  if (script && !scripts[script[1] ?? script[2]!]) return `no script ${script[1] ?? script[2]}`
  const file = /^(?:node )?((?:scripts|\.ci)\/\S+)/.exec(line)?.[1]
  return file && !existsSync(path.join(root, file)) ? `no file ${file}` : ''
}

for (const name of readdirSync(folder))
  test(`${name} is YAML, its jobs end, and its commands exist`, () => {
    const { jobs } = parse(readFileSync(path.join(folder, name), 'utf8')) as { jobs: Record<string, Job> }
    const problems: string[] = []
    for (const [id, job] of Object.entries(jobs)) {
      for (const need of [job.needs ?? []].flat()) if (!jobs[need]) problems.push(`${id} needs ${need}`)
      if (!job['runs-on'] || !job['timeout-minutes']) problems.push(`${id} lacks runs-on or timeout-minutes`)
      for (const { uses, run } of job.steps) {
        if (!uses === !run) problems.push(`${id}: a step is either uses or run`)
        if (uses && !/^actions\/[\w-]+@v\d+$/.test(uses)) problems.push(`${id}: ${uses}`)
        for (const line of run?.split('\n') ?? []) if (problemOf(line)) problems.push(`${id}: ${problemOf(line)}`)
      }
    }
    assert.deepEqual(problems, [])
  })

test('the check of commands sees one that does not exist', () => {
  assert.equal(problemOf('npm run nothing -- x'), 'no script nothing')
  assert.equal(problemOf('node scripts/nothing.mjs'), 'no file scripts/nothing.mjs')
  assert.equal(problemOf('npm test -- metal-emu'), '')
})

test('the stages of check:metal in metal.yml are some', async () => {
  const { code, stderr } = await runNode(['scripts/check-metal.mjs', 'nothing'])
  assert.equal(code, 2)
  const stages = stderr
    .trim()
    .replace(/.*they are /, '')
    .split(', ')
  assert.ok(stages.length > 4, stderr)
  const used = [...readFileSync(path.join(folder, 'metal.yml'), 'utf8').matchAll(/check:metal -- (\w+)/g)]
  assert.ok(used.length > 2)
  for (const [, stage] of used) assert.ok(stages.includes(stage!), stage)
})
