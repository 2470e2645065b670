// Sixteen lanes, spelled once: vectors of the compiler's own kind, which become one 512-bit, two 256-bit or four
// 128-bit registers by the flags of the file that includes this, and the few operations that need an instruction's name.
//
// Everything here has internal linkage: code made for one instruction set must never be linked into another.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

typedef float F __attribute__((vector_size(64)));        // 16 floats
typedef int32_t I __attribute__((vector_size(64)));      // 16 integers
typedef uint8_t B __attribute__((vector_size(64)));      // 64 bytes: 16 lanes of 4
typedef float Fu __attribute__((vector_size(64), aligned(4)));
typedef uint8_t Bu __attribute__((vector_size(64), aligned(1)));
typedef uint16_t bf16;
typedef uint16_t f16;

inline F load(const float* p) { return *reinterpret_cast<const Fu*>(p); }
inline void store(float* p, F v) { *reinterpret_cast<Fu*>(p) = v; }
inline B load_bytes(const uint8_t* p) { return *reinterpret_cast<const Bu*>(p); }
inline F splat(float x) { return F{} + x; }
inline I splat(int32_t x) { return I{} + x; }
inline F to_float(I v) { return __builtin_convertvector(v, F); }

inline F fma(F a, F b, F c) {
#if defined(__AVX512F__)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  union { F v; __m256 h[2]; } x{a}, y{b}, z{c};
  z.h[0] = _mm256_fmadd_ps(x.h[0], y.h[0], z.h[0]);
  z.h[1] = _mm256_fmadd_ps(x.h[1], y.h[1], z.h[1]);
  return z.v;
#else
  return a * b + c;
#endif
}

inline F max(F a, F b) { return (F)((a > b) ? a : b); }
inline F abs(F a) { return (F)((I)a & 0x7fffffff); }

// Sums and maxima over lanes, always in the same tree.
inline float sum(F v) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) v[i] += v[i + half];
  return v[0];
}
inline int32_t sum(I v) {
  int32_t s = 0;
  for (int i = 0; i < 16; i++) s += v[i];
  return s;
}
inline float largest(F v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float m = v[0];
  for (int i = 1; i < 16; i++) m = v[i] > m ? v[i] : m;
  return m;
#endif
}

// Round half to even.
inline I round_to_int(F v) {
#if defined(__AVX512F__)
  return (I)_mm512_cvtps_epi32((__m512)v);
#elif defined(__AVX2__)
  union { F f; __m256 h[2]; } x{v};
  union { __m256i h[2]; I i; } y;
  y.h[0] = _mm256_cvtps_epi32(x.h[0]);
  y.h[1] = _mm256_cvtps_epi32(x.h[1]);
  return y.i;
#else
  const F magic = splat(12582912.f);  // 1.5 * 2^23: adding it leaves the integer in the low bits, |v| < 2^22
  return (I)(v + magic) - (I)magic;
#endif
}

// e^x for x <= 0 and above, to about 2e-7 relative; exactly 1 at 0, and 0 below -87.
inline F exp(F x) {
  const F low = splat(-87.f);
  const F clipped = max(x, low);
  const I n = round_to_int(clipped * 1.44269504f);
  const F r = fma(to_float(n), splat(-0.693145752f), clipped);
  const F f = fma(to_float(n), splat(-1.42860677e-6f), r);
  F p = splat(1.9875691500e-4f);
  p = fma(p, f, splat(1.3981999507e-3f));
  p = fma(p, f, splat(8.3334519073e-3f));
  p = fma(p, f, splat(4.1665795894e-2f));
  p = fma(p, f, splat(1.6666665459e-1f));
  p = fma(p, f, splat(5.0000001201e-1f));
  p = fma(p, f * f, f) + 1.f;
  const F scaled = (F)((I)p + (n << 23));
  return (F)((x < low) ? F{} : scaled);
}

// ---- half floats

inline F load_f16(const f16* p) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  union { __m256 h[2]; F f; } y;
  y.h[0] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  y.h[1] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)));
  return y.f;
#else
  F out;
  for (int i = 0; i < 16; i++) {
    const uint32_t h = p[i], sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
    uint32_t bits = sign | ((rest << 13) + 0x38000000u);
    if (rest >= 0x7c00u) bits = sign | 0x7f800000u | (rest << 13);
    float value;
    std::memcpy(&value, &bits, 4);
    if (rest < 0x0400u) value = (sign ? -1.f : 1.f) * static_cast<float>(rest) * 5.9604644775390625e-8f;
    out[i] = value;
  }
  return out;
