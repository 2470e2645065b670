// Who computes which part of a batch's attention.
//
// An output is the attention of some rows of one stream over one key/value head. Its context is cut at fixed places into
// splits, and a split is the smallest piece of work, whatever the schedule: partial results are merged in the order of
// their splits, so that all schedules give the same bits.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace diastole {

struct Output {
  int rows;    // of queries: tokens times heads of the group
  int lo, hi;  // tokens that any of them sees: hi <= lo if none does
  int split;   // tokens of a split

  int first() const { return hi > lo ? lo / split : 0; }
  int last() const { return hi > lo ? (hi + split - 1) / split : 0; }  // one behind
  int splits() const { return last() - first(); }
  double cost(int s0, int s1) const;  // of some splits, in units of one row on one token
  double cost() const { return cost(first(), last()); }
};

struct Item {  // consecutive splits of one output
  int output, s0, s1;
};

struct Plan {
  std::vector<Item> items;
  std::vector<int> shares;  // worker w does items shares[w] to shares[w + 1]
  bool help = false;        // who has done his own takes from the ends of others
  bool pass = false;        // what was computed in parts is merged in a second pass, after all parts

  int workers() const { return static_cast<int>(shares.size()) - 1; }
  void clear() { items.clear(), shares.clear(), help = pass = false; }
};

// How work is spread.
//
//   lean    one list of all outputs, cut into contiguous shares of equal cost, one for each worker (stream-K)
//   shares  the same, and nobody helps anybody
//   heads   an output is one worker's; they are dealt out in turns
//   queue   an output is one worker's; who is free takes the next
//   fixed   every output is cut into the same number of parts, dealt out in turns, and merged in a second pass
struct Schedule {
  using Planner = void (*)(const std::vector<Output>& outputs, const Schedule& how, Plan& plan);

  Planner plan;
  int workers;  // shares; they may be more than threads
  int parts;    // fixed: of an output
  int split;    // tokens of a split: whole pages
  size_t room;  // rows of partial results that are kept at most; what would take more is not cut

  static Planner named(const std::string& name);  // null if there is none
};

void plan_lean(const std::vector<Output>& outputs, const Schedule& how, Plan& plan);

}  // namespace diastole
