// What a fused step does between a layer's projections when policies act there, without coming back to Python: the
// operators that their Python sides call layer by layer, in the same order and to the same bits.
#pragma once
#include "check.hpp"

namespace diastole {

class Between {
 public:
  virtual ~Between() = default;
  // qkv (rows, heads + 2 kv heads, dim), rotated -> seen (rows, heads, dim).
  virtual void mix(const Kernels& isa, size_t layer, const float* qkv, float* seen) = 0;
  virtual bool fits(size_t layers, size_t rows, int heads, int kv_heads, int dim) const = 0;
};

}  // namespace diastole
