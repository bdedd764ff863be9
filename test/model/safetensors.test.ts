import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { TrainCoreError } from '../../lib/errors.js'
import {
  openModelTensors,
  openSafetensors,
  parseSafetensorsHeader,
  type TensorSource,
  writeModelTensors,
  writeSafetensors,
} from '../../lib/model/safetensors.js'
import { randomSource } from '../data/helpers.js'

const folder = await mkdtemp(join(tmpdir(), 'train-core-safetensors-'))
after(() => rm(folder, { recursive: true }))

const fileError = (message: RegExp) => ({ name: 'TrainCoreError', code: 'ERR_FILE', message })

/** A file by hand: the header's length, the header, the data. */
function bytesOf(header: string, data: Uint8Array = new Uint8Array(0), length?: bigint): Buffer {
  const json = Buffer.from(header)
  const start = Buffer.alloc(8)
  start.writeBigUInt64LE(length ?? BigInt(json.length))
  return Buffer.concat([start, json, data])
}

/** Six tensors: two of the numbers 1, -2, 0.5, one empty, one scalar, in another order than their data. */
const DATA = Buffer.concat([
  Buffer.from(Float32Array.of(1, -2, 0.5).buffer),
  Buffer.from(Uint16Array.of(0x3c00, 0xc000, 0x3800).buffer),
  Buffer.from(Uint16Array.of(0x3f80, 0xc000, 0x3f00).buffer),
  Buffer.from([7]),
  Buffer.from(BigInt64Array.of(-5n).buffer),
])
const HEADER =
  '{"__metadata__":{"format":"pt"},"half":{"dtype":"F16","shape":[3],"data_offsets":[12,18]},' +
  '"full":{"dtype":"F32","shape":[1,3],"data_offsets":[0,12]},"brain":{"dtype":"BF16","shape":[3,1],"data_offsets":[18,24]},' +
  '"empty":{"dtype":"F32","shape":[0,4],"data_offsets":[24,24]},"byte":{"dtype":"U8","shape":[],"data_offsets":[24,25]},' +
  '"long \\u0041\\"\\n":{"dtype":"I64","shape":[1],"data_offsets":[25,33]}}   '
const FILE = bytesOf(HEADER, DATA)

