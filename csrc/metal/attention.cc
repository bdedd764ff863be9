// Launches of attention.metal and attention_simdgroup.metal.
#include <cmath>
#include <initializer_list>

#include "launch.h"

namespace tc::metal {

namespace {

constexpr const char* kFile = "attention";
constexpr uint32_t kThreads = 256, kRows = 8;  // of a threadgroup: a query or a key a simdgroup
// attention_simdgroup.metal's: threads and rows of a threadgroup, floats between the rows of a tile
constexpr uint32_t kTileThreads = 128, kTileRows = 32, kTilePad = 4;

// The shapes of a call, and where its tensors are among the inputs.
struct Attention {
  const Args& x;
  const View &q, &kv, &until, &past, &rng;
  const bool fused;
  const int64_t B, H, C, D, Tq, Tk;

  Attention(const Args& args, int q_at, int kv_at, int until_at, int past_at, int rng_at)
      : x(args),
        q(args.in[q_at]),
        kv(args.has(kv_at) ? args.in[kv_at] : q),
        until(args.in[until_at]),
        past(args.in[past_at]),
        rng(args.in[rng_at]),
        fused(!args.has(kv_at)),
        B(q.dim[0]),
        H(args.i(0)),
        C(fused ? q.last() / 3 : kv.last() / 2),
        D(C / H),
        Tq(q.dim[1]),
        Tk(kv.dim[1]) {}

  AttentionParams params() const {
    const int64_t k_offset = fused ? C : 0;
    AttentionParams p{};
    p.heads = uint32_t(H);
    p.q_time = count_of(x, Tq);
    p.k_time = count_of(x, Tk);
    p.head_size = uint32_t(D);
    p.q_stride = p.d_q_stride = uint32_t(q.last());
    p.kv_stride = p.d_kv_stride = uint32_t(kv.last());
    p.out_stride = uint32_t(C);
    p.k_offset = uint32_t(k_offset);
    p.v_offset = uint32_t(k_offset + C);
    p.past = int32_t(Tk - Tq);
    p.has_past = past.data != nullptr;
    p.has_until = until.data != nullptr;
    p.scale = x.f(1) > 0 ? x.f(1) : 1 / std::sqrt(float(D));
    p.dropout = x.f(2);
    p.keep = 1 / (1 - x.f(2));
    p.stream = uint32_t(x.i(3));
    return p;
  }
  double products() const { return double(B * H) * double(Tq) * double(Tk) * double(D); }
  bool in_tiles() const {
    return (D == 32 || D == 64 || D == 80 || D == 96 || D == 128) && !device_of(x).plain(Family::attention);
  }
  int64_t backward_rows() const { return D > 64 ? 16 : kTileRows; }  // two tiles must fit in 32 KB
  size_t tile(int64_t rows) const { return size_t(rows * (D + kTilePad)) * sizeof(float); }

  Launch launch(const char* kernel) const {
    if (!in_tiles()) return Launch(x, kFile, std::string(kernel) + type_suffix(q));
    Launch tiled(x, "attention_simdgroup", std::string(kernel) + "_" + std::to_string(D) + type_suffix(q));
    return tiled.constant(0, until.data != nullptr).constant(1, x.f(2) > 0);
  }
  // Over T queries or keys. tiles: bytes of threadgroup memory; plain: how many scratches the kernel without tiles has.
  void run(Launch& launch, int64_t T, std::initializer_list<size_t> tiles, int plain) const {
    const bool tiled = in_tiles();
    if (tiled)
      for (size_t bytes : tiles) launch.threadgroup(bytes);
    else
      for (int k = 0; k < plain; k++) launch.threadgroup(kThreads * sizeof(float));
    launch.run(params(), {blocks(T, tiled ? kTileRows : kRows), uint32_t(B * H)}, tiled ? kTileThreads : kThreads);
  }
};

}  // namespace

size_t attention_forward_workspace(const Args&) { return 0; }

void attention_forward(const Args& x) {
  const Attention a(x, 0, 1, 2, 3, 4);
  Launch launch = a.launch("attention_forward");
  launch.in(a.q).in(a.kv).in(a.until).in(a.past).in(a.rng).out(x.out[0]).out(x.out[1]).flops(4 * a.products());
  a.run(launch, a.Tq, {a.tile(kTileRows)}, 1);
}

size_t attention_backward_workspace(const Args& x) {
  const Attention a(x, 1, 2, 5, 6, 7);
  return size_t(a.B * a.H * a.Tq) * sizeof(float);
}

void attention_backward(const Args& x) {
  const Attention a(x, 1, 2, 5, 6, 7);
  const View &d_out = x.in[0], &out = x.in[3], &lse = x.in[4], &d_kv = a.fused ? x.out[0] : x.out[1];
  const int64_t rows = a.backward_rows();
  Launch of_q = a.launch("attention_backward_q");
  of_q.in(d_out).in(a.q).in(a.kv).in(out).in(lse).in(a.until).in(a.past).in(a.rng).out(x.out[0]).out(x.workspace);
  a.run(of_q.flops(6 * a.products()), a.Tq, {a.tile(rows), a.tile(rows)}, 1);
  Launch of_kv = a.launch("attention_backward_kv");
  of_kv.in(d_out).in(a.q).in(a.kv).in(x.workspace).in(lse).in(a.until).in(a.past).in(a.rng).out(d_kv);
  a.run(of_kv.flops(8 * a.products()), a.Tk, {a.tile(rows), a.tile(rows), size_t(rows) * 2 * sizeof(float)}, 2);
}

void kv_append(const Args& x) {
  const View &qkv = x.in[0], &kv = x.out[0];
  const int64_t Tq = qkv.dim[1], Tk = kv.dim[1], C = qkv.last() / 3, rows = qkv.dim[0] * Tq;
  Launch(x, kFile, std::string("kv_append") + type_suffix(qkv))
      .in(qkv)
      .in(x.in[1])
      .out(kv)
      .fault([name = std::string("[") + op_info(x.op).name + "] ", Tq, Tk](const Fault& f) {
        return Error("ERR_ARGUMENT", name + "the cache holds " + std::to_string(Tk) + " positions; got " +
                                         std::to_string(Tq) + " more after " + std::to_string(f.value));
      })
      .run(AppendParams{count_of(x, rows), uint32_t(Tq), uint32_t(Tk), uint32_t(C)},
           {blocks(2 * C, kThreads), uint32_t(rows)}, kThreads);
}

}  // namespace tc::metal
