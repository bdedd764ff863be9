/*
Head and losses together, so that no [R,V] tensor of student or teacher ever exists.

  per chunk of rows: z_s = hidden·headᵀ, z_t = teacher_hidden·teacher_headᵀ; the losses and d_z (loss.cu);
  d_hidden = d_z·head; d_head += d_zᵀ·hidden
Logits of bf16 operands are kept in f16, each row's less the largest of its first 128 (the losses do not change by a
constant of a row): within 2^-11 of how far they lie from it, where bf16 has 2^-8 of themselves; d_z takes their place.
So a chunk's rows take 4 bytes a column with a teacher, not 10, and the loss kernels move as much less. Others are f32.
Ignored rows are left out: where there may be some, the rows that count are first listed, then gathered chunk by chunk.
How many they are only the device knows, so chunks behind them run empty. After Liger-Kernel's fused linear
cross-entropy (Hsu et al. 2024, 2410.10989).
Ladder: kernel1 lists the rows with one block and moves 2 bytes at a time; kernel2 lists 1,024 rows a block and moves
16 bytes. Not run on a GPU; nor has it been measured what f16 logits win.
*/
#include "kernels.h"
#include "loss.cuh"
#include "pack.cuh"

namespace tc::cuda {

namespace {

constexpr int64_t kLogits = int64_t(800) << 20;  // bytes of a chunk's logits and their gradient
#ifdef TC_CUDA_EMULATED
constexpr int64_t kMostRows = 256;  // several chunks of few rows
#else
constexpr int64_t kMostRows = 2048;
#endif
constexpr int64_t kRowStep = 64;
constexpr int64_t kShiftColumns = 128;  // whose largest logit a row of f16 logits is relative to

int64_t rows_of(const View& v) { return v.size() ? v.rows() : 0; }

// rows = the numbers of the rows that count, in order; *total = how many. One block; each thread takes a stretch.
__global__ void list_rows_kernel1(int32_t* rows, int32_t* total, LossInputs in, int64_t R) {
  __shared__ int32_t scratch[kWarps];
  const int64_t share = (R + kThreads - 1) / kThreads, begin = threadIdx.x * share;
  const int64_t end = begin + share < R ? begin + share : R;
  int32_t mine = 0;
  for (int64_t r = begin; r < end; r++) mine += in.weight(r) != 0;
  const int32_t upto = block_scan(mine, scratch);
  int32_t at = upto - mine;
  for (int64_t r = begin; r < end; r++)
    if (in.weight(r) != 0) rows[at++] = int32_t(r);
  if (threadIdx.x == kThreads - 1) *total = upto;
}

// The same by blocks of kListed rows: how many each has, then their places.
constexpr int kListed = 4 * kThreads;

__device__ int32_t counted_rows(const LossInputs& in, int64_t R, bool (&counts)[4]) {
  const int64_t first = blockIdx.x * int64_t(kListed) + threadIdx.x * 4;
  int32_t mine = 0;
#pragma unroll
  for (int k = 0; k < 4; k++) {
    counts[k] = first + k < R && in.weight(first + k) != 0;
    mine += counts[k];
  }
  return mine;
}
__global__ void count_rows_kernel2(int32_t* blocks, LossInputs in, int64_t R) {
  __shared__ int32_t scratch[kWarps];
  bool counts[4];
  const int32_t all = block_join(counted_rows(in, R, counts), Add(), scratch);
  if (threadIdx.x == 0) blocks[blockIdx.x] = all;
}
__global__ void list_rows_kernel2(int32_t* rows, int32_t* total, const int32_t* blocks, LossInputs in, int64_t R) {
  __shared__ int32_t scratch[kWarps];
  bool counts[4];
  int32_t before = 0;
  for (unsigned b = threadIdx.x; b < blockIdx.x; b += kThreads) before += blocks[b];
  before = block_join(before, Add(), scratch);
  const int32_t mine = counted_rows(in, R, counts), upto = before + block_scan(mine, scratch);
  int32_t at = upto - mine;
#pragma unroll
  for (int k = 0; k < 4; k++)
    if (counts[k]) rows[at++] = int32_t(blockIdx.x * kListed + threadIdx.x * 4 + k);
  if (blockIdx.x + 1 == gridDim.x && threadIdx.x == kThreads - 1) *total = upto;
}

// to[k] = from[rows[k]], and zeros behind the last; or to[rows[k]] = from[k]. A block a row of so many bytes.
template <bool gather>
__global__ void move_rows_kernel1(char* to, const char* from, const int32_t* rows, RowCount count, int64_t n,
                                  int64_t bytes) {
  const int64_t k = blockIdx.x;
  const bool counts = k < count.of(n);
  if (!counts && !(gather && k < count.read(n))) return;
  uint16_t* out = reinterpret_cast<uint16_t*>(to + (gather ? k : rows[k]) * bytes);
  const uint16_t* in = counts ? reinterpret_cast<const uint16_t*>(from + (gather ? rows[k] : k) * bytes) : nullptr;
  for (int64_t b = threadIdx.x; b < bytes / 2; b += kThreads) out[b] = in ? in[b] : uint16_t(0);
}

// A warp a row, 16 bytes at a time.
template <bool gather>
__global__ void move_rows_kernel2(char* to, const char* from, const int32_t* rows, RowCount count, int64_t n,
                                  int64_t bytes) {
  const int64_t k = blockIdx.x * int64_t(kWarps) + warp();
  if (k >= n) return;
  const bool counts = k < count.of(n);
  if (!counts && !(gather && k < count.read(n))) return;
  char* out = to + (gather ? k : rows[k]) * bytes;
  const char* in = counts ? from + (gather ? rows[k] : k) * bytes : nullptr;
  for (int64_t at = lane() * 16; at < bytes; at += 32 * 16)
    store_words(out + at, in ? *reinterpret_cast<const Words4*>(in + at) : Words4{});
}
template <bool gather>
void move_rows(const Context& c, char* to, const char* from, const int32_t* rows, RowCount count, int64_t n,
               int64_t bytes) {
  if (c.plain || !is_vector(to, bytes) || !is_vector(from))
    run(c, move_rows_kernel1<gather>, dim3(unsigned(n)), kThreads, to, from, rows, count, n, bytes);
  else
    run(c, move_rows_kernel2<gather>, dim3(unsigned(divide_up(n, kWarps))), kThreads, to, from, rows, count, n, bytes);
}

// shift[k] = the largest of first[k], kShiftColumns or fewer columns; 0 where that is not finite. A warp a row.
__global__ void row_shifts_kernel1(float* shift, const float* first, RowCount count, int64_t n, int64_t columns) {
  const int64_t k = blockIdx.x * int64_t(kWarps) + warp();
  if (k >= n) return;
  float high = -INFINITY;
  if (k < count.of(n))
    for (int64_t v = lane(); v < columns; v += 32) high = larger(high, first[k * kShiftColumns + v]);
  high = warp_join(high, Larger());
  if (lane() == 0) shift[k] = isfinite(high) ? high : 0;
}

bool all_bf16(const Args& x, bool teacher) {
  for (const int k : {0, 1, 4, 5})
    if ((k < 2 || teacher) && x.in[k].dtype != DType::bf16) return false;
  return true;
}

// Sizes of one call, and where its workspace's parts begin.
struct Plan {
  const LossSettings settings;
  bool teacher, listed, d_is_bf16, halves;
  int64_t R, C, Ct, stride, chunk;  // elements from one row of logits to the next; rows of a chunk
  size_t rows, total, blocks, z, z_t, d, hidden, t_hidden, d_hidden, first, shift, bytes = 0;

