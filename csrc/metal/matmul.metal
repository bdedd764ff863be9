// out[M,N] = epilogue(op(a)[M,K] op(b)[K,N] + bias) + residual (+ out where accumulate), in f32.
//
// matmul: 64x64 of out a threadgroup, four simdgroups of 32x32, simdgroup_matrix products from tiles in threadgroup
// memory. The epilogue passes each 8x8 through threadgroup memory: it needs no map of elements to lanes.
// matmul_plain: the same without simdgroup_matrix, for GPUs that lack it, and its reference on the others.

constant bool trans_a [[function_constant(0)]];
constant bool trans_b [[function_constant(1)]];

inline float load_any(device const uchar* p, ulong i, uint type) {
  if (type == kBf16) return to_float(((device const bf16*)p)[i]);
  if (type == kF16) return to_float(((device const half*)p)[i]);
  return ((device const float*)p)[i];
}
inline void store_any(device uchar* p, ulong i, uint type, float v) {
  if (type == kBf16)
    ((device bf16*)p)[i] = from_float<bf16>(v);
  else if (type == kF16)
    ((device half*)p)[i] = from_float<half>(v);
  else
    ((device float*)p)[i] = v;
}

// One element of out, from its sum.
inline void finish(float v, uint row, uint column, device const uchar* bias, device const uchar* residual,
                   device const uchar* pre, device uchar* out, device uchar* pre_out, constant MatmulParams& p) {
  const ulong at = ulong(row) * p.N + column;
  if (p.has_bias) v += load_any(bias, column, p.bias_type);
  if (p.has_pre_out) store_any(pre_out, at, p.pre_type, v);
  if (p.epilogue == 1) v = gelu(v);
  if (p.epilogue == 2) v *= gelu_slope(load_any(pre, at, p.pre_type));
  if (p.has_residual) v += load_any(residual, at, p.residual_type);
  if (p.accumulate) v += load_any(out, at, p.out_type);
  store_any(out, at, p.out_type, v);
}

constant constexpr uint BM = 64, BN = 64, BK = 16, STRIDE_A = BK + 4, STRIDE_B = BN + 4;

// What tiles hold: half where both operands are half (a product of two is exact in f32), else float.
template <typename A, typename B>
struct TileOf {
  typedef float type;
};
template <>
struct TileOf<half, half> {
  typedef half type;
};

