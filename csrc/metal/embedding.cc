// Launches of embedding.metal.
#include "launch.h"

namespace tc::metal {

namespace {

constexpr const char* kFile = "embedding";
constexpr uint32_t kThreads = 256;

std::string prefix(const Args& x) { return std::string("[") + op_info(x.op).name + "] "; }

// ids: absent for positions that follow from the row
void check_ids(const Args& x, const View& ids, const View& past, const View& tokens, int64_t limit, FaultText text) {
  const uint32_t rows = count_of(x, tokens.size());
  Launch(x, kFile, "check_ids")
      .in(ids)
      .in(past)
      .fault(std::move(text))
      .threadgroup(kThreads / 32 * sizeof(uint32_t))
      .run(CheckIdsParams{rows, uint32_t(tokens.dim[1]), int32_t(limit), ids.data != nullptr, past.data != nullptr},
           {rows ? 1u : 0u}, kThreads);
}
void check_tokens(const Args& x, const View& tokens, int64_t vocab) {
  check_ids(x, tokens, View(), tokens, vocab, [name = prefix(x), vocab](const Fault& f) {
    return Error("ERR_DATA", name + "token id " + std::to_string(f.value) + " at row " + std::to_string(f.at) +
                                 " is outside the vocabulary of " + std::to_string(vocab));
  });
}
void check_positions(const Args& x, const View& positions, const View& past, const View& tokens, int64_t P) {
  check_ids(x, positions, positions.data ? View() : past, tokens, P, [name = prefix(x), P](const Fault& f) {
    return Error("ERR_DATA", name + "position " + std::to_string(f.value) + " at row " + std::to_string(f.at) +
                                 " is outside the " + std::to_string(P) + " positions");
  });
}

// d_table[id] += the rows of d_out that have the id; links: scratch, [2,rows]
void add_rows(const Args& x, const View& ids, const View& d_table, int64_t limit, uint32_t* links) {
  const View &d_out = x.in[0], &tokens = x.in[1];
  const uint32_t rows = count_of(x, tokens.size()), C = count_of(x, d_out.last());
  const EmbeddingSumParams p{rows, uint32_t(tokens.dim[1]), C, int32_t(limit), ids.data != nullptr};
  const size_t bytes = rows * sizeof(uint32_t);
  Launch(x, kFile, "embedding_links")
      .in(ids)
      .out(links, bytes)
      .out(links + rows, bytes)
      .run(p, {blocks(rows, kThreads)}, kThreads);
  Launch(x, kFile, std::string("embedding_backward") + type_suffix(d_out))
      .in(d_out)
      .in(ids)
      .in(links, bytes)
      .in(links + rows, bytes)
      .out(d_table)
      .run(p, {blocks(C, kThreads), rows}, kThreads);
}

}  // namespace

void embedding_forward(const Args& x) {
  const View &tokens = x.in[0], &wte = x.in[1], &wpe = x.in[2];
  const uint32_t rows = count_of(x, tokens.size()), C = count_of(x, wte.last());
  const int32_t P = wpe.data ? int32_t(wpe.rows()) : 0;
  check_tokens(x, tokens, x.i(0));
  if (wpe.data) check_positions(x, x.in[3], x.in[4], tokens, P);
  Launch(x, kFile, std::string("embedding_forward") + type_suffix(wte))
      .in(tokens)
      .in(wte)
      .in(wpe)
      .in(x.in[3])
      .in(x.in[4])
      .out(x.out[0])
      .run(EmbeddingParams{rows, uint32_t(tokens.dim[1]), C, x.i(0), P, x.has(3), x.has(4)},
           {blocks(C, kThreads), rows}, kThreads);
}

size_t embedding_backward_workspace(const Args& x) { return size_t(x.in[1].size()) * 2 * sizeof(uint32_t); }

void embedding_backward(const Args& x) {
  const View &tokens = x.in[1], &positions = x.in[2], &d_wte = x.out[0], &d_wpe = x.out[1];
  uint32_t* links = x.workspace.as<uint32_t>();
  check_tokens(x, tokens, x.i(0));
  if (!x.existing(0)) fill_with(x, d_wte, 0);
  add_rows(x, tokens, d_wte, x.i(0), links);
  if (!d_wpe.data) return;
  check_positions(x, positions, View(), tokens, d_wpe.rows());
  add_rows(x, positions, d_wpe, d_wpe.rows(), links);
}

}  // namespace tc::metal
