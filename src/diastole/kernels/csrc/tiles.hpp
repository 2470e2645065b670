// The tile registers of AMX: eight matrices of 16 rows of 64 bytes, and one instruction that multiplies two of them.
//
// Spelled as assembly with a memory clobber: GCC's own intrinsics say neither what ldtilecfg reads nor that tiles read
// and write memory, and what the compiler then drops or moves ends in a crash.
#pragma once
#include <cstddef>
#include <cstdint>

namespace {
constexpr int kTileRows = 16, kTileBytes = 64;
}  // namespace

#if defined(DIASTOLE_EMULATED_TILES)
#include "tiles_emulated.hpp"
#else
namespace {

// Rows and bytes per row of each tile register while this lives; the registers are given back at its end, for a
// thread that holds some costs more to switch.
class alignas(64) TileShape {
 public:
  template <class... Tiles>
  void set(int rows, int bytes, Tiles... tiles) {
    ((rows_[tiles] = static_cast<uint8_t>(rows), bytes_[tiles] = static_cast<uint16_t>(bytes)), ...);
  }
  void use() const { asm volatile("ldtilecfg %0" ::"m"(*this) : "memory"); }
  ~TileShape() { asm volatile("tilerelease" ::: "memory"); }

 private:
  uint8_t palette_ = 1, start_ = 0, reserved_[14] = {};
  uint16_t bytes_[16] = {};
  uint8_t rows_[16] = {};
};

template <int T>
inline void tile_load(const void* p, ptrdiff_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* p, ptrdiff_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T) : "memory");
}
// C += A B, A rows of pairs of bf16, B rows of pairs by columns, C float32. Of the products of an element, even and odd
// ones are summed apart, in order, and both sums added to C: what stands in other rows and columns does not matter.
template <int C, int A, int B>
inline void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B) : "memory");
}

}  // namespace
#endif

namespace {

// A number that lambdas can take as an argument and templates still know.
template <int N>
struct Number {
  static constexpr int value = N;
  constexpr operator int() const { return N; }
};
// f for each of the four tiles that hold sums.
template <class F>
inline void each_tile(const F& f) {
  f(Number<0>()), f(Number<1>()), f(Number<2>()), f(Number<3>());
}

}  // namespace
