// The tables of attention_kernels.h for TC_LANES lanes; included once by each ISA file.
//
// Scores are computed transposed: a tile has keys for rows and queries for lanes. So the softmax runs down the lanes
// without a sum across them, and as the queries that see a key are neighbours, the mask of a row is a range of lanes.
// Forward: for kWide queries, blocks of keys with a running maximum and sum (Dao et al. 2022, algorithm 1). Backward:
// for a block of keys, all queries that see it.
#include <math.h>

#include "attention_tiles.h"

namespace tc::cpu {

namespace {

constexpr int64_t kForwardKeys = TC_FORWARD_KEYS, kBackwardKeys = TC_BACKWARD_KEYS;  // multiples of kRows, even
constexpr int64_t kQueries = 64, kStripes = kQueries / kWide;                        // of a backward tile
constexpr int64_t kMaxKeys = kForwardKeys > kBackwardKeys ? kForwardKeys : kBackwardKeys;
constexpr int64_t kMaxRowTiles = kMaxKeys / kRows;
template <class A>
constexpr int64_t kLine = kQueries / A::kElements;  // steps of a line of queries

// Hands out parts of a block of memory, each aligned to 64 bytes; from null it only counts.
struct Scratch {
  char* base;
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* part = (T*)(base + used);
    used += round_up(count * (int64_t)sizeof(T), 64);
    return part;
  }
};

// What a row tile of keys is to a stripe of queries.
enum Sight { kHidden, kPartly, kFully };

// The lowest and the highest `until` of some neighbouring keys.
struct Ends {
  int64_t low, high;
};
Ends ends_of(const AttentionHead& h, int64_t key, int64_t count) {
  if (!h.until) return {INT64_MAX, INT64_MAX};
  Ends e = {INT64_MAX, INT64_MIN};
  for (int64_t j = key; j < key + count; j++) {
    e.low = min64(e.low, h.until[j]);
    e.high = max64(e.high, h.until[j]);
  }
  return e;
}
// Of keys key .. key + count - 1 to the queries at positions first .. last.
Sight sight_of(Ends ends, int64_t key, int64_t count, int64_t first, int64_t last) {
  if (key > last || ends.high <= max64(first, key)) return kHidden;
  return key + count - 1 <= first && ends.low > last ? kFully : kPartly;
}

// The lanes of a stripe from position `first` on that see any of the keys, in whole vectors.
struct Lanes {
  int64_t begin, end;
};
Lanes lanes_of(Ends ends, int64_t key, int64_t first) {
  return {key >= first + kLanes ? kLanes : 0, ends.high <= first + kLanes ? kLanes : kWide};
}

// Keys that a query up to `last` may see: beyond them nothing is read, a cache need not be filled.
int64_t keys_before(const AttentionHead& h, int64_t last) { return max64(0, min64(h.Tk, h.past + last + 1)); }

// Scores of what is not seen become -inf: rows are keys from `key` on, lanes queries from position `first` on.
void hide(float* scores, const AttentionHead& h, int64_t key, int64_t count, int64_t first) {
  Int lane;
  for (int k = 0; k < kLanes; k++) lane[k] = k;
  for (int64_t j = key; j < key + count; j++, scores += kWide) {
    const int32_t begin = (int32_t)max64(0, min64(kWide, j - first));
    const int32_t end = h.until ? (int32_t)max64(0, min64(kWide, h.until[j] - first)) : (int32_t)kWide;
    for (int32_t v = 0; v < 2; v++) {
      const Int at = lane + v * (int32_t)kLanes;
      store(scores + v * kLanes, choose((at >= begin) & (at < end), load(scores + v * kLanes), Vec{} - INFINITY));
    }
  }
}

// keep[count][kWide] = 0 or 1 / (1 - rate) for keys from `key` on and queries from `query` on.
void draw(float* keep, const AttentionDropout& d, int64_t key, int64_t count, int64_t query, int64_t queries) {
  constexpr int64_t kWords = round_up(kMaxKeys + kLanes + 3, 32);
  uint32_t words[kLanes * kWords];
  const float kept = 1 / (1 - d.rate);
  for (int64_t part = 0; part < kWide; part += kLanes) {
    const uint32_t* line[kLanes];
    const int64_t lines = max64(0, min64(kLanes, queries - part));
    for (int64_t i = 0; i < lines; i++) {
      const uint64_t position = (uint64_t)(d.first + (query + part + i) * d.row + key);
      line[i] = words + i * kWords + position % 4;
      d.words(words + i * kWords, d.rng, d.stream, position / 4, round_up(round_up(count, kLanes) + 3, 32));
    }
    for (int64_t j = 0; j < count; j += kLanes) {
      Vec r[kLanes];
      for (int64_t i = 0; i < kLanes; i++) r[i] = i < lines ? load(line[i] + j) : Vec{};
      transpose(r);
      for (int64_t k = 0; k < min64(kLanes, count - j); k++) {
        const Vec uniform = __builtin_convertvector(Int(Bits(r[k]) >> 8), Vec) * 5.9604644775390625e-8f;  // 2^-24
        store(keep + (j + k) * kWide + part, choose(uniform >= d.rate, Vec{} + kept, Vec{}));
      }
    }
  }
}

// Rows that will be read (or written) next, fetched into the cache a few at a time between products: they are too far
// apart for the processor to guess, and all at once it would wait for them.
struct Ahead {
  const char* rows[4];
  int64_t strides[4];  // bytes
  int64_t streams = 0, bytes, left, chunk;

  // Each of `count` rows with one call of fetch() for each of `calls`.
  Ahead(int64_t row_bytes, int64_t count, int64_t calls)
      : bytes(row_bytes), left(count), chunk(divide_up(count, max64(calls, 1))) {}
  void add(const void* first, int64_t stride) {
    rows[streams] = (const char*)first;
    strides[streams++] = stride;
  }
  void fetch() {
    for (int64_t n = min64(chunk, left); n > 0; n--, left--)
      for (int64_t k = 0; k < streams; k++) {
        for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(rows[k] + b);
        rows[k] += strides[k];
      }
  }
};

template <class T>
void store_row(T* out, const float* row, float scale, int64_t D) {
  for_stretches(D, [&](auto c, int) { c.store(out, c.load(row) * scale); });
}

#include "attention_backward_body.h"
#include "attention_forward_body.h"

}  // namespace

#define TC_ATTENTION(A, T) \
  { kWide, kBackwardKeys, forward_scratch<A>, backward_scratch<A>, forward<A, T>, backward<A, T> }

}  // namespace tc::cpu
