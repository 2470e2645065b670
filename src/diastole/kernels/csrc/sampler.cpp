#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "draw.hpp"

namespace diastole {
namespace {

// Scratch of one thread.
struct Room {
  std::vector<float> weights, tops;
  std::vector<int32_t> ids;
  std::vector<uint64_t> order;
  std::vector<double> masses;
};

// -log(-log u) for u = (bits + 1/2) / 2^53
float noise(uint64_t key, int id) {
  const double u = (static_cast<double>(noise_bits(key, id)) + 0.5) * 0x1p-53;
  return static_cast<float>(-std::log(-std::log(u)));
}

// The largest value, NaN if one is, and the first place of it.
struct Top {
  float value;
  int place;
};

Top top_of(const Kernels& isa, const float* x, int n) {
  constexpr int kPiece = 4096;
  float value = x[0];
  int piece = 0;
  for (int i = 0; i < n; i += kPiece) {
    const float here = isa.most(x + i, std::min(kPiece, n - i));
    if (here != here || here > value) value = here, piece = i;
    if (here != here) break;
  }
  const bool strange = value != value;
  for (int i = piece; i < n; i++)
    if (strange ? x[i] != x[i] : x[i] == value) return {value, i};
  return {value, 0};  // not reached
}

// Leaves the k largest of logits in `ids`, in any order; of equals those with smaller ids.
void keep_top(const Kernels& isa, const float* logits, int n, int k, Room& room) {
  std::vector<int32_t>& ids = room.ids;
  ids.resize(n);
  int found = n;
  const int blocks = n / 16;
  if (k <= blocks) {  // the k largest are no less than the k-th largest of the blocks' own largest
    room.tops.resize(blocks);
    isa.tops(logits, n, room.tops.data());
    std::nth_element(room.tops.begin(), room.tops.begin() + (k - 1), room.tops.end(), std::greater<float>());
    found = isa.at_least(logits, n, room.tops[k - 1], ids.data());
  } else {
    for (int i = 0; i < n; i++) ids[i] = i;
  }
  ids.resize(found);
  const auto before = [&](int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  std::nth_element(ids.begin(), ids.begin() + (k - 1), ids.end(), before);
  ids.resize(k);
}

// A number that is the smaller, the larger x is.
uint32_t descending(float x) {
  uint32_t bits;
  x += 0.f;  // no negative zero
  std::memcpy(&bits, &x, 4);
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

constexpr int kOctave = 18;  // bits of a float below the five that tell weights of an octave apart
constexpr uint32_t kHeaviest = 0x3f800000u >> kOctave;  // 1

// Weights 0 to 1 by size: who is in an earlier bucket is heavier than all in later ones.
uint32_t bucket(float weight) {
  uint32_t bits;
  std::memcpy(&bits, &weight, 4);
  return kHeaviest - (bits >> kOctave);
}

// Leaves the smallest set of the likeliest of `ids` whose weight reaches `goal`, in any order; of equals those with
// smaller ids. weights: by id. The last of them is looked for in one bucket, whose part in which it must lie is halved,
// as a search for a median does.
void keep_nucleus(const float* logits, double goal, Room& room) {
  const float* w = room.weights.data();
  std::vector<int32_t>& ids = room.ids;
  std::vector<double>& masses = room.masses;
  masses.assign(kHeaviest + 1, 0.0);
  for (int32_t id : ids) masses[bucket(w[id])] += static_cast<double>(w[id]);
  uint32_t last = 0;
  while (last < kHeaviest && masses[last] < goal) goal -= masses[last++];
  std::vector<uint64_t>& order = room.order;  // of that bucket, ascending: logits descending, then ids
  order.clear();
  size_t kept = 0;
  for (int32_t id : ids) {
    const uint32_t in = bucket(w[id]);
    if (in < last) ids[kept++] = id;
    if (in == last) order.push_back(static_cast<uint64_t>(descending(logits[id])) << 32 | static_cast<uint32_t>(id));
  }
  const auto weight = [&](uint64_t entry) { return static_cast<double>(w[static_cast<uint32_t>(entry)]); };
  size_t lo = 0, hi = order.size();  // the last one lies in lo..hi
  while (hi - lo > 1) {
    const size_t middle = (lo + hi) / 2;
    std::nth_element(order.begin() + lo, order.begin() + middle, order.begin() + hi);
    double mass = 0;
    for (size_t i = lo; i < middle; i++) mass += weight(order[i]);
    if (mass >= goal) {
      hi = middle;
    } else {
      goal -= mass;
      lo = middle;
    }
  }
  ids.resize(kept);
  for (size_t i = 0; i < hi; i++) ids.push_back(static_cast<int32_t>(order[i]));
}

}  // namespace

int sample(const Kernels& isa, const float* logits, int n, const Wish& wish) {
  static thread_local Room room;
  const auto [top, likeliest] = top_of(isa, logits, n);
  const float t = wish.temperature, highest = top / t;
  if (!(t > 0) || !std::isfinite(highest)) return likeliest;
  std::vector<int32_t>& ids = room.ids;
  bool all = true;
  if (wish.top_k > 0 && wish.top_k < n) {
    keep_top(isa, logits, n, wish.top_k, room);
    all = false;
  }
  if (wish.top_p < 1) {
    room.weights.resize(n);
    double total = 0;
    if (all) {
      total = isa.weigh(logits, n, t, top, room.weights.data());
      ids.resize(n);
      // All that are lighter than this weigh, together, less than what may be left out.
      const double least = (1 - static_cast<double>(wish.top_p)) * total / n;
      ids.resize(isa.at_least(room.weights.data(), n, static_cast<float>(least), ids.data()));
    } else {
      for (int32_t id : ids) total += room.weights[id] = std::exp(logits[id] / t - highest);
    }
    keep_nucleus(logits, static_cast<double>(wish.top_p) * total, room);
    all = false;
  }
  if (wish.min_p > 0) {
    const float least = highest + std::log(wish.min_p);
    if (all) {
      ids.resize(n);
      ids.resize(isa.at_least(logits, n, (least - std::abs(least) * 1e-6f) * t, ids.data()));
    }
    ids.erase(std::remove_if(ids.begin(), ids.end(), [&](int32_t id) { return logits[id] / t < least; }), ids.end());
    all = false;
  }
  if (all) {
    room.weights.resize(n);
    isa.weigh(logits, n, t, top, room.weights.data());
    const float reach = std::exp(-noise(wish.key, likeliest)) * 1.0001f;  // more than all rounding together
    ids.resize(n);
    ids.resize(isa.contenders(room.weights.data(), n, wish.key, reach, ids.data()));
  }
  int best = ids[0];
  float highest_sum = logits[best] / t + noise(wish.key, best);
  for (int32_t id : ids) {
    const float sum = logits[id] / t + noise(wish.key, id);
    if (sum > highest_sum || (sum == highest_sum && id < best)) highest_sum = sum, best = id;
  }
  return best;
}

}  // namespace diastole
