/*
The losses on given logits for Hopper (sm_90a): each row is read from device memory once and its gradient written once.

  a cluster of 2 blocks x 512 threads a row (4 or 8 where a block's share would not fit); a bulk copy brings each
  block's columns of student and teacher into its shared memory; largest logits, then sums, go to all blocks of the
  cluster through distributed shared memory; the gradient may be written over the student's logits
Formulas: loss.cu; sums: loss_row.cuh. Floor: V read (2·V with a teacher) + V written. At 32,768 rows of 50,304 bf16 on
an H100: CE 2.18 ms, distillation 3.27 ms.
Ladder of its prototype there: CE 2.32 ms, KL + CE 3.90 ms; 2 x 512 threads moved 2,535 GB/s, 2 x 768 2,414, 4 x 256
2,316, 4 x 384 2,366, 8 x 256 1,961. It crashed in one variant until the cluster waited for all its blocks to start
before the first one wrote to another. This version (nvcc 13.0: 32 registers for CE, of which one is spilled; 63-64 for
the others, no spills) was emulated on a CPU; it has not run on a GPU.
*/
#include "loss_row.cuh"
#include "loss_top_k.cuh"
#include "ptx_sm90.cuh"

namespace tc::cuda {

namespace {

constexpr int kMostBlocks = 8;
constexpr int kGoodBytes = 110 << 10, kMostBytes = 220 << 10;  // of a block's columns: two blocks an SM; one

// Shared memory: barrier and scratch, the bits of a top-k teacher's ids, the columns.
constexpr int kSums = 16, kTables = kSums + BlockTeam::kScratch * 8, kTable = kMostBlocks * kMostSums * 8;
constexpr int kColumns = (kTables + 2 * kTable + 127) / 128 * 128;

// How a row is cut: `segment` columns a block.
struct Share {
  int blocks;
  int64_t segment;
  bool vector;  // rows of logits are aligned: bulk copies
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(TC_CUDA_EMULATED)

// Joins over the threads of a cluster: warps, then the block, whose values go to every block of the cluster.
struct ClusterTeam {
  int tables = 0;  // two tables in turn: a slow block may still read the last one

