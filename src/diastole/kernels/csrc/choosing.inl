// The places of the largest of a row of scores. Included by isa.inl.
//
// Numbers are compared with a bar that is moved until as many reach it as are wanted: counting is a matter of a few
// instructions for sixteen of them, and nothing is sorted.

// Floats in the order of integers: a < b exactly if order_of(a) < order_of(b), but for NaN. Negative zero is below zero.
inline int32_t order_of(float x) {
  int32_t u;
  std::memcpy(&u, &x, 4);
  return u ^ (u >> 31 & 0x7fffffff);
}
inline float of_order(int32_t u) { return as_float(u ^ (u >> 31 & 0x7fffffff)); }

// Lanes that reach a bar of this order; NaN never does.
inline Ints reaches(Floats x, int32_t order) { return less(splat(of_order(order - 1)), x); }

// How many of n, a multiple of 16, reach it.
inline int count_reaching(const float* x, int n, int32_t order) {
  const Floats below = splat(of_order(order - 1));
  Ints found = splat(0);
  for (int i = 0; i < n; i += 16) found = found - less(below, load(x + i));
  return sum(found);
}

// The order of the highest bar that k of n reach, n a multiple of 16 and 1 <= k, or of one that exactly k reach; such a
// bar exists. Their count goes to `reach`.
inline int32_t bar_for(const float* x, int n, int k, int& reach) {
  Floats top = splat(-__builtin_inff());
  for (int i = 0; i < n; i += 16) top = max(load(x + i), top);
  int32_t low = order_of(-__builtin_inff()) + 1, high = order_of(largest(top)) + 1;  // k reach low, fewer reach high
  reach = count_reaching(x, n, low);
  while (high - static_cast<int64_t>(low) > 1 && reach > k) {
    const int32_t middle = static_cast<int32_t>(low + (static_cast<int64_t>(high) - low) / 2);
    const int count = count_reaching(x, n, middle);
    if (count >= k) {
      low = middle;
      reach = count;
    } else {
      high = middle;
    }
  }
  return low;
}

// x and its places where x reaches a bar, in order; returns how many. There must be room for n + 16.
inline int keep_reaching(const float* x, int n, int32_t order, float* values, int32_t* places) {
  int count = 0, i = 0;
  const Ints lanes = load_words(kIota);
  for (; i + 16 <= n; i += 16) {
    const Floats v = load(x + i);
    const Ints in = reaches(v, order);
    const int here = squeeze(in, lanes + i, places + count);
    squeeze(in, bits(v), values + count);
    count += here;
  }
  for (; i < n; i++) {
    places[count] = i;
    values[count] = x[i];
    count += x[i] > of_order(order - 1);
  }
  return count;
}

constexpr int kSample = 512;  // numbers that the first bar is guessed from

// Places of the k largest of x (n,) in order of place; of equal ones the first. What is NaN or -inf is never chosen. Returns
// how many there are, at most k. places, values: room for n + 16.
int pick(const float* x, int n, int k, int32_t* places, float* values) {
  if (k <= 0) return 0;
  const auto padded = [&](int m) {
    const int whole = (m + 15) / 16 * 16;
    for (int i = m; i < whole; i++) values[i] = __builtin_nanf("");
    return whole;
  };
  int32_t low = order_of(-__builtin_inff()) + 1;
  const int stride = n / kSample, rank = stride > 0 ? k / stride + k / stride / 4 + 8 : 0;
  bool guessed = false;
  if (k < n && stride >= 4 && rank < n / stride) {  // most are far below: look at those alone that may be among the largest
    int m = 0, reach;
    for (int i = stride / 2; i < n; i += stride) values[m++] = x[i];
    m = padded(m);
    if (count_reaching(values, m, low) > rank) {
      low = bar_for(values, m, rank, reach);
      guessed = true;
    }
  }
  int found = keep_reaching(x, n, low, values, places);
  if (guessed && found < k) found = keep_reaching(x, n, order_of(-__builtin_inff()) + 1, values, places);
  if (found <= k) return found;
  int reach;
  const int32_t bar = bar_for(values, padded(found), k, reach);
  const int spare = reach - k;  // of those that are equal to the bar, so many are out: the last
  const float last = of_order(bar);
  int count = 0, equal = 0;
  for (int i = 0; spare > 0 && i < found; i++) equal += values[i] == last;
  for (int i = 0; i < found; i += 16) {
    // Written no later than it is read, and sixteen at a time only where there are sixteen.
    const Ints in = reaches(load(values + i), bar);
    if (spare == 0) {
      count += squeeze(in, load_words(places + i), places + count);
      continue;
    }
    for (int j = i; j < i + 16 && j < found; j++) {
      const bool same = values[j] == last, in_it = values[j] > last || (same && equal > spare);
      equal -= same;
      places[count] = places[j];
      count += in_it;
    }
  }
  return count;
}
