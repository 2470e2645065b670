// AVX-512 with VNNI, and with BF16 where the flags say so. See simd.hpp.
#pragma once

namespace {

inline FloatRegister fma(FloatRegister a, FloatRegister b, FloatRegister c) {
  return (FloatRegister)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
inline FloatRegister max(FloatRegister a, FloatRegister b) {  // b if either is NaN
  return (FloatRegister)_mm512_max_ps((__m512)a, (__m512)b);
}
inline IntRegister max(IntRegister a, IntRegister b) { return (IntRegister)_mm512_max_epi32((__m512i)a, (__m512i)b); }
inline IntRegister round_to_int(FloatRegister v) { return (IntRegister)_mm512_cvtps_epi32((__m512)v); }
inline float sum(FloatRegister v) { return _mm512_reduce_add_ps((__m512)v); }
inline int32_t sum(IntRegister v) { return _mm512_reduce_add_epi32((__m512i)v); }
inline float largest(FloatRegister v) { return _mm512_reduce_max_ps((__m512)v); }
inline bool any(IntRegister mask) { return _mm512_movepi32_mask((__m512i)mask) != 0; }
inline int32_t largest(IntRegister v) { return _mm512_reduce_max_epi32((__m512i)v); }

inline void read_f16(FloatRegister& v, const f16* p) {
  v = (FloatRegister)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void read_bytes(IntRegister& v, const uint8_t* p) {  // one per lane
  v = (IntRegister)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// The low byte, or the low half, of every lane.
inline void narrow8(IntRegister v, void* p) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)v));
}
inline void narrow16(IntRegister v, void* p) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)v));
}

// Codes 0 to 15 in the halves of every lane, less 7.5 and as bf16.
alignas(64) constexpr uint16_t kCentred[32] = {
    0xc0f0, 0xc0d0, 0xc0b0, 0xc090, 0xc060, 0xc020, 0xbfc0, 0xbf00, 0x3f00, 0x3fc0, 0x4020, 0x4060, 0x4090, 0x40b0, 0x40d0, 0x40f0,
    0xc0f0, 0xc0d0, 0xc0b0, 0xc090, 0xc060, 0xc020, 0xbfc0, 0xbf00, 0x3f00, 0x3fc0, 0x4020, 0x4060, 0x4090, 0x40b0, 0x40d0, 0x40f0};
inline IntRegister centred(IntRegister codes) {
  return (IntRegister)_mm512_permutexvar_epi16((__m512i)codes, _mm512_load_si512(kCentred));
}

// acc + a0 b0 + a1 b1: a holds a pair of bf16 in every lane, b one pair for all.
inline FloatRegister dot2(FloatRegister acc, IntRegister a, uint32_t b) {
#if defined(__AVX512BF16__)
  return (FloatRegister)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)_mm512_set1_epi32(static_cast<int>(b)));
#else
  const IntRegister pair = IntRegister{} + static_cast<int32_t>(b),
                    top = IntRegister{} + static_cast<int32_t>(0xffff0000u);
  return fma(from_bits(a & top), from_bits(pair & top), fma(from_bits(a << 16), from_bits(pair << 16), acc));
#endif
}

// acc + the four products of bytes in every lane, exact. The instruction multiplies unsigned by signed bytes.
inline IntRegister dot4_unsigned(IntRegister acc, IntRegister a, uint32_t b) {  // a signed, b unsigned
  return (IntRegister)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(static_cast<int>(b)), (__m512i)a);
}
inline IntRegister dot4_small(IntRegister acc, IntRegister a, int32_t b) {  // a in 0..15, b signed
  return (IntRegister)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, _mm512_set1_epi32(b));
}
// a and b signed: a is shifted by 128, so the sum must start at -128 times the sum of the b that will come.
inline IntRegister dot4_signed(IntRegister acc, IntRegister a, int32_t b) {
  return (IntRegister)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)(a ^ static_cast<int32_t>(0x80808080u)),
                                          _mm512_set1_epi32(b));
}
inline int32_t signed_start(int32_t sum_of_b) { return -128 * sum_of_b; }

// Sixteen rows of sixteen words as sixteen columns: word i of row t becomes word t of vector i.
inline void transpose16(const uint8_t* const* rows, uint8_t* out) {
  __m512i a[16], b[16];
  for (int t = 0; t < 16; t++) a[t] = _mm512_loadu_si512(rows[t]);
  for (int t = 0; t < 16; t += 2) {
    b[t] = _mm512_unpacklo_epi32(a[t], a[t + 1]);
    b[t + 1] = _mm512_unpackhi_epi32(a[t], a[t + 1]);
  }
  for (int t = 0; t < 16; t += 4)
    for (int h = 0; h < 2; h++) {
      a[t + 2 * h] = _mm512_unpacklo_epi64(b[t + h], b[t + 2 + h]);
      a[t + 2 * h + 1] = _mm512_unpackhi_epi64(b[t + h], b[t + 2 + h]);
    }
  for (int c = 0; c < 4; c++) {  // words c, 4 + c, 8 + c, 12 + c of four rows each
    const __m512i x = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88), y = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
    const __m512i z = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88), w = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
    _mm512_storeu_si512(out + (c)*64, _mm512_shuffle_i32x4(x, z, 0x88));
    _mm512_storeu_si512(out + (8 + c) * 64, _mm512_shuffle_i32x4(x, z, 0xdd));
    _mm512_storeu_si512(out + (4 + c) * 64, _mm512_shuffle_i32x4(y, w, 0x88));
    _mm512_storeu_si512(out + (12 + c) * 64, _mm512_shuffle_i32x4(y, w, 0xdd));
  }
}

}  // namespace
