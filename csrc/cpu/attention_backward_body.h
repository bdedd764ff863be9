// Backward; included by attention_body.h.

template <class A>
struct BackwardScratch {
  typedef typename A::Step Step;
  // of the queries that see the keys, kWide at a time
  Step *q_lines, *d_lines;  // [Tq / kWide][D steps][kWide]: queries and d_out in lanes
  Step *q_rows, *d_rows;    // [Tq steps][width]: the same as rows
  float *lse, *delta;       // [Tq]; delta = d_out · out; lse is inf where nothing is seen
  float* d_q;               // [Tq][width]
  // of a block of keys
  Step *k_lines, *v_lines;  // [kBackwardKeys / kRows][D steps][kPanel]
  Step* k_rows;             // [kBackwardKeys steps][width]
  float *d_k, *d_v;         // [kBackwardKeys][width]
  // of a tile
  float *scores, *d_p, *keep;  // [kRows][kWide], the same, [kBackwardKeys][kWide]
  Step *p, *d_s;               // [kBackwardKeys][kQueries / kElements]: lines of queries
  Step* d_s_steps;             // [kBackwardKeys steps][kQueries]: lines of keys; may be d_s
  int64_t width, bytes;

  BackwardScratch(void* base, int64_t Tq, int64_t D) : width(round_up(D, kLanes)) {
    Scratch s{(char*)base};
    const int64_t queries = round_up(Tq, kWide), steps = D / A::kElements, lines = kBackwardKeys / kRows * kPanel;
    q_lines = s.take<Step>(queries * steps);
    d_lines = s.take<Step>(queries * steps);
    q_rows = s.take<Step>(queries / A::kElements * width);
    d_rows = s.take<Step>(queries / A::kElements * width);
    lse = s.take<float>(queries);
    delta = s.take<float>(queries);
    d_q = s.take<float>(queries * width);
    k_lines = s.take<Step>(lines * steps);
    v_lines = s.take<Step>(lines * steps);
    k_rows = s.take<Step>(kBackwardKeys / A::kElements * width);
    d_k = s.take<float>(kBackwardKeys * width);
    d_v = s.take<float>(kBackwardKeys * width);
    scores = s.take<float>(kRows * kWide);
    d_p = s.take<float>(kRows * kWide);
    keep = s.take<float>(kBackwardKeys * kWide);
    p = s.take<Step>(kBackwardKeys * kLine<A>);
    d_s = s.take<Step>(kBackwardKeys * kLine<A>);
    d_s_steps = A::kElements == 1 ? d_s : s.take<Step>(kBackwardKeys / A::kElements * kQueries);
    bytes = s.used;
  }
};

template <class A>
int64_t backward_scratch(int64_t Tq, int64_t D) {
  return BackwardScratch<A>(nullptr, Tq, D).bytes;
}

// Queries from `begin` on, a multiple of kWide.
template <class A, class T>
void pack_queries(const AttentionBackward& b, int64_t begin, const BackwardScratch<A>& w) {
  const AttentionHead& h = b.head;
  const int64_t D = h.D, steps = D / A::kElements;
  for (int64_t i = begin; i < h.Tq; i += kWide) {
    const int64_t count = min64(kWide, h.Tq - i), filled = divide_up(count, A::kElements),
                  rows = i / A::kElements * w.width;
    const T *q = (const T*)h.q + i * h.q_stride, *d_out = (const T*)b.d_out + i * b.out_stride,
            *out = (const T*)b.out + i * b.out_stride;
    pack_lines<A>(w.q_lines + i * steps, kWide, kWide, q, h.q_stride, count, D);
    pack_lines<A>(w.d_lines + i * steps, kWide, kWide, d_out, b.out_stride, count, D);
    pack_rows<A>(w.q_rows + rows, w.width, q, h.q_stride, count, D);
    pack_rows<A>(w.d_rows + rows, w.width, d_out, b.out_stride, count, D);
    const size_t rest = (size_t)((kWide / A::kElements - filled) * w.width) * 4;
    memset((void*)(w.q_rows + rows + filled * w.width), 0, rest);
    memset((void*)(w.d_rows + rows + filled * w.width), 0, rest);
    for (int64_t r = 0; r < kWide; r++) {
      const bool sees = r < count && b.lse[i + r] != -INFINITY;
      Vec sum{};
      if (sees)
        for_stretches(D,
                      [&](auto c, int) { sum += c.load(d_out + r * b.out_stride) * c.load(out + r * b.out_stride); });
      w.lse[i + r] = sees ? b.lse[i + r] : INFINITY;
      w.delta[i + r] = total(sum);
    }
  }
}

