#include "op.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace tc {

const char* dtype_name(DType t) {
  static const char* names[] = {"f32", "bf16", "f16", "i32", "u16", "u8"};
  return t >= DType::f32 && t < DType::count ? names[int(t)] : "unknown dtype";
}

std::string describe(const View& v) {
  std::string text = "[";
  for (int k = 0; k < v.rank; k++) text += (k ? ", " : "") + std::to_string(v.dim[k]);
  return text + "] " + dtype_name(v.dtype);
}

namespace {

// Splits "a[M,K] bias[N]? !out[N]" at blanks; a name is what stands before its bracket.
struct Word {
  std::string name;
  char kind;
  bool optional;
};
std::vector<Word> words(const char* text) {
  std::vector<Word> list;
  std::string word;
  for (const char* c = text;; c++) {
    if (*c && *c != ' ') {
      word += *c;
      continue;
    }
    if (!word.empty()) {
      const bool marked = word[0] == '+' || word[0] == '!';
      list.push_back({word.substr(marked, word.find('[') - marked), marked ? word[0] : ' ', word.back() == '?'});
      word.clear();
    }
    if (!*c) return list;
  }
}

struct Table {
  std::array<OpInfo, kOpCount> info;
  std::array<std::array<std::string, kMaxOutputs>, kOpCount> output_name;
};

Table make_table() {
  static const struct {
    const char *name, *inputs, *outputs, *scalars;
  } rows[] = {
#define OP(id, inputs, outputs, scalars) {#id, inputs, outputs, scalars},
#include "ops.def"
  };
  Table table{};
  for (int op = 0; op < kOpCount; op++) {
    OpInfo& info = table.info[op];
    const auto inputs = words(rows[op].inputs), outputs = words(rows[op].outputs), scalars = words(rows[op].scalars);
    info = {rows[op].name,
            rows[op].inputs,
            rows[op].outputs,
            rows[op].scalars,
            int(inputs.size()),
            int(outputs.size()),
            int(scalars.size()),
            false,
            {},
            {},
            {}};
    if (inputs.size() > kMaxInputs || outputs.size() > kMaxOutputs || scalars.size() > kMaxScalars)
      throw Error("ERR_ARGUMENT", std::string(info.name) + " has more inputs, outputs or scalars than a packet holds");
    for (size_t k = 0; k < inputs.size(); k++) info.input_optional[k] = inputs[k].optional;
    for (size_t k = 0; k < outputs.size(); k++) {
      info.output_kind[k] = outputs[k].kind;
      info.output_optional[k] = outputs[k].optional;
      table.output_name[op][k] = outputs[k].name;
    }
  }
#define OP(...)
#define WORKSPACE(id) table.info[int(Op::id)].has_workspace = true;
#include "ops.def"
  return table;
}
const Table& table() {
  static const Table t = make_table();
  return t;
}

std::string prefix(Op op) { return std::string("[") + op_info(op).name + "] "; }

View shaped(DType dtype, const int64_t* dims, size_t rank) {
  View v;
  v.dtype = dtype;
  v.rank = int32_t(rank);
  for (size_t k = 0; k < rank; k++) v.dim[k] = dims[k];
  return v;
}

void settle_output(Args& x, int k, const View& wanted) {
  if (x.want[k] < 0) return;
  double size = 1;
  for (int d = 0; d < wanted.rank; d++) {
    if (wanted.dim[d] < 0 || wanted.dim[d] > INT32_MAX)
      throw Error("ERR_SHAPE",
                  prefix(x.op) + "a dimension must be >= 0 and below 2^31; its output would be " + describe(wanted));
    size *= double(std::max<int64_t>(wanted.dim[d], 1));  // products of some dims must not overflow either
  }
  if (size >= 0x1p53)
    throw Error("ERR_SHAPE", prefix(x.op) + "its output would have 2^53 elements or more: " + describe(wanted));
  if (x.want[k] == 0) {
    x.out[k] = wanted;
    return;
  }
  const View& got = x.out[k];
  const std::string& name = table().output_name[int(x.op)][k];
  if (got.dtype != wanted.dtype)
    throw Error("ERR_DTYPE",
                prefix(x.op) + "output " + name + " must be " + describe(wanted) + "; got " + describe(got));
  if (got.size() != wanted.size() || (wanted.rank > 1 && got.last() != wanted.last()))
    throw Error("ERR_SHAPE",
                prefix(x.op) + "output " + name + " must be " + describe(wanted) + "; got " + describe(got));
}

}  // namespace

const OpInfo& op_info(Op op) { return table().info[int(op)]; }

void Args::output(int k, DType dtype, std::initializer_list<int64_t> dims) {
  settle_output(*this, k, shaped(dtype, dims.begin(), dims.size()));
}
void Args::output_like(int k, const View& v, DType dtype) {
  settle_output(*this, k, shaped(dtype, v.dim, size_t(v.rank)));
}

void Args::require_shape(bool ok, const char* wanted, const View& got) const {
  if (!ok) throw Error("ERR_SHAPE", prefix(op) + wanted + "; got " + describe(got));
}
void Args::require_dtype(bool ok, const char* wanted, const View& got) const {
  if (!ok) throw Error("ERR_DTYPE", prefix(op) + wanted + "; got " + describe(got));
}
void Args::require(bool ok, const std::string& wanted_and_got) const {
  if (!ok) throw Error("ERR_ARGUMENT", prefix(op) + wanted_and_got);
}
void fail(const Args& x, const char* code, const std::string& message) { throw Error(code, prefix(x.op) + message); }

}  // namespace tc