  __device__ int rank() const { return cluster_rank(); }
  template <int N, class Join>
  __device__ void join(double (&all)[N], const float (&x)[N], Join f) {
    const double y = join_warps(x, f, reinterpret_cast<double*>(shared_memory() + kSums));
    const int at = kTables + tables * kTable, blocks = cluster_blocks();
    if (warp() < N && lane() < blocks) cluster_store(shared_base() + at + (rank() * N + warp()) * 8, lane(), y);
    cluster_sync();
    const double* table = reinterpret_cast<const double*>(shared_memory() + at);
#pragma unroll
    for (int k = 0; k < N; k++) {
      all[k] = table[k];
      for (int b = 1; b < blocks; b++) all[k] = f(all[k], table[b * N + k]);
    }
    tables ^= 1;
  }
};

// Brings the block's columns into shared memory. Behind it, all blocks of the cluster have started.
template <class S>
__device__ Columns<S, S> load_columns(const LossRows& x, int64_t k, const Share& share, int at, bool teacher) {
  Columns<S, S> c{};
  c.begin = cluster_rank() * share.segment;
  const int64_t left = x.settings.vocab - c.begin;
  c.count = left < 0 ? 0 : left < share.segment ? left : share.segment;
  c.vector_s = c.vector_t = true;
  S* to_s = reinterpret_cast<S*>(shared_memory() + at);
  S* to_t = to_s + share.segment;
  c.s = to_s;
  if (teacher) c.t = to_t;
  const S* s = static_cast<const S*>(x.student.data) + k * x.student_stride + c.begin;
  const S* t = static_cast<const S*>(x.teacher.data) + k * x.teacher_stride + c.begin;
  const int bytes = int((c.count + kPack<S> - 1) / kPack<S> * 16);
  const uint32_t bar = shared_base();
  if (share.vector && threadIdx.x == 0) {
    barrier_init(bar, 1);
    barrier_init_done();
    barrier_expect(bar, teacher ? 2 * bytes : bytes);
    if (bytes) bulk_load(shared_base() + at, s, bar, bytes);
    if (bytes && teacher) bulk_load(uint32_t(shared_base() + at + share.segment * sizeof(S)), t, bar, bytes);
  }
  if (!share.vector)
    for (int64_t v = threadIdx.x; v < c.count; v += kLossThreads) {
      to_s[v] = s[v];
      if (teacher) to_t[v] = t[v];
    }
  cluster_sync();
  if (share.vector) barrier_wait(bar, 0);
  return c;
}

// The largest logits of a row.
template <Terms terms, class C>
__device__ void join_highs(const C& columns, Exponents& of, ClusterTeam& team) {
  constexpr int kHighs = kHasTeacher<terms> ? 2 : 1;
  float highs[kHighs];
  for (float& high : highs) high = -INFINITY;
  columns.each([&](int64_t, const float(&s)[C::N], const float(&t)[C::N]) {
#pragma unroll
    for (int k = 0; k < C::N; k++) {
      highs[0] = larger(highs[0], s[k]);
      if constexpr (kHighs == 2) highs[1] = larger(highs[1], t[k]);
    }
  });
  double all[kHighs];
  team.join(all, highs, Larger());
  of.high_s = float(all[0]);
  if constexpr (kHighs == 2) of.high_t = float(all[1]);
}

template <Terms terms, class C>
__device__ void join_sums(double (&all)[kSumsOf<terms>], const C& columns, const Exponents& of, ClusterTeam& team) {
  float sums[kSumsOf<terms>] = {};
  columns.each([&](int64_t, const float(&s)[C::N], const float(&t)[C::N]) {
#pragma unroll
    for (int k = 0; k < C::N; k++) {
      if constexpr (terms == Terms::ce) {
        sums[kCe] += fast_exp2((s[k] - of.high_s) * kLog2e);
        continue;
      }
      const float z_s = of.z_s(s[k]), e_s = fast_exp2(z_s);
      sums[kCe] += of.ce(s[k], e_s);
      if constexpr (terms != Terms::ce) sums[kS] += e_s;
      if constexpr (kHasTeacher<terms>) {
        const float z_t = of.z_t(t[k]), e_t = fast_exp2(z_t);
        sums[kT] += e_t;
        sums[kDotT] += e_t * (z_t - z_s);
        if constexpr (terms == Terms::all) sums[kDotS] += e_s * (z_t - z_s);
      }
    }
  });
  team.join(all, sums, Add());
}

template <Terms terms, class S>
__device__ void run_row(const LossRows& x, int64_t n, const Share& share) {
  RowPlace place;
  const int blocks = cluster_blocks(), thread = cluster_rank() * kLossThreads + int(threadIdx.x);
  if (!begin_row(x, n, blockIdx.x / blocks, thread, blocks * kLossThreads, place)) return;
  ClusterTeam team;
  // All that is read from device memory is read before load_columns() ends: another block may write the gradient there.
  const S* row = static_cast<const S*>(x.student.data) + place.k * x.student_stride;
  const float at_target = place.target < 0 ? 0 : to_float(row[place.target]);
  Exponents of(x.settings);
  double sums[kSumsOf<terms>];
  if constexpr (terms == Terms::top_k) {
    const TopKClass mine(x, place, row);
    const int map_bytes = int((share.segment + 1023) / 1024 * 128);
    auto columns = load_columns<S>(x, place.k, share, kColumns + map_bytes, false);
    uint32_t* map = reinterpret_cast<uint32_t*>(shared_memory() + kColumns);
    mine.mark(map, columns);
    columns.map = map;
    join_highs<terms>(columns, of, team);
    join_sums<terms>(sums, columns, of, team);
    BlockTeam block{reinterpret_cast<double*>(shared_memory() + kSums)};
    finish_top_k(x, place, columns, mine, of, sums, at_target, block, team);
  } else {
    const auto columns = load_columns<S>(x, place.k, share, kColumns, kHasTeacher<terms>);
    join_highs<terms>(columns, of, team);
    join_sums<terms>(sums, columns, of, team);
    finish_row<terms>(x, place, columns, of, sums, at_target, team);
  }
}

#else
template <Terms terms, class S>
__device__ void run_row(const LossRows&, int64_t, const Share&) {}
#endif

template <Terms terms, class S>
__global__ void __launch_bounds__(kLossThreads, terms == Terms::ce ? 4 : 2)
    loss_kernel3(LossRows x, int64_t n, Share share) {
  run_row<terms, S>(x, n, share);
}

template <Terms terms, class S>
bool launch(const Context& c, const LossRows& rows, int64_t n, const Share& share, int64_t bytes) {
  // More than 48 KB must be asked for, on each device.
  if (cudaFuncSetAttribute(loss_kernel3<terms, S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           int(kColumns + bytes)) != cudaSuccess)
    return false;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = unsigned(share.blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(n * share.blocks));
  config.blockDim = dim3(kLossThreads);
  config.dynamicSmemBytes = size_t(kColumns + bytes);
  config.stream = c.stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, loss_kernel3<terms, S>, rows, n, share);
  return true;
}

template <class S>
bool launch(const Context& c, const LossRows& rows, int64_t n) {
  const Terms terms = terms_of(rows.settings);
  const int64_t both = rows.teacher.data ? 2 : 1;
  Share share{1, 0, is_vector(rows.student.data, rows.student_stride * int64_t(sizeof(S)))};
  if (rows.teacher.data)
    share.vector = share.vector && is_vector(rows.teacher.data, rows.teacher_stride * int64_t(sizeof(S)));
  int64_t bytes;
  do {
    share.blocks *= 2;
    share.segment = round_up(divide_up(rows.settings.vocab, share.blocks), kPack<S>);
    bytes = share.segment * both * int64_t(sizeof(S)) + (terms == Terms::top_k ? round_up(share.segment, 1024) / 8 : 0);
  } while (bytes > kGoodBytes && share.blocks < kMostBlocks);
  if (bytes > kMostBytes) return false;
  if (terms == Terms::ce) return launch<Terms::ce, S>(c, rows, n, share, bytes);
  if (terms == Terms::kl) return launch<Terms::kl, S>(c, rows, n, share, bytes);
  if (terms == Terms::all) return launch<Terms::all, S>(c, rows, n, share, bytes);
  return takes_top_k(rows.settings) && launch<Terms::top_k, S>(c, rows, n, share, bytes);
}

}  // namespace

bool loss_rows_sm90(const Context& c, const LossRows& rows, int64_t n) {
  if (c.capability != 90 || (rows.teacher.data && rows.teacher.is_bf16 != rows.student.is_bf16)) return false;
  if (n * kMostBlocks > INT32_MAX) return false;
  if (rows.halves) return launch<Half>(c, rows, n);
  return rows.student.is_bf16 ? launch<bf16>(c, rows, n) : launch<float>(c, rows, n);
}

}  // namespace tc::cuda
