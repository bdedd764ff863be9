import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { cacheFolder, sampleText, TokenDataset, Tokenizer } from '../data/index.js'
import { type Device, device as openDevice } from '../device.js'
import { checkFolder } from '../durable-file.js'
import { type GPT2Config, gpt2Config, parameterCount } from '../model/config.js'
import { GPT2 } from '../model/gpt2.js'
import { loadGPT2 } from '../model/weights.js'
import type { Precision } from '../tensor.js'
import { hashConfig } from './checkpoint.js'
import { evaluate } from './evaluate.js'
import type { TrainHooks, TrainResult } from './hooks.js'
import { identityOf } from './identity.js'
import { initRandom } from './init.js'
import { DISTILL_DEFAULTS, distillObjective, pretrainObjective } from './objectives.js'
import { type PretrainOptions, type Resolved, resolvePretrain } from './options.js'
import { resolvePrecision } from './run.js'
import { hashModelFolder } from './teacher-cache.js'
import { train } from './train.js'

/** Options of {@link mainJob}; names as everywhere. */
export interface MainJobOptions {
  device?: string
  precision?: 'auto' | Precision
  threads?: number
  seed?: number
  /** run directory; default the first of runs/main, runs/main-2, ... that is not finished */
  out?: string
}

/** One trained model in the report. */
export interface MainJobRow {
  readonly name: 'teacher' | 'student' | 'control'
  readonly parameters: number
  /** held-out nats per byte */
  readonly loss: number
  /** of training; null for a teacher from the cache */
  readonly tokensPerSecond: number | null
  /** device memory while training, highest [bytes]; null as above */
  readonly peakBytes: number | null
  readonly seconds: number | null
}

export interface MainJobReport {
  readonly interrupted: boolean
  readonly text: string
  readonly rows: readonly MainJobRow[]
  readonly prompt: string
  /** the student's continuation of the prompt */
  readonly sample: string
  /** the student in Hugging Face layout; null when interrupted */
  readonly final: string | null
  readonly out: string
}

/** What {@link mainJob} is going to do. */
export interface MainJobPlan {
  /** device.info().description */
  readonly device: string
  readonly precision: Precision
  readonly text: string
  /** bytes to train on, and bytes kept from all three models */
  readonly dataTokens: number
  readonly evalTokens: number
  readonly tokensPerStep: number
  /** `steps` is 0 for a teacher that is in the cache */
  readonly models: readonly { readonly name: MainJobRow['name']; readonly parameters: number; readonly steps: number }[]
  readonly out: string
}

export interface MainJobHooks extends TrainHooks {
  /** a part of the job begins; `steps` is how many steps it takes (0: it is in the cache) */
  onStage?: (name: MainJobRow['name'], steps: number) => void
}

// Short windows learn first: at the same number of tokens, 128 bytes leave the plateau of byte pairs (2.4 nats) long before 256 do.
const SEQ_LEN = 128
const BATCH_SIZE = 8
const TEACHER = { layers: 4, heads: 4, width: 256 }
const STUDENT = { layers: 2, heads: 4, width: 128 }
const TEACHER_STEPS = 800
const STUDENT_STEPS = 600
/** Share of the text that no model is trained on: its end. */
const HELD_OUT = 0.1
const PROMPT = 'The whale '
/** As far as the positions of the student go. */
const SAMPLE_TOKENS = SEQ_LEN

interface Stage {
  name: MainJobRow['name']
  steps: number
  lr: number
  seed: number
  out: string
}

/**
 * The job that `npx train-core` does: on a public-domain book, train a small teacher (once: it is kept in the cache), distil a smaller
 * student from it, train the same student without the teacher as a control, and measure all three on text that none has seen.
 *
 * @throws TrainCoreError as pretrain() and distill()
 */
export async function mainJob(options: MainJobOptions = {}, hooks: MainJobHooks = {}): Promise<MainJobReport> {
  return await openJob(options, hooks).run()
}

/** What {@link mainJob} would do; trains and writes nothing. @throws as mainJob */
export async function planMainJob(options: MainJobOptions = {}): Promise<MainJobPlan> {
  return await openJob(options, {}).plan()
}

