/*
Token and position embedding.

  out[b,t] = wte[token[b,t]] + wpe[position[b,t]];   d_wte[v] += sum of d_out rows whose token is v,  d_wpe[p] likewise
The backward sorts (id, row) and adds the rows of an id in that order: no atomics, one result.
Ladder of the sums: kernel1 gives each id to one block, so the commonest token holds up the rest; kernel2 gives each
block 64 keys; an id whose rows go beyond one block's leaves partial sums, which are added in order. Positions that are
not given need no sort. Rows move 16 bytes at a time. Floor: d_out once for each of d_wte and d_wpe, and the rows of d
that occur twice. Not run on a GPU.
*/
#include "checks.cuh"
#include "kernels.h"
#include "pack.cuh"
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

// A warp a row.
template <class T>
__global__ void embedding_forward_kernel2(T* out, const int32_t* tokens, const T* wte, const T* wpe, Ids positions,
                                          int64_t vocab, int64_t P, int64_t R, int64_t C, bool vector) {
  constexpr int N = kPack<T>;
  const int64_t r = blockIdx.x * int64_t(kWarps) + warp();
  if (r >= R) return;
  const int64_t token = tokens[r], position = wpe ? positions[r] : 0;
  if (token < 0 || token >= vocab || position < 0 || position >= P) return;
  for (int64_t at = lane() * N; at < C; at += 32 * N) {
    float sum[N], more[N];
    load_some(sum, wte + token * C, at, C, vector);
    if (wpe) load_some(more, wpe + position * C, at, C, vector);
#pragma unroll
    for (int k = 0; k < N; k++)
      if (wpe) sum[k] += more[k];
    store_some(out + r * C, at, sum, C, vector);
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

constexpr int kChunk = 64;     // keys of a block
constexpr int kColumns = 128;  // threads of a block, each with a pack of columns

__device__ uint64_t id_of(uint64_t key) { return key >> 32; }
template <int N>
__device__ void add_to(float* d, int64_t at, const float (&sum)[N], int64_t C, bool vector) {
  float before[N];
  load_some(before, d, at, C, vector);
#pragma unroll
  for (int k = 0; k < N; k++) before[k] += sum[k];
  store_some(d, at, before, C, vector);
}

// d[id] += the rows of ids that begin and end among the block's keys. partial [blocks,2,C]: 0: of the id that goes on
// from the block before; 1: of the one that begins here and goes on in the next.
template <class T>
__global__ void __launch_bounds__(kColumns)
    embedding_backward_kernel2(float* d, float* partial, const T* d_out, const uint64_t* keys, int64_t R, int64_t C,
                               bool vector) {
  constexpr int N = kPack<T>, kLoads = 4;
  __shared__ uint64_t mine[kChunk + 2];  // and one key before and behind
  const int64_t begin = blockIdx.x * int64_t(kChunk);
  for (int k = int(threadIdx.x); k < kChunk + 2; k += kColumns) {
    const int64_t at = begin - 1 + k;
    mine[k] = at >= 0 && at < R ? keys[at] : kLastKey;
  }
  __syncthreads();
  int count = 0;
  while (count < kChunk && mine[1 + count] != kLastKey) count++;
  for (int64_t at = threadIdx.x * int64_t(N); at < C; at += kColumns * N) {
    float sum[N] = {};
    bool begins = count && id_of(mine[0]) != id_of(mine[1]);
    for (int first = 0; first < count; first += kLoads) {
      float rows[kLoads][N];
#pragma unroll
      for (int j = 0; j < kLoads; j++)
        if (first + j < count)
          load_some(rows[j], d_out + int64_t(mine[1 + first + j] & 0xffffffffu) * C, at, C, vector);
#pragma unroll
      for (int j = 0; j < kLoads; j++) {
        const int k = 1 + first + j;
        if (first + j >= count) continue;
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] += rows[j][i];
        const bool ends = id_of(mine[k + 1]) != id_of(mine[k]);
        if (!ends && first + j + 1 < kChunk) continue;
        if (begins && ends)
          add_to(d + int64_t(id_of(mine[k])) * C, at, sum, C, vector);
        else
          store_some(partial + (blockIdx.x * int64_t(2) + begins) * C, at, sum, C, vector);
        begins = true;
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] = 0;
      }
    }
  }
}

