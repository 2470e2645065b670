#include "grams.hpp"

#include <algorithm>
#include <cmath>
#include <queue>

#include "draw.hpp"

namespace diastole {

void Grams::get(uint64_t key, std::vector<Successor>& to) const {
  const uint64_t* at = std::lower_bound(keys, keys + count, key);
  if (at == keys + count || *at != key) return;
  for (int64_t i = offsets[at - keys]; i < offsets[at - keys + 1]; i++) to.push_back({words[i], weights[i]});
}

void Changes::learn(const Grams& table, const int32_t* ids, size_t n, float step, float cap) {
  for (size_t i = 0; i + 2 < n; i++) {
    const uint64_t key = pair_key(ids[i], ids[i + 1]);
    auto found = entries_.find(key);
    if (found == entries_.end()) {
      if (most_ == 0) return;
      if (entries_.size() >= most_) {
        entries_.erase(order_.front());
        order_.pop_front();
      }
      found = entries_.emplace(key, std::vector<Successor>()).first;
      order_.push_back(key);
      table.get(key, found->second);
    }
    std::vector<Successor>& all = found->second;
    const auto same = std::find_if(all.begin(), all.end(), [&](const Successor& s) { return s.word == ids[i + 2]; });
    if (same == all.end())
      all.push_back({ids[i + 2], std::min(step, cap)});
    else
      same->weight = std::min(same->weight + step, std::max(cap, same->weight));
  }
}

namespace {

class Source {
 public:
  Source(const Grams& table, const Changes* changes) : table_(table), changes_(changes) {}
  // Until the next call. Of a pair of which nothing is known, what follows its second token.
  const std::vector<Successor>& of(uint64_t key) {
    if (changes_ != nullptr)
      if (const auto* own = changes_->get(key)) return *own;
    room_.clear();
    table_.get(key, room_);
    if (room_.empty()) table_.get(alone(key), room_);
    return room_;
  }

 private:
  const Grams& table_;
  const Changes* changes_;
  std::vector<Successor> room_;
};

double weight_of(const std::vector<Successor>& all) {
  double sum = 0;
  for (const Successor& s : all) sum += s.weight;
  return sum;
}

bool lighter(const Successor& x, const Successor& y) { return x.weight < y.weight; }

class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  // Which of these, in proportion to their weights.
  size_t pick(const std::vector<Successor>& all) {
    state_ = mix(state_);
    double left = static_cast<double>(state_ >> 11) * 0x1p-53 * weight_of(all);
    for (size_t i = 0; i < all.size(); i++)
      if ((left -= all[i].weight) < 0) return i;
    return all.size() - 1;
  }

 private:
  uint64_t state_;
};

struct Node {
  int32_t word;
  int parent, depth;
  float weight, share;
  int first = 0, children = -1;  // -1: not looked at yet
  int visits = 0;
  double worth = 0;
};

uint64_t key_of(const std::vector<Node>& nodes, int i, int32_t a) {
  return pair_key(i == 0 ? a : nodes[nodes[i].parent].word, nodes[i].word);
}

void unfold(std::vector<Node>& nodes, int i, const std::vector<Successor>& all) {
  nodes[i].first = static_cast<int>(nodes.size());
  nodes[i].children = static_cast<int>(all.size());
  const int depth = nodes[i].depth + 1;
  const double sum = weight_of(all);
  for (const Successor& s : all) nodes.push_back({s.word, i, depth, s.weight, static_cast<float>(s.weight / sum)});
}

}  // namespace

