// Forward; included by attention_body.h.

constexpr int64_t kThinQueries =
    kLanes / 4;  // fewer than these leave most lanes idle: they go over the keys one by one

template <class A>
struct ForwardScratch {
  typedef typename A::Step Step;
  Step* keys;     // [Tk / kRows][D steps][kPanel]
  Step* values;   // [Tk steps][width]
  Step* queries;  // [D steps][kWide]
  float* scores;  // [kForwardKeys][kWide]
  Step* weights;  // [kForwardKeys steps][kWide], may be the scores
  float* keep;    // [kForwardKeys][kWide]
  float* sums;    // [kWide][width]: weights · values
  int64_t width, bytes;

  ForwardScratch(void* base, int64_t Tk, int64_t D) : width(round_up(D, kLanes)) {
    Scratch s{(char*)base};
    keys = s.take<Step>(divide_up(Tk, kRows) * (D / A::kElements) * kPanel);
    values = s.take<Step>(divide_up(Tk, A::kElements) * width);
    queries = s.take<Step>(D / A::kElements * kWide);
    scores = s.take<float>(kForwardKeys * kWide);
    weights = A::kElements == 1 ? (Step*)scores : s.take<Step>(kForwardKeys / A::kElements * kWide);
    keep = s.take<float>(kForwardKeys * kWide);
    sums = s.take<float>(kWide * width);
    bytes = max64(s.used, round_up(Tk * (int64_t)sizeof(float), 64));
  }
};

template <class A>
int64_t forward_scratch(int64_t Tk, int64_t D) {
  return ForwardScratch<A>(nullptr, Tk, D).bytes;
}

// Of kWide queries: the highest score so far, and the sum of exponentials relative to it.
struct Running {
  Vec high[2], sum[2];
};

// -inf, of a query that has seen nothing yet, becomes 0: a difference with it is no NaN.
inline Vec finite(Vec high) { return choose(high == Vec{} - INFINITY, Vec{}, high); }

// Moves the running maximum over rows [0, count) of the scores; what was summed up so far must be scaled by `factor`.
inline void raise(Running& now, const float* scores, int64_t count, float scale2, Vec* factor) {
  for (int v = 0; v < 2; v++) {
    Vec best[4];
    for (int k = 0; k < 4; k++) best[k] = now.high[v];
    int64_t j = 0;
    for (; j + 4 <= count; j += 4)
      for (int k = 0; k < 4; k++) best[k] = at_least(best[k], load(scores + (j + k) * kWide + v * kLanes));
    for (; j < count; j++) best[0] = at_least(best[0], load(scores + j * kWide + v * kLanes));
    const Vec high = at_least(at_least(best[0], best[1]), at_least(best[2], best[3]));
    factor[v] = exp2_of((now.high[v] - finite(high)) * scale2);
    now.high[v] = high;
    now.sum[v] *= factor[v];
  }
}

// weights = exp(scale · (scores - high)), times keep; their sum (without keep) is added to the running one.
// scale2: scale in powers of 2.
template <class A, bool dropped>
void weigh(Running& now, typename A::Step* weights, const float* scores, const float* keep, int64_t count,
           float scale2) {
  const Vec shift[2] = {finite(now.high[0]) * scale2, finite(now.high[1]) * scale2};
  for (int64_t j = 0; j < count; j += A::kElements, weights += kWide) {
    Vec x[A::kElements][2];
    for (int64_t e = 0; e < A::kElements; e++)
      for (int v = 0; v < 2; v++) {
        const int64_t at = (j + e) * kWide + v * kLanes;
        x[e][v] = j + e < count ? exp2_of(load(scores + at) * scale2 - shift[v]) : Vec{};
        now.sum[v] += x[e][v];
        if (dropped && j + e < count) x[e][v] *= load(keep + at);
      }
    A::store_step(weights, x);
  }
}

// Keys and values from `packed` to at least `keys`, of `limit` that may be read; returns how far.
template <class A, class T>
int64_t pack_keys(const AttentionHead& h, int64_t packed, int64_t keys, int64_t limit, const ForwardScratch<A>& w) {
  const int64_t end = min64(round_up(keys, kRows), limit), steps = h.D / A::kElements;
  if (end <= packed) return packed;
  const T *k = (const T*)h.k + packed * h.kv_stride, *v = (const T*)h.v + packed * h.kv_stride;
  pack_lines<A>(w.keys + packed / kRows * steps * kPanel, kRows, kPanel, k, h.kv_stride, end - packed, h.D);
  pack_rows<A>(w.values + packed / A::kElements * w.width, w.width, v, h.kv_stride, end - packed, h.D);
  return end;
}

