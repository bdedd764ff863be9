/*
Token and position embedding.

  out[b,t] = wte[token[b,t]] + wpe[position[b,t]];   d_wte[v] += sum of d_out rows whose token is v,  d_wpe[p] likewise
The backward sorts (id, row) and gives each id to one block, which adds its rows in order: no atomics, one result.
*/
#include "checks.cuh"
#include "kernels.h"
#include "sort.cuh"

namespace tc::cuda {

namespace {

// A block a row. A bad id was reported by check_ids(): its row is left alone.
template <class T>
__global__ void embedding_forward_kernel1(T* out, const int32_t* tokens, const T* wte, const T* wpe, Ids positions,
                                          int64_t vocab, int64_t P, int64_t C) {
  const int64_t r = blockIdx.x, token = tokens[r], position = wpe ? positions[r] : 0;
  if (token < 0 || token >= vocab || position < 0 || position >= P) return;
  for (int64_t k = threadIdx.x; k < C; k += kThreads) {
    const float a = to_float(wte[token * C + k]);
    from_float(out[r * C + k], wpe ? a + to_float(wpe[position * C + k]) : a);
  }
}

// keys[r] = id << 32 | r; those of bad ids and of the filling come last.
__global__ void make_keys_kernel1(uint64_t* keys, Ids ids, int64_t R, int64_t bound, int64_t length) {
  const int64_t r = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (r >= length) return;
  const int64_t id = r < R ? ids[r] : -1;
  keys[r] = id >= 0 && id < bound ? uint64_t(id) << 32 | uint64_t(r) : kLastKey;
}

// Block k works where an id begins: d[id] += its rows of d_out.
template <class T>
__global__ void embedding_backward_kernel1(float* d, const T* d_out, const uint64_t* keys, int64_t R, int64_t C) {
  const int64_t first = blockIdx.x;
  if (keys[first] == kLastKey) return;
  const uint64_t id = keys[first] >> 32;
  if (first > 0 && keys[first - 1] >> 32 == id) return;
  for (int64_t c = threadIdx.x; c < C; c += kThreads) {
    float sum = 0;
    for (int64_t k = first; k < R && keys[k] >> 32 == id; k++)
      sum += to_float(d_out[int64_t(keys[k] & 0xffffffffu) * C + c]);
    d[int64_t(id) * C + c] += sum;
  }
}

Ids ids_of(const View& v) { return {v.data}; }
Ids positions_of(const View& positions, int64_t T, const int32_t* past) {
  Ids ids{positions.data};
  ids.T = T;
  ids.past = past;
  return ids;
}

void add_rows(const Context& c, const View& d, const View& d_out, const Ids& ids, int64_t R, int64_t bound,
              uint64_t* keys) {
  const int64_t length = sort_length(R), C = d_out.last();
  run(c, make_keys_kernel1, dim3(unsigned(divide_up(length, kThreads))), kThreads, keys, ids, R, bound, length);
  sort_rows(c, keys, 1, length);
  with_float(d_out.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    run(c, embedding_backward_kernel1<T>, dim3(unsigned(R)), kThreads, d.f32(), d_out.as<T>(), keys, R, C);
  });
}

}  // namespace

void embedding_forward(const Args& x, const Context& c) {
  const View &tokens = x.in[0], &wte = x.in[1], &wpe = x.in[2];
  const int64_t R = tokens.size(), C = wte.last(), P = wpe.data ? wpe.rows() : 1;
  const Ids positions = positions_of(x.in[3], tokens.dim[1], x.in[4].i32());
  check_ids(c, ids_of(tokens), R, x.i(0), kTokenFault);
  if (wpe.data) check_ids(c, positions, R, P, kPositionFault);
  with_float(wte.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    run(c, embedding_forward_kernel1<T>, dim3(unsigned(R)), kThreads, x.out[0].as<T>(), tokens.i32(), wte.as<T>(),
        wpe.as<T>(), positions, x.i(0), P, C);
  });
}

size_t embedding_backward_workspace(const Args& x, const Context&) {
  return size_t(sort_length(x.in[1].size())) * sizeof(uint64_t);
}
void embedding_backward(const Args& x, const Context& c) {
  const View &d_out = x.in[0], &tokens = x.in[1], &d_wte = x.out[0], &d_wpe = x.out[1];
  const int64_t R = tokens.size();
  uint64_t* keys = x.workspace.as<uint64_t>();
  check_ids(c, ids_of(tokens), R, x.i(0), kTokenFault);
  if (!x.existing(0)) cudaMemsetAsync(d_wte.data, 0, d_wte.bytes(), c.stream);
  add_rows(c, d_wte, d_out, ids_of(tokens), R, x.i(0), keys);
  if (!d_wpe.data) return;
  const Ids positions = positions_of(x.in[2], tokens.dim[1], nullptr);
  check_ids(c, positions, R, d_wpe.rows(), kPositionFault);
  add_rows(c, d_wpe, d_out, positions, R, d_wpe.rows(), keys);
}

}  // namespace tc::cuda