// From scores and d_p = d_out · v of a row tile and a stripe of queries: p · keep, and d_s = p (d_p · keep - delta).
template <class A, bool dropped>
void differentiate(const BackwardScratch<A>& w, int64_t tile, int64_t rows, int64_t stripe, int64_t query,
                   float scale) {
  const Vec lse[2] = {load(w.lse + query), load(w.lse + query + kLanes)},
            delta[2] = {load(w.delta + query), load(w.delta + query + kLanes)};
  const int64_t at = tile * kRows * kLine<A> + stripe * kWide / A::kElements;
  for (int64_t r = 0; r < rows; r += A::kElements) {
    Vec p[A::kElements][2], d_s[A::kElements][2];
    for (int64_t e = 0; e < A::kElements; e++)
      for (int v = 0; v < 2; v++) {
        const int64_t from = (r + e) * kWide + v * kLanes;
        if (r + e >= rows) {
          p[e][v] = d_s[e][v] = Vec{};
          continue;
        }
        const Vec weight = exp_of(load(w.scores + from) * scale - lse[v]);
        const Vec keep = dropped ? load(w.keep + tile * kRows * kWide + from) : Vec{};
        d_s[e][v] = weight * ((dropped ? load(w.d_p + from) * keep : load(w.d_p + from)) - delta[v]);
        p[e][v] = dropped ? weight * keep : weight;
      }
    A::store_lines(w.p + at + r * kLine<A>, kLine<A>, p);
    A::store_lines(w.d_s + at + r * kLine<A>, kLine<A>, d_s);
    if (A::kElements > 1)
      A::store_step(w.d_s_steps + (tile * kRows + r) / A::kElements * kQueries + stripe * kWide, d_s);
  }
}

template <class A>
void clear(const BackwardScratch<A>& w, int64_t tile, int64_t rows, int64_t stripe) {
  const int64_t at = tile * kRows * kLine<A> + stripe * kWide / A::kElements;
  for (int64_t r = 0; r < rows; r++) {
    memset((void*)(w.p + at + r * kLine<A>), 0, (size_t)(kWide / A::kElements) * 4);
    memset((void*)(w.d_s + at + r * kLine<A>), 0, (size_t)(kWide / A::kElements) * 4);
  }
  if (A::kElements > 1)
    for (int64_t r = 0; r < rows; r += A::kElements)
      memset((void*)(w.d_s_steps + (tile * kRows + r) / A::kElements * kQueries + stripe * kWide), 0,
             (size_t)kWide * 4);
}

// A block of keys, whose lines, rows and ends are ready, and kQueries queries from `query` on.
template <class A>
void backward_tile(const AttentionHead& h, int64_t key, int64_t count, const Ends* ends, int64_t query,
                   const BackwardScratch<A>& w) {
  const int64_t steps = h.D / A::kElements, tiles = divide_up(count, kRows),
                stripes = min64(kStripes, divide_up(h.Tq - query, kWide));
  int64_t from[kMaxRowTiles], to[kMaxRowTiles];  // the stripes that see each row tile lie between
  for (int64_t t = 0; t < tiles; t++) from[t] = to[t] = stripes;
  for (int64_t s = 0; s < stripes; s++) {
    const int64_t q = query + s * kWide, queries = min64(kWide, h.Tq - q), first = h.past + q,
                  last = first + queries - 1;
    int64_t begin = -1, end = 0;  // the keys that this stripe sees
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t rows = min64(kRows, count - t * kRows), line = t * steps * kPanel;
      const Sight sight = sight_of(ends[t], key + t * kRows, rows, first, last);
      if (sight == kHidden) {
        clear(w, t, rows, s);
        continue;
      }
      if (begin < 0) begin = t * kRows;
      if (end == 0 && h.dropout.rate > 0) draw(w.keep, h.dropout, key, count, q, queries);
      end = t * kRows + rows;
      if (from[t] == stripes) from[t] = s;
      to[t] = s + 1;
      multiply<A, 1>(rows, kWide, steps, w.k_lines + line, kPanel, w.q_lines + q * steps, kWide, w.scores, kWide,
                     false);
      multiply<A, 1>(rows, kWide, steps, w.v_lines + line, kPanel, w.d_lines + q * steps, kWide, w.d_p, kWide, false);
      if (sight == kPartly) hide(w.scores, h, key + t * kRows, rows, first);
      if (h.dropout.rate > 0)
        differentiate<A, true>(w, t, rows, s, q, h.scale);
      else
        differentiate<A, false>(w, t, rows, s, q, h.scale);
    }
    if (begin < 0) continue;
    multiply<A, 1>(queries, w.width, divide_up(end - begin, A::kElements),
                   w.d_s_steps + begin / A::kElements * kQueries + s * kWide, kQueries,
                   w.k_rows + begin / A::kElements * w.width, w.width, w.d_q + q * w.width, w.width, true);
  }
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t rows = min64(kRows, count - t * kRows), queries = to[t] - from[t],
                  at = t * kRows * kLine<A> + from[t] * kWide / A::kElements,
                  row = (query + from[t] * kWide) / A::kElements;
    if (!queries) continue;
    multiply<A, kLine<A>>(rows, w.width, queries * kWide / A::kElements, w.p + at, 1, w.d_rows + row * w.width, w.width,
                          w.d_v + t * kRows * w.width, w.width, true);
    multiply<A, kLine<A>>(rows, w.width, queries * kWide / A::kElements, w.d_s + at, 1, w.q_rows + row * w.width,
                          w.width, w.d_k + t * kRows * w.width, w.width, true);
  }
}

