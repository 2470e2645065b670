// Tile registers in memory, for processors that have none: slow, and for tests alone. See tiles.hpp and `make tiles`.
#pragma once
#include <cstring>

namespace {

struct Tiles {
  int rows[8], bytes[8];
  uint8_t data[8][kTileRows][kTileBytes];
};
inline Tiles& tiles() {
  static thread_local Tiles all;
  return all;
}

class TileShape {
 public:
  template <class... Which>
  void set(int rows, int bytes, Which... which) {
    ((rows_[which] = rows, bytes_[which] = bytes), ...);
  }
  void use() const {
    std::memcpy(tiles().rows, rows_, sizeof rows_);
    std::memcpy(tiles().bytes, bytes_, sizeof bytes_);
    std::memset(tiles().data, 0, sizeof tiles().data);
  }
  // As registers that have been given back: whoever goes on with them moves nothing.
  ~TileShape() { std::memset(&tiles(), 0, sizeof(Tiles)); }

 private:
  int rows_[8] = {}, bytes_[8] = {};
};

template <int T>
inline void tile_load(const void* p, ptrdiff_t stride) {
  for (int r = 0; r < tiles().rows[T]; r++)
    std::memcpy(tiles().data[T][r], static_cast<const uint8_t*>(p) + r * stride, static_cast<size_t>(tiles().bytes[T]));
}
template <int T>
inline void tile_store(void* p, ptrdiff_t stride) {
  for (int r = 0; r < tiles().rows[T]; r++)
    std::memcpy(static_cast<uint8_t*>(p) + r * stride, tiles().data[T][r], static_cast<size_t>(tiles().bytes[T]));
}
template <int T>
inline void tile_zero() {
  std::memset(tiles().data[T], 0, sizeof tiles().data[T]);
}
inline float tile_bf16(const uint8_t* p) {
  uint32_t bits = 0;
  std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, p, 2);
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
template <int C, int A, int B>
inline void tile_dot_bf16() {
  Tiles& t = tiles();
  for (int m = 0; m < t.rows[C]; m++)
    for (int n = 0; n < t.bytes[C] / 4; n++) {
      float sum, even = 0.f, odd = 0.f;
      for (int k = 0; k < t.bytes[A] / 4; k++) {
        const uint8_t *a = t.data[A][m] + 4 * k, *b = t.data[B][k] + 4 * n;
        even += tile_bf16(a) * tile_bf16(b);
        odd += tile_bf16(a + 2) * tile_bf16(b + 2);
      }
      std::memcpy(&sum, t.data[C][m] + 4 * n, 4);
      sum += even + odd;
      std::memcpy(t.data[C][m] + 4 * n, &sum, 4);
    }
}

}  // namespace
