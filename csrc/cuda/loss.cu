/*
The losses on given logits, a block a row. Plain: loss_online.cu and loss_sm90.cu have faster kernels.

  q = softmax(s/T), p = softmax(t/T), m = beta·p + (1-beta)·q; unweighted parts:
  CE = -log softmax(s)[y];  KL = T²·Σ p log(p/q);  RKL = T²·Σ q log(q/p);
  JSD = beta·Σ p log(p/m) + (1-beta)·Σ q log(q/m); beta 0 and 1 stand for Σ p log(p/q) and Σ q log(q/p)
  d CE = softmax(s) - [v = y];  d KL = T (q - p);  d RKL = T q (log(q/p) - Σ q log(q/p));
  d JSD = (1-beta)/T · q (log(q/m) - Σ q log(q/m))
  top-k teacher: the same with K + 1 classes, its ids and "any other": the student's logit of the latter is the
  log-sum-exp z of the others' logits / T, the teacher's the log of the tail; a gradient G of that class is
  G·exp(s_v/T - z) for column v
Sources: Hinton et al. 2015 (1503.02531) section 2 (T²); Agarwal et al. 2023 (2306.13649) and TRL's GKD trainer (JSD,
its ends); Wu et al. 2022 (TinyViT, 2207.10666) (stored sparse logits). A log-probability below -1e9, a teacher's -inf
say, counts as -1e9: p log(p/q) is 0 there, and a reverse KL that would be infinite is large. KL(p‖p) is exactly 0: both
rows go through the same code, and log(p/q) is made of differences. Columns are added in f32 by each thread, the
threads' sums in double.
*/
#include "checks.cuh"
#include "kernels.h"
#include "loss.cuh"

namespace tc::cuda {

namespace {

constexpr int64_t kSegment = int64_t(1) << 16;  // columns of the map of a top-k teacher's ids

// Shared memory of a block.
struct Scratch {
  double sums[kWarps];
  float highs[kWarps];
  uint32_t map[kSegment / 32];
};

__device__ double sum_of(float x, Scratch& s) { return block_join(double(x), Add(), s.sums); }
__device__ float high_of(float x, Scratch& s) { return block_join(x, Larger(), s.highs); }

// (x - high)·scale <= 0, the difference first: products of large logits would be rounded. NaN stays NaN
__device__ float log_weight(float x, float scale, float high) {
  const float z = (x - high) * scale;
  return z < kLeastLog ? kLeastLog : z;
}

// Two distributions over n columns at temperature 1/scale, up to their sums.
template <class S, class T>
struct Pair {
  S s;
  T t;
  float scale, high_s, high_t, log_ratio, beta;
  double sum_s, sum_t;

