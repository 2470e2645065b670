// Rows of blocks of four-bit weights: numbers q of 0 to 15, and what makes weights of them. Included by linear.inl.
//
// q4: d q + m. q4s: d (q - 8). q4b: s (d q + m), where s is the same for a whole row and comes last.

constexpr bool is_four(Weight kind) { return kind == Weight::q4 || kind == Weight::q4s || kind == Weight::q4b; }
template <Weight KIND>
constexpr int kZero = KIND == Weight::q4s ? 8 : 0;  // what numbers count from: sums begin at that many times what they multiply

// One row of blocks.
template <Weight KIND>
struct Fours {
  Fours() = default;
  Fours(const Matrix& w, int b) {
    const size_t bytes = four_bytes(KIND, w.groups());
    first = factors = w.data + static_cast<size_t>(b) * bytes;
    numbers = first + factor_bytes(KIND, w.groups());
    pace = bytes / static_cast<size_t>(w.groups());
    if constexpr (KIND == Weight::q4b) {
      const f16* scales = reinterpret_cast<const f16*>(first);
      by = load_f16(scales) * (1.f / 255.f);
      low = load_f16(scales + kRows) * 4.f;
      factors += 4 * kRows;
    }
  }

  const uint8_t* at(size_t g) const { return numbers + g * (KIND == Weight::q4 ? kBlock4 : kNibbles); }

  // What group g has for each of the sixteen rows.
  void open(size_t g, Floats& d, [[maybe_unused]] Floats& m) const {
    if constexpr (KIND == Weight::q4) {
      const f16* both = reinterpret_cast<const f16*>(at(g) + kNibbles);
      d = load_f16(both);
      m = load_f16(both + kRows);
    } else if constexpr (KIND == Weight::q4s) {
      d = load_f16(reinterpret_cast<const f16*>(factors) + g * kRows);
    } else {
      d = load_bytes(factors + g * 2 * kRows);
      m = fma(d, splat(-8.f), fma(load_bytes(factors + g * 2 * kRows + kRows), splat(4.f), low));
    }
  }
  // A row's sum over all groups, as it is meant.
  Floats close(Floats sum) const {
    if constexpr (KIND == Weight::q4b) return sum * by;
    return sum;
  }

  // Lines that lie `ahead` bytes behind a group's share of all: factors come first, so that they are fetched in time.
  void fetch(size_t g, size_t ahead) const {
    for (int line = 0; line < kBlock4; line += 64) prefetch(first + g * pace + ahead + line);
  }

  const uint8_t *first = nullptr, *factors = nullptr, *numbers = nullptr;
  size_t pace = 0;  // bytes of a group with its factors
  Floats by, low;   // of q4b
};

// The same with its factors opened beforehand, into 2 kRows numbers a group: for who passes several times.
template <Weight KIND>
struct Opened {
  Opened() = default;
  Opened(const Fours<KIND>& own, int groups, float* memory) : from(own), opened(memory) {
    for (int g = 0; g < groups; g++, memory += 2 * kRows) {
      Floats d, m;
      from.open(static_cast<size_t>(g), d, m);
      store(memory, d);
      store(memory + kRows, m);
    }
  }
  const uint8_t* at(size_t g) const { return from.at(g); }
  void open(size_t g, Floats& d, Floats& m) const {
    d = load(opened + g * 2 * kRows);
    m = load(opened + g * 2 * kRows + kRows);
  }
  Floats close(Floats sum) const { return from.close(sum); }
  void fetch(size_t g, size_t ahead) const { from.fetch(g, ahead); }

  Fours<KIND> from;
  const float* opened = nullptr;
};
