// Which kernels this machine runs.
#include <cstring>

#include "kernels.hpp"

namespace diastole {

extern const Kernels kernels_scalar;
#if defined(DIASTOLE_X86)
extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512bf16;
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
#endif

const Choice kChoices[] = {  // best first
#if defined(DIASTOLE_X86)
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
    case KV::bf16: return values * 2;
    case KV::int8: return values + 2 * kPage * sizeof(float);
  }
  return 0;
}

}  // namespace diastole
