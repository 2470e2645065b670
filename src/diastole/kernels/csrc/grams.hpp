// Successors of pairs of tokens with weights, and trees of guesses grown over them: see spec/grams.py, the plain twin.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

namespace diastole {

struct Successor {
  int32_t word;
  float weight;
};

inline uint64_t pair_key(int32_t a, int32_t b) { return static_cast<uint64_t>(static_cast<uint32_t>(a)) << 32 | static_cast<uint32_t>(b); }

// A pair of whose first token nothing is known.
inline uint64_t alone(uint64_t key) { return key | 0xffffffff00000000; }

// A table that never changes: pairs ascending, the successors of pair i at offsets[i]..offsets[i+1]. Borrowed.
struct Grams {
  const uint64_t* keys = nullptr;
  const int64_t* offsets = nullptr;
  const int32_t* words = nullptr;
  const float* weights = nullptr;
  size_t count = 0;

  // The successors of a pair, appended to `to`.
  void get(uint64_t key, std::vector<Successor>& to) const;
};

// What a text in progress adds to it, for at most so many pairs: the oldest are forgotten first.
class Changes {
 public:
  explicit Changes(size_t most) : most_(most) {}
  const std::vector<Successor>* get(uint64_t key) const {
    const auto found = entries_.find(key);
    return found == entries_.end() ? nullptr : &found->second;
  }
  // Every three tokens in a row of ids (n) weigh `step` more, up to `cap`.
  void learn(const Grams& table, const int32_t* ids, size_t n, float step, float cap);
  size_t size() const { return entries_.size(); }
  // f(pair, its successors) for all pairs, ascending.
  template <class F>
  void each(const F& f) const {
    std::vector<uint64_t> keys(order_.begin(), order_.end());
    std::sort(keys.begin(), keys.end());
    for (const uint64_t key : keys) f(key, entries_.at(key));
  }

 private:
  size_t most_;
  std::unordered_map<uint64_t, std::vector<Successor>> entries_;
  std::deque<uint64_t> order_;
};

struct Search {
  int iterations, levels;  // paths tried, tokens of a path
  double c1, c2;           // how much untried paths weigh
  uint64_t seed;
};

struct Guessed {
  std::vector<int32_t> tokens, parents;
  std::vector<float> odds;  // a node's share of its siblings' weight
};

// What may follow the pair (a, b): at most so many nodes, the likeliest first.
Guessed search_tree(const Grams& table, const Changes* changes, int32_t a, int32_t b, const Search& how, int most);   // by trying paths
Guessed widest_tree(const Grams& table, const Changes* changes, int32_t a, int32_t b, int levels, int most);  // by product of shares
Guessed likeliest_chain(const Grams& table, const Changes* changes, int32_t a, int32_t b, int most);  // always the heaviest

struct Match {
  size_t end, length;
};

// Where ids (n) went on after the longest earlier match of their last tokens, and how many of these match, up to `most`;
// of equally long ones the latest.
Match longest_match(const int32_t* ids, size_t n, size_t most);

}  // namespace diastole