#endif
}

inline bf16 to_bf16(float x) {  // round half to even
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return static_cast<bf16>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
inline float from_bf16(bf16 x) {
  const uint32_t u = static_cast<uint32_t>(x) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
// Two neighbours as one 32-bit word, the form in which pairs are multiplied.
inline uint32_t pair(const bf16* p) {
  uint32_t u;
  std::memcpy(&u, p, 4);
  return u;
}

// acc + a0 b0 + a1 b1 in every lane: a holds 16 pairs, b one pair for all.
inline F dot2(F acc, B a, uint32_t b) {
#if defined(__AVX512BF16__)
  return (F)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)_mm512_set1_epi32(static_cast<int>(b)));
#else
  const I w = (I)a;
  const F low = (F)(w << 16), high = (F)(w & static_cast<int32_t>(0xffff0000u));
  uint32_t lo = b << 16, hi = b & 0xffff0000u;
  float x, y;
  std::memcpy(&x, &lo, 4);
  std::memcpy(&y, &hi, 4);
  return fma(high, splat(y), fma(low, splat(x), acc));
#endif
}

// ---- dot products of bytes, four per lane, exact in int32

inline int32_t quad(const int8_t* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

// acc + sum of u8 times s8: the unsigned side in a (0..15 here), the signed side one quad for all.
inline I dot4_small(I acc, B a, int32_t b) {
#if defined(__AVX512VNNI__)
  return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, _mm512_set1_epi32(b));
#elif defined(__AVX2__)
  union { B v; __m256i h[2]; } x{a};
  union { I v; __m256i h[2]; } z{acc};
  const __m256i y = _mm256_set1_epi32(b), one = _mm256_set1_epi16(1);
  for (int i = 0; i < 2; i++)  // 15 * 127 * 2 fits 16 bits
    z.h[i] = _mm256_add_epi32(z.h[i], _mm256_madd_epi16(_mm256_maddubs_epi16(x.h[i], y), one));
  return z.v;
#else
  for (int l = 0; l < 16; l++)
    for (int k = 0; k < 4; k++) acc[l] += a[4 * l + k] * static_cast<int8_t>(static_cast<uint32_t>(b) >> (8 * k));
  return acc;
#endif
}

// acc + sum of u8 times s8: one unsigned quad for all, the signed side in a.
inline I dot4_unsigned(I acc, uint32_t b, B a) {
#if defined(__AVX512VNNI__)
  return (I)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(static_cast<int>(b)), (__m512i)a);
#else
  for (int l = 0; l < 16; l++)
    for (int k = 0; k < 4; k++) acc[l] += static_cast<int8_t>(a[4 * l + k]) * static_cast<int32_t>((b >> (8 * k)) & 255u);
  return acc;
#endif
}

// Sums of s8 times s8. The instruction wants an unsigned side, so a is shifted by 128 and the sum starts at
// -128 times the sum of the b that will come.
inline I signed_start(int32_t sum_of_b) {
#if defined(__AVX512VNNI__)
  return splat(-128 * sum_of_b);
#else
  (void)sum_of_b;
  return I{};
#endif
}
inline I dot4_signed(I acc, B a, int32_t b) {
#if defined(__AVX512VNNI__)
  return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)(a ^ 0x80), _mm512_set1_epi32(b));
#elif defined(__AVX2__)
  union { B v; __m256i h[2]; } x{a};
  union { I v; __m256i h[2]; } z{acc};
  const __m256i y = _mm256_set1_epi32(b), one = _mm256_set1_epi16(1);
  for (int i = 0; i < 2; i++) {  // |a| times b with a's sign: 128 * 127 * 2 fits 16 bits
    const __m256i p = _mm256_maddubs_epi16(_mm256_abs_epi8(x.h[i]), _mm256_sign_epi8(y, x.h[i]));
    z.h[i] = _mm256_add_epi32(z.h[i], _mm256_madd_epi16(p, one));
  }
  return z.v;
#else
  for (int l = 0; l < 16; l++)
    for (int k = 0; k < 4; k++)
      acc[l] += static_cast<int8_t>(a[4 * l + k]) * static_cast<int8_t>(static_cast<uint32_t>(b) >> (8 * k));
  return acc;
#endif
}

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

}  // namespace
