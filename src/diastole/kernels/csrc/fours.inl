// Rows of blocks of four-bit weights: numbers of 0 to 15, and what makes weights of them. Included by linear.inl.
//
// q4: d q + m. q4s: d (q - 8), for which sums of whole numbers start at -8 times the sum of what the q are multiplied with.

constexpr bool is_four(Weight kind) { return kind == Weight::q4 || kind == Weight::q4s; }

template <Weight KIND>
constexpr int kZero = KIND == Weight::q4s ? 8 : 0;  // what numbers count from

// One row of blocks, with a d, and for q4 an m, for each of its sixteen rows and each group.
template <Weight KIND>
struct Fours {
  Fours() = default;
  Fours(const Matrix& w, int b) {
    const size_t bytes = four_bytes(KIND, w.groups());
    factors = w.data + static_cast<size_t>(b) * bytes;
    numbers = factors + factor_bytes(KIND, w.groups());
    pace = bytes / static_cast<size_t>(w.groups());
  }

  const uint8_t* at(size_t g) const { return numbers + g * (KIND == Weight::q4 ? kBlock4 : kNibbles); }

  void open(size_t g, Floats& d, [[maybe_unused]] Floats& m) const {
    if constexpr (KIND == Weight::q4) {
      const f16* both = reinterpret_cast<const f16*>(at(g) + kNibbles);
      d = load_f16(both);
      m = load_f16(both + kRows);
    } else {
      d = load_f16(reinterpret_cast<const f16*>(factors) + g * kRows);
    }
  }

  // Lines that lie `ahead` bytes behind a group's share of all: factors come first, so that they are fetched in time.
  void fetch(size_t g, size_t ahead) const {
    for (int line = 0; line < kBlock4; line += 64) prefetch(factors + g * pace + ahead + line);
  }

  const uint8_t *numbers = nullptr, *factors = nullptr;
  size_t pace = 0;  // bytes of a group with its factors
};
