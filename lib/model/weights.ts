import { mkdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { TrainCoreError } from '../errors.js'
import { configFromHuggingFace, configToHuggingFace, type GPT2Config } from './config.js'
import { GPT2, type ModelOptions } from './gpt2.js'
import { EMBEDDING, gpt2Parameters, HEAD_COPY, resolveNames } from './names.js'
import { openModelTensors, writeModelTensors } from './safetensors.js'

/** Reads a model directory's config.json. @throws TrainCoreError ERR_FILE, ERR_CONFIG, ERR_ARGUMENT (`folder` is no text) */
export async function readConfig(folder: string): Promise<GPT2Config> {
  if (typeof folder !== 'string')
    throw new TrainCoreError('ERR_ARGUMENT', `a model's directory must be a text; got ${String(folder)}`)
  const file = path.join(folder, 'config.json')
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (cause) {
    throw new TrainCoreError('ERR_FILE', `${folder} is not a model directory: ${file} can't be read`, {
      help: 'name a directory in Hugging Face layout (config.json, model.safetensors), a preset or L=..,H=..,C=..',
      cause,
    })
  }
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (cause) {
    throw new TrainCoreError('ERR_FILE', `${file} is not JSON: ${(cause as Error).message}`, { cause })
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw new TrainCoreError('ERR_FILE', `${file} must hold an object`)
  return configFromHuggingFace(json as Record<string, unknown>, file)
}

/**
 * Looks whether a directory holds the weights of such a model: reads the headers of its files, no values.
 *
 * @throws TrainCoreError ERR_FILE, naming what is missing, unexpected or of another shape
 */
export async function checkWeights(folder: string, config: GPT2Config): Promise<void> {
  const tensors = await openModelTensors(folder)
  await tensors.close()
  resolveNames(tensors.shapes, gpt2Parameters(config), folder)
}

/**
 * Loads a GPT-2 from a directory in Hugging Face layout: config.json and model.safetensors (or its shards), with or without the
 * `transformer.` prefix, F32, F16 or BF16.
 *
 * @param options.config instead of the folder's own (another dropout, say); the shapes must be the same
 * @throws TrainCoreError ERR_FILE, ERR_CONFIG, ERR_MEMORY
 */
export async function loadGPT2(folder: string, options: ModelOptions & { config?: GPT2Config } = {}): Promise<GPT2> {
  const model = new GPT2(options.config ?? (await readConfig(folder)), options)
  try {
    await readWeights(model, folder)
    return model
  } catch (error) {
    model.free()
    throw error
  }
}

/**
 * Overwrites a model's parameters with those of a directory.
 *
 * @throws TrainCoreError ERR_FILE, naming what is missing, unexpected, of another shape or not finite
 */
export async function readWeights(model: GPT2, folder: string): Promise<void> {
  const { parameters, config } = model
  const tensors = await openModelTensors(folder)
  try {
    const names = resolveNames(tensors.shapes, gpt2Parameters(config), folder)
    for (const [name, inFile] of names) {
      const values = await tensors.readFloat32(inFile)
      if (name === EMBEDDING && tensors.shapes.has(HEAD_COPY))
        checkTied(values, await tensors.readFloat32(HEAD_COPY), config, folder)
      checkFinite(values, inFile, tensors.pathOf(inFile))
      parameters.write(name, values)
    }
    parameters.syncCompute()
  } finally {
    await tensors.close()
  }
}

/** Every loss and gradient of such a model would be NaN, and would be blamed for it. A plain loop: 0.6 s for 355M, a findIndex 4 s. */
function checkFinite(values: Float32Array, name: string, file: string): void {
  for (let k = 0; k < values.length; k++)
    if (!Number.isFinite(values[k]))
      throw new TrainCoreError('ERR_FILE', `${file}: tensor ${name} must be finite; got ${values[k]} at element ${k}`, {
        help: 'the model diverged while it was trained, or the file is damaged: use other weights',
      })
}

/** GPT-2's output head is its token embedding: a head of other values makes another model. */
function checkTied(embedding: Float32Array, head: Float32Array, config: GPT2Config, folder: string): void {
  const at = head.findIndex((x, k) => !Object.is(x, embedding[k]))
  if (at < 0) return
  const row = Math.floor(at / config.width)
  throw new TrainCoreError(
    'ERR_FILE',
    `${folder}: ${HEAD_COPY} must be a copy of ${EMBEDDING}; they differ from row ${row} on`,
    { help: 'models with an output head of their own are not supported' },
  )
}

/**
 * Writes config.json and model.safetensors (F32; shards from 5 GB on) as transformers' GPT2LMHeadModel.from_pretrained loads them: padding stripped, no copy
 * of the tied head. The tokenizer's files are the caller's.
 *
 * @throws TrainCoreError ERR_FILE
 */
export async function saveGPT2(model: GPT2, folder: string): Promise<void> {
  try {
    await mkdir(folder, { recursive: true })
    await writeFile(path.join(folder, 'config.json'), `${JSON.stringify(configToHuggingFace(model.config), null, 2)}\n`)
  } catch (cause) {
    throw new TrainCoreError('ERR_FILE', `${folder} can't be written: ${(cause as Error).message}`, { cause })
  }
  const tensors = gpt2Parameters(model.config).map(({ name, shape }) => ({
    name,
    dtype: 'F32',
    shape,
    data: () => model.parameters.read(name),
  }))
  await writeModelTensors(folder, tensors)
}
