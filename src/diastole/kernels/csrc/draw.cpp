#include "draw.hpp"

#include <cmath>

namespace diastole {
namespace {

constexpr uint64_t kSpread = 0xD6E8FEB86659FD93ull;  // keeps neighbouring tokens apart before mixing

inline uint64_t bits_of(uint64_t key, int64_t id) { return mix(key ^ (static_cast<uint64_t>(id) * kSpread)) >> 11; }

// -log(-log u) for u = (bits + 1/2) / 2^53
inline float noise(uint64_t bits) {
  const double u = (static_cast<double>(bits) + 0.5) * 0x1p-53;
  return static_cast<float>(-std::log(-std::log(u)));
}

// No noise of these bits is larger: -log(-log u) <= -log(1 - u), and 1 - u >= 2^(e-53) with e the highest bit of the rest.
inline float bound(uint64_t bits) {
  const uint64_t rest = (1ull << 53) - 1 - bits;
  const int e = rest ? 63 - __builtin_clzll(rest) : -1;  // -1: half a step is left
  return static_cast<float>(53 - e) * 0.693148f;
}

}  // namespace

int draw(const float* scores, const int64_t* ids, int n, uint64_t key) {
  const auto bits_at = [&](int i) { return bits_of(key, ids ? ids[i] : i); };
  // The likeliest token sets a mark that most others cannot reach; only the rest need logarithms.
  int best = 0;
  for (int i = 1; i < n; i++)
    if (scores[i] > scores[best]) best = i;
  float most = scores[best] + noise(bits_at(best));
  for (int i = 0; i < n; i++) {
    const uint64_t bits = bits_at(i);
    if (scores[i] + bound(bits) + 1e-4f < most) continue;
    const float value = scores[i] + noise(bits);
    if (value > most || (value == most && i < best)) {
      most = value;
      best = i;
    }
  }
  return best;
}

}  // namespace diastole
