// Operators that treat row after row, spread over threads.
#include <algorithm>

#include "ops.hpp"
#include "pool.hpp"

namespace diastole {

void embed(const Kernels& isa, const Matrix& w, const int32_t* ids, int t, float* out, ptrdiff_t stride) {
  const int part = 32;
  Pool::get().each(ceil_div(t, part),
                   [&](int i) { isa.embed(w, ids, out, stride, i * part, std::min((i + 1) * part, t)); });
}

namespace {

constexpr int kFewRows = 8;

// f(row) for every row; few are not worth waking anybody.
template <class F>
void each_row(int t, const F& f) {
  if (t < kFewRows)
    for (int i = 0; i < t; i++) f(i);
  else
    Pool::get().each(ceil_div(t, kFewRows), [&](int part) {
      for (int i = part * kFewRows; i < std::min((part + 1) * kFewRows, t); i++) f(i);
    });
}

}  // namespace

void rmsnorm(const Kernels& isa, const float* x, ptrdiff_t x_stride, const float* weight, float eps, float* out,
             ptrdiff_t out_stride, int t, int heads, int k) {
  each_row(t, [&](int i) {
    for (int h = 0; h < heads; h++) isa.rmsnorm(x + i * x_stride + h * k, weight, eps, out + i * out_stride + h * k, k);
  });
}

void rope(const Kernels& isa, float* x, ptrdiff_t stride, const int32_t* pos, const float* table, int t, int heads,
          int dim, int rotated) {
  each_row(t, [&](int i) {
    isa.rope(x + i * stride, table + static_cast<size_t>(pos[i]) * rotated, heads, dim, rotated);
  });
}

void gated(const Kernels& isa, const float* gu, ptrdiff_t gu_stride, bool gelu, float* out, ptrdiff_t out_stride, int t,
           int n) {
  each_row(t, [&](int i) {
    const float* gate = gu + i * gu_stride;
    isa.gated(gate, gate + n, gelu, out + i * out_stride, n);
  });
}

void kv_write(const Kernels& isa, const Pages& pages, const int64_t* rows, int t, const float* k, ptrdiff_t k_stride,
              const float* v, ptrdiff_t v_stride) {
  // Neighbouring tokens of a prompt share cache lines: their writes stay with one thread.
  const int part = t < kPage ? 8 : kPage;
  Pool::get().each(ceil_div(t, part), [&](int block) {
    for (int i = block * part; i < std::min((block + 1) * part, t); i++)
      for (int h = 0; h < pages.heads; h++)
        isa.kv_write(pages.kind, pages.at(rows[i], h), static_cast<int>(rows[i] % kPage), pages.dim,
                     k + i * k_stride + h * pages.dim, v + i * v_stride + h * pages.dim);
  }, t >= 16);
}

}  // namespace diastole
