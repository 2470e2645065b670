// The Python face of grams.hpp.
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cmath>

#include "check.hpp"
#include "grams.hpp"

namespace diastole {
namespace {

constexpr int kMostNodes = 4096, kMostIterations = 1 << 20, kMostLevels = 64;

class Table {
 public:
  Table(In<uint64_t, 1> keys, In<int64_t, 1> offsets, In<int32_t, 1> words, In<float, 1> weights)
      : keys_(std::move(keys)), offsets_(std::move(offsets)), words_(std::move(words)), weights_(std::move(weights)) {
    expect_whole(keys_, "keys");
    expect_whole(offsets_, "offsets");
    expect_whole(words_, "words");
    expect_whole(weights_, "weights");
    const size_t n = keys_.size();
    const uint64_t* key = keys_.data();
    const int64_t* offset = offsets_.data();
    const float* weight = weights_.data();
    expect(offsets_.size() == n + 1 && words_.size() == weights_.size(), "offsets must be one more than keys, and words as many as weights");
    expect(offset[0] == 0 && offset[n] == static_cast<int64_t>(words_.size()), "offsets must run from 0 to the number of words");
    for (size_t i = 0; i < n; i++) {
      expect(offset[i] <= offset[i + 1], "offsets must ascend");
      expect(i == 0 || key[i - 1] < key[i], "keys must ascend");
    }
    for (size_t i = 0; i < weights_.size(); i++) expect(weight[i] > 0 && std::isfinite(weight[i]), "weights must be positive");
    grams = {key, offset, words_.data(), weight, n};
  }
  Grams grams;

 private:
  In<uint64_t, 1> keys_;  // held
  In<int64_t, 1> offsets_;
  In<int32_t, 1> words_;
  In<float, 1> weights_;
};

using Tree = std::tuple<std::vector<int32_t>, std::vector<int32_t>, std::vector<float>>;

Tree tree_of(Guessed&& g) { return {std::move(g.tokens), std::move(g.parents), std::move(g.odds)}; }

void learn(Changes& changes, const Table& table, In<int32_t, 1> ids, float step, float cap) {
  expect_whole(ids, "ids");
  expect(step > 0 && std::isfinite(step) && cap >= step, "step must be positive, and cap no less");
  changes.learn(table.grams, ids.data(), ids.size(), step, cap);
}

template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> given(std::vector<T>&& from) {
  auto* kept = new std::vector<T>(std::move(from));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return {kept->data(), {kept->size()}, owner};
}

// All pairs with their successors, as a table has them.
nb::tuple entries(const Changes& changes) {
  std::vector<uint64_t> keys;
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> words;
  std::vector<float> weights;
  changes.each([&](uint64_t key, const std::vector<Successor>& all) {
    keys.push_back(key);
    for (const Successor& s : all) words.push_back(s.word), weights.push_back(s.weight);
    offsets.push_back(static_cast<int64_t>(words.size()));
  });
  return nb::make_tuple(given(std::move(keys)), given(std::move(offsets)), given(std::move(words)), given(std::move(weights)));
}

Tree search(const Table& table, const Changes* changes, int32_t a, int32_t b, int iterations, int levels, double c1, double c2, uint64_t seed, int most) {
  expect(most >= 0 && most <= kMostNodes && levels >= 1 && levels <= kMostLevels, "a tree has up to 4096 nodes and 64 levels");
  expect(iterations >= 0 && iterations <= kMostIterations && c2 > 0, "up to 2^20 iterations, and c2 is positive");
  return tree_of(search_tree(table.grams, changes, a, b, {iterations, levels, c1, c2, seed}, most));
}

Tree widest(const Table& table, const Changes* changes, int32_t a, int32_t b, int levels, int most) {
  expect(most >= 0 && most <= kMostNodes && levels >= 1 && levels <= kMostLevels, "a tree has up to 4096 nodes and 64 levels");
  return tree_of(widest_tree(table.grams, changes, a, b, levels, most));
}

Tree chain(const Table& table, const Changes* changes, int32_t a, int32_t b, int most) {
  expect(most >= 0 && most <= kMostNodes, "a chain has up to 4096 tokens");
  return tree_of(likeliest_chain(table.grams, changes, a, b, most));
}

std::tuple<size_t, size_t> match(In<int32_t, 1> ids, size_t most) {
  expect_whole(ids, "ids");
  const Match found = longest_match(ids.data(), ids.size(), most);
  return {found.end, found.length};
}

}  // namespace

void bind_grams(nb::module_& m) {
  nb::class_<Table>(m, "GramTable")
      .def(nb::init<In<uint64_t, 1>, In<int64_t, 1>, In<int32_t, 1>, In<float, 1>>())
      .def("search", search, nb::arg("changes").none(), nb::arg("a"), nb::arg("b"), nb::arg("iterations"), nb::arg("levels"), nb::arg("c1"), nb::arg("c2"), nb::arg("seed"), nb::arg("most"))
      .def("widest", widest, nb::arg("changes").none(), nb::arg("a"), nb::arg("b"), nb::arg("levels"), nb::arg("most"))
      .def("chain", chain, nb::arg("changes").none(), nb::arg("a"), nb::arg("b"), nb::arg("most"));
  m.def("longest_match", match, nb::arg("ids"), nb::arg("most"));
  nb::class_<Changes>(m, "GramChanges").def(nb::init<size_t>(), nb::arg("most")).def("learn", learn).def("entries", entries).def("__len__", &Changes::size);
}

}  // namespace diastole
