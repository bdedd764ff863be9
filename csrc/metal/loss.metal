// The distillation losses, a threadgroup a row, and the cosine loss, a simdgroup a row.
//
//   q = softmax(s/T), p = softmax(t/T), m = beta p + (1-beta) q; unweighted parts:
//   CE = -log softmax(s)[y];  KL = T^2 sum p log(p/q);  RKL = T^2 sum q log(q/p);
//   JSD = beta sum p log(p/m) + (1-beta) sum q log(q/m); beta 0 and 1 stand for sum p log(p/q) and sum q log(q/p)
//   d CE = softmax(s) - [v = y];  d KL = T (q - p);  d RKL = T q (log(q/p) - sum q log(q/p));
//   d JSD = (1-beta)/T q (log(q/m) - sum q log(q/m))
// A teacher of top-k probabilities: K + 1 classes, its ids and "any other", whose logit is the log-sum-exp of the others.
// Sources: Hinton et al. 2015 (1503.02531) section 2; Agarwal et al. 2023 (2306.13649) and TRL's GKD trainer.
// KL(p||p) is exactly 0: both rows go through the same code, and log(p/q) is made of differences.

constant constexpr uint MOST = 4;          // numbers of a reduction
constant constexpr float LEAST_LOG = -1e9f;  // stands for log 0, so that 0 log 0 is 0 and nothing becomes NaN
constant constexpr float LEAST_TAIL = 1e-30f;

#define GROUP_PARAMETERS threadgroup float *scratch, uint simdgroup, uint simdgroups, uint lane
#define GROUP scratch, simdgroup, simdgroups, lane

