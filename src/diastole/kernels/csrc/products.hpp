// Products with packed matrices, in two halves: rows of activations are brought into the form that a kind of matrix
// multiplies, and then multiplied with as many matrices of that kind as want them.
#pragma once
#include "memory.hpp"
#include "ops.hpp"

namespace diastole {

// Rows row.. of a matrix, where row is a multiple of kRows.
struct Half {
  const Matrix& w;
  int row;
};

// Matrices of these kinds multiply the same form.
inline Weight form_of(Weight kind) { return kind == Weight::f32 || kind == Weight::bf16 ? kind : Weight::q8; }

// Room for one set of prepared rows; those that a call returns are good until the next call.
class Activations {
 public:
  // errands: for who multiplies them.
  explicit Activations(const Errands* errands = nullptr) : errands_(errands) {}
  // Rows x (t, k).
  Rows take(const Kernels& isa, Weight kind, const float* x, ptrdiff_t stride, int t, int k, bool share = true);
  // rmsnorm(x) of contiguous rows x (t, k), which are not kept anywhere else.
  Rows normed(const Kernels& isa, Weight kind, const float* x, const float* weight, float eps, int t, int k);
  // act(gate x) * (up x), k wide, of prepared rows. What is between lives for some columns at a time: written out, it
  // would be the largest array of a step. k: a multiple of kGroup; kind: not f32.
  Rows gated(const Kernels& isa, Weight kind, const Half& gate, const Half& up, bool gelu, const Rows& x, int k);

 private:
  Rows open(Weight kind, int t, int k);
  const Errands* errands_;
  // Aligned, for a row of a tile that crosses cache lines takes twice as long to load.
  Scratch<float> f_, scale_, offset_;
  Scratch<uint16_t> h_;
  Scratch<int8_t> q_;
  Scratch<int32_t> total_;
};

// Prepared rows times a matrix.
void multiply(const Kernels& isa, const Matrix& w, const Rows& x, const Out& out);

}  // namespace diastole