// Queries begin .. begin + count - 1, at most kWide of them, whose keys and values are packed.
template <class A, class T>
void forward_queries(const AttentionForward& f, int64_t begin, int64_t count, const ForwardScratch<A>& w,
                     Ahead& ahead) {
  const AttentionHead& h = f.head;
  const int64_t D = h.D, steps = D / A::kElements, first = h.past + begin, last = first + count - 1;
  const int64_t keys = keys_before(h, begin + count - 1);
  pack_lines<A>(w.queries, kWide, kWide, (const T*)h.q + begin * h.q_stride, h.q_stride, count, D);
  const float scale2 = h.scale * kLog2E;
  Running now = {};
  for (int v = 0; v < 2; v++) now.high[v] = Vec{} - INFINITY;
  bool any = false;
  for (int64_t block = 0; block < keys; block += kForwardKeys) {
    const int64_t block_end = min64(block + kForwardKeys, keys);
    // Row tiles that somebody sees; those between them that nobody sees are -inf.
    int64_t from = -1, to = block;
    for (int64_t j = block; j < block_end; j += kRows) {
      const int64_t rows = min64(kRows, block_end - j);
      float* scores = w.scores + (j - block) * kWide;
      const Ends ends = ends_of(h, j, rows);
      const Sight sight = sight_of(ends, j, rows, first, last);
      if (sight == kHidden && from < 0) continue;
      if (sight != kHidden) {
        if (from < 0) from = j;
        to = j + rows;
        ahead.fetch();
        const Lanes seen = lanes_of(ends, j, first);
        multiply<A, 1>(rows, seen.end - seen.begin, steps, w.keys + j / kRows * steps * kPanel, kPanel,
                       w.queries + seen.begin, kWide, scores + seen.begin, kWide, false);
      }
      if (sight != kFully) hide(scores, h, j, rows, first);
    }
    if (from < 0) continue;
    const int64_t seen = to - from;
    const float* scores = w.scores + (from - block) * kWide;
    typename A::Step* weights = w.weights + (from - block) / A::kElements * kWide;
    Vec factor[2];
    raise(now, scores, seen, scale2, factor);
    if (h.dropout.rate > 0) {
      draw(w.keep, h.dropout, from, seen, begin, count);
      weigh<A, true>(now, weights, scores, w.keep, seen, scale2);
    } else {
      weigh<A, false>(now, weights, scores, nullptr, seen, scale2);
    }
    if (any) {
      float by[kWide];
      for (int v = 0; v < 2; v++) store(by + v * kLanes, factor[v]);
      for (int64_t i = 0; i < count; i++)
        if (by[i] != 1) store_row(w.sums + i * w.width, w.sums + i * w.width, by[i], w.width);
    }
    multiply<A, 1>(count, w.width, divide_up(seen, A::kElements), weights, kWide,
                   w.values + from / A::kElements * w.width, w.width, w.sums, w.width, any);
    any = true;
  }
  float sum[kWide], high[kWide];
  for (int v = 0; v < 2; v++) {
    store(sum + v * kLanes, now.sum[v]);
    store(high + v * kLanes, now.high[v]);
  }
  if (!any) memset(w.sums, 0, (size_t)(count * w.width) * sizeof(float));
  for (int64_t i = 0; i < count; i++) {
    store_row((T*)f.out + (begin + i) * f.out_stride, w.sums + i * w.width, sum[i] == 0 ? 0 : 1 / sum[i], D);
    f.lse[begin + i] = high[i] * h.scale + logf(sum[i]);
  }
}

// One query over the keys where they lie.
template <class T>
void forward_query(const AttentionForward& f, int64_t i, float* scores) {
  const AttentionHead& h = f.head;
  const int64_t D = h.D, keys = keys_before(h, i), position = h.past + i;
  const T *q = (const T*)h.q + i * h.q_stride, *k = (const T*)h.k, *v = (const T*)h.v;
  float query[256], row[256] = {}, high = -INFINITY, sum = 0;
  for_stretches(D, [&](auto c, int) { c.store(query, c.load(q) * (h.scale * kLog2E)); });
  for (int64_t j = 0; j < keys; j++) {
    scores[j] = -INFINITY;
    if (h.until && position >= h.until[j]) continue;
    Vec part[4] = {};
    for_stretches(D, [&](auto c, int n) { part[n] += c.load(query) * c.load(k + j * h.kv_stride); });
    scores[j] = total((part[0] + part[1]) + (part[2] + part[3]));
    if (!(scores[j] <= high)) high = scores[j];
  }
  if (high != -INFINITY) {
    Vec part[4] = {};
    for_stretches(keys, [&](auto c, int n) {
      const Vec p = c.only(exp2_of(c.load(scores) - high));
      c.store(scores, p);
      part[n] += p;
    });
    sum = total((part[0] + part[1]) + (part[2] + part[3]));
    for (int64_t j = 0; j < keys; j++)
      if (scores[j] != 0)
        for_stretches(D, [&](auto c, int) { c.store(row, c.load(row) + scores[j] * c.load(v + j * h.kv_stride)); });
  }
  store_row((T*)f.out + i * f.out_stride, row, sum == 0 ? 0 : 1 / sum, D);
  f.lse[i] = high / kLog2E + logf(sum);
}

template <class A, class T>
void forward(const AttentionForward* f, int64_t begin, int64_t end, void* scratch) {
  const AttentionHead& h = f->head;
  if (h.Tq <= kThinQueries && h.dropout.rate == 0) {
    for (int64_t i = begin; i < end; i++) forward_query<T>(*f, i, (float*)scratch);
    return;
  }
  const ForwardScratch<A> w(scratch, h.Tk, h.D);
  const int64_t limit = keys_before(h, end - 1), size = sizeof(T);
  int64_t packed = 0;
  for (int64_t i = begin; i < end; i += kWide) {
    const int64_t keys = keys_before(h, min64(i + kWide, end) - 1), next = i + kWide;
    packed = pack_keys<A, T>(h, packed, keys, limit, w);
    Ahead ahead(h.D * size, max64(0, min64(kWide, end - next)), divide_up(keys, kRows));
    ahead.add((const T*)h.q + next * h.q_stride, h.q_stride * size);
    ahead.add((const T*)h.k + packed * h.kv_stride, h.kv_stride * size);
    ahead.add((const T*)h.v + packed * h.kv_stride, h.kv_stride * size);
    ahead.add((const T*)f->out + i * f->out_stride, f->out_stride * size);
    forward_queries<A, T>(*f, i, min64(kWide, end - i), w, ahead);
  }
}
