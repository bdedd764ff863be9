// The embedding natively: tables and rows in blocks of exactly their size, ids at both ends of the tables.
#include <string>

#include "check.h"
#include "error.h"
#include "run_op.h"

namespace {

using namespace tc;
using namespace tc::test;

Owned ids(int64_t B, int64_t T, uint32_t below, uint32_t seed) {
  Owned o(DType::i32, {B, T});
  Numbers numbers(seed);
  for (int64_t k = 0; k < B * T; k++) o.view.i32()[k] = int32_t(numbers.below(below));
  o.view.i32()[0] = int32_t(below) - 1;
  return o;
}

void check(DType type, int64_t B, int64_t T, int64_t C, int64_t V, int64_t P) {
  const Owned tokens = ids(B, T, uint32_t(V), 1), positions = ids(B, T, uint32_t(P), 2);
  const Owned wte = std::move(Owned(type, {V + 3, C}).random(3)), wpe = std::move(Owned(type, {P, C}).random(4)),
              d_out = std::move(Owned(type, {B, T, C}).random(5));
  for (int threads = 1; threads <= 2; threads++) {
    Owned out = fresh(), d_wte = fresh(), d_wpe(DType::f32, {P, C});
    d_wpe.fill(0);
    run_op(threads, Op::embedding_forward, {&tokens, &wte, &wpe, &positions}, {&out}, {scalar(int(V))});
    run_op(threads, Op::embedding_backward, {&d_out, &tokens, &positions}, {&d_wte, &d_wpe}, {scalar(int(V))});
    Owned want(type, {B, T, C}), want_wte(DType::f32, {V, C}), want_wpe(DType::f32, {P, C});
    want_wte.fill(0);
    want_wpe.fill(0);
    for (int64_t k = 0; k < B * T * C; k++) {
      const int64_t token = tokens.view.i32()[k / C] * C + k % C, place = positions.view.i32()[k / C] * C + k % C;
      want.set(k, wte.at(token) + wpe.at(place));
      want_wte.view.f32()[token] += d_out.at(k);
      want_wpe.view.f32()[place] += d_out.at(k);
    }
    CHECK(out.same(want) && d_wte.same(want_wte) && d_wpe.same(want_wpe));
  }
}

}  // namespace

TEST(embedding_of_odd_shapes_by_one_thread_and_two) {
  for (const DType type : {DType::f32, DType::bf16}) {
    check(type, 1, 1, 1, 1, 1);
    check(type, 3, 17, 67, 5, 17);
    check(type, 2, 9, 130, 40, 9);
  }
}

TEST(embedding_refuses_ids_outside_the_vocabulary) {
  Owned tokens(DType::i32, {1, 2}), wte(DType::f32, {8, 2});
  wte.fill(0);
  for (const int32_t id : {-1, 5, 2147483647, -2147483647}) {
    tokens.view.i32()[0] = 0;
    tokens.view.i32()[1] = id;
    std::string message;
    Owned out = fresh();
    try {
      run_op(2, Op::embedding_forward, {&tokens, &wte}, {&out}, {scalar(5)});
    } catch (const Error& error) {
      message = error.what();
    }
    CHECK(message == "[embedding_forward] token id " + std::to_string(id) + " at row 1 is outside the vocabulary of 5");
  }
}
