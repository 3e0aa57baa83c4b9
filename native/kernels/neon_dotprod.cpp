// ARMv8.2 with the dot-product extension (Cortex-A76, Neoverse N1, Apple M1 and later).
#include <arm_neon.h>

#include "../kernels.h"

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define KERNELS_NAME "neon_dotprod"

namespace phial {
namespace {

constexpr int PANEL_TOKENS = 4;  // 16 integer sums, 4 weights, an activation: of 32 registers
constexpr bool PANEL_PAIR = false;

#include "neon.h"
#include "tile.h"

}  // namespace

const Kernels& neon_dotprod_kernels() { return table; }

}  // namespace phial