  struct Point {
    float e_s, e_t, delta;   // delta = log p - log q
    float log_p_m, log_q_m;  // log p/m and log q/m
  };
  __device__ Point at(int64_t v, bool mixes) const {
    Point p;
    const float z_s = log_weight(s(v), scale, high_s), z_t = log_weight(t(v), scale, high_t);
    p.e_s = expf(z_s);
    p.e_t = expf(z_t);
    p.delta = (z_t - z_s) - log_ratio;
    p.log_p_m = p.log_q_m = 0;
    if (!mixes) return p;
    const LossMixture mixture(p.delta, beta);
    p.log_p_m = mixture.log_p_m;
    p.log_q_m = mixture.log_q_m;
    return p;
  }
};

struct Terms {
  double kl, rkl, jsd;  // without T²
  float mean;           // of log q/m under q
};

// All threads of a block call these.
template <class S, class T>
__device__ Pair<S, T> make_pair(S s, T t, int64_t n, float scale, float beta, Scratch& scratch) {
  float high_s = -INFINITY, high_t = -INFINITY;
  for (int64_t v = threadIdx.x; v < n; v += kThreads) {
    high_s = Larger()(high_s, s(v));
    high_t = Larger()(high_t, t(v));
  }
  Pair<S, T> p{s, t, scale, high_of(high_s, scratch), high_of(high_t, scratch), 0, beta, 0, 0};
  float sum_s = 0, sum_t = 0;
  for (int64_t v = threadIdx.x; v < n; v += kThreads) {
    sum_s += expf(log_weight(s(v), scale, p.high_s));
    sum_t += expf(log_weight(t(v), scale, p.high_t));
  }
  p.sum_s = sum_of(sum_s, scratch);
  p.sum_t = sum_of(sum_t, scratch);
  p.log_ratio = float(log(p.sum_t) - log(p.sum_s));
  return p;
}
template <class S, class T>
__device__ Terms terms_of(const Pair<S, T>& p, int64_t n, bool mixes, Scratch& scratch) {
  float kl = 0, rkl = 0, jsd_t = 0, jsd_s = 0;
  for (int64_t v = threadIdx.x; v < n; v += kThreads) {
    const auto at = p.at(v, mixes);
    kl += at.e_t * at.delta;
    rkl -= at.e_s * at.delta;
    jsd_t += at.e_t * at.log_p_m;
    jsd_s += at.e_s * at.log_q_m;
  }
  Terms terms;
  terms.kl = sum_of(kl, scratch) / p.sum_t;
  terms.rkl = sum_of(rkl, scratch) / p.sum_s;
  const double of_s = mixes ? sum_of(jsd_s, scratch) / p.sum_s : 0;
  const double of_t = mixes ? sum_of(jsd_t, scratch) / p.sum_t : 0;
  terms.jsd = p.beta * of_t + (1 - double(p.beta)) * of_s;
  terms.mean = float(of_s);
  return terms;
}
// The terms' part of the gradient in column v.
template <class S, class T>
__device__ float slope(const Pair<S, T>& p, const Terms& terms, const LossFactors& f, int64_t v) {
  const auto at = p.at(v, f.mixes);
  float d = float(f.kl / p.sum_s) * (at.e_s - float(p.sum_s / p.sum_t) * at.e_t);
  if (f.rkl != 0) d -= float(f.rkl / p.sum_s) * at.e_s * (at.delta + float(terms.rkl));
  if (f.mixes) d += float(f.jsd / p.sum_s) * at.e_s * (at.log_q_m - terms.mean);
  return d;
}

// Logits of one row.
struct Logits {
  Floats data;
  int64_t at;
  __device__ float operator()(int64_t v) const { return data[at + v]; }
};

// CE's softmax: sum = Σ exp(s - shift)
struct Softmax {
  float shift;
  double sum;
  __device__ float exp_of(float s) const { return expf(s - shift); }
  __device__ double log_sum() const { return shift + log(sum); }
};
__device__ Softmax softmax_of(const Logits& s, int64_t n, Scratch& scratch) {
  float high = -INFINITY, sum = 0;
  for (int64_t v = threadIdx.x; v < n; v += kThreads) high = Larger()(high, s(v));
  Softmax softmax{high_of(high, scratch), 0};
  for (int64_t v = threadIdx.x; v < n; v += kThreads) sum += softmax.exp_of(s(v));
  softmax.sum = sum_of(sum, scratch);
  return softmax;
}

// Where the gradient of a row goes, given the terms' part of it.
struct Gradient {
  Floats d;
  int64_t at, target;
  float of_target, of_softmax;  // factors of CE; both 0 where it is off
  Softmax softmax;

  __device__ void set(int64_t v, float terms, float s) const {
    if (of_softmax != 0) terms += of_softmax * softmax.exp_of(s);
    d.set(at + v, v == target ? terms - of_target : terms);
  }
};

// A top-k teacher's classes: k < K its ids, k == K the others, whose log-sum-exp at temperature T is `others`.
struct StudentClasses {
  LossInputs in;
  Logits s;
  int64_t first, K, vocab;
  float scale;
  double others, high;

