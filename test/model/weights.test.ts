import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { bf16ToFloat32, f16ToFloat32, float32ToBf16, float32ToF16 } from '../../lib/dtype.js'
import { gpt2Config } from '../../lib/model/config.js'
import { generate } from '../../lib/model/generate.js'
import { GPT2 } from '../../lib/model/gpt2.js'
import { gpt2Parameters } from '../../lib/model/names.js'
import { ParameterSet } from '../../lib/model/parameters.js'
import {
  openModelTensors,
  type TensorSource,
  writeModelTensors,
  writeSafetensors,
} from '../../lib/model/safetensors.js'
import { initRandom } from '../../lib/train/init.js'
import { assertSame, rounder } from '../close.js'
import { forEachDevice, onEachDevice } from '../devices.js'
import { golden, MODEL_OPS, tinyFolder } from './golden.js'

const folder = await mkdtemp(join(tmpdir(), 'train-core-weights-'))
after(() => rm(folder, { recursive: true }))

const { prompt } = golden.tiny

/** The tensors of the directory that transformers wrote, as f32. */
async function tinyTensors(): Promise<Map<string, { shape: readonly number[]; values: Float32Array }>> {
  const file = await openModelTensors(tinyFolder)
  const tensors = new Map<string, { shape: readonly number[]; values: Float32Array }>()
  for (const [name, shape] of file.shapes) tensors.set(name, { shape, values: await file.readFloat32(name) })
  await file.close()
  return tensors
}

const f32 = (name: string, shape: readonly number[], values: Float32Array): TensorSource => {
  return { name, dtype: 'F32', shape, data: () => values }
}

/** The tiny model's folder under another name, with other tensors. */
async function variant(
  name: string,
  change: (tensors: TensorSource[]) => TensorSource[],
  maxShardBytes?: number,
): Promise<string> {
  const made = join(folder, name)
  await mkdir(made)
  await copyFile(join(tinyFolder, 'config.json'), join(made, 'config.json'))
  const tensors = [...(await tinyTensors())].map(([key, { shape, values }]) => f32(key, shape, values))
  await writeModelTensors(made, change(tensors), { maxShardBytes })
  return made
}

async function logitsOf(from: string): Promise<Float32Array> {
  const model = await GPT2.load(from)
  const logits = await model.logits([prompt])
  model.free()
  return logits
}

onEachDevice(
  "transformers' own directory: logits, and 200 tokens of greedy text",
  async () => {
    const model = await GPT2.load(tinyFolder)
    const logits = await model.logits([prompt])
    assert.equal(logits.length, golden.tiny.logits.length)
    for (const [k, z] of logits.entries()) assert.ok(Math.abs(z - golden.tiny.logits[k]!) < 2e-5, `logit ${k}: ${z}`)
    const made: number[] = []
    for await (const id of model.generate(prompt, { temperature: 0, maxTokens: 200 })) made.push(id)
    assert.deepEqual(made, golden.tiny.continuation)
  },
  MODEL_OPS,
)

onEachDevice(
  'other ways to store the same weights give the same bits',
  async () => {
    const want = await logitsOf(tinyFolder)
    const bare = (tensors: TensorSource[]): TensorSource[] =>
      tensors.map(tensor => ({ ...tensor, name: tensor.name.replace('transformer.', '') }))
    const embedding = (await tinyTensors()).get('transformer.wte.weight')!
    const copyOfHead = f32('lm_head.weight', embedding.shape, embedding.values)
    const buffers = [
      { name: 'h.0.attn.bias', dtype: 'U8', shape: [1, 1, 2, 2], data: () => Uint8Array.of(1, 0, 1, 1) },
      { name: 'h.1.attn.masked_bias', dtype: 'F32', shape: [], data: () => Float32Array.of(-1e4) },
    ]
    assertSame(await logitsOf(await variant('bare', bare)), want, 'without the prefix')
    assertSame(await logitsOf(await variant('old', tensors => [...bare(tensors), ...buffers])), want, 'with buffers')
    assertSame(
      await logitsOf(await variant('head', tensors => [copyOfHead, ...tensors])),
      want,
      'with a copy of the head',
    )
    const shards = await variant('shards', tensors => [...tensors, copyOfHead], 8000)
    assert.ok((await readdir(shards)).length > 5)
    assertSame(await logitsOf(shards), want, 'sharded')
  },
  MODEL_OPS,
)