function openJob(options: MainJobOptions, hooks: MainJobHooks): MainJob {
  const device = openDevice(options.device ?? 'auto', options.threads ? { threads: options.threads } : {})
  return new MainJob(device, resolvePrecision(device, options.precision ?? 'auto'), options, hooks)
}

class MainJob {
  readonly #device: Device
  readonly #precision: Precision
  readonly #seed: number
  readonly #out: string
  readonly #hooks: MainJobHooks
  readonly #rows: MainJobRow[] = []
  #title = ''
  #tokenizer!: Tokenizer
  #data!: TokenDataset
  #heldOut!: TokenDataset

  constructor(device: Device, precision: Precision, options: MainJobOptions, hooks: MainJobHooks) {
    this.#device = device
    this.#precision = precision
    this.#seed = options.seed ?? 0
    this.#out = options.out ?? freeName('runs/main', this.#seed)
    this.#hooks = hooks
  }

  async plan(): Promise<MainJobPlan> {
    await this.#open()
    const size = (shape: typeof TEACHER): number => parameterCount(this.#config(shape))
    return {
      device: this.#device.info().description,
      precision: this.#precision,
      text: this.#title,
      dataTokens: this.#data.tokens,
      evalTokens: this.#heldOut.tokens,
      tokensPerStep: BATCH_SIZE * SEQ_LEN,
      models: [
        { name: 'teacher', parameters: size(TEACHER), steps: existsSync(this.#cached().final) ? 0 : TEACHER_STEPS },
        { name: 'student', parameters: size(STUDENT), steps: STUDENT_STEPS },
        { name: 'control', parameters: size(STUDENT), steps: STUDENT_STEPS },
      ],
      out: this.#out,
    }
  }

  async #open(): Promise<void> {
    // Before the teacher is trained, which takes minutes.
    await checkFolder(this.#out, '--out')
    const { name, text } = await sampleText()
    this.#title = name
    this.#tokenizer = await Tokenizer.load('byte')
    const ids = this.#tokenizer.encode(text)
    const cut = Math.floor(ids.length * (1 - HELD_OUT))
    this.#data = TokenDataset.fromIds(ids.subarray(0, cut), this.#tokenizer.eosId)
    this.#heldOut = TokenDataset.fromIds(ids.subarray(cut), this.#tokenizer.eosId)
  }

  async run(): Promise<MainJobReport> {
    await this.#open()
    const teacher = await this.#teacher()
    if (!teacher) return this.#report('', null)
    try {
      const student = await this.#student('student', teacher, this.#out)
      if (!student.final) return this.#report('', null)
      const control = await this.#student('control', null, path.join(this.#out, 'control'))
      if (!control.final) return this.#report('', null)
      return this.#report(await this.#sample(student.final), student.final)
    } finally {
      teacher.free()
    }
  }

  /** From the cache, or trained into it; null when interrupted. */
  async #teacher(): Promise<GPT2 | null> {
    const config = this.#config(TEACHER)
    const { stage, final } = this.#cached()
    if (existsSync(final)) {
      this.#hooks.onStage?.('teacher', 0)
      const teacher = await loadGPT2(final, { device: this.#device, precision: this.#precision, frozen: true })
      await this.#row('teacher', teacher, null)
      return teacher
    }
    const teacher = new GPT2(config, { device: this.#device, precision: this.#precision })
    try {
      const result = await this.#train(stage, teacher, null)
      if (result.final) return teacher
    } catch (error) {
      teacher.free()
      throw error
    }
    teacher.free()
    return null
  }

  /** The run that makes the teacher, in a folder named by all that decides what comes of it; and its result. */
  #cached(): { stage: Stage; final: string } {
    const stage = { name: 'teacher', steps: TEACHER_STEPS, lr: 2e-3, seed: 0, out: 'anywhere' } as const
    const config = this.#config(TEACHER)
    const job = { data: this.#data, tokenizer: this.#tokenizer, origin: { start: 'random', teacher: null } }
    const run = { ...job, kind: 'pretrain', options: this.#options(stage, config), seqLen: SEQ_LEN } as const
    const key = hashConfig(identityOf(run, config, this.#device.name, this.#precision))
    const out = path.join(cacheFolder(), 'main-job', key.slice(0, 16))
    return { stage: { ...stage, out }, final: path.join(out, 'final') }
  }

  async #student(name: 'student' | 'control', teacher: GPT2 | null, out: string): Promise<TrainResult> {
    const model = new GPT2(this.#config(STUDENT), { device: this.#device, precision: this.#precision })
    try {
      return await this.#train({ name, steps: STUDENT_STEPS, lr: 4e-3, seed: this.#seed, out }, model, teacher)
    } finally {
      model.free()
    }
  }

  #options({ steps, lr, seed, out }: Stage, { layers, heads, width }: GPT2Config): Resolved<PretrainOptions> {
    return resolvePretrain({
      model: `L=${layers},H=${heads},C=${width}`,
      data: [this.#title],
      tokenizer: 'byte',
      steps,
      lr,
      seed,
      out,
      beta2: 0.99,
      batchSize: BATCH_SIZE,
      seqLen: SEQ_LEN,
      device: this.#device.name,
      precision: this.#precision,
      saveEvery: 200,
      keep: 1,
    })
  }

  async #train(stage: Stage, model: GPT2, teacher: GPT2 | null): Promise<TrainResult> {
    const { name, steps, seed } = stage
    this.#hooks.onStage?.(name, steps)
    initRandom(model, seed)
    // KL and cross-entropy only: the widths differ, so a cosine would have to go through a projection.
    const objective = teacher ? distillObjective(model, teacher, { ...DISTILL_DEFAULTS, cos: 0 }) : pretrainObjective()
    const result = await train(
      {
        kind: teacher ? 'distill' : 'pretrain',
        options: this.#options(stage, model.config),
        model,
        modelName: name,
        teacher,
        teacherName: teacher && 'teacher',
        objective,
        tokenizer: this.#tokenizer,
        data: this.#data,
        evalData: null,
        seqLen: SEQ_LEN,
        teacherCache: null,
        origin: { start: 'random', teacher: teacher && (await hashModelFolder(this.#cached().final)) },
      },
      this.#hooks,
    )
    if (!result.interrupted) await this.#row(name, model, result)
    return result
  }

  async #row(name: MainJobRow['name'], model: GPT2, result: TrainResult | null): Promise<void> {
    const { loss } = await evaluate(model, this.#heldOut, { batchSize: 32, seqLen: SEQ_LEN })
    const { tokensPerSecond = null, peakBytes = null, seconds = null } = result ?? {}
    this.#rows.push({ name, parameters: parameterCount(model.config), loss, tokensPerSecond, peakBytes, seconds })
  }

  async #sample(folder: string): Promise<string> {
    const model = await loadGPT2(folder, { device: this.#device, precision: this.#precision, frozen: true })
    const decoder = this.#tokenizer.createDecoder()
    let text = ''
    const prompt = this.#tokenizer.encode(PROMPT)
    const options = { maxTokens: SAMPLE_TOKENS, temperature: 0.8, topK: 40, seed: this.#seed }
    try {
      for await (const id of model.generate(prompt, { ...options, signal: this.#hooks.signal }))
        text += decoder.push(id)
      return text + decoder.flush()
    } finally {
      model.free()
    }
  }

  #config(shape: { layers: number; heads: number; width: number }): GPT2Config {
    const { vocabSize, eosId } = this.#tokenizer
    return gpt2Config({ ...shape, vocabSize, positions: SEQ_LEN, eosId })
  }

  #report(sample: string, final: string | null): MainJobReport {
    const { length: done } = this.#rows
    return {
      interrupted: done < 3,
      text: this.#title,
      rows: this.#rows,
      prompt: PROMPT,
      sample,
      final,
      out: this.#out,
    }
  }
}

/** The first of name, name-2, ... that holds no finished run, and none of another seed. */
function freeName(name: string, seed: number): string {
  for (let k = 1; ; k++) {
    const candidate = k === 1 ? name : `${name}-${k}`
    const isFinished = [candidate, path.join(candidate, 'control')].every(run => existsSync(path.join(run, 'final')))
    if (!isFinished && [undefined, seed].includes(seedOf(candidate))) return candidate
  }
}

/** Of the run in a folder; undefined where there is none. */
function seedOf(folder: string): number | undefined {
  try {
    return (JSON.parse(readFileSync(path.join(folder, 'config.json'), 'utf8')) as { seed?: number }).seed
  } catch {
    return undefined
  }
}
