// From logits to a token: temperature, top-k, top-p, min-p, then the largest of score plus noise.
#pragma once
#include <cstdint>

#include "kernels.hpp"

namespace diastole {

struct Wish {
  float temperature;  // 0: the largest logit
  int top_k;          // 0: all
  float top_p, min_p;
  uint64_t key;  // of the noise
};

// The token chosen from logits (n,). Of equals, the smaller id is the likelier one.
int sample(const Kernels& isa, const float* logits, int n, const Wish& wish);

}  // namespace diastole
