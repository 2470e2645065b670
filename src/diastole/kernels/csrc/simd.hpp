// Sixteen lanes, spelled once. A file that includes this gets one 512-bit, two 256-bit or four 128-bit registers per
// vector, by the flags it is compiled with; what needs an instruction's name is in simd_<set>.hpp.
//
// Everything here has internal linkage: code made for one instruction set must never be linked into another.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

typedef uint16_t bf16;
typedef uint16_t f16;

// A vector made of two narrower ones. Operations on it are operations on its halves.
template <class Half>
struct Two {
  Half lo, hi;
};

#if defined(__AVX512F__)
constexpr int kRegister = 64;  // bytes
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

typedef float FloatRegister __attribute__((vector_size(kRegister)));
typedef int32_t IntRegister __attribute__((vector_size(kRegister)));
typedef float FloatAnywhere __attribute__((vector_size(kRegister), aligned(1), may_alias));
typedef int32_t IntAnywhere __attribute__((vector_size(kRegister), aligned(1), may_alias));
constexpr int kLanes = kRegister / 4;

// ---- registers: what all instruction sets spell alike

inline void read(FloatRegister& v, const void* p) { v = *static_cast<const FloatAnywhere*>(p); }
inline void read(IntRegister& v, const void* p) { v = *static_cast<const IntAnywhere*>(p); }
inline void write(FloatRegister v, void* p) { *static_cast<FloatAnywhere*>(p) = v; }
inline void write(IntRegister v, void* p) { *static_cast<IntAnywhere*>(p) = v; }
template <class Register, class Scalar, int... I>
inline Register spread(Scalar x, std::integer_sequence<int, I...>) {  // x + 0 would be an addition: -0 + 0 is 0
  return Register{((void)I, x)...};
}
inline void fill(FloatRegister& v, float x) { v = spread<FloatRegister>(x, std::make_integer_sequence<int, kLanes>()); }
inline void fill(IntRegister& v, int32_t x) { v = spread<IntRegister>(x, std::make_integer_sequence<int, kLanes>()); }
inline FloatRegister to_float(IntRegister v) { return __builtin_convertvector(v, FloatRegister); }
inline IntRegister bits(FloatRegister v) { return (IntRegister)v; }
inline FloatRegister from_bits(IntRegister v) { return (FloatRegister)v; }
inline IntRegister less(FloatRegister a, FloatRegister b) { return a < b; }
inline IntRegister less(IntRegister a, IntRegister b) { return a < b; }
inline FloatRegister select(IntRegister mask, FloatRegister a, FloatRegister b) { return mask ? a : b; }
inline IntRegister select(IntRegister mask, IntRegister a, IntRegister b) { return mask ? a : b; }

}  // namespace

#if !defined(__AVX512F__)
namespace {
// Codes 0 to 15 in the halves of every lane, less 7.5 and as bf16: the numbers have few bits, so nothing is rounded.
inline IntRegister centred(IntRegister codes) {
  const IntRegister low = bits(to_float(codes & 0xffff) - 7.5f), high = bits(to_float(codes >> 16) - 7.5f);
  return high | ((low >> 16) & 0xffff);
}
}  // namespace
#endif

#if defined(__AVX512F__)
#include "simd_avx512.hpp"
#elif defined(__AVX2__)
#include "simd_avx2.hpp"
#else
#include "simd_portable.hpp"
#endif

