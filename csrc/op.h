// The op table: ids, packets, and what a shape rule and a kernel are given.
#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "error.h"

namespace tc {

enum class DType : int32_t { f32, bf16, f16, i32, u16, u8, count };
constexpr size_t dtype_size(DType t) { return t == DType::f32 || t == DType::i32 ? 4 : t == DType::u8 ? 1 : 2; }
constexpr bool is_float(DType t) { return t == DType::f32 || t == DType::bf16 || t == DType::f16; }
const char* dtype_name(DType t);

constexpr int kMaxRank = 4, kMaxInputs = 8, kMaxOutputs = 4, kMaxScalars = 12;

// A tensor as a kernel sees it: row-major, contiguous. data == nullptr: the optional tensor is absent.
struct View {
  void* data = nullptr;
  int64_t dim[kMaxRank] = {1, 1, 1, 1};
  int32_t rank = 0;
  DType dtype = DType::f32;

  int64_t size() const { return dim[0] * dim[1] * dim[2] * dim[3]; }
  int64_t last() const { return rank ? dim[rank - 1] : 1; }
  int64_t rows() const { return last() ? size() / last() : 0; }
  size_t bytes() const { return size_t(size()) * dtype_size(dtype); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  float* f32() const { return as<float>(); }
  int32_t* i32() const { return as<int32_t>(); }
};
std::string describe(const View& v);  // "[2, 3] f32"

enum class Op : int32_t {
#define OP(id, ...) id,
#include "ops.def"
  count
};
constexpr int kOpCount = int(Op::count);

struct OpInfo {
  const char *name, *inputs, *outputs, *scalars;
  int input_count, output_count, scalar_count;
  bool has_workspace;
  char output_kind[kMaxOutputs];      // ' ' plain, '+' accumulates, '!' in place
  bool output_optional[kMaxOutputs];  // '?'
  bool input_optional[kMaxInputs];
};
const OpInfo& op_info(Op op);

union Scalar {
  float f;
  int32_t i;
};

// One call, 32 words: what TypeScript writes, what a recording stores and compares, what a replay runs.
struct Packet {
  int32_t op;
  int32_t in[kMaxInputs];    // tensor ids; 0: absent
  int32_t out[kMaxOutputs];  // 0: make one; -1: not wanted; > 0: an existing tensor
  Scalar scalar[kMaxScalars];
  int32_t reserved[7];
};
static_assert(sizeof(Packet) == 128);

class Device;

// What a shape rule fills and a kernel reads.
struct Args {
  Op op = Op::count;
  View in[kMaxInputs], out[kMaxOutputs];
  int32_t want[kMaxOutputs] = {};  // as Packet::out: 0 fresh, -1 not wanted, > 0 existing
  Scalar scalar[kMaxScalars] = {};
  View workspace;            // u8 [bytes] where the backend asked for one
  Device* device = nullptr;  // whose stream runs the kernel

  float f(int k) const { return scalar[k].f; }
  int32_t i(int k) const { return scalar[k].i; }
  bool has(int k) const { return in[k].data; }        // input k was given
  bool wants(int k) const { return want[k] >= 0; }    // output k is to be written
  bool existing(int k) const { return want[k] > 0; }  // output k was given: add to it if its kind is '+'

  // For shape rules. output() states dtype and dims of output k: sizes a fresh one, checks an existing one.
  void output(int k, DType dtype, std::initializer_list<int64_t> dims);
  void output_like(int k, const View& v) { output_like(k, v, v.dtype); }
  void output_like(int k, const View& v, DType dtype);
  // Throws ERR_SHAPE / ERR_DTYPE / ERR_ARGUMENT: "[op] wanted; got ..."
  void require_shape(bool ok, const char* wanted, const View& got) const;
  void require_dtype(bool ok, const char* wanted, const View& got) const;
  void require(bool ok, const std::string& wanted_and_got) const;
};
// An asynchronous failure inside a kernel, e.g. a token id outside the vocabulary: "[op] message".
[[noreturn]] void fail(const Args& x, const char* code, const std::string& message);

using ShapeRule = void (*)(Args&);
using Kernel = void (*)(const Args&);
using WorkspaceSize = size_t (*)(const Args&);  // bytes; shapes are settled, data pointers are not

namespace shape {
#define OP(id, ...) void id(Args&);
#include "ops.def"
}  // namespace shape

}  // namespace tc