for (const [dtype, narrow, widen] of [
  ['F16', float32ToF16, f16ToFloat32],
  ['BF16', float32ToBf16, bf16ToFloat32],
] as const)
  onEachDevice(
    `a file in ${dtype}`,
    async () => {
      const stored = (tensors: TensorSource[]): TensorSource[] =>
        tensors.map(tensor => ({ ...tensor, dtype, data: () => narrow(tensor.data() as Float32Array) }))
      const rounded = (tensors: TensorSource[]): TensorSource[] =>
        tensors.map(tensor => ({ ...tensor, data: () => widen(narrow(tensor.data() as Float32Array)) }))
      const got = await logitsOf(await variant(dtype, stored))
      assertSame(got, await logitsOf(await variant(`${dtype}-rounded`, rounded)), dtype)
      assert.ok(got.some((z, k) => z !== Math.fround(golden.tiny.logits[k]!)))
    },
    MODEL_OPS,
  )

onEachDevice(
  'an output head of its own is refused: what has one is no GPT-2',
  async device => {
    const embedding = (await tinyTensors()).get('transformer.wte.weight')!
    const values = embedding.values.slice()
    values[values.length - 1]! += 1e-3
    const untied = await variant('untied', tensors => [...tensors, f32('lm_head.weight', embedding.shape, values)])
    const { live } = device.info()
    await assert.rejects(GPT2.load(untied), {
      code: 'ERR_FILE',
      message: /untied.*lm_head.weight .*transformer.wte.weight.*row 60/,
    })
    assert.equal(device.info().live, live)
    const shape = [embedding.shape[0]! + 3, embedding.shape[1]!]
    const larger = f32('lm_head.weight', shape, new Float32Array(shape[0]! * shape[1]!))
    await assert.rejects(GPT2.load(await variant('larger', tensors => [...tensors, larger])), {
      code: 'ERR_FILE',
      message: /lm_head.weight is \[64, 16\], wanted \[61, 16\]/,
    })
  },
  MODEL_OPS,
)

onEachDevice(
  'weights that are not finite are refused, with tensor and file',
  async device => {
    const { live } = device.info()
    const damaged = (name: string, at: number, value: number) => (tensors: TensorSource[]) =>
      tensors.map(tensor => {
        if (tensor.name !== name) return tensor
        const values = (tensor.data() as Float32Array).slice()
        values[at] = value
        return f32(name, tensor.shape, values)
      })
    const refused = async (path: string, message: RegExp) => {
      for (const frozen of [false, true])
        await assert.rejects(GPT2.load(path, { frozen }), { code: 'ERR_FILE', message })
    }
    const nan = await variant('nan', damaged('transformer.wte.weight', 975, Number.NaN))
    await refused(
      nan,
      /nan.model\.safetensors: tensor transformer\.wte\.weight must be finite; got NaN at element 975;/,
    )
    const infinite = damaged('transformer.h.1.ln_2.bias', 0, Number.NEGATIVE_INFINITY)
    const shards = await variant('infinite', infinite, 8000)
    await refused(
      shards,
      /model-\d+-of-\d+\.safetensors: tensor transformer\.h\.1\.ln_2\.bias .* -Infinity at element 0;/,
    )
    // Other tests' garbage may have gone meanwhile.
    assert.ok(device.info().live <= live, 'nothing is left behind')
  },
  MODEL_OPS,
)

for (const precision of ['f32', 'bf16'] as const)
  onEachDevice(
    `what is saved loads again, bit for bit (${precision})`,
    async () => {
      const config = gpt2Config({ layers: 2, heads: 2, width: 16, vocabSize: 61, positions: 12, eosId: 3 })
      const model = new GPT2(config, { precision })
      initRandom(model, 5)
      const saved = join(folder, `saved-${precision}`)
      await model.save(saved)
      const again = await GPT2.load(saved, { precision })
      const exact = new GPT2(config)
      initRandom(exact, 5)
      assert.deepEqual({ ...again.config, extra: undefined }, { ...config, extra: undefined })
      for (const { name } of gpt2Parameters(config))
        assertSame(await again.parameters.read(name), await exact.parameters.read(name), name)
      assertSame(await again.logits([[1, 2, 3]]), await model.logits([[1, 2, 3]]), 'logits')
      await again.save(`${saved}-again`)
      for (const file of ['model.safetensors', 'config.json'])
        assert.deepEqual(await readFile(join(`${saved}-again`, file)), await readFile(join(saved, file)), file)
    },
    MODEL_OPS,
  )

onEachDevice(
  'saving over a sharded model leaves one model',
  async () => {
    const shards = await variant('replaced', tensors => tensors, 8000)
    const model = await GPT2.load(tinyFolder)
    await model.save(shards)
    assert.deepEqual((await readdir(shards)).sort(), ['config.json', 'model.safetensors'])
    const config = JSON.parse(await readFile(join(shards, 'config.json'), 'utf8'))
    const before = JSON.parse(await readFile(join(tinyFolder, 'config.json'), 'utf8'))
    for (const key of Object.keys(before)) assert.deepEqual(config[key], before[key], key)
  },
  MODEL_OPS,
)