template <typename A, typename B>
[[kernel, max_total_threads_per_threadgroup(128)]] void matmul(
    device const A* a [[buffer(0)]],             // [M,K], or [K,M] where trans_a
    device const B* b [[buffer(1)]],             // [K,N], or [N,K] where trans_b
    device const uchar* bias [[buffer(2)]],      // [N]
    device const uchar* residual [[buffer(3)]],  // [M,N]
    device const uchar* pre [[buffer(4)]],       // [M,N]
    device uchar* out [[buffer(5)]],             // [M,N]
    device uchar* pre_out [[buffer(6)]],         // [M,N]
    constant MatmulParams& p [[buffer(7)]],
    threadgroup typename TileOf<A, B>::type* a_tile [[threadgroup(0)]],  // [BM,STRIDE_A]
    threadgroup typename TileOf<A, B>::type* b_tile [[threadgroup(1)]],  // [BK,STRIDE_B]
    threadgroup float* scratch [[threadgroup(2)]],                       // [4,64]
    uint3 group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  typedef typename TileOf<A, B>::type Element;
  const bool ta = trans_a, tb = trans_b;
  const uint row0 = group.y * BM, column0 = group.x * BN;
  const uint own_row = simdgroup / 2 * 32, own_column = simdgroup % 2 * 32;

  simdgroup_matrix<float, 8, 8> acc[4][4];
  for (uint i = 0; i < 4; i++)
    for (uint j = 0; j < 4; j++) acc[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);

  for (uint k0 = 0; k0 < p.K; k0 += BK) {
    // Neighbouring threads read neighbouring addresses, whichever way a and b are stored.
    for (uint i = tid; i < BM * BK; i += 128) {
      const uint r = ta ? i % BM : i / BK, q = ta ? i / BM : i % BK, row = row0 + r, k = k0 + q;
      a_tile[r * STRIDE_A + q] = from_float<Element>(
          row < p.M && k < p.K ? to_float(a[ta ? ulong(k) * p.a_stride + row : ulong(row) * p.a_stride + k]) : 0.0f);
    }
    for (uint i = tid; i < BK * BN; i += 128) {
      const uint q = tb ? i % BK : i / BN, c = tb ? i / BK : i % BN, k = k0 + q, column = column0 + c;
      b_tile[q * STRIDE_B + c] = from_float<Element>(
          column < p.N && k < p.K ? to_float(b[tb ? ulong(column) * p.b_stride + k : ulong(k) * p.b_stride + column])
                                  : 0.0f);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint q = 0; q < BK; q += 8) {
      simdgroup_matrix<Element, 8, 8> fa[4], fb[4];
      for (uint i = 0; i < 4; i++) simdgroup_load(fa[i], a_tile + (own_row + 8 * i) * STRIDE_A + q, STRIDE_A);
      for (uint j = 0; j < 4; j++) simdgroup_load(fb[j], b_tile + q * STRIDE_B + own_column + 8 * j, STRIDE_B);
      for (uint i = 0; i < 4; i++)
        for (uint j = 0; j < 4; j++) simdgroup_multiply_accumulate(acc[i][j], fa[i], fb[j], acc[i][j]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  threadgroup float* mine = scratch + simdgroup * 64;
  for (uint i = 0; i < 4; i++)
    for (uint j = 0; j < 4; j++) {
      const uint row = row0 + own_row + 8 * i, column = column0 + own_column + 8 * j;
      if (row >= p.M || column >= p.N) continue;
      simdgroup_store(acc[i][j], mine, 8);
      simdgroup_barrier(mem_flags::mem_threadgroup);
      for (uint e = lane; e < 64; e += 32)
        if (row + e / 8 < p.M && column + e % 8 < p.N)
          finish(mine[e], row + e / 8, column + e % 8, bias, residual, pre, out, pre_out, p);
      simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}
INSTANTIATE("matmul_f32_f32", matmul, float, float)
INSTANTIATE("matmul_f32_bf16", matmul, float, bf16)
INSTANTIATE("matmul_bf16_f32", matmul, bf16, float)
INSTANTIATE("matmul_bf16_bf16", matmul, bf16, bf16)
INSTANTIATE("matmul_f32_f16", matmul, float, half)
INSTANTIATE("matmul_f16_f32", matmul, half, float)
INSTANTIATE("matmul_f16_f16", matmul, half, half)

constant constexpr uint SIDE = 16;  // of matmul_plain's tiles: a thread an element

template <typename A, typename B>
[[kernel, max_total_threads_per_threadgroup(256)]] void matmul_plain(
    device const A* a [[buffer(0)]],             // as matmul's
    device const B* b [[buffer(1)]],
    device const uchar* bias [[buffer(2)]],
    device const uchar* residual [[buffer(3)]],
    device const uchar* pre [[buffer(4)]],
    device uchar* out [[buffer(5)]],
    device uchar* pre_out [[buffer(6)]],
    constant MatmulParams& p [[buffer(7)]],
    threadgroup float* a_tile [[threadgroup(0)]],  // [SIDE,SIDE]
    threadgroup float* b_tile [[threadgroup(1)]],  // [SIDE,SIDE]
    uint3 group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  const bool ta = trans_a, tb = trans_b;
  const uint r = tid / SIDE, c = tid % SIDE, row0 = group.y * SIDE, column0 = group.x * SIDE;
  float sum = 0.0f;
  for (uint k0 = 0; k0 < p.K; k0 += SIDE) {
    const uint ar = row0 + (ta ? c : r), ak = k0 + (ta ? r : c), bk = k0 + (tb ? c : r), bc = column0 + (tb ? r : c);
    a_tile[ta ? c * SIDE + r : tid] =
        ar < p.M && ak < p.K ? to_float(a[ta ? ulong(ak) * p.a_stride + ar : ulong(ar) * p.a_stride + ak]) : 0.0f;
    b_tile[tb ? c * SIDE + r : tid] =
        bc < p.N && bk < p.K ? to_float(b[tb ? ulong(bc) * p.b_stride + bk : ulong(bk) * p.b_stride + bc]) : 0.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint q = 0; q < SIDE; q++) sum += a_tile[r * SIDE + q] * b_tile[q * SIDE + c];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (row0 + r < p.M && column0 + c < p.N)
    finish(sum, row0 + r, column0 + c, bias, residual, pre, out, pre_out, p);
}
INSTANTIATE("matmul_plain_f32_f32", matmul_plain, float, float)
INSTANTIATE("matmul_plain_f32_bf16", matmul_plain, float, bf16)
INSTANTIATE("matmul_plain_bf16_f32", matmul_plain, bf16, float)
INSTANTIATE("matmul_plain_bf16_bf16", matmul_plain, bf16, bf16)
INSTANTIATE("matmul_plain_f32_f16", matmul_plain, float, half)
INSTANTIATE("matmul_plain_f16_f32", matmul_plain, half, float)
INSTANTIATE("matmul_plain_f16_f16", matmul_plain, half, half)

// Sums over a block of rows, for 32 columns: a lane a column, the rows dealt out to eight simdgroups.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void column_sum(
    device const T* x [[buffer(0)]],         // [rows,columns]
    device float* partial [[buffer(1)]],     // [blocks,columns]
    constant ColumnSumParams& p [[buffer(2)]],
    threadgroup float* sums [[threadgroup(0)]],  // [8,32]
    uint3 group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint c = group.x * 32 + lane, first = group.y * p.block_rows, last = min(p.rows, first + p.block_rows);
  float sum = 0.0f;
  if (c < p.columns)
    for (uint row = first + simdgroup; row < last; row += 8) sum += to_float(x[ulong(row) * p.columns + c]);
  sums[simdgroup * 32 + lane] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup != 0 || c >= p.columns) return;
  for (uint k = 1; k < 8; k++) sum += sums[k * 32 + lane];
  partial[ulong(group.y) * p.columns + c] = sum;
}
INSTANTIATE("column_sum_f32", column_sum, float)
INSTANTIATE("column_sum_bf16", column_sum, bf16)
INSTANTIATE("column_sum_f16", column_sum, half)
