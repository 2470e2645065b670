// No instruction by name: whatever the compiler makes of short vectors on this machine. See simd.hpp.
#pragma once

namespace {

typedef int16_t HalfRegister __attribute__((vector_size(kRegister)));

inline FloatRegister fma(FloatRegister a, FloatRegister b, FloatRegister c) { return a * b + c; }
inline FloatRegister max(FloatRegister a, FloatRegister b) { return (a > b) ? a : b; }  // b if either is NaN
inline IntRegister max(IntRegister a, IntRegister b) { return (a > b) ? a : b; }

inline IntRegister round_to_int(FloatRegister v) {  // half to even, for |v| < 2^22
  FloatRegister magic;
  fill(magic, 12582912.f);  // 1.5 * 2^23: adding it leaves the integer in the low bits
  return bits(v + magic) - bits(magic);
}
inline float sum(FloatRegister v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline int32_t sum(IntRegister v) { return v[0] + v[1] + v[2] + v[3]; }
inline bool any(IntRegister mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) != 0; }
template <class Register>
inline auto largest_lane(Register v) {
  auto m = v[0];
  for (int i = 1; i < kLanes; i++) m = v[i] > m ? v[i] : m;
  return m;
}
inline float largest(FloatRegister v) { return largest_lane(v); }
inline int32_t largest(IntRegister v) { return largest_lane(v); }

inline float widen_f16(f16 half) {
  const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
  if (rest < 0x0400u) return (sign ? -1.f : 1.f) * static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2^-24
  const uint32_t u = sign | (rest >= 0x7c00u ? 0x7f800000u | (rest << 13) : (rest << 13) + 0x38000000u);
  float value;
  std::memcpy(&value, &u, 4);
  return value;
}
inline void read_f16(FloatRegister& v, const f16* p) {
  for (int i = 0; i < kLanes; i++) v[i] = widen_f16(p[i]);
}
inline void read_bytes(IntRegister& v, const uint8_t* p) {  // one per lane
  for (int i = 0; i < kLanes; i++) v[i] = p[i];
}
// The low byte, or the low half, of every lane.
inline void narrow8(IntRegister v, void* p) {
  for (int i = 0; i < kLanes; i++) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(v[i]);
}
inline void narrow16(IntRegister v, void* p) {
  uint16_t lanes[kLanes];
  for (int i = 0; i < kLanes; i++) lanes[i] = static_cast<uint16_t>(v[i]);
  std::memcpy(p, lanes, sizeof lanes);
}

// acc + a0 b0 + a1 b1: a holds a pair of bf16 in every lane, b one pair for all.
inline FloatRegister dot2(FloatRegister acc, IntRegister a, uint32_t b) {
  const IntRegister pair = IntRegister{} + static_cast<int32_t>(b),
                    top = IntRegister{} + static_cast<int32_t>(0xffff0000u);
  return from_bits(a & top) * from_bits(pair & top) + (from_bits(a << 16) * from_bits(pair << 16) + acc);
}

// acc + the four products of bytes in every lane, exact: bytes are widened to 16 bits, which hold one product.
inline IntRegister add_products(IntRegister acc, HalfRegister products) {
  const IntRegister pairs = (IntRegister)products;
  return acc + ((pairs << 16) >> 16) + (pairs >> 16);
}
inline IntRegister dot4(IntRegister acc, IntRegister a, HalfRegister b_even, HalfRegister b_odd) {
  const HalfRegister bytes = (HalfRegister)a;
  return add_products(add_products(acc, ((bytes << 8) >> 8) * b_even), (bytes >> 8) * b_odd);
}
inline HalfRegister halves(int32_t b) { return (HalfRegister)(IntRegister{} + b); }
inline IntRegister dot4_signed(IntRegister acc, IntRegister a, int32_t b) {
  const HalfRegister bytes = halves(b);
  return dot4(acc, a, (bytes << 8) >> 8, bytes >> 8);
}
inline IntRegister dot4_small(IntRegister acc, IntRegister a, int32_t b) { return dot4_signed(acc, a, b); }
inline IntRegister dot4_unsigned(IntRegister acc, IntRegister a, uint32_t b) {  // a signed, b unsigned
  return dot4(acc, a, halves(static_cast<int32_t>(b & 0x00ff00ffu)),
              halves(static_cast<int32_t>((b >> 8) & 0x00ff00ffu)));
}
inline int32_t signed_start(int32_t) { return 0; }

}  // namespace