  Plan(const Args& x, const Context& c, bool backward)
      : settings(x),
        teacher(settings.full_teacher()),
        listed(x.has(2) || x.has(3)),
        d_is_bf16(backward && x.in[0].dtype == DType::bf16),
        halves(all_bf16(x, teacher) && takes_halves(c, settings)),
        R(rows_of(x.in[0])),
        C(x.in[0].last()),
        Ct(teacher ? x.in[4].last() : 0),
        stride(round_up(settings.vocab, 64)) {
    const int64_t size = halves ? 2 : 4, row_bytes = stride * (size * (1 + teacher) + (d_is_bf16 && !halves ? 2 : 0));
    chunk = kLogits / row_bytes / kRowStep * kRowStep;
    if (chunk < kRowStep) chunk = kRowStep;
    if (chunk > kMostRows) chunk = kMostRows;
    if (chunk > R) chunk = R;
    rows = take(listed ? R * 4 : 0);
    total = take(4);
    blocks = take(divide_up(R, kListed) * 4);
    z = take(chunk * stride * size);
    z_t = take(teacher ? chunk * stride * size : 0);
    d = d_is_bf16 && !halves ? take(chunk * stride * 2) : z;
    hidden = take(listed ? chunk * C * int64_t(dtype_size(x.in[0].dtype)) : 0);
    t_hidden = take(listed ? chunk * Ct * int64_t(dtype_size(x.in[4].dtype)) : 0);
    d_hidden = take(listed && backward ? chunk * C * int64_t(dtype_size(x.in[0].dtype)) : 0);
    first = take(halves ? chunk * kShiftColumns * 4 : 0);
    shift = take(halves ? chunk * 4 : 0);
  }
  size_t take(int64_t size) {
    const size_t begin = bytes;
    bytes += size_t(round_up(size, 256));
    return begin;
  }
};

// One call; d_hidden, d_head, parts: null data where not wanted.
struct HeadLoss {
  const Args& x;
  const Context& c;
  const Plan plan;
  const LossInputs in;
  const View &d_hidden, &d_head, &parts;

