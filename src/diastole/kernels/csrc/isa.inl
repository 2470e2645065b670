// All kernels for one instruction set: the file that includes this sets ISA_NAME and ISA_TABLE and is compiled with the
// flags of that set.
#include <cmath>

#include "draw.hpp"
#include "kernels.hpp"
#include "simd.hpp"
#if defined(__AMX_TILE__)
#include "tiles.hpp"
#endif

namespace diastole {
namespace {
#include "pages.inl"
#include "bounds.inl"
#include "zip.inl"
#include "attention.inl"
#include "labels.inl"
#include "elementwise.inl"
#include "linear.inl"
#include "sampling.inl"
#include "choosing.inl"
#include "probe.inl"
#include "shadow.inl"
}  // namespace

extern const Kernels ISA_TABLE;
const Kernels ISA_TABLE = {ISA_NAME, kTiles, prepare, multiply, embed, rmsnorm, rope, gated, moments, rescale, kv_write, kv_read, attend, key_write, label_write, zip_seal, zip_open, score, score_best, score_labels, score_rows, fetch, gather, dots, reach, merge,
                           most, weigh, soften_row, tally, at_least, pick, tops, raise, contenders, rebuild, exp_sum, peak, sweep};

}  // namespace diastole
