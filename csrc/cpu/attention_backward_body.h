// Backward; included by attention_body.h.

template <class A>
struct BackwardScratch {
  typedef typename A::Step Step;
  // of the queries that see the keys, kWide at a time
  Step *q_lines, *d_lines;  // [Tq / kWide][D steps][kWide]: queries and d_out in lanes
  Step *q_rows, *d_rows;    // [Tq steps][width]: the same as rows
  float *lse, *delta;       // [Tq]; delta = d_out · out; lse in powers of 2, inf where nothing is seen
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

// Queries begin .. end - 1; begin is a multiple of kWide.
template <class A, class T>
void pack_queries(const AttentionBackward& b, int64_t begin, int64_t end, const BackwardScratch<A>& w) {
  const AttentionHead& h = b.head;
  const int64_t D = h.D, steps = D / A::kElements;
  for (int64_t i = begin; i < end; i += kWide) {
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
      w.lse[i + r] = sees ? b.lse[i + r] * kLog2E : INFINITY;
      w.delta[i + r] = total(sum);
    }
  }
}

// From scores and d_p = d_out · v of a row tile and a stripe of queries: p · keep, and d_s = p (d_p · keep - delta).
template <class A, bool dropped>
void differentiate(const BackwardScratch<A>& w, int64_t tile, int64_t rows, int64_t stripe, int64_t query,
                   float scale2) {
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
        const Vec weight = exp2_of(load(w.scores + from) * scale2 - lse[v]);
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
                   const BackwardScratch<A>& w, Ahead& ahead) {
  const int64_t steps = h.D / A::kElements, tiles = divide_up(count, kRows),
                stripes = min64(kStripes, divide_up(h.Tq - query, kWide));
  Lanes sees[kMaxRowTiles];  // those of all stripes that see each row tile lie between
  for (int64_t t = 0; t < tiles; t++) sees[t] = {kQueries, 0};
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
      const Lanes lanes = lanes_of(ends[t], key + t * kRows, first);
      sees[t] = {min64(sees[t].begin, s * kWide + lanes.begin), s * kWide + lanes.end};
      ahead.fetch();
      multiply<A, 1>(rows, lanes.end - lanes.begin, steps, w.k_lines + line, kPanel,
                     w.q_lines + q * steps + lanes.begin, kWide, w.scores + lanes.begin, kWide, false);
      multiply<A, 1>(rows, lanes.end - lanes.begin, steps, w.v_lines + line, kPanel,
                     w.d_lines + q * steps + lanes.begin, kWide, w.d_p + lanes.begin, kWide, false);
      if (sight == kPartly) hide(w.scores, h, key + t * kRows, rows, first);
      for (int64_t r = 0; r < rows && lanes.end - lanes.begin < kWide; r++)  // p is 0 there; 0 · NaN would not be
        store(w.d_p + r * kWide + (lanes.begin ? 0 : kLanes), Vec{});
      if (h.dropout.rate > 0)
        differentiate<A, true>(w, t, rows, s, q, h.scale * kLog2E);
      else
        differentiate<A, false>(w, t, rows, s, q, h.scale * kLog2E);
    }
    if (begin < 0) continue;
    multiply<A, 1>(queries, w.width, divide_up(end - begin, A::kElements),
                   w.d_s_steps + begin / A::kElements * kQueries + s * kWide, kQueries,
                   w.k_rows + begin / A::kElements * w.width, w.width, w.d_q + q * w.width, w.width, true);
  }
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t rows = min64(kRows, count - t * kRows), queries = (sees[t].end - sees[t].begin) / A::kElements,
                  at = t * kRows * kLine<A> + sees[t].begin / A::kElements,
                  row = (query + sees[t].begin) / A::kElements * w.width, to = t * kRows * w.width;
    if (queries <= 0) continue;
    multiply<A, kLine<A>>(rows, w.width, queries, w.p + at, 1, w.d_rows + row, w.width, w.d_v + to, w.width, true);
    multiply<A, kLine<A>>(rows, w.width, queries, w.d_s + at, 1, w.q_rows + row, w.width, w.d_k + to, w.width, true);
  }
}

// d_k and d_v of keys key .. key + count - 1, at most kBackwardKeys, and their share of d_q; not yet scaled.
// Queries before `packed` are packed; moves it on.
template <class A, class T>
void backward_keys(const AttentionBackward& b, int64_t key, int64_t count, int64_t& packed,
                   const BackwardScratch<A>& w) {
  const AttentionHead& h = b.head;
  const T *k = (const T*)h.k + key * h.kv_stride, *v = (const T*)h.v + key * h.kv_stride;
  const int64_t size = sizeof(T), tiles = divide_up(count, kRows);
  Ends ends[kMaxRowTiles];
  int64_t high = INT64_MIN;
  for (int64_t t = 0; t < tiles; t++) {
    ends[t] = ends_of(h, key + t * kRows, min64(kRows, count - t * kRows));
    high = max64(high, ends[t].high);
  }
  const int64_t begin = max64(0, key - h.past) / kQueries * kQueries;
  const int64_t end = high == INT64_MAX ? h.Tq : min64(h.Tq, high - h.past);
  if (begin >= end) return;
  pack_lines<A>(w.k_lines, kRows, kPanel, k, h.kv_stride, count, h.D);
  pack_lines<A>(w.v_lines, kRows, kPanel, v, h.kv_stride, count, h.D);
  pack_rows<A>(w.k_rows, w.width, k, h.kv_stride, count, h.D);
  Ahead keys(h.D * size, max64(0, min64(kBackwardKeys, h.Tk - key - count)), divide_up(end - begin, kWide) * tiles);
  keys.add(k + count * h.kv_stride, h.kv_stride * size);
  keys.add(v + count * h.kv_stride, h.kv_stride * size);
  keys.add((const T*)b.d_k + key * b.d_kv_stride, b.d_kv_stride * size);
  keys.add((const T*)b.d_v + key * b.d_kv_stride, b.d_kv_stride * size);
  for (int64_t q = begin; q < end; q += kQueries) {
    if (packed >= min64(q + kQueries, h.Tq)) {
      backward_tile<A>(h, key, count, ends, q, w, keys);
      continue;
    }
    pack_queries<A, T>(b, max64(packed, q), min64(q + kQueries, h.Tq), w);
    packed = q + kQueries;
    Ahead queries(h.D * size, max64(0, min64(kQueries, h.Tq - packed)), kStripes * tiles);
    queries.add((const T*)h.q + packed * h.q_stride, h.q_stride * size);
    queries.add((const T*)b.d_out + packed * b.out_stride, b.out_stride * size);
    queries.add((const T*)b.out + packed * b.out_stride, b.out_stride * size);
    backward_tile<A>(h, key, count, ends, q, w, queries);
  }
}

template <class A, class T>
void backward(const AttentionBackward* b, int64_t begin, int64_t end, void* scratch) {
  const AttentionHead& h = b->head;
  const int64_t D = h.D;
  const BackwardScratch<A> w(scratch, h.Tq, D);
  memset(w.d_q, 0, (size_t)(h.Tq * w.width) * sizeof(float));
  const int64_t seen = min64(end, keys_before(h, h.Tq - 1));
  int64_t packed = 0;
  for (int64_t key = begin; key < end; key += kBackwardKeys) {
    memset(w.d_k, 0, (size_t)(kBackwardKeys * w.width) * sizeof(float));
    memset(w.d_v, 0, (size_t)(kBackwardKeys * w.width) * sizeof(float));
    if (key < seen) backward_keys<A, T>(*b, key, min64(kBackwardKeys, seen - key), packed, w);
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
