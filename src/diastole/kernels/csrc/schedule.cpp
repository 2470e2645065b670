#include "schedule.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace diastole {
namespace {

// A token's keys and values cost as much to bring in as so many query rows cost on it (10 to 30 with tile registers, 1
// without), and a split as much to begin as so many tokens. Where this is wrong, who is done helps.
constexpr double kFetch = 8, kBegin = 32;

// Outputs that are smaller than this part of a share are not cut.
constexpr double kSmall = 1.0 / 32;

// Which outputs are cut into their splits.
class Cut {
 public:
  enum Which { large, across, none };  // all that are not small, those of them that a border of shares runs through, none

  // The first of these whose partial results there is room for.
  Cut(const std::vector<Output>& outputs, double share, const Schedule& how) : share_(share) {
    for (int w = how.workers > 1 ? large : none; w < none; w++) {
      which_ = static_cast<Which>(w);
      double before = 0;
      size_t rows = 0;
      for (const Output& o : outputs) {
        rows += (*this)(o, before) ? rows_of(o) : 0;
        before += o.cost();
      }
      if (rows <= how.room) return;
    }
    which_ = none;
  }

  // before: cost of all outputs before this one.
  bool operator()(const Output& o, double before) const {
    if (which_ == none || o.splits() <= 1 || o.cost() <= share_ * kSmall) return false;
    const double end = before + 0.999 * o.cost();  // a border at its end runs through nothing
    return which_ == large || std::floor(before / share_) != std::floor(end / share_);
  }

  static size_t rows_of(const Output& o) { return static_cast<size_t>(o.rows) * static_cast<size_t>(o.splits()); }

 private:
  double share_;
  Which which_ = none;
};

// Deals items out in turns.
void deal(std::vector<Item>& items, int workers, std::vector<int>& shares) {
  const std::vector<Item> given = items;
  items.clear();
  shares.push_back(0);
  for (int w = 0; w < workers; w++) {
    for (size_t i = static_cast<size_t>(w); i < given.size(); i += static_cast<size_t>(workers)) items.push_back(given[i]);
    shares.push_back(static_cast<int>(items.size()));
  }
}

void whole(const std::vector<Output>& outputs, std::vector<Item>& items) {
  for (int i = 0; i < static_cast<int>(outputs.size()); i++) items.push_back({i, outputs[i].first(), outputs[i].last()});
}

void plan_shares(const std::vector<Output>& outputs, const Schedule& how, Plan& plan) {
  plan_lean(outputs, how, plan);
  plan.help = false;
}

void plan_heads(const std::vector<Output>& outputs, const Schedule& how, Plan& plan) {
  whole(outputs, plan.items);
  deal(plan.items, how.workers, plan.shares);
}

// All items are one share's, of which everybody takes.
void plan_queue(const std::vector<Output>& outputs, const Schedule&, Plan& plan) {
  whole(outputs, plan.items);
  plan.shares = {0, static_cast<int>(plan.items.size())};
}

int border(const Output& o, int part, int parts) { return o.first() + static_cast<int>(int64_t{o.splits()} * part / parts); }

void plan_fixed(const std::vector<Output>& outputs, const Schedule& how, Plan& plan) {
  size_t rows = 0;
  for (const Output& o : outputs) rows += Cut::rows_of(o);
  const int most = rows <= how.room ? how.parts : 1;
  for (int i = 0; i < static_cast<int>(outputs.size()); i++) {
    const Output& o = outputs[i];
    const int parts = std::max(1, std::min(most, o.splits()));
    for (int p = 0; p < parts; p++)
      plan.items.push_back({i, border(o, p, parts), border(o, p + 1, parts)});
  }
  deal(plan.items, how.workers, plan.shares);
  plan.pass = true;
}

}  // namespace

double Output::cost(int s0, int s1) const {
  const int tokens = std::max(0, std::min(hi, s1 * split) - std::max(lo, s0 * split));
  return (tokens + kBegin * std::max(1, s1 - s0)) * (rows + kFetch);
}

void plan_lean(const std::vector<Output>& outputs, const Schedule& how, Plan& plan) {
  double total = 0;
  for (const Output& o : outputs) total += o.cost();
  const double share = total / how.workers;
  const Cut cut(outputs, share, how);
  double done = 0;
  plan.shares.push_back(0);
  const auto add = [&](int output, int s0, int s1) {  // to the share that its middle falls into
    const double cost = outputs[output].cost(s0, s1);
    while (plan.workers() + 1 < how.workers && done + cost / 2 >= share * (plan.workers() + 1)) plan.shares.push_back(static_cast<int>(plan.items.size()));
    plan.items.push_back({output, s0, s1});
    done += cost;
  };
  for (int i = 0; i < static_cast<int>(outputs.size()); i++) {
    const Output& o = outputs[i];
    if (cut(o, done)) {
      for (int s = o.first(); s < o.last(); s++) add(i, s, s + 1);
    } else {
      add(i, o.first(), o.last());
    }
  }
  while (plan.workers() < how.workers) plan.shares.push_back(static_cast<int>(plan.items.size()));
  plan.help = true;
}

Schedule::Planner Schedule::named(const std::string& name) {
  static const struct {
    const char* name;
    Planner plan;
  } all[] = {{"lean", plan_lean}, {"shares", plan_shares}, {"heads", plan_heads}, {"queue", plan_queue}, {"fixed", plan_fixed}};
  for (const auto& one : all)
    if (name == one.name) return one.plan;
  return nullptr;
}

}  // namespace diastole
