// Which kernels this machine runs.
#include <cstring>
#if defined(DIASTOLE_X86)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.hpp"

namespace diastole {

extern const Kernels kernels_scalar;
#if defined(DIASTOLE_X86)
extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512bf16, kernels_amx;
#endif

namespace {

struct Choice {
  const Kernels* kernels;
  bool (*runs)();
};

#if defined(DIASTOLE_X86)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// Tile registers: the processor must have them, and the system must keep them for this process, which has to ask.
bool has_amx() {
#if defined(DIASTOLE_EMULATED_TILES)
  return has_avx512bf16();
#elif defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kWanted = kBf16 | kTile | kInt8;
  constexpr int kAskForState = 0x1023, kTileData = 18;
  static const bool granted = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!has_avx512bf16() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kWanted) != kWanted) return false;
    return syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
  }();
  return granted;
#else
  return false;
#endif
}
#endif

const Choice kChoices[] = {  // best first
#if defined(DIASTOLE_X86)
    {&kernels_amx, has_amx},
    {&kernels_avx512bf16, has_avx512bf16},
    {&kernels_avx512, has_avx512},
    {&kernels_avx2, has_avx2},
#endif
    {&kernels_scalar, [] { return true; }},
};

}  // namespace

const Kernels* choose(const char* name) {
  for (const Choice& choice : kChoices)
    if ((name == nullptr || std::strcmp(name, choice.kernels->name) == 0) && choice.runs()) return choice.kernels;
  return nullptr;
}

size_t kv_page_bytes(KV kind, int dim) {
  const size_t values = static_cast<size_t>(kPage) * dim * 2;
  switch (kind) {
    case KV::f32: return values * 4;
    case KV::bf16:
    case KV::rows: return values * 2;
    case KV::rows8: return values;
    case KV::int8: return values + 2 * kPage * sizeof(float);
    case KV::zip: break;
  }
  return 0;
}

size_t zip_page_bytes(int dim, int fine) {  // see zip.inl
  const size_t words = static_cast<size_t>(dim / 16), wide = (words + 3) / 4 * 64, n = static_cast<size_t>(fine);
  return 512 * words + 4 * words * n + n / 16 * 64 * words + n % 16 / 4 * wide + 8 + 4 + 2 * wide + 8 * words + 64;
}

}  // namespace diastole