onEachDevice(
  'folders that hold no model are refused by name',
  async () => {
    const rejected = (path: string, message: RegExp) => assert.rejects(GPT2.load(path), { code: 'ERR_FILE', message })
    await rejected(
      join(folder, 'nowhere'),
      /nowhere is not a model directory: .*config.json can't be read; help: name a/,
    )
    for (const nothing of [undefined, 5] as never[])
      await assert.rejects(GPT2.load(nothing), { code: 'ERR_ARGUMENT', message: /must be a text; got (undefined|5)/ })
    const broken = join(folder, 'broken')
    await mkdir(broken)
    await writeFile(join(broken, 'config.json'), '{')
    await rejected(broken, /broken\/config.json is not JSON/)
    await writeFile(join(broken, 'config.json'), '[]')
    await rejected(broken, /must hold an object/)
    await copyFile(join(tinyFolder, 'config.json'), join(broken, 'config.json'))
    await rejected(broken, /has neither model.safetensors nor/)
    await writeSafetensors(join(broken, 'model.safetensors'), [
      f32('transformer.wte.weight', [61, 16], new Float32Array(976)),
    ])
    await rejected(broken, /does not hold this GPT-2: 27 missing/)
    const model = new GPT2(gpt2Config({ layers: 1, heads: 2, width: 16, vocabSize: 61, positions: 12 }))
    await assert.rejects(model.save(join(folder, 'broken', 'config.json', 'x')), {
      code: 'ERR_FILE',
      message: /can't be written/,
    })
  },
  MODEL_OPS,
)

const python = process.env.TRAIN_CORE_PYTHON
test('transformers loads what train-core saves, and goes on alike', {
  skip: python ? false : 'TRAIN_CORE_PYTHON does not name a Python with torch and transformers',
}, async () => {
  const config = gpt2Config({ layers: 3, heads: 2, width: 48, vocabSize: 300, positions: 230 })
  const model = new GPT2(config)
  initRandom(model, 11)
  for (const { name, decay } of gpt2Parameters(config)) {
    const values = await model.parameters.read(name)
    if (decay)
      model.parameters.write(
        name,
        values.map(x => 8 * x),
      ) // else it says one token over and over
  }
  const saved = join(folder, 'for-transformers')
  await model.save(saved)
  const ids = [5, 17, 250, 299, 0]
  const script = join(import.meta.dirname, '../../../test/model/load_saved.py')
  const ran = spawnSync(python!, [script, saved, '200', ...ids.map(String)], { encoding: 'utf8' })
  assert.equal(ran.status, 0, ran.stderr)
  const theirs = JSON.parse(ran.stdout) as { keys: unknown; logits: number[]; continuation: number[] }
  assert.deepEqual(theirs.keys, { missing_keys: [], unexpected_keys: [], mismatched_keys: [], error_msgs: [] })
  const logits = await model.logits([ids])
  for (const [k, z] of logits.entries()) assert.ok(Math.abs(z - theirs.logits[k]!) < 1e-4, `logit ${k}`)
  const made: number[] = []
  for await (const id of generate(model, ids, { temperature: 0, maxTokens: 200, eosId: null })) made.push(id)
  assert.deepEqual(made, theirs.continuation)
  assert.ok(new Set(made).size > 10)
})

forEachDevice(
  'a frozen model is the same model, and is not trained',
  async (_device, precision) => {
    const load = async (frozen: boolean) => {
      const model = await GPT2.load(tinyFolder, { precision, frozen })
      const names = gpt2Parameters(model.config).map(p => p.name)
      const values = await Promise.all(names.map(name => model.parameters.read(name)))
      const logits = await model.logits([prompt])
      if (frozen) assert.throws(() => model.parameters.allocateGradients(), /a frozen model takes no gradients/)
      model.free()
      return { values, logits }
    }
    const [plain, frozen] = [await load(false), await load(true)]
    assertSame(frozen.logits, plain.logits, 'logits')
    for (const [k, values] of frozen.values.entries())
      assertSame(values, plain.values[k]!.map(rounder(precision)), `parameter ${k}`)
  },
  { ops: MODEL_OPS },
)

onEachDevice('a large frozen parameter is written in pieces', async device => {
  const parameters = new ParameterSet([{ name: 'w', shape: [1301, 1021], decay: true }], device, 'bf16', true)
  const values = Float32Array.from({ length: 1301 * 1021 }, (_, k) => k)
  parameters.write('w', values)
  assertSame(await parameters.read('w'), values.map(rounder('bf16')), 'w')
  parameters.free()
})
