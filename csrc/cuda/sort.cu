#include "sort.cuh"

namespace tc::cuda {

namespace {

// The lower key of pair p at this stride.
__device__ int64_t lower(int64_t p, int64_t stride) { return (p / stride) * 2 * stride + p % stride; }

// Merges of first .. last keys within tiles, from strides that fit in a tile down to 1.
__global__ void sort_tile_kernel1(uint64_t* keys, int64_t length, int64_t size, int64_t first, int64_t last) {
  __shared__ uint64_t tile[kSortTile];  // of which `size` are used
  const int64_t at = blockIdx.y * size;
  uint64_t* row = keys + blockIdx.x * length + at;
  for (int64_t k = threadIdx.x; k < size; k += kThreads) tile[k] = row[k];
  __syncthreads();
  for (int64_t merge = first; merge <= last; merge *= 2)
    for (int64_t stride = merge < size ? merge / 2 : size / 2; stride > 0; stride /= 2) {
      for (int64_t p = threadIdx.x; p < size / 2; p += kThreads) order_pair(tile, at, lower(p, stride), stride, merge);
      __syncthreads();
    }
  for (int64_t k = threadIdx.x; k < size; k += kThreads) row[k] = tile[k];
}

__global__ void sort_step_kernel1(uint64_t* keys, int64_t length, int64_t stride, int64_t merge) {
  const int64_t p = blockIdx.y * int64_t(kThreads) + threadIdx.x;
  order_pair(keys + blockIdx.x * length, 0, lower(p, stride), stride, merge);
}

// A block a row for each blockIdx.x: rows may be many.
__global__ void logit_keys_kernel1(uint64_t* keys, Floats logits, int64_t stride, int64_t V, int64_t length) {
  const int64_t r = blockIdx.x;
  for (int64_t v = blockIdx.y * int64_t(kThreads) + threadIdx.x; v < length; v += gridDim.y * int64_t(kThreads))
    keys[r * length + v] = v < V ? key_of(logits[r * stride + v], v) : kLastKey;
}

}  // namespace

void sort_logits(const Context& c, uint64_t* keys, const Floats& logits, int64_t stride, int64_t rows, int64_t V) {
  const int64_t length = sort_length(V), blocks = divide_up(length, 16 * kThreads);
  run(c, logit_keys_kernel1, dim3(unsigned(rows), unsigned(blocks)), kThreads, keys, logits, stride, V, length);
  sort_rows(c, keys, rows, length);
}

void sort_rows(const Context& c, uint64_t* keys, int64_t rows, int64_t length) {
  const int64_t size = length < kSortTile ? length : kSortTile;
  const dim3 tiles(unsigned(rows), unsigned(length / size)), pairs(unsigned(rows), unsigned(length / 2 / kThreads));
  run(c, sort_tile_kernel1, tiles, kThreads, keys, length, size, int64_t(2), size);
  for (int64_t merge = 2 * size; merge <= length; merge *= 2) {
    for (int64_t stride = merge / 2; stride >= size; stride /= 2)
      run(c, sort_step_kernel1, pairs, kThreads, keys, length, stride, merge);
    run(c, sort_tile_kernel1, tiles, kThreads, keys, length, size, merge, merge);
  }
}

}  // namespace tc::cuda
