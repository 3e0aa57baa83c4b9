// AVX-512 with VNNI: 16 rows are one register, one vpdpbusd takes 16 rows x 4 inputs.
// Only this file's flags enable AVX-512; everything but the table is in an anonymous namespace.
#include <immintrin.h>

#include "../kernels.h"

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define KERNELS_NAME "avx512vnni"

namespace phial {
namespace {

constexpr int PANEL_TOKENS = 6;  // 12 integer and 12 float sums, 2 weights, an activation, 2 scales: 29 of 32
constexpr bool PANEL_PAIR = true;
constexpr int WIDE_OFFSET = 128;  // vpdpbusd wants unsigned weights: signed bytes are flipped to code + 128

using Codes = __m512i;
using Inputs = __m512i;
using Ints = __m512i;
using Floats = __m512;

bool is_float_type(Type t) { return is_float(t); }

INLINE static Codes load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
INLINE static void store_codes(uint8_t* p, Codes c) { _mm512_storeu_si512(p, c); }
INLINE static void opaque(Codes& c) { __asm__ __volatile__("" : "+v"(c)); }  // the compiler knows nothing of it now
INLINE static Codes low_nibble(Codes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
INLINE static Codes high_nibble(Codes v) { return low_nibble(_mm512_srli_epi16(v, 4)); }
INLINE static Codes or_codes(Codes a, Codes b) { return _mm512_or_si512(a, b); }
INLINE static Codes or_mask(Codes c, const uint8_t* bits, int value) {
    uint64_t mask;
    __builtin_memcpy(&mask, bits, 8);
    return _mm512_mask_add_epi8(c, mask, c, _mm512_set1_epi8((char)value));
}
template <int BIT, int VALUE> INLINE static Codes or_bit(Codes c, Codes plane) {
    const __mmask64 mask = _mm512_test_epi8_mask(plane, _mm512_set1_epi8((char)(1 << BIT)));
    return _mm512_mask_add_epi8(c, mask, c, _mm512_set1_epi8(VALUE));
}
template <int SHIFT> INLINE static Codes pair_low(Codes plane) {  // (plane >> SHIFT) & 3
    return _mm512_and_si512(_mm512_srli_epi16(plane, SHIFT), _mm512_set1_epi8(3));
}
template <int SHIFT> INLINE static Codes pair_high(Codes plane) {  // ((plane >> SHIFT) & 3) << 4
    const __m512i moved = SHIFT > 4 ? _mm512_srli_epi16(plane, SHIFT > 4 ? SHIFT - 4 : 0)
                                    : _mm512_slli_epi16(plane, SHIFT > 4 ? 0 : 4 - SHIFT);
    return _mm512_and_si512(moved, _mm512_set1_epi8(48));
}
INLINE static Codes wide_codes(Codes v) { return _mm512_xor_si512(v, _mm512_set1_epi8((char)0x80)); }

INLINE static Inputs broadcast4(const int8_t* p) {
    int32_t v;
    __builtin_memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}
INLINE static Ints zero_i() { return _mm512_setzero_si512(); }
INLINE static Ints set1_i(int v) { return _mm512_set1_epi32(v); }
INLINE static Ints dot(Ints acc, Codes c, Inputs in) { return _mm512_dpbusd_epi32(acc, c, in); }
INLINE static Ints dot_wide(Ints acc, Codes c, Inputs in) { return _mm512_dpbusd_epi32(acc, c, in); }
INLINE static int sum_lanes_i(Ints v) { return _mm512_reduce_add_epi32(v); }
INLINE static void store_s8(int8_t* p, Ints v) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(v)); }

INLINE static Floats zero_f() { return _mm512_setzero_ps(); }
INLINE static Floats set1(float v) { return _mm512_set1_ps(v); }
INLINE static Floats load_f(const float* p) { return _mm512_loadu_ps(p); }
INLINE static void store_f(float* p, Floats v) { _mm512_storeu_ps(p, v); }
INLINE static Floats load_f16(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
INLINE static void store_f16(uint16_t* p, Floats v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE static float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
INLINE static Floats load_bf16(const uint8_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
INLINE static void store_bf16(uint16_t* p, Floats v) {  // to nearest, ties to even; a NaN stays one
    const __m512i bits = _mm512_castps_si512(v), high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    const __m512i halves = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), is_nan, quiet);
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(halves));
}
INLINE static Floats load_u8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
INLINE static Floats load_s8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
INLINE static Floats to_float(Ints v) { return _mm512_cvtepi32_ps(v); }
INLINE static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
INLINE static Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
INLINE static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
INLINE static Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
INLINE static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE static Floats min_f(Floats a, Floats b) { return _mm512_min_ps(a, b); }
INLINE static Floats max_f(Floats a, Floats b) { return _mm512_max_ps(a, b); }
INLINE static float max_lanes(Floats a) { return _mm512_reduce_max_ps(a); }
INLINE static Floats neg(Floats a) { return _mm512_sub_ps(_mm512_setzero_ps(), a); }
INLINE static Floats abs_f(Floats a) { return _mm512_abs_ps(a); }
INLINE static Ints round_i(Floats a) { return _mm512_cvtps_epi32(a); }
INLINE static Floats power_of_two(Ints n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}
INLINE static Floats zero_below(Floats v, Floats x, float limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GE_OQ), v);
}
INLINE static Floats select_less(Floats a, Floats b, Floats x, Floats y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
INLINE static void store_transposed(float* p, Floats a, Floats b, Floats c, Floats d) {
    const __m512 ab[2] = {_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)};
    const __m512 cd[2] = {_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)};
    for (int i = 0; i < 4; i++) {
        const __m512 x = i % 2 ? _mm512_shuffle_ps(ab[i / 2], cd[i / 2], 0xEE)
                               : _mm512_shuffle_ps(ab[i / 2], cd[i / 2], 0x44);
        _mm_storeu_ps(p + 16 * i, _mm512_castps512_ps128(x));
        _mm_storeu_ps(p + 16 * (i + 4), _mm512_extractf32x4_ps(x, 1));
        _mm_storeu_ps(p + 16 * (i + 8), _mm512_extractf32x4_ps(x, 2));
        _mm_storeu_ps(p + 16 * (i + 12), _mm512_extractf32x4_ps(x, 3));
    }
}
INLINE static float square_root(float v) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(v))); }

#include "tile.h"

}  // namespace

const Kernels& avx512vnni_kernels() { return table; }

}  // namespace phial
