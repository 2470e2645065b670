// From matrices as files hold them to the layouts that kernels read: see kernels.hpp.
#include <atomic>
#include <cstring>

#include "ops.hpp"
#include "pool.hpp"

namespace diastole {
namespace {

uint16_t to_f16(float x) {  // round half to even; too large becomes infinite
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return sign | 0x7e00u;
  if (u >= 0x477ff000u) return sign | 0x7c00u;
  if (u < 0x38800000u) {  // subnormal: let the addition round
    float y;
    std::memcpy(&y, &u, 4);
    y += 0.5f;
    std::memcpy(&u, &y, 4);
    return sign | static_cast<uint16_t>(u - 0x3f000000u);
  }
  u += 0xc8000fffu + ((u >> 13) & 1u);
  return sign | static_cast<uint16_t>(u >> 13);
}

bool finite(uint16_t half) { return (half & 0x7c00u) != 0x7c00u; }

uint16_t to_bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);  // NaN stays NaN
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

}  // namespace

size_t packed_bytes(Weight kind, int n, int k) {
  const size_t rows = static_cast<size_t>(ceil_div(n, kRows)) * kRows;
  switch (kind) {
    case Weight::q4:
    case Weight::q4s:
    case Weight::q4b: return rows / kRows * four_bytes(kind, k / kGroup);
    case Weight::q8: return rows / kRows * (k / kGroup) * (512 + 32);
    case Weight::bf16: return rows * k * 2;
    case Weight::f32: return rows * k * 4;
  }
  return 0;
}

namespace {

// All groups of a row, the r-th of sixteen whose blocks are at p. False: a number is above 15.
bool put_fours(const uint8_t* q, int groups, int r, uint8_t* p, size_t step) {
  uint8_t any = 0;
  for (int g = 0; g < groups; g++, q += kGroup, p += step)
    for (int i = 0; i < 16; i++) {
      any |= q[i] | q[16 + i];
      p[(i / 4) * 64 + r * 4 + i % 4] = static_cast<uint8_t>(q[i] | (q[16 + i] << 4));
    }
  return any <= 15;
}

bool put_f16(float x, uint8_t* p) {
  const uint16_t half = to_f16(x);
  std::memcpy(p, &half, 2);
  return finite(half);
}

// f(row, its number among sixteen, where these are) for every row, over zeros. False: one did not fit.
template <class F>
bool each_row(Weight kind, int n, int groups, uint8_t* out, const F& f) {
  const size_t bytes = four_bytes(kind, groups);
  std::atomic<bool> fits{true};
  Pool::get().each(ceil_div(n, kRows), [&](int b) {
    uint8_t* blocks = out + static_cast<size_t>(b) * bytes;
    std::memset(blocks, 0, bytes);
    for (int r = 0; r < kRows && b * kRows + r < n; r++)
      if (!f(static_cast<size_t>(b) * kRows + static_cast<size_t>(r), r, blocks)) fits.store(false, std::memory_order_relaxed);
  });
  return fits.load();
}

}  // namespace

bool pack_q4(Weight kind, const uint8_t* q, const float* d, const float* m, int n, int k, uint8_t* out) {
  const int groups = k / kGroup;
  const bool own = kind == Weight::q4;  // factors follow their block's numbers
  const size_t step = own ? kBlock4 : kNibbles;
  return each_row(kind, n, groups, out, [&](size_t row, int r, uint8_t* blocks) {
    uint8_t *numbers = blocks + factor_bytes(kind, groups), *factors = own ? numbers + kNibbles : blocks;
    bool fits = put_fours(q + row * static_cast<size_t>(k), groups, r, numbers, step);
    for (int g = 0; g < groups; g++, factors += own ? step : 2 * kRows) {
      uint8_t spare[2];
      const size_t at = row * static_cast<size_t>(groups) + static_cast<size_t>(g);
      fits = put_f16(d[at], factors + 2 * r) && fits;
      fits = put_f16(m[at], own ? factors + 2 * (kRows + r) : spare) && fits;
    }
    return fits;
  });
}

bool pack_q4b(const uint8_t* q, const uint8_t* both, const float* scales, int n, int k, uint8_t* out) {
  const int groups = k / kGroup;
  return each_row(Weight::q4b, n, groups, out, [&](size_t row, int r, uint8_t* blocks) {
    uint8_t* factors = blocks + 4 * kRows;
    const uint8_t* own = both + row * static_cast<size_t>(groups) * 2;
    for (int g = 0; g < groups; g++, own += 2, factors += 2 * kRows) factors[r] = own[0], factors[kRows + r] = own[1];
    const bool fits = put_fours(q + row * static_cast<size_t>(k), groups, r, blocks + factor_bytes(Weight::q4b, groups), kNibbles);
    return put_f16(scales[2 * row], blocks + 2 * r) && put_f16(scales[2 * row + 1], blocks + 2 * (kRows + r)) && fits;
  });
}

bool pack_q8(const int8_t* q, const float* d, int n, int k, uint8_t* out) {
  std::atomic<bool> fits{true};
  const int groups = k / kGroup, blocks = ceil_div(n, kRows);
  uint8_t* scales = out + static_cast<size_t>(blocks) * groups * 512;
  Pool::get().each(blocks, [&](int b) {
    for (int g = 0; g < groups; g++) {
      const size_t at = static_cast<size_t>(b) * groups + g;
      uint8_t* p = out + at * 512;
      std::memset(p, 0, 512);
      std::memset(scales + at * 32, 0, 32);
      for (int r = 0; r < kRows && b * kRows + r < n; r++) {
        const size_t row = static_cast<size_t>(b) * kRows + r;
        for (int i = 0; i < kGroup; i++)
          p[(i / 4) * 64 + r * 4 + i % 4] = static_cast<uint8_t>(q[row * k + g * kGroup + i]);
        const uint16_t dh = to_f16(d[row * groups + g]);
        if (!finite(dh)) fits.store(false, std::memory_order_relaxed);
        std::memcpy(scales + at * 32 + 2 * r, &dh, 2);
      }
    }
  });
  return fits.load();
}

void pack_bf16(const float* w, int n, int k, uint8_t* out) {
  Pool::get().each(ceil_div(n, kRows), [&](int b) {
    uint16_t* p = reinterpret_cast<uint16_t*>(out) + static_cast<size_t>(b) * k * kRows;
    for (int r = 0; r < kRows; r++)
      for (int i = 0; i < k; i++) {
        const size_t row = static_cast<size_t>(b) * kRows + r;
        p[(i / 2) * 32 + r * 2 + i % 2] = row < static_cast<size_t>(n) ? to_bf16(w[row * k + i]) : 0;
      }
  });
}

void pack_f32(const float* w, int n, int k, uint8_t* out) {
  Pool::get().each(ceil_div(n, kRows), [&](int b) {
    float* p = reinterpret_cast<float*>(out) + static_cast<size_t>(b) * k * kRows;
    for (int r = 0; r < kRows; r++)
      for (int i = 0; i < k; i++) {
        const size_t row = static_cast<size_t>(b) * kRows + r;
        p[static_cast<size_t>(i) * kRows + r] = row < static_cast<size_t>(n) ? w[row * k + i] : 0.f;
      }
  });
}

}  // namespace diastole
