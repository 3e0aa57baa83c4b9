// ARMv8.6 with int8 matrix multiply (Neoverse V1 and N2, Apple M2 and later). Decode is the dot-product code; prefill
// multiplies 2 rows x 8 inputs by 8 inputs x 2 tokens in one smmla, twice the work of an sdot.
//
// A panel's 4-input vectors are paired on the fly: zipping the 32-bit lanes of inputs 4g.. and 4g+4.. of four rows gives
// two operands of 2 rows x 8 inputs each. Integer sums are exact, so results are those of the dot-product code.
#include <arm_neon.h>

#include "../kernels.h"

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define KERNELS_NAME "neon_i8mm"

namespace phial {
namespace {

constexpr int PANEL_TOKENS = 4;
constexpr bool PANEL_PAIR = false;

#include "neon.h"

// Sums of 16 rows x 2 tokens: element [p] holds rows 2p, 2p+1 as (r0 t0, r0 t1, r1 t0, r1 t1).
struct PairSums { int32x4_t v[8]; };

// Adds `steps` groups of 8 inputs: codes (steps * 2, 16 rows, 4 inputs), a and b the two tokens' inputs.
INLINE static void multiply_pairs(PairSums& sums, const uint8_t* codes, const int8_t* a, const int8_t* b, int steps) {
    for (int s = 0; s < steps; s++) {
        const int8x16_t tokens = vcombine_s8(vld1_s8(a + 8 * s), vld1_s8(b + 8 * s));
        for (int i = 0; i < 4; i++) {
            const int32x4_t low = vreinterpretq_s32_u8(vld1q_u8(codes + 128 * s + 16 * i));
            const int32x4_t high = vreinterpretq_s32_u8(vld1q_u8(codes + 128 * s + 64 + 16 * i));
            const int8x16_t rows01 = vreinterpretq_s8_s32(vzip1q_s32(low, high));
            const int8x16_t rows23 = vreinterpretq_s8_s32(vzip2q_s32(low, high));
            sums.v[2 * i] = vmmlaq_s32(sums.v[2 * i], rows01, tokens);
            sums.v[2 * i + 1] = vmmlaq_s32(sums.v[2 * i + 1], rows23, tokens);
        }
    }
}

INLINE static void split_pairs(const PairSums& sums, Ints& a, Ints& b) {
    for (int i = 0; i < 4; i++) {
        a.v[i] = vuzp1q_s32(sums.v[2 * i], sums.v[2 * i + 1]);
        b.v[i] = vuzp2q_s32(sums.v[2 * i], sums.v[2 * i + 1]);
    }
}

// The T tokens of 32 / PARTS inputs against one panel, started from x; T is even.
#define PANEL_PRODUCT
template <int T, int STEPS>
INLINE static void panel_product(Ints (&x)[T], const uint8_t* codes, const int8_t* q, int stride) {
    for (int t = 0; t + 1 < T; t += 2) {
        PairSums sums;
        for (int i = 0; i < 8; i++) sums.v[i] = vdupq_n_s32(0);
        multiply_pairs(sums, codes, q + (size_t)t * stride, q + (size_t)(t + 1) * stride, STEPS / 2);
        Ints a, b;
        split_pairs(sums, a, b);
        for (int i = 0; i < 4; i++) {
            x[t].v[i] = vaddq_s32(x[t].v[i], a.v[i]);
            x[t + 1].v[i] = vaddq_s32(x[t + 1].v[i], b.v[i]);
        }
    }
    if constexpr (T % 2)
        for (int g = 0; g < STEPS; g++)
            x[T - 1] = dot(x[T - 1], load_codes(codes + 64 * g), broadcast4(q + (size_t)(T - 1) * stride + 4 * g));
}

#include "tile.h"

}  // namespace

const Kernels& neon_i8mm_kernels() { return table; }

}  // namespace phial
