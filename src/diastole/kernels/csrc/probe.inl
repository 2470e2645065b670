// What this instruction set could do if nothing else were to be done. Included by isa.inl.

// `rounds` times sixteen independent chains of one instruction, in registers only: more than its latency needs. Each
// starts elsewhere, or the compiler would see that they are the same.
template <class Acc, class Step>
inline int32_t burn(int64_t rounds, Acc (&chain)[16], const Step& step) {
  for (int64_t n = 0; n < rounds; n++)
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) chain[i] = step(chain[i]);
  for (int i = 1; i < 16; i++) chain[0] = chain[0] + chain[i];
  int32_t lane;
  std::memcpy(&lane, &chain[0], sizeof lane);
  return lane;
}

#if defined(__AMX_TILE__)
// What four tiles of sums can take in, with numbers that are not zero: those would need less power.
inline double burn_tiles(int64_t rounds) {
  alignas(64) uint16_t ones[kTileRows * 32];
  for (auto& x : ones) x = 0x3f80;
  TileShape shape;
  shape.set(kTileRows, kTileBytes, 0, 1, 2, 3, 4, 5);
  shape.use();
  tile_load<4>(ones, kTileBytes);
  tile_load<5>(ones, kTileBytes);
  each_tile([](auto tile) { tile_zero<decltype(tile)::value>(); });
  for (int64_t n = 0; n < rounds; n++) each_tile([](auto tile) { tile_dot_bf16<decltype(tile)::value, 4, 5>(); });
  return 4 * 16 * 16 * 32 * static_cast<double>(rounds);
}
#endif

double peak(Weight kind, int64_t rounds) {
#if defined(__AMX_TILE__)
  if (kind != Weight::f32) return burn_tiles(rounds);
#endif
  volatile int32_t seed = 3, sink;  // unknown to the compiler
  Ints ints[16];
  Floats floats[16];
  for (int i = 0; i < 16; i++) ints[i] = splat(seed + i), floats[i] = to_float(ints[i]);
  const Ints bytes = ints[0] | 0x01010101;
  const Floats one = floats[1];
  const int32_t pair = seed * 0x3f80;
  double each = 16;
  if (kind == Weight::q8 || is_four(kind)) {
    sink = burn(rounds, ints, [&](Ints acc) { return dot4_small(acc, bytes, pair); });
    each = 64;
  } else if (kind == Weight::bf16) {
    sink = burn(rounds, floats, [&](Floats acc) { return dot2(acc, bytes, static_cast<uint32_t>(pair)); });
    each = 32;
  } else {
    sink = burn(rounds, floats, [&](Floats acc) { return fma(one, one, acc); });
  }
  (void)sink;
  return each * 16 * static_cast<double>(rounds);
}

int32_t sweep(const uint8_t* p, size_t size) {
  Ints part[4] = {splat(0), splat(0), splat(0), splat(0)};
  for (size_t at = 0; at + 256 <= size; at += 256)
    for (size_t i = 0; i < 4; i++) part[i] = part[i] + load_words(p + at + 64 * i);
  return sum((part[0] + part[1]) + (part[2] + part[3]));
}
