/*
Token and position embedding.

  out[b,t] = wte[token[b,t]] + wpe[position[b,t]];   d_wte[v] += sum of d_out rows whose token is v,  d_wpe[p] likewise
The backward splits the channels, not the rows: each task walks all tokens in order over its own slice of channels, so
no two tasks write one element and the order of every sum is fixed.
*/
#include <cstring>

#include "cpu.h"
#include "row.h"

namespace tc::cpu {

namespace {

int64_t token_at(const Args& x, const View& tokens, int64_t r, int64_t vocab) {
  const int64_t token = tokens.i32()[r];
  if (token < 0 || token >= vocab)
    fail(x, "ERR_DATA",
         "token id " + std::to_string(token) + " at row " + std::to_string(r) + " is outside the vocabulary of " +
             std::to_string(vocab));
  return token;
}
int64_t position_at(const Args& x, const View& positions, int64_t r, int64_t T, int64_t past, int64_t P) {
  const int64_t position = positions.data ? positions.i32()[r] : past + r % T;
  if (position < 0 || position >= P)
    fail(x, "ERR_DATA",
         "position " + std::to_string(position) + " at row " + std::to_string(r) + " is outside the " +
             std::to_string(P) + " positions");
  return position;
}

}  // namespace

void embedding_forward(const Args& x) {
  const View &tokens = x.in[0], &wte = x.in[1], &wpe = x.in[2], &out = x.out[0];
  const int64_t T = tokens.dim[1], C = wte.last(), past = x.has(4) ? *x.in[4].i32() : 0;
  pool(x).run_blocks(tokens.size(), 16, [&](int64_t begin, int64_t end) {
    float* scratch = scratch_rows(3 * C);
    for (int64_t r = begin; r < end; r++) {
      const float* a = load_row(wte, token_at(x, tokens, r, x.i(0)) * C, C, scratch);
      float* y = row_target(out, r * C, scratch + 2 * C);
      if (wpe.data) {
        const float* b = load_row(wpe, position_at(x, x.in[3], r, T, past, wpe.rows()) * C, C, scratch + C);
        for (int64_t c = 0; c < C; c++) y[c] = a[c] + b[c];
      } else {
        std::memcpy(y, a, size_t(C) * sizeof(float));
      }
      store_row(out, r * C, C, y);
    }
  });
}

size_t embedding_backward_workspace(const Args&) { return 0; }

void embedding_backward(const Args& x) {
  const View &d_out = x.in[0], &tokens = x.in[1], &d_wte = x.out[0], &d_wpe = x.out[1];
  const int64_t R = tokens.size(), T = tokens.rank ? tokens.dim[1] : 1, C = d_out.last();
  pool(x).run_blocks(C, 64, [&](int64_t begin, int64_t end) {
    float scratch[64];
    const int64_t n = end - begin;
    if (!x.existing(0))
      for (int64_t v = 0; v < d_wte.rows(); v++) std::memset(d_wte.f32() + v * C + begin, 0, size_t(n) * sizeof(float));
    for (int64_t r = 0; r < R; r++) {
      const float* d = load_row(d_out, r * C + begin, n, scratch);
      float* row = d_wte.f32() + token_at(x, tokens, r, x.i(0)) * C + begin;
      for (int64_t c = 0; c < n; c++) row[c] += d[c];
      if (!d_wpe.data) continue;
      float* place = d_wpe.f32() + position_at(x, x.in[2], r, T, 0, d_wpe.rows()) * C + begin;
      for (int64_t c = 0; c < n; c++) place[c] += d[c];
    }
  });
}

}  // namespace tc::cpu
