// Random numbers natively: Random123's known answers, the vector lanes against one counter at a time, odd sizes,
// sampling.
#include <cmath>

#include "check.h"
#include "cpu/philox.h"
#include "cpu/random_kernels.h"
#include "run_op.h"

namespace {

using namespace tc;
using namespace tc::test;

Owned rng_of(int32_t low, int32_t high, int32_t step) {
  Owned o(DType::i32, {4});
  const int32_t words[4] = {low, high, step, 0};
  std::memcpy(o.view.data, words, sizeof words);
  return o;
}

bool equal(const cpu::Philox4& got, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return got.word[0] == a && got.word[1] == b && got.word[2] == c && got.word[3] == d;
}

}  // namespace

TEST(philox_gives_the_known_answers_of_random123) {  // kat_vectors, philox4x32 10
  CHECK(equal(cpu::philox4x32(0, 0, 0, 0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  const uint32_t ones = 0xffffffff;
  CHECK(equal(cpu::philox4x32(ones, ones, ones, ones, ones, ones), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  CHECK(equal(cpu::philox4x32(0xa4093822, 0x299f31d0, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344), 0xd16cfe09,
              0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(the_lanes_of_the_target_give_the_words_of_one_counter_at_a_time) {
  const int32_t rng[4] = {-5, 77, -3, 0};
  // the last one: where the counter's lower word overflows in the middle
  for (const uint64_t block : {uint64_t(0), uint64_t(1000003), (uint64_t(1) << 32) - 5})
    for (const int64_t count : {32, 64, 96, 160}) {
      std::unique_ptr<uint32_t[]> words(new uint32_t[size_t(count)]);
      cpu::random_kernels().words(words.get(), rng, 0xfffffff1u, block, count);
      for (int64_t k = 0; k < count; k++)
        CHECK(words[size_t(k)] == cpu::philox_block(rng, 0xfffffff1u, block + uint64_t(k / 4)).word[k % 4]);
    }
}

TEST(random_numbers_and_dropout_of_odd_sizes_by_one_thread_and_two) {
  const Owned rng = rng_of(1, 2, 3);
  for (const DType type : {DType::f32, DType::bf16})
    for (const int64_t N : {1, 3, 17, 31, 33, 4095, 4097, 12289}) {
      const Owned x = std::move(Owned(type, {N}).random(1)), residual = std::move(Owned(type, {N}).random(2));
      Owned uniform[2], normal[2], dropped[2];
      for (int k = 0; k < 2; k++) {
        uniform[k] = Owned(type, {N});
        normal[k] = Owned(type, {N});
        dropped[k] = fresh();
        run_op(k + 1, Op::random_uniform, {&rng}, {&uniform[k]}, {scalar(-2.f), scalar(3.f), scalar(9)});
        run_op(k + 1, Op::random_normal, {&rng}, {&normal[k]}, {scalar(0.f), scalar(1.f), scalar(9)});
        run_op(k + 1, Op::dropout, {&x, &rng, &residual}, {&dropped[k]}, {scalar(0.25f), scalar(9)});
      }
      CHECK(uniform[0].same(uniform[1]) && normal[0].same(normal[1]) && dropped[0].same(dropped[1]));
      for (int64_t k = 0; k < N; k++) {
        const cpu::Philox4 words = cpu::philox_block(rng.view.i32(), 9, uint64_t(k / 4));
        const float u = cpu::philox_uniform(words.word[k % 4]);
        CHECK(std::fabs(uniform[0].at(k) - (5 * u - 2)) <= (type == DType::f32 ? 1e-6f : 1e-2f));
        CHECK(std::fabs(normal[0].at(k)) < 6);
        const float want = residual.at(k) + (u >= 0.25f ? x.at(k) / 0.75f : 0);
        CHECK(std::fabs(dropped[0].at(k) - want) <= (type == DType::f32 ? 1e-6f : 1e-2f));
      }
    }
}

TEST(sampling_reads_the_real_columns_only) {
  const Owned rng = rng_of(4, 5, 6);
  for (const DType type : {DType::f32, DType::bf16})
    for (const int V : {1, 5, 67, 999}) {
      const int64_t R = 6, Vp = V + 3;
      Owned logits(type, {R, Vp});
      logits.random(1);
      for (int64_t r = 0; r < R; r++)
        for (int64_t v = V; v < Vp; v++) logits.set(r * Vp + v, NAN);
      Owned best = fresh();
      run_op(2, Op::argmax, {&logits}, {&best}, {scalar(V)});
      for (const float top_p : {1.f, 0.6f})
        for (const int top_k : {0, 3}) {
          Owned one = fresh(), two = fresh(), greedy = fresh();
          run_op(1, Op::sample, {&logits, &rng}, {&one},
                 {scalar(V), scalar(0.5f), scalar(top_k), scalar(top_p), scalar(0)});
          run_op(2, Op::sample, {&logits, &rng}, {&two},
                 {scalar(V), scalar(0.5f), scalar(top_k), scalar(top_p), scalar(0)});
          run_op(2, Op::sample, {&logits, &rng}, {&greedy},
                 {scalar(V), scalar(0.f), scalar(top_k), scalar(top_p), scalar(0)});
          CHECK(one.same(two) && greedy.same(best));
          for (int64_t r = 0; r < R; r++) CHECK(one.view.i32()[r] >= 0 && one.view.i32()[r] < V);
        }
    }
}
