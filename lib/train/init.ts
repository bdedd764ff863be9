import { TrainCoreError } from '../errors.js'
import type { GPT2Config } from '../model/config.js'
import type { GPT2 } from '../model/gpt2.js'
import { gpt2Parameters } from '../model/names.js'
import type { ParameterSet } from '../model/parameters.js'
import { fill } from '../ops/elementwise.js'
import { createRng, randomNormal } from '../ops/random.js'
import type { Tensor } from '../tensor.js'

/** First random stream of initialisation; dropout and sampling use others. */
const INIT_STREAM = 1 << 24
const PROJECTION_STREAM = 1 << 25

/**
 * GPT-2's own initialisation (openai/gpt-2, src/model.py, and the paper's section 2.3): normal with std 0.02, the two c_proj
 * 0.02/sqrt(2L), LayerNorm 1 and 0, biases 0.
 */
export function initRandom(model: GPT2, seed: number): void {
  const { parameters, config, device } = model
  const rng = createRng(seed, device)
  let stream = INIT_STREAM
  for (const { name, init } of gpt2Parameters(config)) {
    stream++
    const std = init === 'residual' ? 0.02 / Math.sqrt(2 * config.layers) : 0.02
    overwrite(parameters, name, values =>
      init === 'ones' || init === 'zeros'
        ? fill(values, init === 'ones' ? 1 : 0)
        : randomNormal(values, rng, { std, stream }),
    )
  }
  parameters.syncCompute()
  rng.free()
}

/** A distillation's projection starts as a normal matrix of std 1/sqrt(C_s). */
export function initProjection(extra: ParameterSet, seed: number): void {
  const rng = createRng(seed, extra.device)
  for (const { name, shape } of extra.specs)
    overwrite(extra, name, values =>
      randomNormal(values, rng, { std: 1 / Math.sqrt(shape[0]!), stream: PROJECTION_STREAM }),
    )
  extra.syncCompute()
  rng.free()
}

/** Where it lies: a large embedding's values as a tensor of their own would stay in the arena's cache. */
function overwrite(set: ParameterSet, name: string, draw: (values: Tensor) => void): void {
  const values = set.masterView(name)
  draw(values)
  values.free()
}

/**
 * Which teacher layer each student layer starts from: spread evenly, first and last included. For 12 -> 6 that is DistilBERT's
 * [0, 2, 4, 7, 9, 11] (huggingface/transformers, scripts/extract.py of its distillation project).
 */
export function defaultLayerMap(teacherLayers: number, studentLayers: number): number[] {
  if (studentLayers > teacherLayers)
    throw new TrainCoreError(
      'ERR_CONFIG',
      `a student from teacher layers has at most the teacher's ${teacherLayers} layers; got ${studentLayers}`,
    )
  if (studentLayers === 1) return [0]
  return Array.from({ length: studentLayers }, (_, k) => Math.round((k * (teacherLayers - 1)) / (studentLayers - 1)))
}

/**
 * The teacher layer that each student layer starts from.
 *
 * @param map as given; default {@link defaultLayerMap}
 * @throws TrainCoreError ERR_CONFIG where widths, heads or vocabularies differ, or the map does not fit
 */
export function chooseLayers(s: GPT2Config, t: GPT2Config, map?: readonly number[]): readonly number[] {
  if (s.width !== t.width || s.heads !== t.heads || s.vocabSize !== t.vocabSize)
    throw new TrainCoreError(
      'ERR_CONFIG',
      `--init teacher-layers wants a student of the teacher's width, heads and vocabulary (C=${t.width}, H=${t.heads}, V=${t.vocabSize}); ` +
        `got C=${s.width}, H=${s.heads}, V=${s.vocabSize}`,
      { help: 'use --init random' },
    )
  if (s.positions > t.positions)
    throw new TrainCoreError(
      'ERR_CONFIG',
      `--init teacher-layers wants at most the teacher's ${t.positions} positions; got ${s.positions}`,
    )
  const layers = map ?? defaultLayerMap(t.layers, s.layers)
  if (layers.length !== s.layers || layers.some(k => !Number.isInteger(k) || k < 0 || k >= t.layers))
    throw new TrainCoreError(
      'ERR_CONFIG',
      `--layer-map must name ${s.layers} teacher layers from 0 to ${t.layers - 1}, one for each student layer; got ${String(layers)}`,
    )
  return layers
}

/**
 * Copies embeddings, final LayerNorm and the chosen layers of the teacher into the student.
 *
 * @param map for each student layer a teacher layer; default {@link defaultLayerMap}
 * @throws TrainCoreError ERR_CONFIG as {@link chooseLayers}
 */
export async function initFromTeacher(student: GPT2, teacher: GPT2, map?: readonly number[]): Promise<void> {
  const s = student.config
  const layers = chooseLayers(s, teacher.config, map)
  for (const { name, shape } of gpt2Parameters(s)) {
    const from = name.replace(/^transformer\.h\.(\d+)\./, (_, k: string) => `transformer.h.${layers[Number(k)]}.`)
    const data = await teacher.parameters.read(from)
    const size = shape.reduce((product, dim) => product * dim, 1)
    student.parameters.write(name, data.subarray(0, size))
  }
  student.parameters.syncCompute()
}