// Block k joins the sums of the id that begins in chunk k and goes on.
__global__ void __launch_bounds__(kColumns)
    embedding_backward_join_kernel2(float* d, const float* partial, const uint64_t* keys, int64_t R, int64_t C,
                                    bool vector) {
  const int64_t begin = blockIdx.x * int64_t(kChunk), next = begin + kChunk;
  if (next >= R || keys[next - 1] == kLastKey) return;
  const uint64_t id = id_of(keys[next - 1]);
  if (id_of(keys[next]) != id || (begin > 0 && id_of(keys[begin - 1]) == id)) return;
  int64_t last = blockIdx.x + 1;
  while ((last + 1) * kChunk < R && id_of(keys[(last + 1) * kChunk]) == id) last++;
  for (int64_t at = threadIdx.x * 4; at < C; at += kColumns * 4) {
    float sum[4], more[4];
    load_some(sum, partial + (blockIdx.x * int64_t(2) + 1) * C, at, C, vector);
    for (int64_t b = blockIdx.x + 1; b <= last; b++) {
      load_some(more, partial + b * 2 * C, at, C, vector);
#pragma unroll
      for (int k = 0; k < 4; k++) sum[k] += more[k];
    }
    add_to(d + int64_t(id) * C, at, sum, C, vector);
  }
}

// A warp a position t: d[t] += its rows b·T + t.
template <class T>
__global__ void embedding_backward_positions_kernel2(float* d, const T* d_out, int64_t B, int64_t length, int64_t P,
                                                     int64_t C, bool vector) {
  constexpr int N = kPack<T>, kLoads = 4;
  const int64_t t = blockIdx.x * int64_t(kWarps) + warp();
  if (t >= length || t >= P) return;
  for (int64_t at = lane() * N; at < C; at += 32 * N) {
    float sum[N] = {};
    for (int64_t first = 0; first < B; first += kLoads) {
      float rows[kLoads][N];
#pragma unroll
      for (int j = 0; j < kLoads; j++)
        if (first + j < B) load_some(rows[j], d_out + ((first + j) * length + t) * C, at, C, vector);
#pragma unroll
      for (int j = 0; j < kLoads; j++)
        if (first + j < B) {
#pragma unroll
          for (int k = 0; k < N; k++) sum[k] += rows[j][k];
        }
    }
    add_to(d + t * C, at, sum, C, vector);
  }
}

Ids ids_of(const View& v) { return {v.data}; }
Ids positions_of(const View& positions, int64_t T, const int32_t* past) {
  Ids ids{positions.data};
  ids.T = T;
  ids.past = past;
  return ids;
}

template <class T>
bool is_vector_rows(const View& d, const View& d_out) {
  return is_vector(d.data, d.last() * 4) && is_vector(d_out.data, d.last() * int64_t(sizeof(T)));
}

void add_rows(const Context& c, const View& d, const View& d_out, const Ids& ids, int64_t R, int64_t bound,
              uint64_t* keys) {
  const int64_t length = sort_length(R), C = d_out.last(), chunks = divide_up(R, kChunk);
  run(c, make_keys_kernel1, dim3(unsigned(divide_up(length, kThreads))), kThreads, keys, ids, R, bound, length);
  sort_rows(c, keys, 1, length);
  with_float(d_out.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (c.plain)
      return run(c, embedding_backward_kernel1<T>, dim3(unsigned(R)), kThreads, d.f32(), d_out.as<T>(), keys, R, C);
    float* partial = reinterpret_cast<float*>(keys + length);
    const bool vector = is_vector_rows<T>(d, d_out) && is_vector(partial);
    run(c, embedding_backward_kernel2<T>, dim3(unsigned(chunks)), kColumns, d.f32(), partial, d_out.as<T>(), keys, R, C,
        vector);
    run(c, embedding_backward_join_kernel2, dim3(unsigned(chunks)), kColumns, d.f32(), partial, keys, R, C, vector);
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
    T* out = x.out[0].as<T>();
    if (c.plain)
      return run(c, embedding_forward_kernel1<T>, dim3(unsigned(R)), kThreads, out, tokens.i32(), wte.as<T>(),
                 wpe.as<T>(), positions, x.i(0), P, C);
    const int64_t pitch = C * int64_t(sizeof(T));
    run(c, embedding_forward_kernel2<T>, dim3(unsigned(divide_up(R, kWarps))), kThreads, out, tokens.i32(), wte.as<T>(),
        wpe.as<T>(), positions, x.i(0), P, R, C, is_vector(out, pitch) && is_vector(wte.data) && is_vector(wpe.data));
  });
}

size_t embedding_backward_workspace(const Args& x, const Context&) {
  const int64_t R = x.in[1].size();
  return size_t(sort_length(R)) * sizeof(uint64_t) + size_t(divide_up(R, kChunk) * 2 * x.in[0].last()) * sizeof(float);
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
  if (const int64_t T = tokens.dim[1], P = d_wpe.rows(); !c.plain && !x.has(2))
    return with_float(d_out.dtype, [&](auto* t) {
      using Of = std::remove_pointer_t<decltype(t)>;
      run(c, embedding_backward_positions_kernel2<Of>, dim3(unsigned(divide_up(T < P ? T : P, kWarps))), kThreads,
          d_wpe.f32(), d_out.as<Of>(), tokens.dim[0], T, P, d_out.last(), is_vector_rows<Of>(d_wpe, d_out));
    });
  add_rows(c, d_wpe, d_out, positions, R, d_wpe.rows(), keys);
}

}  // namespace tc::cuda
