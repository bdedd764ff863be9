// The matrix product, for the ops that are made of it.
#pragma once
#include "launch.h"

namespace tc::metal {

// out[M,N] = epilogue(op(a)[M,K] op(b)[K,N] + bias) + residual (+ out where accumulate). Of the views only data and
// dtype count, and whether they are given.
struct Product {
  int64_t M, N, K;
  View a, b;  // rows of a_stride and b_stride elements
  int64_t a_stride, b_stride;
  bool trans_a = false, trans_b = false;
  View out, bias, residual, pre, pre_out;
  int epilogue = 0;
  bool accumulate = false;
};
void multiply(const Args& x, const Product& g);

}  // namespace tc::metal
