// Rows of blocks of four-bit weights: numbers of 0 to 15, and what makes weights of them. Included by linear.inl.

constexpr bool is_four(Weight kind) { return kind == Weight::q4 || kind == Weight::q4s; }

// One row of blocks: a weight is d q + m, with a d and an m for each of its sixteen rows and each group.
template <Weight KIND>
struct Fours {
  Fours() = default;
  Fours(const Matrix& w, int b) {
    const size_t groups = static_cast<size_t>(w.groups()), bytes = four_bytes(KIND, w.groups());
    numbers = w.data + static_cast<size_t>(b) * bytes;
    factors = numbers + (KIND == Weight::q4 ? 0 : groups * kNibbles);
    pace = bytes / groups;
  }

  const uint8_t* at(size_t g) const { return numbers + g * (KIND == Weight::q4 ? kBlock4 : kNibbles); }

  void open(size_t g, Floats& d, Floats& m) const {
    if constexpr (KIND == Weight::q4) {
      const f16* both = reinterpret_cast<const f16*>(at(g) + kNibbles);
      d = load_f16(both);
      m = load_f16(both + kRows);
    } else {
      d = load_f16(reinterpret_cast<const f16*>(factors) + g * kRows);
      m = d * -8.f;
    }
  }

  // Lines that lie `ahead` bytes behind group g and its share of factors.
  void fetch(size_t g, size_t ahead) const {
    for (int line = 0; line < kBlock4; line += 64) prefetch(numbers + g * pace + ahead + line);
  }

  const uint8_t *numbers = nullptr, *factors = nullptr;
  size_t pace = 0;  // bytes of a group with its factors
};