// Each of the n sums becomes that of the threadgroup, the same in all threads. scratch: [2 MOST,32]
inline void group_sums(thread Sum* v, uint n, GROUP_PARAMETERS) {
  for (uint k = 0; k < n; k++) {
    const Sum sum = simd_sum(v[k]);
    if (lane == 0) {
      scratch[2 * k * 32 + simdgroup] = sum.high;
      scratch[(2 * k + 1) * 32 + simdgroup] = sum.low;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint k = 0; k < n; k++) {
    v[k] = no_sum();
    for (uint i = 0; i < simdgroups; i++) {
      Sum part;
      part.high = scratch[2 * k * 32 + i];
      part.low = scratch[(2 * k + 1) * 32 + i];
      v[k] = plus(v[k], part);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
inline void group_max(thread float* v, uint n, GROUP_PARAMETERS) {
  for (uint k = 0; k < n; k++) {
    const float highest = simd_max(v[k]);
    if (lane == 0) scratch[k * 32 + simdgroup] = highest;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint k = 0; k < n; k++)
    for (uint i = 0; i < simdgroups; i++) v[k] = max(v[k], scratch[k * 32 + i]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// (x - high) scale, which is <= 0, and its exponential. NaN stays.
inline float log_weight(float x, float scale, float high) {
  const float z = (x - high) * scale;
  return z < LEAST_LOG ? LEAST_LOG : z;
}
inline float exp_below(float x) { return exp(x < -88.0f ? -88.0f : x); }

// log(1 + x), given y, which is 1 + x but for its rounding; exactly 0 at 0
inline float log_one_plus(float x, float y) { return log(y) - ((y - 1.0f) - x) / y; }

// What all terms are made of, for a column.
struct Point {
  float e_s, e_t, delta;   // delta = log p - log q
  float log_p_m, log_q_m;  // log p/m and log q/m
};
inline Point point_of(float z_s, float z_t, float log_ratio, float beta, bool mixes) {
  Point at;
  at.e_s = exp_below(z_s);
  at.e_t = exp_below(z_t);
  at.delta = (z_t - z_s) - log_ratio;
  at.log_p_m = at.log_q_m = 0.0f;
  if (mixes) {
    // From the larger of p and q, so that the exponent is <= 0: m/p = beta + (1-beta) e^-delta, m/q = (1-beta) + beta
    // e^delta
    const bool above = at.delta > 0.0f;
    const float low = above ? -at.delta : at.delta, e = exp_below(low);
    const float own = above ? beta : 1.0f - beta, other = above ? 1.0f - beta : beta;
    const float log_m = log_one_plus(other * (e - 1.0f), own + other * e);
    at.log_p_m = -(log_m - (above ? 0.0f : low));
    at.log_q_m = -(log_m - (above ? low : 0.0f));
  }
  return at;
}

// The gradient's factors of the terms' derivatives, for a row of weight w.
struct Factors {
  float kl, rkl, jsd;
};
inline Factors factors_of(float w, constant LossParams& p) {
  const float forward = p.beta == 0.0f ? p.w_jsd : 0.0f, reverse = p.beta == 1.0f ? p.w_jsd : 0.0f;
  Factors f;
  f.kl = w * (p.w_kl * p.temperature + forward / p.temperature);
  f.rkl = w * (p.w_rkl * p.temperature + reverse / p.temperature);
  f.jsd = w * p.w_jsd * (1.0f - p.beta) / p.temperature;
  return f;
}

inline int id_of(device const uchar* ids, ulong at, bool is_u16) {
  return is_u16 ? int(((device const ushort*)ids)[at]) : ((device const int*)ids)[at];
}
// 0 for an ignored row: target -100 or weight 0
inline float weight_of(device const int* targets, device const float* weights, uint row, bool has_targets,
                       bool has_weights) {
  if (has_targets && targets[row] == -100) return 0.0f;
  return has_weights ? weights[row] : 1.0f;
}

template <typename S, typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void loss(
    device const S* logits [[buffer(0)]],         // [rows,columns], from first_row on
    device const T* teacher [[buffer(1)]],        // [rows,teacher_columns], from first_row on, where top_k is 0
    device const int* targets [[buffer(2)]],      // [R], where has_targets
    device const float* weights [[buffer(3)]],    // [R], where has_weights
    device const uchar* ids [[buffer(4)]],        // [R,top_k]
    device const float* log_probs [[buffer(5)]],  // [R,top_k]
    device const float* tail [[buffer(6)]],       // [R]
    device const float* seed [[buffer(7)]],       // [1], where has_seed
    device S* d_logits [[buffer(8)]],             // [rows,columns], where has_d; may be logits
    device float* parts [[buffer(9)]],            // [R,4], where has_parts
    constant LossParams& p [[buffer(10)]],
    threadgroup float* scratch [[threadgroup(0)]],  // [2 MOST,32]
    threadgroup uint* named [[threadgroup(1)]],     // [vocab / 32]: a bit for each id of a top-k teacher
    uint local_row [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint row = p.first_row + local_row, V = p.vocab, K = p.top_k;
  device const S* s = logits + ulong(local_row) * p.columns;
  device const T* t = teacher + ulong(local_row) * p.teacher_columns;
  device S* d = d_logits + ulong(local_row) * p.columns;
  const bool distils = p.w_kl != 0.0f || p.w_rkl != 0.0f || p.w_jsd != 0.0f, top = distils && K > 0;
  const bool full = distils && K == 0, has_ce = p.w_ce != 0.0f, mixes = p.w_jsd != 0.0f && p.beta > 0.0f && p.beta < 1.0f;
  const float scale = distils ? 1.0f / p.temperature : 1.0f;

  // Ignored rows, and those whose target or teacher is not in the vocabulary (check_targets reports them), are 0.
  float weight = weight_of(targets, weights, row, p.has_targets, p.has_weights);
  const int target = has_ce ? targets[row] : 0;
  if (target < 0 || uint(target) >= V) weight = 0.0f;
  if (top && weight != 0.0f) {
    float wrong = 0.0f;
    for (uint k = tid; k < K; k += threads) {
      const int id = id_of(ids, ulong(row) * K + k, p.ids_u16);
      if (id < 0 || uint(id) >= V) wrong = 1.0f;
    }
    group_max(&wrong, 1, GROUP);
    if (wrong != 0.0f) weight = 0.0f;
  }
  if (weight == 0.0f) {
    if (p.has_parts && tid < 4) parts[ulong(row) * 4 + tid] = 0.0f;
    if (p.has_d)
      for (uint v = tid; v < p.columns; v += threads) d[v] = from_float<S>(0.0f);
    return;
  }
  if (p.has_seed) weight *= seed[0];
  const float at_target = has_ce ? to_float(s[target]) : 0.0f;

  // A bit for each id; a thread owns its words.
  const bool has_rest = top && K < V;
  if (top) {
    for (uint word = tid; word < (V + 31) / 32; word += threads) {
      uint bits = 0;
      for (uint k = 0; k < K; k++) {
        const uint id = uint(id_of(ids, ulong(row) * K + k, p.ids_u16));
        if (id / 32 == word) bits |= 1u << (id % 32);
      }
      named[word] = bits;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  // Highest logits: of all columns, of those that are no id, of the teacher's.
  float highest[3] = {LOWEST, LOWEST, LOWEST};
  for (uint v = tid; v < V; v += threads) {
    const float x = to_float(s[v]);
    highest[0] = max(highest[0], x);
    if (top && !(named[v / 32] >> (v % 32) & 1)) highest[1] = max(highest[1], x);
    if (full) highest[2] = max(highest[2], to_float(t[v]));
  }
  group_max(highest, 3, GROUP);
  const float high = highest[0], high_rest = highest[1], high_t = highest[2];

  // Sums of exponentials: of s/T, of s, of t/T, of the s/T that are no id.
  Sum sums[4];
  for (uint k = 0; k < 4; k++) sums[k] = no_sum();
  for (uint v = tid; v < V; v += threads) {
    const float x = to_float(s[v]);
    if (!top) sums[0] = plus(sums[0], exp_below(log_weight(x, scale, high)));
    if (has_ce) sums[1] = plus(sums[1], exp_below(log_weight(x, 1.0f, high)));
    if (full) sums[2] = plus(sums[2], exp_below(log_weight(to_float(t[v]), scale, high_t)));
    if (top && !(named[v / 32] >> (v % 32) & 1))
      sums[3] = plus(sums[3], exp_below(log_weight(x, scale, high_rest)));
  }
  group_sums(sums, 4, GROUP);
  const float sum_1 = value(sums[1]), sum_rest = value(sums[3]);
  const Factors f = factors_of(weight, p);
  const float a_1 = has_ce ? weight * p.w_ce / sum_1 : 0.0f;

  // The terms' values: over the columns, or over the classes of a top-k teacher.
  float sum_s = value(sums[0]), sum_t = value(sums[2]), class_shift = 0.0f, teacher_shift = 0.0f;
  // Logits of classes are relative to `high`, so that large ones lose nothing; of_rest: the log-sum-exp of the others.
  const bool has_weight = has_rest && sum_rest > 0.0f;
  const float of_rest = has_weight ? (high_rest - high) * scale + log(sum_rest) : LEAST_LOG;
  const float rest_log = top ? log(max(tail[row], LEAST_TAIL)) : 0.0f;
  if (top) {
    float best[2] = {of_rest, has_rest ? rest_log : LOWEST};
    for (uint k = tid; k < K; k += threads) {
      const ulong at = ulong(row) * K + k;
      best[0] = max(best[0], log_weight(to_float(s[id_of(ids, at, p.ids_u16)]), scale, high));
      best[1] = max(best[1], log_probs[at]);
    }
    group_max(best, 2, GROUP);
    class_shift = best[0];
    teacher_shift = best[1];
    Sum both[2];
    both[0] = both[1] = no_sum();
    for (uint k = tid; k < K; k += threads) {
      const ulong at = ulong(row) * K + k;
      both[0] = plus(both[0], exp_below(log_weight(log_weight(to_float(s[id_of(ids, at, p.ids_u16)]), scale, high), 1.0f, class_shift)));
      both[1] = plus(both[1], exp_below(log_weight(log_probs[at], 1.0f, teacher_shift)));
    }
    if (has_rest && tid == 0) {
      both[0] = plus(both[0], exp_below(log_weight(of_rest, 1.0f, class_shift)));
      both[1] = plus(both[1], exp_below(log_weight(rest_log, 1.0f, teacher_shift)));
    }
    group_sums(both, 2, GROUP);
    sum_s = value(both[0]);
    sum_t = value(both[1]);
  }
  // The logarithm of the ratio, not the difference of logarithms: those are large and cancel.
  const float ratio = sum_s == sum_t ? 1.0f : sum_s / sum_t, log_ratio = distils ? -log(ratio) : 0.0f;
  Sum terms[4];  // e_t delta, -e_s delta, e_t log p/m, e_s log q/m
  for (uint k = 0; k < 4; k++) terms[k] = no_sum();
  if (full)
    for (uint v = tid; v < V; v += threads) {
      const Point at = point_of(log_weight(to_float(s[v]), scale, high), log_weight(to_float(t[v]), scale, high_t),
                                log_ratio, p.beta, mixes);
      terms[0] = plus(terms[0], at.e_t * at.delta);
      terms[1] = plus(terms[1], -(at.e_s * at.delta));
      terms[2] = plus(terms[2], at.e_t * at.log_p_m);
      terms[3] = plus(terms[3], at.e_s * at.log_q_m);
    }
  Point rest = point_of(log_weight(of_rest, 1.0f, class_shift), log_weight(rest_log, 1.0f, teacher_shift), log_ratio,
                        p.beta, false);
  if (top) {
    for (uint k = tid; k < K; k += threads) {
      const ulong i = ulong(row) * K + k;
      const Point at = point_of(log_weight(log_weight(to_float(s[id_of(ids, i, p.ids_u16)]), scale, high), 1.0f, class_shift),
                                log_weight(log_probs[i], 1.0f, teacher_shift), log_ratio, p.beta, false);
      terms[0] = plus(terms[0], at.e_t * at.delta);
    }
    if (has_rest && tid == 0) terms[0] = plus(terms[0], rest.e_t * rest.delta);
  }
  if (distils) group_sums(terms, 4, GROUP);
  const float kl = value(terms[0]) / sum_t, rkl = value(terms[1]) / sum_s, mean = value(terms[3]) / sum_s;
  if (p.has_parts && tid == 0) {
    device float* to = parts + ulong(row) * 4;
    const float square = p.temperature * p.temperature;
    to[0] = has_ce ? (high - at_target) + log(sum_1) : 0.0f;
    to[1] = p.w_kl != 0.0f ? square * kl : 0.0f;
    to[2] = p.w_rkl != 0.0f ? square * rkl : 0.0f;
    const float jsd = p.beta * (value(terms[2]) / sum_t) + (1.0f - p.beta) * mean;
    to[3] = p.w_jsd != 0.0f ? (p.beta == 0.0f ? kl : p.beta == 1.0f ? rkl : jsd) : 0.0f;
  }
  if (!p.has_d) return;

  // d may lie over s: all that is read of other threads' columns has been read.
  threadgroup_barrier(mem_flags::mem_device);
  const float a_kl = f.kl / sum_s, a_rkl = f.rkl / sum_s, a_jsd = f.jsd / sum_s;
  const float a_rest = has_weight ? a_kl * (rest.e_s - ratio * rest.e_t) / sum_rest : 0.0f;
  for (uint v = tid; v < V; v += threads) {
    if (top && (named[v / 32] >> (v % 32) & 1)) continue;
    const float x = to_float(s[v]);
    float sum = 0.0f;
    if (full) {
      const Point at = point_of(log_weight(x, scale, high), log_weight(to_float(t[v]), scale, high_t), log_ratio,
                                p.beta, mixes);
      sum = a_kl * (at.e_s - ratio * at.e_t) - a_rkl * at.e_s * (at.delta + rkl) + a_jsd * at.e_s * (at.log_q_m - mean);
    }
    if (top) sum = a_rest * exp_below(log_weight(x, scale, high_rest));
    if (has_ce) sum += a_1 * exp_below(log_weight(x, 1.0f, high)) - (int(v) == target ? weight * p.w_ce : 0.0f);
    d[v] = from_float<S>(sum);
  }
  for (uint k = tid; k < K && top; k += threads) {
    const ulong i = ulong(row) * K + k;
    const int id = id_of(ids, i, p.ids_u16);
    const float x = to_float(s[id]);
    const Point at = point_of(log_weight(log_weight(x, scale, high), 1.0f, class_shift), log_weight(log_probs[i], 1.0f, teacher_shift),
                              log_ratio, p.beta, false);
    float sum = a_kl * (at.e_s - ratio * at.e_t);
    if (has_ce) sum += a_1 * exp_below(log_weight(x, 1.0f, high)) - (id == target ? weight * p.w_ce : 0.0f);
    d[id] = from_float<S>(sum);
  }
  for (uint v = V + tid; v < p.columns; v += threads) d[v] = from_float<S>(0.0f);
}
INSTANTIATE("loss_f32_f32", loss, float, float)
INSTANTIATE("loss_f32_bf16", loss, float, bf16)
INSTANTIATE("loss_bf16_f32", loss, bf16, float)
INSTANTIATE("loss_bf16_bf16", loss, bf16, bf16)
INSTANTIATE("loss_f32_f16", loss, float, half)
INSTANTIATE("loss_f16_f32", loss, half, float)
INSTANTIATE("loss_f16_f16", loss, half, half)

// The first row that counts whose target (kind 1) or teacher id (kind 2) is outside the vocabulary. One threadgroup.
[[kernel, max_total_threads_per_threadgroup(256)]] void check_targets(
    device const int* targets [[buffer(0)]],    // [rows], where has_targets
    device const float* weights [[buffer(1)]],  // [rows], where has_weights
    device const uchar* ids [[buffer(2)]],      // [rows,top_k]
    device int* fault [[buffer(3)]],            // [kFaultWords]
    constant CheckTargetsParams& p [[buffer(4)]],
    threadgroup uint* firsts [[threadgroup(0)]],  // [8]
    uint tid [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  uint first = p.rows;
  for (uint r = tid; r < p.rows && first == p.rows; r += 256) {
    if (weight_of(targets, weights, r, p.has_targets, p.has_weights) == 0.0f) continue;
    if (p.has_targets && (targets[r] < 0 || uint(targets[r]) >= p.vocab)) first = r;
    for (uint k = 0; k < p.top_k; k++) {
      const int id = id_of(ids, ulong(r) * p.top_k + k, p.ids_u16);
      if (id < 0 || uint(id) >= p.vocab) first = r;
    }
  }
  first = simd_min(first);
  if (lane == 0) firsts[simdgroup] = first;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (tid != 0) return;
  for (uint k = 1; k < 8; k++) first = min(first, firsts[k]);
  if (first == p.rows) return;
  fault[0] = 1;
  fault[1] = p.has_targets ? targets[first] : 0;
  fault[2] = int(first);
  if (p.has_targets && (targets[first] < 0 || uint(targets[first]) >= p.vocab)) return;
  uint k = 0;
  int id = 0;
  do {
    id = id_of(ids, ulong(first) * p.top_k + k++, p.ids_u16);
  } while (id >= 0 && uint(id) < p.vocab);
  fault[0] = 2;
  fault[1] = id;
}

// out = the rows of x, zeros where they are ignored: what is in them must not reach a product, not even times 0.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void clear_ignored(
    device const T* x [[buffer(0)]],            // [rows,columns], from first_row on
    device const int* targets [[buffer(1)]],    // [R], where has_targets
    device const float* weights [[buffer(2)]],  // [R], where has_weights
    device T* out [[buffer(3)]],                // [rows,columns]
    constant ClearRowsParams& p [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  const uint c = group.x * 256 + tid, r = group.y;
  if (c >= p.columns) return;
  const bool counts = weight_of(targets, weights, p.first_row + r, p.has_targets, p.has_weights) != 0.0f;
  const ulong at = ulong(r) * p.columns + c;
  out[at] = counts ? x[at] : from_float<T>(0.0f);
}
INSTANTIATE("clear_ignored_f32", clear_ignored, float)
INSTANTIATE("clear_ignored_bf16", clear_ignored, bf16)
INSTANTIATE("clear_ignored_f16", clear_ignored, half)

// part = 1 - cos(s, t);  d_s = seed w (cos s/|s|^2 - t/(|s||t|));  a row of zeros has cosine 0 and no gradient.
// DistilBERT, Sanh et al. 2019 (1910.01108), section 3.
template <typename S, typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void cosine_loss(
    device const S* student [[buffer(0)]],      // [rows,columns]
    device const T* teacher [[buffer(1)]],      // [rows,columns]
    device const float* weights [[buffer(2)]],  // [rows], where has_weights
    device const float* seed [[buffer(3)]],     // [1], where has_seed
    device S* d_student [[buffer(4)]],          // [rows,columns], where has_d
    device float* part [[buffer(5)]],           // [rows], where has_part
    constant CosineParams& p [[buffer(6)]],
    uint group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint row = group * 8 + simdgroup;
  if (row >= p.rows) return;
  const ulong at = ulong(row) * p.columns;
  float ss = 0.0f, tt = 0.0f, st = 0.0f;
  for (uint c = lane; c < p.columns; c += 32) {
    const float a = to_float(student[at + c]), b = to_float(teacher[at + c]);
    ss += a * a;
    tt += b * b;
    st += a * b;
  }
  ss = simd_sum(ss);
  tt = simd_sum(tt);
  st = simd_sum(st);
  // For s == t the cosine is exactly 1, since sqrt(a a) is a.
  const float norms = sqrt(ss * tt), weight = p.has_weights ? weights[row] : 1.0f;
  const float cosine = norms > 0.0f ? st / norms : 0.0f;
  if (p.has_part && lane == 0) part[row] = weight == 0.0f ? 0.0f : 1.0f - cosine;
  if (!p.has_d) return;
  const bool none = weight == 0.0f || !(norms > 0.0f);
  const float by = p.has_seed ? weight * seed[0] : weight;
  const float a = none ? 0.0f : by * cosine / ss, b = none ? 0.0f : by / norms;
  for (uint c = lane; c < p.columns; c += 32)
    d_student[at + c] =
        from_float<S>(none ? 0.0f : a * to_float(student[at + c]) - b * to_float(teacher[at + c]));
}
INSTANTIATE("cosine_loss_f32_f32", cosine_loss, float, float)
INSTANTIATE("cosine_loss_f32_bf16", cosine_loss, float, bf16)
INSTANTIATE("cosine_loss_bf16_f32", cosine_loss, bf16, float)
INSTANTIATE("cosine_loss_bf16_bf16", cosine_loss, bf16, bf16)
INSTANTIATE("cosine_loss_f32_f16", cosine_loss, float, half)
INSTANTIATE("cosine_loss_f16_f32", cosine_loss, half, float)
INSTANTIATE("cosine_loss_f16_f16", cosine_loss, half, half)