// d_k and d_v of keys key .. key + count - 1, at most kBackwardKeys, and their share of d_q; not yet scaled.
template <class A, class T>
void backward_keys(const AttentionHead& h, int64_t key, int64_t count, const BackwardScratch<A>& w) {
  const T *k = (const T*)h.k + key * h.kv_stride, *v = (const T*)h.v + key * h.kv_stride;
  Ends ends[kMaxRowTiles];
  int64_t high = INT64_MIN;
  for (int64_t t = 0; t * kRows < count; t++) {
    ends[t] = ends_of(h, key + t * kRows, min64(kRows, count - t * kRows));
    high = max64(high, ends[t].high);
  }
  const int64_t begin = max64(0, key - h.past), end = high == INT64_MAX ? h.Tq : min64(h.Tq, high - h.past);
  if (begin >= end) return;
  pack_lines<A>(w.k_lines, kRows, kPanel, k, h.kv_stride, count, h.D);
  pack_lines<A>(w.v_lines, kRows, kPanel, v, h.kv_stride, count, h.D);
  pack_rows<A>(w.k_rows, w.width, k, h.kv_stride, count, h.D);
  for (int64_t q = begin / kQueries * kQueries; q < end; q += kQueries) backward_tile<A>(h, key, count, ends, q, w);
}

template <class A, class T>
void backward(const AttentionBackward* b, int64_t begin, int64_t end, void* scratch) {
  const AttentionHead& h = b->head;
  const int64_t D = h.D;
  const BackwardScratch<A> w(scratch, h.Tq, D);
  memset(w.d_q, 0, (size_t)(h.Tq * w.width) * sizeof(float));
  pack_queries<A, T>(*b, max64(0, begin - h.past) / kQueries * kQueries, w);
  const int64_t seen = min64(end, keys_before(h, h.Tq - 1));
  for (int64_t key = begin; key < end; key += kBackwardKeys) {
    memset(w.d_k, 0, (size_t)(kBackwardKeys * w.width) * sizeof(float));
    memset(w.d_v, 0, (size_t)(kBackwardKeys * w.width) * sizeof(float));
    if (key < seen) backward_keys<A, T>(h, key, min64(kBackwardKeys, seen - key), w);
    for (int64_t j = key; j < min64(end, key + kBackwardKeys); j++) {
      store_row((T*)b->d_k + j * b->d_kv_stride, w.d_k + (j - key) * w.width, h.scale, D);
      store_row((T*)b->d_v + j * b->d_kv_stride, w.d_v + (j - key) * w.width, 1, D);
    }
  }
  for (int64_t i = 0; i < h.Tq; i++)
    if (b->d_q_part)
      store_row(b->d_q_part + i * D, w.d_q + i * w.width, h.scale, D);
    else
      store_row((T*)b->d_q + i * b->d_q_stride, w.d_q + i * w.width, h.scale, D);
}