  char* space(size_t at) const { return x.workspace.as<char>() + at; }
  int32_t* list() const { return reinterpret_cast<int32_t*>(space(plan.rows)); }
  RowCount count(int64_t begin) const {
    return {plan.listed ? reinterpret_cast<const int32_t*>(space(plan.total)) : nullptr, begin};
  }
  static char* row(const View& v, int64_t r) { return v.as<char>() + r * v.last() * int64_t(dtype_size(v.dtype)); }

  // The chunk's rows of v, gathered into `buffer` where they are listed.
  Floats chunk_of(const View& v, size_t buffer, int64_t begin, int64_t n) const {
    const bool is_bf16 = v.dtype == DType::bf16;
    if (!plan.listed) return {row(v, begin), is_bf16};
    move_rows<true>(c, space(buffer), v.as<char>(), list() + begin, count(begin), n,
                    v.last() * int64_t(dtype_size(v.dtype)));
    return {space(buffer), is_bf16};
  }
  Floats logits(Floats hidden, const View& head, size_t z, int64_t begin, int64_t n) const {
    Product p;
    p.M = n, p.N = plan.settings.vocab, p.K = head.last();
    p.a = hidden, p.b = floats(head), p.out = {space(z), false};
    p.lda = p.ldb = p.K, p.ldo = plan.stride;
    p.trans_b = true;
    p.rows = count(begin);
    if (plan.halves) {
      Product few = p;
      few.N = p.N < kShiftColumns ? p.N : kShiftColumns;
      few.out = {space(plan.first), false}, few.ldo = kShiftColumns;
      multiply(c, few);
      float* shift = reinterpret_cast<float*>(space(plan.shift));
      run(c, row_shifts_kernel1, dim3(unsigned(divide_up(n, kWarps))), kThreads, shift,
          static_cast<const float*>(few.out.data), p.rows, n, few.N);
      p.out.is_bf16 = true;  // of its size
      p.shift = shift;
    }
    multiply(c, p);
    return p.out;
  }
  void gradients(Floats hidden, Floats d, int64_t begin, int64_t n) const {
    const bool is_bf16 = d_hidden.dtype == DType::bf16;
    Product p;
    p.M = n, p.N = plan.C, p.K = plan.settings.vocab;
    p.a = d, p.b = floats(x.in[1]);
    p.out = {plan.listed ? space(plan.d_hidden) : row(d_hidden, begin), is_bf16};
    p.lda = plan.stride, p.ldb = p.ldo = plan.C;
    p.rows = count(begin);
    multiply(c, p);
    if (plan.listed)
      move_rows<false>(c, d_hidden.as<char>(), space(plan.d_hidden), list() + begin, count(begin), n,
                       plan.C * int64_t(dtype_size(d_hidden.dtype)));
    if (!d_head.data) return;
    Product h;
    h.M = plan.settings.vocab, h.N = plan.C, h.K = n;
    h.a = d, h.b = hidden, h.out = floats(d_head);
    h.lda = plan.stride, h.ldb = h.ldo = plan.C;
    h.trans_a = h.accumulate = true;
    h.steps = count(begin);
    multiply(c, h);
  }
  void chunk(int64_t begin, int64_t n) const {
    const Floats hidden = chunk_of(x.in[0], plan.hidden, begin, n);
    LossRows rows{plan.settings, in, logits(hidden, x.in[1], plan.z, begin, n)};
    if (plan.teacher) rows.teacher = logits(chunk_of(x.in[4], plan.t_hidden, begin, n), x.in[5], plan.z_t, begin, n);
    rows.halves = plan.halves;
    rows.student_stride = rows.teacher_stride = rows.d_stride = plan.stride;
    rows.d_columns = plan.settings.vocab;
    if (d_hidden.data) rows.d = {space(plan.d), plan.d_is_bf16};
    rows.parts = parts.f32();
    rows.rows = list() + begin;
    rows.count = count(begin);
    if (!plan.listed) {
      rows.rows = nullptr;
      if (rows.parts) rows.parts += begin * 4;
      if (in.ids) shift_inputs(rows.in, begin);
    }
    loss_rows(c, rows, n);
    if (d_hidden.data) gradients(hidden, rows.d, begin, n);
  }
  void shift_inputs(LossInputs& to, int64_t begin) const {
    const int64_t K = plan.settings.top_k;
    to.ids = static_cast<const char*>(in.ids) + begin * K * (in.ids_are_u16 ? 2 : 4);
    to.log_probs += begin * K;
    to.tail += begin;
  }
  void list_rows() const {
    int32_t *total = reinterpret_cast<int32_t*>(space(plan.total)),
            *blocks = reinterpret_cast<int32_t*>(space(plan.blocks));
    if (c.plain || plan.R == 0) return run(c, list_rows_kernel1, dim3(1), kThreads, list(), total, in, plan.R);
    const dim3 grid(unsigned(divide_up(plan.R, kListed)));
    run(c, count_rows_kernel2, grid, kThreads, blocks, in, plan.R);
    run(c, list_rows_kernel2, grid, kThreads, list(), total, blocks, in, plan.R);
  }
  void run_all() const {
    check_loss_inputs(c, plan.settings, in, plan.R);
    if (plan.listed) {
      list_rows();
      for (const View* v : {&d_hidden, &parts})
        if (v->data) cudaMemsetAsync(v->data, 0, v->bytes(), c.stream);
    }
    if (d_head.data && !x.existing(1)) cudaMemsetAsync(d_head.data, 0, d_head.bytes(), c.stream);
    for (int64_t begin = 0; begin < plan.R; begin += plan.chunk)
      chunk(begin, plan.chunk < plan.R - begin ? plan.chunk : plan.R - begin);
  }
};
const View kAbsent;

}  // namespace

size_t head_loss_forward_workspace(const Args& x, const Context& c) { return Plan(x, c, false).bytes; }
size_t head_loss_backward_workspace(const Args& x, const Context& c) { return Plan(x, c, true).bytes; }
void head_loss_forward(const Args& x, const Context& c) {
  HeadLoss{x, c, Plan(x, c, false), loss_inputs(x, 2, kAbsent), kAbsent, kAbsent, x.out[0]}.run_all();
}
void head_loss_backward(const Args& x, const Context& c) {
  HeadLoss{x, c, Plan(x, c, true), loss_inputs(x, 2, x.in[7]), x.out[0], x.out[1], x.out[2]}.run_all();
}

}  // namespace tc::cuda
