// Bounds of scores by what stands for a page. Included by isa.inl after pages.inl.
//
// `per` rows of bfloat16 stand for a page, and lie so that one vector holds a piece of each: [steps][per][32 / per]
// numbers, with per = 4 eight of each row side by side. A query is spread likewise once: [steps][even 16, odd 16] floats.
// All rows are multiplied at once then, and each is added up from a part of the lanes.

template <int R>
inline float reach_of(const float* q, int steps, int per, const uint16_t* page) {
  Floats even[R], odd[R];
  for (int r = 0; r < R; r++) even[r] = odd[r] = splat(0.f);
  for (int s = 0; s < steps; s++) {
    const Ints pair = load_words(page + s * 32);
    const Floats low = from_bits(pair << 16), high = from_bits(pair & static_cast<int32_t>(0xffff0000u));
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const float* own = q + (static_cast<ptrdiff_t>(r) * steps + s) * 32;
      even[r] = fma(low, load(own), even[r]);
      odd[r] = fma(high, load(own + 16), odd[r]);
    }
  }
  float best = -INFINITY;
  const int wide = 16 / per;
  for (int r = 0; r < R; r++) {
    float lanes[16];
    store(lanes, even[r] + odd[r]);
    for (int p = 0; p < 16; p += wide) {
      float total = lanes[p];
      for (int i = 1; i < wide; i++) total += lanes[p + i];
      best = total > best ? total : best;
    }
  }
  return best;
}

float reach(const float* q, int r, int steps, int per, const uint16_t* page) {
  float best = -INFINITY;
  const auto take = [&](float x) { best = x > best ? x : best; };
  const ptrdiff_t row = static_cast<ptrdiff_t>(steps) * 32;
  for (; r >= 4; r -= 4, q += 4 * row) take(reach_of<4>(q, steps, per, page));
  if (r == 3) take(reach_of<3>(q, steps, per, page));
  if (r == 2) take(reach_of<2>(q, steps, per, page));
  if (r == 1) take(reach_of<1>(q, steps, per, page));
  return best;
}
