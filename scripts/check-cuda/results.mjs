// The rows of check:cuda: in a file as they come, in one table at the end.
import { spawnSync } from 'node:child_process'
import { appendFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { tail } from './run.mjs'

/**
 * A row is { stage, name, ok, wanted, measured, seconds }: ok is null for what was not run, and `measured` says why. Rows of the same GPU,
 * commit and library stay in the file until their stage is run again. What failed children said is in a file beside it, FILE.log.
 */
export class Results {
  #file
  #all = { device: '', commit: '', date: '', rows: [], bench: [] }
  #stage = ''

  constructor(file) {
    this.#file = file
    if (existsSync(file)) this.#all = { ...this.#all, ...JSON.parse(readFileSync(file, 'utf8')) }
  }

  begin(device, library = '') {
    const cwd = import.meta.dirname
    const git = (...words) => spawnSync('git', words, { encoding: 'utf8', cwd }).stdout?.trim() ?? ''
    const changed = git('status', '--porcelain', '--untracked-files=no') ? '+' : ''
    const commit = [git('rev-parse', '--short=12', 'HEAD') + changed, library && `library ${library}`]
      .filter(Boolean)
      .join(', ')
    if (device !== this.#all.device || commit !== this.#all.commit) {
      this.#all = { device, commit, rows: [], bench: [] }
      rmSync(this.#log, { force: true })
    }
    this.#all.date = new Date().toISOString()
    this.#write()
  }

  beginStage(stage) {
    this.#stage = stage
    this.#all.rows = this.#all.rows.filter(row => row.stage !== stage)
    this.#all.bench = this.#all.bench.filter(row => row.stage !== stage)
    console.log(`\n${stage}`)
  }

  add({ name, ok, wanted = '', measured = '', seconds = 0 }) {
    this.#all.rows.push({ stage: this.#stage, name, ok, wanted, measured, seconds: Math.round(seconds * 10) / 10 })
    console.log(
      `  ${mark(ok).padEnd(8)}${name.padEnd(46)} ${[measured, wanted && `wanted ${wanted}`].filter(Boolean).join('; ')}`,
    )
    this.#write()
  }

  /** Keeps all that a child said; its end goes to stderr. */
  keep(name, done) {
    const { stdout, stderr, status, signal } = done
    appendFileSync(this.#log, `==== ${this.#stage} ${name}: ended with ${signal ?? status}\n${stdout}${stderr}\n`)
    process.stderr.write(tail(done))
  }

  /** What the benchmark measured, in full. */
  addBench(rows) {
    this.#all.bench.push(...rows.map(row => ({ stage: this.#stage, ...row })))
    this.#write()
  }

  get #log() {
    return `${this.#file}.log`
  }

  get failed() {
    return this.#all.rows.filter(row => row.ok === false).length
  }

  table() {
    const { device, commit, date, rows } = this.#all
    const cells = rows.map(row => [row.stage, row.name, row.measured, row.wanted, mark(row.ok)])
    const lines = [['stage', 'what', 'measured', 'wanted', ''], ...cells]
    const widths = lines[0].map((_, k) => Math.max(...lines.map(line => line[k].length)))
    const text = lines.map(line =>
      line
        .map((cell, k) => cell.padEnd(widths[k]))
        .join('  ')
        .trimEnd(),
    )
    const count = ok => rows.filter(row => row.ok === ok).length
    const sum = `${count(true)} passed, ${count(false)} failed, ${count(null)} not run`
    return [`${device || 'no GPU yet'}; commit ${commit || 'unknown'}; ${date}`, '', ...text, '', sum].join('\n')
  }

  // Whole or not at all: the machine may be taken away at any time.
  #write() {
    mkdirSync(path.dirname(this.#file), { recursive: true })
    writeFileSync(`${this.#file}.part`, `${JSON.stringify(this.#all, null, 2)}\n`)
    renameSync(`${this.#file}.part`, this.#file)
  }
}

const mark = ok => (ok === null ? 'not run' : ok ? 'ok' : 'FAILED')
