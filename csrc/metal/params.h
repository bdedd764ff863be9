// The parameters of the kernels, by family: read by the host's C++ and, joined after prelude.metal, by Metal. Only
// uint, int, float, and arrays of them.
#ifndef TRAIN_CORE_METAL_PARAMS
#define TRAIN_CORE_METAL_PARAMS
#ifndef __METAL_VERSION__
#include <cstdint>
namespace tc::metal {
typedef uint32_t uint;
#define constant
#endif

// What a kernel reports of wrong data: [0] its kind, from 1 on, [1] the value, [2] where it is (a row, say). All 0:
// nothing.
constant constexpr uint kFaultWords = 3;

// Element types, where a kernel learns them from its parameters.
constant constexpr uint kF32 = 0, kBf16 = 1, kF16 = 2;

// ---- elementwise
struct CountParams {
  uint n;
};
struct ScaleParams {
  uint n;
  float by;
  uint has_factor;
};
struct FillParams {
  uint n;
  uint bits;
  uint type;  // what becomes of the bits: kF32 themselves, kBf16 and kF16 those of the f32 rounded
};
struct WeightedSumParams {
  uint rows, columns;
  uint has_weights, accumulate;
};
struct SumBlocksParams {
  uint blocks, n;
  uint accumulate;
};

// ---- matmul
struct MatmulParams {
  uint M, N, K;
  uint a_stride, b_stride;  // elements from one row to the next, as stored
  uint epilogue;            // 0 none, 1 GELU, 2 times GELU'(pre)
  uint has_bias, has_residual, has_pre_out, accumulate;
  uint out_type, bias_type, residual_type, pre_type;  // kF32, kBf16 or kF16
};
struct ColumnSumParams {
  uint rows, columns;
  uint block_rows;
};

// ---- norm
struct NormParams {
  uint rows, columns;
  float epsilon;
  uint has_residual;
  uint block_rows;
};

// ---- embedding
struct CheckIdsParams {
  uint rows, time;
  int limit;
  uint has_ids, has_past;
};
struct EmbeddingParams {
  uint rows, time, columns;
  int vocab, positions;  // rows of the tables that may be named; positions 0: there is no position table
  uint has_positions, has_past;
};
struct EmbeddingSumParams {
  uint rows, time, columns;
  int limit;
  uint has_ids;
};

// ---- random
struct RandomParams {
  uint n;
  uint stream;
  float first, second;  // low and width, mean and std, probability and 1 / (1 - probability)
  uint has_residual;
};

// ---- sample
struct SampleParams {
  uint rows, columns, vocab;
  float inverse_temperature, top_p;
  uint top_k, stream, greedy;
};
struct TopKParams {
  uint first_row, vocab, k;
  float inverse_temperature;
  uint ids_u16;
};

// ---- optim
struct NormOfGradsParams {
  uint n, groups;
};
struct AdamWParams {
  uint n, decay_count;
  // logarithms of the betas in two parts, and their distances from 1: no f32 arithmetic gets these right
  float log_beta1, log_beta1_low, log_beta2, log_beta2_low;
  float one_minus_beta1, beta2, one_minus_beta2;
  float epsilon, weight_decay, max_norm;
  uint has_norm, has_copy;
};

// ---- attention
struct AttentionParams {
  uint heads, q_time, k_time, head_size;
  uint q_stride, kv_stride, out_stride, d_q_stride, d_kv_stride;  // elements from one position to the next
  uint k_offset, v_offset;                                        // of the first head, in a row of kv
  int past;                                                       // where has_past is 0
  uint has_past, has_until;
  float scale;
  float dropout, keep;  // keep: 1 / (1 - dropout)
  uint stream;
};
struct AppendParams {
  uint rows, q_time, k_time, columns;  // columns: C
};

// ---- loss
struct LossParams {
  uint first_row, columns, teacher_columns, vocab;  // first_row: of this launch, among the rows of targets and weights
  float temperature, beta, w_ce, w_kl, w_rkl, w_jsd;
  uint top_k;
  uint has_targets, has_weights, has_seed, ids_u16, has_d, has_parts;
};
struct CheckTargetsParams {
  uint rows, vocab, top_k;
  uint has_targets, has_weights, ids_u16;
};
struct ClearRowsParams {
  uint first_row, columns;
  uint has_targets, has_weights;
};
struct CosineParams {
  uint rows, columns;
  uint has_weights, has_seed, has_d, has_part;
};

#ifndef __METAL_VERSION__
#undef constant
}  // namespace tc::metal
#endif
#endif