  __device__ int64_t id(int64_t k) const { return in.id(first + k); }
  __device__ float operator()(int64_t k) const {
    if (k == K) return float(others - high);
    const int64_t v = id(k);
    return v >= 0 && v < vocab ? float(double(s(v)) * scale - high) : -INFINITY;
  }
};
struct TeacherClasses {
  LossInputs in;
  int64_t first, row, K;
  __device__ float operator()(int64_t k) const {
    return k < K ? in.log_probs[first + k] : logf(fmaxf(in.tail[row], kLeastTail));
  }
};

// f(v) for the columns that are no ids of the teacher, in segments whose ids are marked in shared memory.
template <class F>
__device__ void for_others(const StudentClasses& c, Scratch& scratch, F&& f) {
  for (int64_t begin = 0; begin < c.vocab; begin += kSegment) {
    const int64_t n = c.vocab - begin < kSegment ? c.vocab - begin : kSegment;
    __syncthreads();
    for (int64_t w = threadIdx.x; w * 32 < n; w += kThreads) scratch.map[w] = 0;
    __syncthreads();
    for (int64_t k = threadIdx.x; k < c.K; k += kThreads)
      if (const int64_t v = c.id(k) - begin; v >= 0 && v < n) atomicOr(&scratch.map[v / 32], 1u << (v % 32));
    __syncthreads();
    for (int64_t v = threadIdx.x; v < n; v += kThreads)
      if (!(scratch.map[v / 32] >> (v % 32) & 1)) f(begin + v);
  }
}

__device__ Terms top_k_row(const LossRows& x, int64_t r, const Logits& s, const LossFactors& f,
                           const Gradient* gradient, Scratch& scratch) {
  const LossSettings& c = x.settings;
  const int64_t K = c.top_k, classes = K + (K < c.vocab);
  StudentClasses student{x.in, s, r * K, K, c.vocab, 1 / c.temperature, -INFINITY, 0};
  float high = -INFINITY, sum = 0;
  for_others(student, scratch, [&](int64_t v) { high = Larger()(high, s(v)); });
  high = high_of(high, scratch);
  for_others(student, scratch, [&](int64_t v) { sum += expf(log_weight(s(v), student.scale, high)); });
  const double others = sum_of(sum, scratch);
  if (K < c.vocab) student.others = double(high) * student.scale + log(others);
  float top = float(student.others);
  for (int64_t k = threadIdx.x; k < K; k += kThreads) top = Larger()(top, student(k));
  student.high = high_of(top, scratch);
  const auto pair = make_pair(student, TeacherClasses{x.in, r * K, r, K}, classes, 1, c.beta, scratch);
  const Terms terms = terms_of(pair, classes, false, scratch);
  if (!gradient) return terms;
  const float of_others = K < c.vocab ? float(slope(pair, terms, f, K) / others) : 0;
  for_others(student, scratch,
             [&](int64_t v) { gradient->set(v, of_others * expf(log_weight(s(v), student.scale, high)), s(v)); });
  for (int64_t k = threadIdx.x; k < K; k += kThreads)
    if (const int64_t v = student.id(k); v >= 0 && v < c.vocab) gradient->set(v, slope(pair, terms, f, k), s(v));
  return terms;
}

__device__ Terms full_row(const LossRows& x, const Logits& s, const Logits& t, const LossFactors& f,
                          const Gradient* gradient, Scratch& scratch) {
  const LossSettings& c = x.settings;
  const auto pair = make_pair(s, t, c.vocab, 1 / c.temperature, c.beta, scratch);
  const Terms terms = terms_of(pair, c.vocab, f.mixes, scratch);
  if (gradient)
    for (int64_t v = threadIdx.x; v < c.vocab; v += kThreads) gradient->set(v, slope(pair, terms, f, v), s(v));
  return terms;
}

// From column `begin` on; from 0: the parts too, where r is a row.
__device__ void zero_row(const LossRows& x, int64_t k, int64_t r, int64_t begin) {
  if (x.d.data)
    for (int64_t v = begin + threadIdx.x; v < x.d_columns; v += kThreads) x.d.set(k * x.d_stride + v, 0);
  if (begin == 0 && r >= 0 && x.parts && threadIdx.x < 4) x.parts[r * 4 + threadIdx.x] = 0;
}

__global__ void loss_kernel1(LossRows x, int64_t n) {
  __shared__ Scratch scratch;
  const int64_t k = blockIdx.x;
  if (k >= x.count.of(n)) {
    if (k < x.count.read(n)) zero_row(x, k, -1, 0);
    return;
  }
  const LossSettings& c = x.settings;
  const int64_t r = x.rows ? x.rows[k] : k;
  float weight = x.in.weight(r);
  if (weight == 0) return zero_row(x, k, r, 0);
  if (x.in.seed) weight *= *x.in.seed;
  const bool ce = c.w_ce != 0;
  const LossFactors f(c, weight);
  const Logits s{x.student, k * x.student_stride}, t{x.teacher, k * x.teacher_stride};
  const int64_t target = ce && x.in.targets[r] >= 0 && x.in.targets[r] < c.vocab ? x.in.targets[r] : -1;
  const float at_target = target < 0 ? 0 : s(target);
  Softmax softmax{0, 1};
  if (ce) softmax = softmax_of(s, c.vocab, scratch);
  const Gradient gradient{x.d, k * x.d_stride, target, f.ce, ce ? float(f.ce / softmax.sum) : 0, softmax};
  const Gradient* d = x.d.data ? &gradient : nullptr;
  __syncthreads();  // every thread has read the target's logit before one writes there
  Terms terms{};
  if (c.full_teacher())
    terms = full_row(x, s, t, f, d, scratch);
  else if (c.distils())
    terms = top_k_row(x, r, s, f, d, scratch);
  else if (d)
    for (int64_t v = threadIdx.x; v < c.vocab; v += kThreads) gradient.set(v, 0, s(v));
  if (d) zero_row(x, k, r, c.vocab);
  if (!x.parts || threadIdx.x != 0) return;
  const double square = double(c.temperature) * c.temperature;
  float* parts = x.parts + r * 4;
  parts[0] = ce ? float(softmax.log_sum() - at_target) : 0;
  parts[1] = c.w_kl == 0 ? 0 : float(square * terms.kl);
  parts[2] = c.w_rkl == 0 ? 0 : float(square * terms.rkl);
  parts[3] = c.w_jsd == 0 ? 0 : float(c.beta == 0 ? terms.kl : c.beta == 1 ? terms.rkl : terms.jsd);
}

int64_t rows_of(const View& v) { return v.size() ? v.rows() : 0; }

void run_loss(const Args& x, const Context& c, const View& seed, const View& d, const View& parts) {
  const View &logits = x.in[0], &teacher = x.in[3];
  const int64_t R = rows_of(logits);
  LossRows rows{LossSettings(x), loss_inputs(x, 1, seed), floats(logits)};
  if (rows.settings.full_teacher()) rows.teacher = floats(teacher);
  rows.student_stride = logits.last();
  rows.teacher_stride = teacher.last();
  rows.d = floats(d);
  rows.d_stride = rows.d_columns = logits.last();
  rows.parts = parts.f32();
  check_loss_inputs(c, rows.settings, rows.in, R);
  loss_rows(c, rows, R);
}
const View kAbsent;

}  // namespace

LossInputs loss_inputs(const Args& x, int targets, const View& seed) {
  const View* in = x.in + targets;
  return {in[0].i32(), in[1].f32(), in[2].data, in[2].dtype == DType::u16, in[3].f32(), in[4].f32(), seed.f32()};
}

void check_loss_inputs(const Context& c, const LossSettings& settings, const LossInputs& in, int64_t R) {
  Ids ids{in.targets};
  ids.targets = in.targets;
  ids.weights = in.weights;
  if (in.targets) check_ids(c, ids, R, settings.vocab, kTargetFault);
  if (!settings.distils() || !settings.top_k) return;
  ids.data = in.ids;
  ids.is_u16 = in.ids_are_u16;
  ids.per_row = settings.top_k;
  check_ids(c, ids, R * settings.top_k, settings.vocab, kTeacherFault);
}

void loss_rows(const Context& c, const LossRows& rows, int64_t n) {
  if (n == 0) return;
  if (!c.plain && (loss_rows_sm90(c, rows, n) || loss_rows_online(c, rows, n))) return;
  run(c, loss_kernel1, dim3(unsigned(n)), kThreads, rows, n);
}

void loss_forward(const Args& x, const Context& c) { run_loss(x, c, kAbsent, kAbsent, x.out[0]); }
void loss_backward(const Args& x, const Context& c) { run_loss(x, c, x.in[6], x.out[0], x.out[1]); }

}  // namespace tc::cuda