Guessed search_tree(const Grams& table, const Changes* changes, int32_t a, int32_t b, const Search& how, int most) {
  Source source(table, changes);
  Dice dice(how.seed);
  std::vector<Node> nodes{{b, -1, 0, 0.f, 1.f}};
  for (int round = 0; round < how.iterations; round++) {
    int at = 0;
    double sum = 0;
    while (nodes[at].children > 0) {
      const Node& parent = nodes[at];
      const double tried = std::sqrt(static_cast<double>(parent.visits));
      const double wish = how.c1 + std::log((parent.visits + how.c2 + 1) / how.c2);
      int best = -1;
      double highest = 0;
      for (int i = parent.first; i < parent.first + parent.children; i++) {
        const Node& child = nodes[i];
        if (child.visits == 0) {
          best = i;
          break;
        }
        const double value = child.worth / child.visits + wish * child.weight * tried / (1 + child.visits);
        if (best < 0 || value > highest) best = i, highest = value;
      }
      at = best;
      sum += nodes[at].weight;
    }
    if (nodes[at].depth < how.levels && nodes[at].children < 0) {
      const uint64_t key = key_of(nodes, at, a);
      const std::vector<Successor>& all = source.of(key);
      const size_t drawn = all.empty() ? 0 : dice.pick(all);
      unfold(nodes, at, all);
      if (nodes[at].children > 0) {
        at = nodes[at].first + static_cast<int>(drawn);
        sum += nodes[at].weight;
      }
    }
    uint64_t key = key_of(nodes, at, a);
    for (int depth = nodes[at].depth; depth < how.levels; depth++) {
      const std::vector<Successor>& all = source.of(key);
      if (all.empty()) break;
      const Successor next = all[dice.pick(all)];
      sum += next.weight;
      key = key << 32 | static_cast<uint32_t>(next.word);
    }
    for (int i = at; i >= 0; i = nodes[i].parent) nodes[i].visits++, nodes[i].worth += 1 + sum;
  }
  // Those that were visited most, and behind the ends of paths what follows most likely.
  struct Rank {
    double visits;
    int node;
  };
  std::vector<Rank> ranks;
  const int seen = static_cast<int>(nodes.size());
  for (int i = 1; i < seen; i++)
    if (nodes[i].visits > 0) ranks.push_back({static_cast<double>(nodes[i].visits), i});
  for (int i = 1; i < seen; i++) {
    if (nodes[i].visits == 0 || nodes[i].depth < 2 || nodes[i].children > 0) continue;
    const std::vector<Successor>& all = source.of(key_of(nodes, i, a));
    if (all.empty()) continue;
    const auto top = std::max_element(all.begin(), all.end(), lighter);
    const float share = static_cast<float>(top->weight / weight_of(all));
    ranks.push_back({nodes[i].visits * static_cast<double>(share), static_cast<int>(nodes.size())});
    nodes.push_back({top->word, i, nodes[i].depth + 1, top->weight, share});
  }
  std::sort(ranks.begin(), ranks.end(), [&](const Rank& x, const Rank& y) {
    return x.visits != y.visits ? x.visits > y.visits : x.node < y.node;  // parents come before their children
  });
  Guessed out;
  std::vector<int> place(nodes.size(), -1);
  for (const Rank& rank : ranks) {
    if (static_cast<int>(out.tokens.size()) == most) break;
    const Node& node = nodes[rank.node];
    place[rank.node] = static_cast<int>(out.tokens.size());
    out.tokens.push_back(node.word);
    out.parents.push_back(node.parent == 0 ? -1 : place[node.parent]);
    out.odds.push_back(node.share);
  }
  return out;
}

Guessed widest_tree(const Grams& table, const Changes* changes, int32_t a, int32_t b, int levels, int most) {
  Source source(table, changes);
  std::vector<Node> nodes{{b, -1, 0, 0.f, 1.f}};
  struct Open {
    double likely;
    int node;
    bool operator<(const Open& o) const { return likely != o.likely ? likely < o.likely : node > o.node; }
  };
  std::priority_queue<Open> open;
  std::vector<int> place{-1};
  Guessed out;
  const auto unfold_at = [&](int i, double likely) {
    if (nodes[i].depth >= levels) return;
    unfold(nodes, i, source.of(key_of(nodes, i, a)));
    place.resize(nodes.size(), -1);
    for (int c = nodes[i].first; c < nodes[i].first + nodes[i].children; c++) open.push({likely * nodes[c].share, c});
  };
  unfold_at(0, 1);
  while (!open.empty() && static_cast<int>(out.tokens.size()) < most) {
    const Open next = open.top();
    open.pop();
    place[next.node] = static_cast<int>(out.tokens.size());
    out.tokens.push_back(nodes[next.node].word);
    out.parents.push_back(nodes[next.node].parent == 0 ? -1 : place[nodes[next.node].parent]);
    out.odds.push_back(nodes[next.node].share);
    unfold_at(next.node, next.likely);
  }
  return out;
}

Guessed likeliest_chain(const Grams& table, const Changes* changes, int32_t a, int32_t b, int most) {
  Source source(table, changes);
  Guessed out;
  for (uint64_t key = pair_key(a, b); static_cast<int>(out.tokens.size()) < most;) {
    const std::vector<Successor>& all = source.of(key);
    if (all.empty()) break;
    const auto top = std::max_element(all.begin(), all.end(), lighter);
    out.parents.push_back(static_cast<int32_t>(out.tokens.size()) - 1);
    out.tokens.push_back(top->word);
    out.odds.push_back(static_cast<float>(top->weight / weight_of(all)));
    key = key << 32 | static_cast<uint32_t>(top->word);
  }
  return out;
}

Match longest_match(const int32_t* ids, size_t n, size_t most) {
  Match best{n, 0};
  if (n == 0) return best;
  const int32_t last = ids[n - 1];
  for (size_t end = n - 1; end > best.length && best.length < most; end--) {  // no earlier match can be longer than `end`
    if (ids[end - 1] != last) continue;
    size_t length = 1;
    while (length < most && length < end && ids[end - 1 - length] == ids[n - 1 - length]) length++;
    if (length > best.length) best = {end, length};
  }
  return best;
}

}  // namespace diastole
