// Hopper's instructions that C++ has no name for, one function each, and tensor maps. Only the sm_90a image has them.
// (PTX ISA 8.7, sections on mbarrier, cp.async.bulk.tensor, wgmma, stmatrix.)
#pragma once
#include "ptx_sm80.cuh"

#if defined(TC_CUDA_EMULATED)
#include <emulated_sm90.h>
#else
#include <cuda.h>

namespace tc::cuda {

// The driver's encoder of tensor maps; false where there is none.
inline bool encode_map(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data, const cuuint64_t* dims,
                       const cuuint64_t* strides, const cuuint32_t* box) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found) != cudaSuccess)
      f = nullptr;
    return reinterpret_cast<Encode>(f);
  }();
  const cuuint32_t one[4] = {1, 1, 1, 1};
  return encode && encode(map, type, rank, data, dims, strides, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE,
                          CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                          CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
// A row-major matrix [rows, columns], row stride `pitch` elements, moved in boxes of box_rows x 128 bytes, which lie
// swizzled in shared memory: the 16-byte chunk c of row r at chunk c ^ (r & 7).
inline bool make_map(CUtensorMap* map, const Floats& data, int64_t rows, int64_t columns, int64_t pitch, int box_rows) {
  const int size = data.is_bf16 ? 2 : 4;
  const cuuint64_t dims[2] = {cuuint64_t(columns), cuuint64_t(rows)}, stride[1] = {cuuint64_t(pitch * size)};
  const cuuint32_t box[2] = {cuuint32_t(128 / size), cuuint32_t(box_rows)};
  return encode_map(map, data.is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2,
                    data.data, dims, stride, box);
}
// bf16 [B, T, heads, D], D at most 64, moved in tiles of 64 rows x 64 channels of one head, swizzled likewise.
inline bool make_head_map(CUtensorMap* map, const void* data, int64_t B, int64_t T, int64_t heads, int64_t D) {
  const cuuint64_t dims[4] = {cuuint64_t(D), cuuint64_t(heads), cuuint64_t(T), cuuint64_t(B)};
  const cuuint64_t strides[3] = {cuuint64_t(D * 2), cuuint64_t(heads * D * 2), cuuint64_t(T * heads * D * 2)};
  const cuuint32_t box[4] = {64, 1, 64, 1};
  return encode_map(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(data), dims, strides, box);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define TC_PTX __device__ __forceinline__

TC_PTX void barrier_init(uint32_t bar, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}
TC_PTX void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
TC_PTX void barrier_expect(uint32_t bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
// No `.release.cluster`: that form compiles to a device-wide fence in the main loop, which halved the speed. Nothing
// was written that the arrival would have to publish: consumers only read the stage, and those reads have completed.
TC_PTX void barrier_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
TC_PTX void barrier_wait(uint32_t bar, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(bar), "r"(parity)
                 : "memory");
  } while (!done);
}

// x: column, y: row of the box; what lies outside the matrix reads as 0 and is not written.
TC_PTX void box_load(uint32_t to, const CUtensorMap* map, uint32_t bar, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(map), "r"(x), "r"(y), "r"(bar)
      : "memory");
}
TC_PTX void head_load(uint32_t to, const CUtensorMap* map, uint32_t bar, int head, int row, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(to),
      "l"(map), "r"(0), "r"(head), "r"(row), "r"(batch), "r"(bar)
      : "memory");
}
TC_PTX void box_store(const CUtensorMap* map, uint32_t from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(x), "r"(y),
               "r"(from)
               : "memory");
}
TC_PTX void box_add(const CUtensorMap* map, uint32_t from, int x, int y) {  // f32, each element once: one order
  asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
               "r"(x), "r"(y), "r"(from)
               : "memory");
}
// A contiguous piece; addresses and size are multiples of 16 bytes.
TC_PTX void bulk_load(uint32_t to, const void* from, uint32_t bar, int bytes) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(bar)
               : "memory");
}

TC_PTX int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
TC_PTX int cluster_blocks() {
  int count;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(count));
  return count;
}
// All threads of the cluster; what they wrote before, other blocks' shared memory too, is seen behind it.
TC_PTX void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// To the same place in the shared memory of another block, which must have started and not ended.
TC_PTX void cluster_store(uint32_t at, int rank, double x) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nst.shared::cluster.f64 [there], %2;\n}" ::"r"(at),
      "r"(rank), "d"(x)
      : "memory");
}

TC_PTX void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N>
TC_PTX void store_wait_read() {  // all but the last N stores have left shared memory
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
template <int N>
TC_PTX void store_wait() {  // all but the last N stores are done
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}
TC_PTX void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
TC_PTX void prefetch_map(const CUtensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map)); }

TC_PTX void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
TC_PTX void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
TC_PTX void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int N>
TC_PTX void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
TC_PTX void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

TC_PTX void matrices_store(uint32_t to, const uint32_t (&m)[4]) {  // four 8x8 matrices of 16 bits
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(m[0]), "r"(m[1]),
               "r"(m[2]), "r"(m[3])
               : "memory");
}

#undef TC_PTX
#endif

}  // namespace tc::cuda
#endif
