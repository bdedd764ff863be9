import type { GPT2Config } from '../model/config.js'

/** One optimizer step; a row of log.jsonl. */
export interface StepRow {
  /** steps done, this one included */
  readonly step: number
  /** nats per token: the weighted sum of the parts below */
  readonly loss: number
  /** the parts that the objective has: unweighted means per token */
  readonly ce?: number
  readonly kl?: number
  readonly rkl?: number
  readonly jsd?: number
  readonly cos?: number
  readonly lr: number
  /** global norm of the gradients before clipping */
  readonly grad_norm: number
  /** tokens trained on since the run began */
  readonly tokens: number
  readonly tokens_per_s: number
  /** device memory: the highest so far [bytes] */
  readonly mem_bytes: number
  readonly [name: string]: unknown
}

/** One evaluation; a row of log.jsonl. */
export interface EvalRow {
  readonly step: number
  /** mean nats per token */
  readonly eval_loss: number
  readonly [name: string]: unknown
}

/** What a run is going to do, with everything resolved and checked. */
export interface RunPlan {
  readonly kind: 'pretrain' | 'distill'
  /** as written to config.json of the run directory */
  readonly options: Readonly<Record<string, unknown>>
  /** device.info().description */
  readonly device: string
  readonly precision: string
  readonly tokenizer: string
  /** the model that is trained */
  readonly model: ModelSummary
  readonly teacher: ModelSummary | null
  readonly seqLen: number
  readonly dataTokens: number
  readonly evalTokens: number
  /** batchSize · seqLen · gradAccum */
  readonly tokensPerStep: number
  /** passes over the data in the whole run */
  readonly epochs: number
  /** run directory */
  readonly out: string
  /** step to go on from; 0: from the beginning */
  readonly fromStep: number
}

/** Shape and size of a model. */
export interface ModelSummary {
  readonly name: string
  readonly config: GPT2Config
  readonly parameters: number
}

/** How far a teacher cache has come. */
export interface TeacherCacheReport {
  readonly folder: string
  /** windows that the run needs, and of them those that are there */
  readonly wanted: number
  readonly ready: number
  /** windows that are there, an earlier run's included; of them made in this run */
  readonly windows: number
  readonly made: number
  /** on the disk, for each token of text */
  readonly bytesPerToken: number
  /** mean T²·KL per token of a sample, to the teacher itself and to its cached form; null where nothing had to be made */
  readonly onlineKl: number | null
  readonly cachedKl: number | null
  /** whether this is the last report */
  readonly done: boolean
}

/** How a caller follows and stops a run. */
export interface TrainHooks {
  /** the run saves a checkpoint after the step under way and returns with `interrupted` */
  signal?: AbortSignal
  /** the weights of a preset are being fetched: file, bytes so far, bytes in all (null: not known) */
  onDownload?: (file: string, done: number, total: number | null) => void
  onTeacherCache?: (report: TeacherCacheReport) => void
  onPlan?: (plan: RunPlan) => void
  onStep?: (row: StepRow) => void
  onEval?: (row: EvalRow) => void
  onSave?: (path: string) => void
  /** one line each: rows skipped, checkpoints passed over */
  onWarning?: (message: string) => void
}

/** What a run came to. */
export interface TrainResult {
  readonly interrupted: boolean
  /** steps done since the run began */
  readonly steps: number
  /** of the last step; null where this call did none */
  readonly loss: number | null
  /** of the last evaluation; null without held-out data */
  readonly evalLoss: number | null
  /** trained on since the run began */
  readonly tokens: number
  /** of this call, evaluation and saving left out */
  readonly tokensPerSecond: number
  readonly seconds: number
  /** device memory, highest [bytes] */
  readonly peakBytes: number
  readonly parameters: number
  /** run directory */
  readonly out: string
  /** the trained model in Hugging Face layout; null when interrupted */
  readonly final: string | null
}
