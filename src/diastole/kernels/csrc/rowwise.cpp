// Operators that treat row after row, spread over threads.
#include <algorithm>
#include <cmath>

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
constexpr int64_t kLinesOf = 4096;  // numbers of a picture that one thread takes at a time

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

void groupnorm(const Kernels& isa, const GroupNorm& how, const Pictures<const float>& x, const Pictures<float>& out) {
  const int c = how.c, h = how.h, each = c / how.groups, padded = ceil_div(c, 16) * 16;
  // Some lines at a time, as many whatever else is there: sums are the same alone and in a crowd.
  const int lines = static_cast<int>(std::clamp(kLinesOf / (int64_t{how.w} * c), int64_t{1}, int64_t{h})), parts = ceil_div(h, lines);
  const bool share = static_cast<double>(how.b) * h * how.w * c >= kAlone;
  const size_t wide = static_cast<size_t>(2 * c);
  std::vector<double> sums(static_cast<size_t>(how.b) * parts * wide);
  std::vector<float> scales(static_cast<size_t>(how.b) * 2 * padded), none(static_cast<size_t>(c));
  const auto each_part = [&](const auto& f) {
    Pool::get().each(how.b * parts, [&](int i) { f(i / parts, i % parts * lines, std::min((i % parts + 1) * lines, h), i); }, share);
  };
  each_part([&](int b, int y0, int y1, int i) {
    double* sum = sums.data() + static_cast<size_t>(i) * wide;
    const float* add = how.add ? how.add + static_cast<ptrdiff_t>(b) * c : none.data();
    for (int y = y0; y < y1; y++) isa.moments(x.at(b, y), x.pixel, how.w, add, sum, sum + c, c);
  });
  const double count = static_cast<double>(h) * how.w * each;
  for (int b = 0; b < how.b; b++) {
    double* all = sums.data() + static_cast<size_t>(b) * parts * wide;
    for (int part = 1; part < parts; part++)
      for (size_t i = 0; i < wide; i++) all[i] += all[static_cast<size_t>(part) * wide + i];
    float* scale = scales.data() + static_cast<size_t>(b) * 2 * padded;
    for (int g = 0; g < how.groups; g++) {
      double sum = 0, square = 0;
      for (int i = g * each; i < (g + 1) * each; i++) sum += all[i], square += all[c + i];
      const double mean = sum / count, variance = std::max(square / count - mean * mean, 0.0);
      const double inverse = 1 / std::sqrt(variance + static_cast<double>(how.eps));
      for (int i = g * each; i < (g + 1) * each; i++) {
        const double by = static_cast<double>(how.weight[i]) * inverse;
        const double off = how.add ? static_cast<double>(how.add[static_cast<ptrdiff_t>(b) * c + i]) - mean : -mean;
        scale[i] = static_cast<float>(by);
        scale[padded + i] = static_cast<float>(static_cast<double>(how.bias[i]) + off * by);
      }
    }
  }
  each_part([&](int b, int y0, int y1, int) {
    const float* scale = scales.data() + static_cast<size_t>(b) * 2 * padded;
    for (int y = y0; y < y1; y++)
      isa.rescale(x.at(b, y), x.pixel, how.w, scale, scale + padded, how.silu, out.at(b, y), out.pixel, c);
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