test('a file made by hand is read: dtypes, shapes, metadata, values', async () => {
  const path = join(folder, 'hand.safetensors')
  await writeFile(path, FILE)
  const file = await openSafetensors(path)
  assert.deepEqual(file.metadata, { format: 'pt' })
  assert.deepEqual([...file.tensors.keys()], ['full', 'half', 'brain', 'empty', 'byte', 'long A"\n'])
  assert.deepEqual(file.tensors.get('brain'), {
    dtype: 'BF16',
    shape: [3, 1],
    offset: FILE.length - 33 + 18,
    byteLength: 6,
  })
  for (const name of ['full', 'half', 'brain'])
    assert.deepEqual([...(await file.readFloat32(name))], [1, -2, 0.5], name)
  assert.equal((await file.readFloat32('empty')).length, 0)
  assert.deepEqual([...(await file.read('byte'))], [7])
  const into = new Uint8Array(8)
  assert.equal(await file.read('long A"\n', into), into)
  assert.equal(new BigInt64Array(into.buffer)[0], -5n)
  await assert.rejects(file.read('byte', into), { code: 'ERR_SHAPE' })
  await assert.rejects(file.read('absent'), {
    code: 'ERR_ARGUMENT',
    message: /hand.safetensors has no tensor "absent"/,
  })
  await assert.rejects(file.readFloat32('byte'), { code: 'ERR_DTYPE', message: /"byte" must be F32, F16.*; got U8/ })
  await truncate(path, FILE.length - 1)
  await assert.rejects(file.read('long A"\n'), fileError(/cut short while tensor "long A\\"\\n" was being read/))
  await file.close()
})

const one = (entry: string): string => `{"x":${entry}}`
const entry = (dtype: string, shape: string, offsets: string): string =>
  one(`{"dtype":${dtype},"shape":${shape},"data_offsets":${offsets}}`)
const F32x2 = '"dtype":"F32","shape":[2]'

const DAMAGED: [what: string, file: Buffer, message: RegExp][] = [
  ['an empty file', Buffer.alloc(0), /it has 0 bytes/],
  ['seven bytes', Buffer.alloc(7), /it has 7 bytes/],
  ['a huge header', bytesOf('{}', undefined, 1n << 63n), /ask for a header of 9223372036854775808 bytes/],
  ['a header past the end', bytesOf('{}', undefined, 3n), /header of 3 bytes does not fit .* 10 bytes/],
  ['a header of no bytes', bytesOf('', undefined, 0n), /does not begin with {/],
  ['leading space', bytesOf(' {}'), /does not begin with {/],
  ['an array', bytesOf('[]'), /does not begin with {/],
  ['broken JSON', bytesOf('{"x":'), /is not JSON/],
  ['two JSON values', bytesOf('{}{}'), /is not JSON/],
  [
    'bad UTF-8',
    Buffer.from(bytesOf('{"__metadata__":{"a":"~"}}').map(byte => (byte === 0x7e ? 0xff : byte))),
    /is not JSON/,
  ],
  ['metadata of numbers', bytesOf('{"__metadata__":{"a":1}}'), /__metadata__ must be an object of strings/],
  ['a tensor that is a number', bytesOf(one('1')), /tensor "x" is not described by an object/],
  ['an unknown dtype', bytesOf(entry('"F31"', '[]', '[0,4]'), Buffer.alloc(4)), /"x" has the unknown dtype "F31"/],
  ['a dtype from the prototype', bytesOf(entry('"toString"', '[]', '[0,4]'), Buffer.alloc(4)), /unknown dtype/],
  ['no dtype', bytesOf(one('{"shape":[],"data_offsets":[0,0]}')), /unknown dtype nothing/],
  ['a negative dimension', bytesOf(entry('"F32"', '[-1]', '[0,4]'), Buffer.alloc(4)), /has the shape \[-1\]/],
  ['a fraction', bytesOf(entry('"F32"', '[0.5]', '[0,2]'), Buffer.alloc(2)), /has the shape \[0.5\]/],
  ['no shape', bytesOf(one('{"dtype":"F32","data_offsets":[0,0]}')), /has the shape nothing/],
  ['one offset', bytesOf(entry('"U8"', '[0]', '[0]')), /has the data_offsets \[0\]/],
  ['offsets backwards', bytesOf(entry('"U8"', '[4]', '[4,0]'), Buffer.alloc(4)), /has the data_offsets \[4,0\]/],
  ['too few bytes', bytesOf(entry('"F32"', '[2]', '[0,7]'), Buffer.alloc(7)), /is \[2\] F32, 8 bytes, but .* \[0,7\]/],
  ['overflow', bytesOf(entry('"F32"', '[4294967296,4294967296]', '[0,0]')), /no whole number of bytes/],
  ['overflow times 0', bytesOf(entry('"F32"', '[4294967296,4294967296,0]', '[0,0]')), /no whole number of bytes/],
  ['half a byte', bytesOf(entry('"F4"', '[3]', '[0,1]'), Buffer.alloc(1)), /no whole number of bytes/],
  [
    'a gap before',
    bytesOf(entry('"U8"', '[1]', '[1,2]'), Buffer.alloc(2)),
    /"x" leaves a gap: .* begin at 1, wanted 0/,
  ],
  ['bytes left over', bytesOf(entry('"U8"', '[1]', '[0,1]'), Buffer.alloc(2)), /end at byte .* but the file has/],
  ['a file cut short', FILE.subarray(0, -1), /\(cut short\?\)/],
  ['a file cut in its header', FILE.subarray(0, 100), /does not fit/],
  [
    'an overlap',
    bytesOf(`{"a":{${F32x2},"data_offsets":[0,8]},"b":{${F32x2},"data_offsets":[4,12]}}`, Buffer.alloc(12)),
    /tensor "b" overlaps another: its data begin at 4, wanted 8/,
  ],
  [
    'a tensor twice',
    bytesOf(`{"a":{${F32x2},"data_offsets":[0,8]},"\\u0061":{${F32x2},"data_offsets":[0,8]}}`, Buffer.alloc(8)),
    /has the name "a" twice/,
  ],
  [
    'a key twice',
    bytesOf(one(`{${F32x2},"shape":[2],"data_offsets":[0,8]}`), Buffer.alloc(8)),
    /the name "shape" twice/,
  ],
]

test('a damaged file is refused in one line that names file, tensor and reason', async () => {
  for (const [what, bytes, message] of DAMAGED) {
    const path = join(folder, 'damaged.safetensors')
    await writeFile(path, bytes)
    await assert.rejects(openSafetensors(path), (error: unknown) => {
      assert.ok(error instanceof TrainCoreError, `${what}: ${error}`)
      assert.equal(error.code, 'ERR_FILE', what)
      assert.match(error.message, message, what)
      assert.ok(error.message.startsWith(`${path} is not a valid safetensors file: `), error.message)
      assert.ok(!error.message.includes('\n') && error.message.length < 400, error.message)
      return true
    })
  }
  await assert.rejects(openSafetensors(join(folder, 'absent')), fileError(/cannot read .*absent: no such file/))
  await assert.rejects(openSafetensors(folder), fileError(/it is a folder/))
})

test('100,000 mutated files: an error or a right answer', () => {
  const random = randomSource(1)
  const below = (n: number): number => Math.floor(random() * n)
  const headerEnd = FILE.length - DATA.length
  const snippets = [
    '"',
    '{',
    '}',
    '[',
    ']',
    ',',
    ':',
    '0',
    '-',
    '9',
    '1e9',
    '\\',
    '"shape"',
    'null',
    '"F32"',
    '\0',
    '12',
  ].map(s => Buffer.from(s))
  let accepted = 0
  let refused = 0
  for (let round = 0; round < 100_000; round++) {
    let file = Buffer.from(FILE)
    for (let edits = 1 + below(3); edits > 0; edits--) {
      const at = random() < 0.9 ? 8 + below(headerEnd - 8) : below(file.length)
      const kind = below(6)
      if (kind === 0) file[Math.min(at, file.length - 1)] = below(256)
      else if (kind === 1) file[Math.min(at, file.length - 1)] ^= 1 << below(8)
      else if (kind === 2) file = file.subarray(0, at)
      else if (kind === 3) file = Buffer.concat([file.subarray(0, at), file.subarray(at + 1 + below(4))])
      else snippets[below(snippets.length)].copy(file, at)
      if (file.length === 0) break
      if (kind === 5 && file.length > 8) file.writeBigUInt64LE(BigInt(Math.max(0, file.length - 8 - below(40))))
    }
    try {
      const { tensors } = parseSafetensorsHeader(file, file.length)
      accepted++
      let end = 8 + Number(file.readBigUInt64LE())
      for (const { offset, byteLength } of tensors.values()) {
        assert.equal(offset, end)
        end += byteLength
      }
      assert.equal(end, file.length)
    } catch (error) {
      if (!(error instanceof TrainCoreError)) throw error
      assert.equal(error.code, 'ERR_FILE')
      assert.ok(error.message.length < 500)
      refused++
    }
  }
  assert.ok(accepted > 500 && refused > 50_000, `${accepted} accepted, ${refused} refused`)
})

const f32 = (name: string, ...values: number[]): TensorSource => ({
  name,
  dtype: 'F32',
  shape: [values.length],
  data: () => Float32Array.from(values),
})

test('what is written is read again; the same tensors give the same bytes; all are aligned', async () => {
  const tensors: TensorSource[] = [
    { name: 'bytes', dtype: 'U8', shape: [3], data: () => Uint8Array.of(1, 2, 3) },
    f32('__proto__', 1, 2, 3),
    f32('7', 4),
    { name: 'brain', dtype: 'BF16', shape: [1], data: async () => Uint16Array.of(0x3f80) },
    { name: 'ids', dtype: 'I64', shape: [2], data: () => BigInt64Array.of(1n, -1n).subarray(0) },
    { name: 'part', dtype: 'F32', shape: [2, 1], data: () => Float32Array.of(9, 8, 7, 6).subarray(1, 3) },
    { name: 'none', dtype: 'F32', shape: [0], data: () => new Float32Array(0) },
  ]
  const [a, b] = [join(folder, 'a.safetensors'), join(folder, 'b.safetensors')]
  await writeSafetensors(a, tensors)
  await writeSafetensors(b, tensors)
  assert.ok((await readFile(a)).equals(await readFile(b)))
  assert.equal(Number((await readFile(a)).readBigUInt64LE()) % 8, 0)
  const file = await openSafetensors(a)
  assert.deepEqual(file.metadata, { format: 'pt' })
  assert.deepEqual([...file.tensors.keys()], ['ids', '__proto__', '7', 'part', 'none', 'brain', 'bytes'])
  for (const { offset, byteLength, shape } of file.tensors.values())
    assert.equal(byteLength && offset % (byteLength / shape.reduce((x, y) => x * y, 1)), 0)
  assert.deepEqual([...(await file.readFloat32('__proto__'))], [1, 2, 3])
  assert.deepEqual([...(await file.readFloat32('part'))], [8, 7])
  assert.deepEqual([...(await file.readFloat32('brain'))], [1])
  assert.deepEqual([...new BigInt64Array((await file.read('ids')).buffer as ArrayBuffer)], [1n, -1n])
  await file.close()
  await writeSafetensors(a, [], { note: 'é' })
  assert.deepEqual((await openedAndClosed(a)).metadata, { note: 'é' })
})

test('tensors that cannot be written are refused before anything is', async () => {
  const path = join(folder, 'refused.safetensors')
  const write = (...tensors: TensorSource[]): Promise<void> => writeSafetensors(path, tensors)
  await assert.rejects(write(f32('x', 1), f32('x', 2)), { code: 'ERR_ARGUMENT', message: /named "x" twice/ })
  await assert.rejects(write(f32('__metadata__', 1)), { code: 'ERR_ARGUMENT' })
  await assert.rejects(write({ ...f32('x', 1), dtype: 'F99' }), { code: 'ERR_DTYPE', message: /unknown dtype "F99"/ })
  await assert.rejects(write({ ...f32('x', 1), shape: [0.25, 4] }), { code: 'ERR_SHAPE' })
  await assert.rejects(write({ ...f32('x', 1), shape: [2] }), {
    code: 'ERR_SHAPE',
    message: /"x" takes 8 bytes; got 4/,
  })
  assert.ok(!existsSync(path) && !existsSync(`${path}.partial`))
})

test('a write that fails leaves the earlier file, nothing partial, and says why', async () => {
  const path = join(folder, 'kept.safetensors')
  await writeSafetensors(path, [f32('x', 1)])
  const before = await readFile(path)
  const failing: TensorSource = {
    ...f32('y', 1, 2),
    data: () => Promise.reject(new TrainCoreError('ERR_DEVICE', 'lost the device')),
  }
  await assert.rejects(writeSafetensors(path, [f32('x', 1), failing]), {
    code: 'ERR_DEVICE',
    message: 'lost the device',
  })
  const cause = { ...failing, data: () => Promise.reject(new Error('first line\nsecond line')) }
  await assert.rejects(writeSafetensors(path, [cause]), fileError(/^cannot write .*kept.safetensors: first line$/))
  await assert.rejects(
    writeSafetensors(join(folder, 'absent', 'x.safetensors'), []),
    fileError(/cannot write .*x.safetensors: no such file or folder/),
  )
  assert.ok((await readFile(path)).equals(before))
  assert.ok(!existsSync(`${path}.partial`))
})

const full = { skip: existsSync('/dev/full') ? false : 'skipped: this system has no /dev/full' }
test('a full disk is reported in one line and leaves nothing behind', full, async () => {
  const path = join(folder, 'full.safetensors')
  await symlink('/dev/full', `${path}.partial`)
  await assert.rejects(
    writeSafetensors(path, [f32('x', 1)]),
    fileError(/^cannot write .*full.safetensors: the disk is full$/),
  )
  assert.ok(!existsSync(path))
  assert.ok(!(await readdir(folder)).includes('full.safetensors.partial'))
})

test('a model above the shard size is sharded with an index, and read as one', async () => {
  const model = join(folder, 'model')
  await mkdir(model)
  const tensors = [f32('a', 1, 2), f32('b', 3), f32('c', 4, 5, 6), f32('d', 7)]
  await writeModelTensors(model, tensors, { maxShardBytes: 12 })
  const shard = (k: number): string => `model-0000${k}-of-00003.safetensors`
  assert.deepEqual(await readdir(model).then(names => names.sort()), [
    shard(1),
    shard(2),
    shard(3),
    'model.safetensors.index.json',
  ])
  assert.deepEqual(JSON.parse(await readFile(join(model, 'model.safetensors.index.json'), 'utf8')), {
    metadata: { total_size: 28 },
    weight_map: { a: shard(1), b: shard(1), c: shard(2), d: shard(3) },
  })
  const sharded = await openModelTensors(model)
  assert.deepEqual(Object.fromEntries(sharded.shapes), { a: [2], b: [1], c: [3], d: [1] })
  assert.deepEqual([...(await sharded.readFloat32('c'))], [4, 5, 6])
  assert.equal((await sharded.read('d')).byteLength, 4)
  await assert.rejects(async () => await sharded.readFloat32('e'), { code: 'ERR_ARGUMENT' })
  await sharded.close()
  await writeModelTensors(model, tensors)
  assert.deepEqual(await readdir(model), ['model.safetensors'])
  const single = await openModelTensors(model)
  assert.deepEqual([...(await single.readFloat32('a'))], [1, 2])
  await single.close()
})

test('an index that does not fit its shards is refused', async () => {
  const model = join(folder, 'broken')
  await mkdir(model)
  await assert.rejects(openModelTensors(model), fileError(/neither model.safetensors nor .*index.json; help: /))
  const index = (value: unknown): Promise<void> =>
    writeFile(join(model, 'model.safetensors.index.json'), typeof value === 'string' ? value : JSON.stringify(value))
  await writeSafetensors(join(model, 's1.safetensors'), [f32('a', 1), f32('b', 2)])
  await writeSafetensors(join(model, 's2.safetensors'), [f32('b', 2)])
  const cases: [unknown, RegExp][] = [
    ['{', /is not JSON/],
    [{}, /must have a weight_map/],
    [
      { weight_map: { a: '../s1.safetensors' } },
      /puts tensor "a" into "\.\.\/s1.safetensors", wanted a file of the same/,
    ],
    [{ weight_map: { a: 5 } }, /puts tensor "a" into 5/],
    [{ weight_map: { a: 's3.safetensors' } }, /cannot read .*s3.safetensors: no such file/],
    [{ weight_map: { a: 's1.safetensors' } }, /s1.safetensors has tensor "b", which .* puts into no file/],
    [{ weight_map: { b: 's1.safetensors', a: 's2.safetensors' } }, /s1.safetensors has tensor "a", which .* into s2/],
    [{ weight_map: { b: 's2.safetensors', c: 's2.safetensors' } }, /s2.safetensors lacks tensor "c"/],
  ]
  for (const [value, message] of cases) {
    await index(value)
    await assert.rejects(openModelTensors(model), fileError(message))
  }
})

async function openedAndClosed(path: string): Promise<Awaited<ReturnType<typeof openSafetensors>>> {
  const file = await openSafetensors(path)
  await file.close()
  return file
}
