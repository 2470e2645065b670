// Drawing a token: the largest of score plus Gumbel noise, the noise a hash of a key and the token.
#pragma once
#include <cstdint>

namespace diastole {
namespace {  // also used by code made for one instruction set, which must not be linked into another

// The finaliser of splitmix64 (Steele, Lea and Flood, 2014).
inline uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// 53 bits of noise of a token, whose number is spread first to keep neighbours apart.
inline uint64_t noise_bits(uint64_t key, int64_t id) {
  return mix(key ^ (static_cast<uint64_t>(id) * 0xD6E8FEB86659FD93ull)) >> 11;
}

}  // namespace
}  // namespace diastole
