// AVX2 with FMA and F16C. See simd.hpp.
#pragma once

namespace {

inline FloatRegister fma(FloatRegister a, FloatRegister b, FloatRegister c) {
  return (FloatRegister)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline FloatRegister max(FloatRegister a, FloatRegister b) {  // b if either is NaN
  return (FloatRegister)_mm256_max_ps((__m256)a, (__m256)b);
}
inline IntRegister max(IntRegister a, IntRegister b) { return (IntRegister)_mm256_max_epi32((__m256i)a, (__m256i)b); }
inline IntRegister round_to_int(FloatRegister v) { return (IntRegister)_mm256_cvtps_epi32((__m256)v); }

inline float sum(FloatRegister v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline int32_t sum(IntRegister v) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
inline float largest(FloatRegister v) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline bool any(IntRegister mask) { return _mm256_movemask_epi8((__m256i)mask) != 0; }
inline int32_t largest(IntRegister v) {
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

inline void read_f16(FloatRegister& v, const f16* p) {
  v = (FloatRegister)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void read_bytes(IntRegister& v, const uint8_t* p) {  // one per lane
  v = (IntRegister)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
// The low byte, or the low half, of every lane.
inline void narrow8(IntRegister v, void* p) {
  const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                         0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i low = _mm256_shuffle_epi8((__m256i)v, order);
  const int first = _mm_cvtsi128_si32(_mm256_castsi256_si128(low));
  const int second = _mm_cvtsi128_si32(_mm256_extracti128_si256(low, 1));
  std::memcpy(p, &first, 4);
  std::memcpy(static_cast<char*>(p) + 4, &second, 4);
}
inline void narrow16(IntRegister v, void* p) {
  const __m256i low = _mm256_and_si256((__m256i)v, _mm256_set1_epi32(0xffff));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

// acc + a0 b0 + a1 b1: a holds a pair of bf16 in every lane, b one pair for all.
inline FloatRegister dot2(FloatRegister acc, IntRegister a, uint32_t b) {
  const __m256i pair = _mm256_set1_epi32(static_cast<int>(b)), top = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const __m256 low = _mm256_castsi256_ps(_mm256_slli_epi32((__m256i)a, 16));
  const __m256 high = _mm256_castsi256_ps(_mm256_and_si256((__m256i)a, top));
  const __m256 x = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
  const __m256 y = _mm256_castsi256_ps(_mm256_and_si256(pair, top));
  return (FloatRegister)_mm256_fmadd_ps(high, y, _mm256_fmadd_ps(low, x, (__m256)acc));
}

// acc + the four products of bytes in every lane, exact.
inline IntRegister dot4_small(IntRegister acc, IntRegister a, int32_t b) {  // a in 0..15: 2 * 15 * 127 fits 16 bits
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)a, _mm256_set1_epi32(b));
  return acc + (IntRegister)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
// a and b signed, b from -127: |a| times b with the sign of a, 2 * 128 * 127 fits 16 bits.
inline IntRegister dot4_signed(IntRegister acc, IntRegister a, int32_t b) {
  const __m256i signed_b = _mm256_sign_epi8(_mm256_set1_epi32(b), (__m256i)a);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)a), signed_b);
  return acc + (IntRegister)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
// a signed, b unsigned: 2 * 255 * 127 would not fit 16 bits, so bytes are widened first.
inline IntRegister dot4_unsigned(IntRegister acc, IntRegister a, uint32_t b) {
  const __m256i words = (__m256i)a;
  const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8), odd = _mm256_srai_epi16(words, 8);
  const __m256i b_even = _mm256_set1_epi32(static_cast<int>(b & 0x00ff00ffu));
  const __m256i b_odd = _mm256_set1_epi32(static_cast<int>((b >> 8) & 0x00ff00ffu));
  return acc + (IntRegister)_mm256_madd_epi16(even, b_even) + (IntRegister)_mm256_madd_epi16(odd, b_odd);
}
inline int32_t signed_start(int32_t) { return 0; }

}  // namespace
