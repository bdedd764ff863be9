/*
The K largest logits of each row, a block of 512 threads a row, K <= 512.

  each thread finds the best of its columns; the K-th best of these 512 is a bound that at least K columns reach, and
  rarely many more: those are collected and sorted in shared memory. So a row is read twice, and once more for every
  halving of the bound where more than 2,048 columns reach it (many equal logits, say).
Keys are distinct (sort.cuh), so the result does not depend on the order in which they are collected.
Floor: the row once; read twice. nvcc 13.0: at most 40 registers, no spills. Not run on a GPU.
*/
#include "pack.cuh"
#include "select.cuh"

namespace tc::cuda {

namespace {

constexpr int kBlock = 512, kRoom = 2048;  // threads; keys that are collected

// Sorts `size` keys, a power of 2, with all threads of the block.
__device__ void sort_keys(uint64_t* keys, int size) {
  __syncthreads();
  for (int merge = 2; merge <= size; merge *= 2)
    for (int stride = merge / 2; stride > 0; stride /= 2) {
      for (int p = int(threadIdx.x); p < size / 2; p += kBlock) {
        const int i = p / stride * 2 * stride + p % stride;
        order_pair(keys, 0, i, stride, merge);
      }
      __syncthreads();
    }
}

// f(key) for this thread's columns.
template <class T, class F>
__device__ void each_key(const T* row, int64_t V, bool vector, F&& f) {
  constexpr int N = kPack<T>;
  for (int64_t at = threadIdx.x * int64_t(N); at < V; at += int64_t(kBlock) * N) {
    float z[N];
    load_some(z, row, at, V, vector);
#pragma unroll
    for (int k = 0; k < N; k++)
      if (at + k < V) f(key_of(z[k], at + k));
  }
}

// Collects the keys up to `bound` where there is room; how many there are.
template <class T>
__device__ int collect(uint64_t* keys, int* count, const T* row, int64_t V, bool vector, uint64_t bound) {
  __syncthreads();  // all have read the bound
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();
  each_key(row, V, vector, [&](uint64_t key) {
    if (key > bound) return;
    const int at = atomicAdd(count, 1);
    if (at < kRoom) keys[at] = key;
  });
  __syncthreads();
  return *count;
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    select_kernel2(uint64_t* out, const T* logits, int64_t stride, int64_t V, int64_t K, bool vector) {
  __shared__ uint64_t keys[kRoom];
  __shared__ int count;
  const T* row = logits + blockIdx.x * stride;
  uint64_t best = kLastKey;
  each_key(row, V, vector, [&](uint64_t key) {
    if (key < best) best = key;
  });
  keys[threadIdx.x] = best;
  sort_keys(keys, kBlock);
  uint64_t low = 0, high = keys[K - 1];
  int n = collect(keys, &count, row, V, vector, high);
  while (n > kRoom) {  // at least K keys are <= high, fewer are < low
    const uint64_t middle = low + (high - low) / 2;
    const int some = collect(keys, &count, row, V, vector, middle);
    if (some >= K)
      high = middle, n = some;
    else
      low = middle + 1;
  }
  int size = 2;
  while (size < n) size *= 2;
  for (int k = n + int(threadIdx.x); k < size; k += kBlock) keys[k] = kLastKey;
  sort_keys(keys, size);
  for (int k = int(threadIdx.x); k < K; k += kBlock) out[blockIdx.x * K + k] = keys[k];
}

}  // namespace

void select_logits(const Context& c, uint64_t* keys, const Floats& logits, int64_t stride, int64_t rows, int64_t V,
                   int64_t K) {
  const bool vector = is_vector(logits.data, stride * (logits.is_bf16 ? 2 : 4));
  if (logits.is_bf16)
    run(c, select_kernel2<bf16>, dim3(unsigned(rows)), kBlock, keys, static_cast<const bf16*>(logits.data), stride, V,
        K, vector);
  else
    run(c, select_kernel2<float>, dim3(unsigned(rows)), kBlock, keys, static_cast<const float*>(logits.data), stride, V,
        K, vector);
}

}  // namespace tc::cuda