namespace {

// ---- halves

#define DIASTOLE_LANEWISE(op)                     \
  template <class H>                              \
  inline Two<H> operator op(Two<H> a, Two<H> b) { \
    return {a.lo op b.lo, a.hi op b.hi};          \
  }                                               \
  template <class H, class Scalar>                \
  inline Two<H> operator op(Two<H> a, Scalar b) { \
    return {a.lo op b, a.hi op b};                \
  }
DIASTOLE_LANEWISE(+)
DIASTOLE_LANEWISE(-)
DIASTOLE_LANEWISE(*)
DIASTOLE_LANEWISE(/)
DIASTOLE_LANEWISE(&)
DIASTOLE_LANEWISE(|)
DIASTOLE_LANEWISE(^)
DIASTOLE_LANEWISE(<<)
DIASTOLE_LANEWISE(>>)
#undef DIASTOLE_LANEWISE

template <class H>
inline void read(Two<H>& v, const void* p) {
  read(v.lo, p);
  read(v.hi, static_cast<const char*>(p) + sizeof(H));
}
template <class H>
inline void write(Two<H> v, void* p) {
  write(v.lo, p);
  write(v.hi, static_cast<char*>(p) + sizeof(H));
}
template <class H, class Scalar>
inline void fill(Two<H>& v, Scalar x) {
  fill(v.lo, x);
  fill(v.hi, x);
}
template <class H>
inline auto to_float(Two<H> v) -> Two<decltype(to_float(v.lo))> {
  return {to_float(v.lo), to_float(v.hi)};
}
template <class H>
inline auto bits(Two<H> v) -> Two<decltype(bits(v.lo))> {
  return {bits(v.lo), bits(v.hi)};
}
template <class H>
inline auto from_bits(Two<H> v) -> Two<decltype(from_bits(v.lo))> {
  return {from_bits(v.lo), from_bits(v.hi)};
}
template <class H>
inline auto less(Two<H> a, Two<H> b) -> Two<decltype(less(a.lo, b.lo))> {
  return {less(a.lo, b.lo), less(a.hi, b.hi)};
}
template <class M, class H>
inline Two<H> select(Two<M> mask, Two<H> a, Two<H> b) {
  return {select(mask.lo, a.lo, b.lo), select(mask.hi, a.hi, b.hi)};
}
template <class H>
inline Two<H> fma(Two<H> a, Two<H> b, Two<H> c) {
  return {fma(a.lo, b.lo, c.lo), fma(a.hi, b.hi, c.hi)};
}
template <class H>
inline Two<H> centred(Two<H> codes) {
  return {centred(codes.lo), centred(codes.hi)};
}
template <class H>
inline Two<H> max(Two<H> a, Two<H> b) {
  return {max(a.lo, b.lo), max(a.hi, b.hi)};
}
template <class H>
inline auto round_to_int(Two<H> v) -> Two<decltype(round_to_int(v.lo))> {
  return {round_to_int(v.lo), round_to_int(v.hi)};
}
template <class H>
inline auto sum(Two<H> v) {
  return sum(v.lo + v.hi);
}
template <class H>
inline auto largest(Two<H> v) {
  return largest(max(v.lo, v.hi));
}
template <class H>
inline bool any(Two<H> mask) {
  return any(mask.lo | mask.hi);
}
template <class H>
inline void read_f16(Two<H>& v, const f16* p) {
  read_f16(v.lo, p);
  read_f16(v.hi, p + sizeof(H) / 4);
}
template <class H>
inline void read_bytes(Two<H>& v, const uint8_t* p) {
  read_bytes(v.lo, p);
  read_bytes(v.hi, p + sizeof(H) / 4);
}
template <class H>
inline void narrow8(Two<H> v, void* p) {
  narrow8(v.lo, p);
  narrow8(v.hi, static_cast<char*>(p) + sizeof(H) / 4);
}
template <class H>
inline void narrow16(Two<H> v, void* p) {
  narrow16(v.lo, p);
  narrow16(v.hi, static_cast<char*>(p) + sizeof(H) / 2);
}
template <class H, class G>
inline Two<H> dot2(Two<H> acc, Two<G> a, uint32_t b) {
  return {dot2(acc.lo, a.lo, b), dot2(acc.hi, a.hi, b)};
}
template <class H>
inline Two<H> dot4_small(Two<H> acc, Two<H> a, int32_t b) {
  return {dot4_small(acc.lo, a.lo, b), dot4_small(acc.hi, a.hi, b)};
}
template <class H>
inline Two<H> dot4_signed(Two<H> acc, Two<H> a, int32_t b) {
  return {dot4_signed(acc.lo, a.lo, b), dot4_signed(acc.hi, a.hi, b)};
}
template <class H>
inline Two<H> dot4_unsigned(Two<H> acc, Two<H> a, uint32_t b) {
  return {dot4_unsigned(acc.lo, a.lo, b), dot4_unsigned(acc.hi, a.hi, b)};
}

// ---- sixteen lanes

#if defined(__AVX512F__)
using Floats = FloatRegister;
using Ints = IntRegister;
#elif defined(__AVX2__)
using Floats = Two<FloatRegister>;
using Ints = Two<IntRegister>;
#else
using Floats = Two<Two<FloatRegister> >;
using Ints = Two<Two<IntRegister> >;
#endif

inline Floats load(const float* p) {
  Floats v;
  read(v, p);
  return v;
}
inline Ints load_words(const void* p) {  // 64 bytes: four per lane
  Ints v;
  read(v, p);
  return v;
}
inline Floats load_bytes(const uint8_t* p) {  // sixteen, as numbers
  Ints v;
  read_bytes(v, p);
  return to_float(v);
}
inline Floats load_f16(const f16* p) {
  Floats v;
  read_f16(v, p);
  return v;
}
inline void store(float* p, Floats v) { write(v, p); }
inline Floats splat(float x) {
  Floats v;
  fill(v, x);
  return v;
}
inline Ints splat(int32_t x) {
  Ints v;
  fill(v, x);
  return v;
}
alignas(64) constexpr int32_t kIota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

inline Ints magnitude(Floats v) { return bits(v) & 0x7fffffff; }  // ordered as |v| is, with NaN above everything

inline float as_float(int32_t x) {
  float f;
  std::memcpy(&f, &x, 4);
  return f;
}

// e^x for x up to 88, to about 2e-7 relative; exactly 1 at 0, 0 below -87, NaN for NaN.
inline Floats exp(Floats x) {
  const Floats low = splat(-87.f);
  const Floats clipped = max(low, x);
  const Ints n = round_to_int(clipped * 1.44269504f);
  const Floats r = fma(to_float(n), splat(-0.693145752f), clipped);
  const Floats f = fma(to_float(n), splat(-1.42860677e-6f), r);
  Floats p = splat(1.9875691500e-4f);
  p = fma(p, f, splat(1.3981999507e-3f));
  p = fma(p, f, splat(8.3334519073e-3f));
  p = fma(p, f, splat(4.1665795894e-2f));
  p = fma(p, f, splat(1.6666665459e-1f));
  p = fma(p, f, splat(5.0000001201e-1f));
  p = fma(p, f * f, f) + 1.f;
  return select(less(x, low), splat(0.f), from_bits(bits(p) + (n << 23)));
}

// Writes sixteen bf16, rounded half to even; NaN stays NaN.
inline void store_bf16(bf16* p, Floats v) {
  const Ints u = bits(v);
  const Ints rounded = ((u + 0x7fff) + ((u >> 16) & 1)) >> 16;
  narrow16(select(less(splat(0x7f800000), u & 0x7fffffff), (u >> 16) | 0x40, rounded), p);
}

// Thirty-two of them, first and then second. Where one instruction does it, denormals become zero.
inline void store_bf16(bf16* p, Floats first, Floats second) {
#if defined(__AVX512BF16__)
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
#else
  store_bf16(p, first);
  store_bf16(p + 16, second);
#endif
}

// The lanes of v whose mask is set, side by side; returns how many. Sixteen words are written.
inline int squeeze(Ints mask, Ints v, void* p) {
#if defined(__AVX512F__)
  const __mmask16 lanes = _mm512_movepi32_mask((__m512i)mask);
  _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(lanes, (__m512i)v));
  return __builtin_popcount(lanes);
#else
  int32_t in[16], from[16], to[17];
  write(mask, in);
  write(v, from);
  int count = 0;
  for (int i = 0; i < 16; i++) {
    to[count] = from[i];
    count -= in[i];
  }
  std::memcpy(p, to, 64);
  return count;
#endif
}

inline float from_bf16(bf16 x) { return as_float(static_cast<int32_t>(static_cast<uint32_t>(x) << 16)); }

// Neighbours as one 32-bit word, the form in which they are multiplied: two bf16 or four bytes.
inline uint32_t word(const void* p) {
  uint32_t u;
  std::memcpy(&u, p, 4);
  return u;
}

#if !defined(__AVX512F__)
inline void transpose16(const uint8_t* const* rows, uint8_t* out) {
  for (int t = 0; t < 16; t++)
    for (int i = 0; i < 16; i++) std::memcpy(out + i * 64 + t * 4, rows[t] + i * 4, 4);
}
#endif

// Into the second cache only: what is fetched into the first one passes through its few buffers for lines, and memory then
// gives less than it could.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
