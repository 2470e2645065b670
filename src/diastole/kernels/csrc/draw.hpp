// Drawing a token: the largest of score plus Gumbel noise, the noise a hash of a key and the token.
#pragma once
#include <cstdint>

namespace diastole {

// The finaliser of splitmix64 (Steele, Lea and Flood, 2014).
inline uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Index of the largest scores[i] + noise(key, ids[i]), the first of equals; ids null: token i is i.
int draw(const float* scores, const int64_t* ids, int n, uint64_t key);

}  // namespace diastole
