// A model of one ONNX node, written as protobuf by hand (onnx/onnx.proto, field numbers beside each), so that onnxruntime can be a rival
// without a converter.

/** One node and its inputs, all f32; the output is called y. */
export interface OnnxNode {
  readonly op: string
  readonly inputs: readonly { readonly name: string; readonly shape: readonly number[] }[]
  readonly output: readonly number[]
}

const bytes = (text: string): number[] => [...Buffer.from(text)]

function varint(value: number): number[] {
  const out: number[] = []
  for (; value >= 0x80; value = Math.floor(value / 0x80)) out.push((value % 0x80) | 0x80)
  return [...out, value]
}
/** A field of a number, and one of bytes: text, or another message. */
const number = (field: number, value: number): number[] => [...varint(field * 8), ...varint(value)]
const block = (field: number, content: readonly number[]): number[] => [
  ...varint(field * 8 + 2),
  ...varint(content.length),
  ...content,
]

const FLOAT = 1
/** ValueInfoProto: name 1, type 2 { tensor_type 1 { elem_type 1, shape 2 { dim 1 { dim_value 1 } } } } */
function valueInfo(name: string, shape: readonly number[]): number[] {
  const dims = shape.flatMap(dim => block(1, number(1, dim)))
  return [...block(1, bytes(name)), ...block(2, block(1, [...number(1, FLOAT), ...block(2, dims)]))]
}

/** ModelProto: ir_version 1, graph 7, opset_import 8 { version 2 } */
export function onnxModel({ op, inputs, output }: OnnxNode): Uint8Array {
  // NodeProto: input 1, output 2, op_type 4
  const node = [...inputs.flatMap(one => block(1, bytes(one.name))), ...block(2, bytes('y')), ...block(4, bytes(op))]
  // GraphProto: node 1, name 2, input 11, output 12
  const graph = [
    ...block(1, node),
    ...block(2, bytes('bench')),
    ...inputs.flatMap(one => block(11, valueInfo(one.name, one.shape))),
    ...block(12, valueInfo('y', output)),
  ]
  return Uint8Array.from([...number(1, 8), ...block(7, graph), ...block(8, number(2, 17))])
}
