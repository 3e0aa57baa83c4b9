// AVX2 with FMA and F16C: 16 rows are two registers; vpmaddubsw multiplies unsigned codes by signed activations.
// A pair of 6-bit products fits 16 bits (2 * 63 * 127 = 16002); signed 8-bit weights go through their absolute value,
// where 2 * 128 * 127 = 32512 still fits.
#include <immintrin.h>

#include "../kernels.h"

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define KERNELS_NAME "avx2"

namespace phial {
namespace {

constexpr int PANEL_TOKENS = 4;  // 8 integer sums, 2 weights, an activation, ones and scratch: 16 registers
constexpr bool PANEL_PAIR = false;
constexpr int WIDE_OFFSET = 0;

struct Codes { __m256i v[2]; };
struct Ints { __m256i v[2]; };
struct Floats { __m256 v[2]; };
using Inputs = __m256i;

bool is_float_type(Type t) { return is_float(t); }

INLINE static __m256i load_half(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
INLINE static Codes load_codes(const uint8_t* p) { return {{load_half(p), load_half(p + 32)}}; }
INLINE static void store_codes(uint8_t* p, Codes c) {
    _mm256_storeu_si256((__m256i*)p, c.v[0]);
    _mm256_storeu_si256((__m256i*)(p + 32), c.v[1]);
}
INLINE static Codes and_byte(Codes c, int byte) {
    const __m256i m = _mm256_set1_epi8((char)byte);
    return {{_mm256_and_si256(c.v[0], m), _mm256_and_si256(c.v[1], m)}};
}
template <int N> INLINE static Codes shift_right(Codes c) {
    return {{_mm256_srli_epi16(c.v[0], N), _mm256_srli_epi16(c.v[1], N)}};
}
template <int N> INLINE static Codes shift_left(Codes c) {
    return {{_mm256_slli_epi16(c.v[0], N), _mm256_slli_epi16(c.v[1], N)}};
}
INLINE static void opaque(Codes& c) { __asm__ __volatile__("" : "+x"(c.v[0]), "+x"(c.v[1])); }
INLINE static Codes low_nibble(Codes c) { return and_byte(c, 15); }
INLINE static Codes high_nibble(Codes c) { return and_byte(shift_right<4>(c), 15); }
INLINE static Codes or_codes(Codes a, Codes b) {
    return {{_mm256_or_si256(a.v[0], b.v[0]), _mm256_or_si256(a.v[1], b.v[1])}};
}
INLINE static __m256i spread_bits(const uint8_t* bits, int value) {  // 32 bits -> 32 bytes of 0 or value
    int32_t word;
    __builtin_memcpy(&word, bits, 4);
    const __m256i which = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3,
                                           3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ULL);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(word), which);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    return _mm256_and_si256(set, _mm256_set1_epi8((char)value));
}
INLINE static Codes or_mask(Codes c, const uint8_t* bits, int value) {
    return or_codes(c, {{spread_bits(bits, value), spread_bits(bits + 4, value)}});
}
#include "planes.h"

INLINE static Inputs broadcast4(const int8_t* p) {
    int32_t v;
    __builtin_memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}
INLINE static Ints zero_i() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
INLINE static Ints set1_i(int v) { return {{_mm256_set1_epi32(v), _mm256_set1_epi32(v)}}; }
INLINE static __m256i dot_half(__m256i acc, __m256i codes, __m256i in) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, in), _mm256_set1_epi16(1)));
}
INLINE static Ints dot(Ints acc, Codes c, Inputs in) {
    return {{dot_half(acc.v[0], c.v[0], in), dot_half(acc.v[1], c.v[1], in)}};
}
INLINE static Ints dot_wide(Ints acc, Codes c, Inputs in) {
    return {{dot_half(acc.v[0], _mm256_abs_epi8(c.v[0]), _mm256_sign_epi8(in, c.v[0])),
             dot_half(acc.v[1], _mm256_abs_epi8(c.v[1]), _mm256_sign_epi8(in, c.v[1]))}};
}
INLINE static int sum_lanes_i(Ints v) {
    const __m256i s = _mm256_add_epi32(v.v[0], v.v[1]);
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xB1)));
}
INLINE static void store_s8(int8_t* p, Ints v) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.v[0], v.v[1]), 0xD8);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

INLINE static Floats zero_f() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
INLINE static Floats set1(float v) { return {{_mm256_set1_ps(v), _mm256_set1_ps(v)}}; }
INLINE static Floats load_f(const float* p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
INLINE static void store_f(float* p, Floats v) {
    _mm256_storeu_ps(p, v.v[0]);
    _mm256_storeu_ps(p + 8, v.v[1]);
}
INLINE static __m128i load_quarter(const uint8_t* p) { return _mm_loadu_si128((const __m128i*)p); }
INLINE static __m128i load_eighth(const uint8_t* p) { return _mm_loadl_epi64((const __m128i*)p); }
INLINE static Floats load_f16(const uint8_t* p) {
    return {{_mm256_cvtph_ps(load_quarter(p)), _mm256_cvtph_ps(load_quarter(p + 16))}};
}
INLINE static void store_f16(uint16_t* p, Floats v) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v.v[0], mode));
    _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(v.v[1], mode));
}
INLINE static float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
INLINE static __m256 bf16_half(const uint8_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_quarter(p)), 16));
}
INLINE static Floats load_bf16(const uint8_t* p) { return {{bf16_half(p), bf16_half(p + 16)}}; }
INLINE static __m256i bf16_bits(__m256 v) {  // in the low half of each lane; a NaN stays one
    const __m256i bits = _mm256_castps_si256(v), high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), quiet, is_nan);
}
INLINE static void store_bf16(uint16_t* p, Floats v) {
    const __m256i packed = _mm256_packus_epi32(bf16_bits(v.v[0]), bf16_bits(v.v[1]));
    _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(packed, 0xD8));
}
INLINE static Floats load_u8(const uint8_t* p) {
    return {{_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_eighth(p))),
             _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_eighth(p + 8)))}};
}
INLINE static Floats load_s8(const uint8_t* p) {
    return {{_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_eighth(p))),
             _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_eighth(p + 8)))}};
}
INLINE static Floats to_float(Ints v) { return {{_mm256_cvtepi32_ps(v.v[0]), _mm256_cvtepi32_ps(v.v[1])}}; }
INLINE static Floats add(Floats a, Floats b) {
    return {{_mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1])}};
}
INLINE static Floats sub(Floats a, Floats b) {
    return {{_mm256_sub_ps(a.v[0], b.v[0]), _mm256_sub_ps(a.v[1], b.v[1])}};
}
INLINE static Floats mul(Floats a, Floats b) {
    return {{_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}};
}
INLINE static Floats divide(Floats a, Floats b) {
    return {{_mm256_div_ps(a.v[0], b.v[0]), _mm256_div_ps(a.v[1], b.v[1])}};
}
INLINE static Floats fma(Floats a, Floats b, Floats c) {
    return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}
INLINE static Floats min_f(Floats a, Floats b) {
    return {{_mm256_min_ps(a.v[0], b.v[0]), _mm256_min_ps(a.v[1], b.v[1])}};
}
INLINE static Floats max_f(Floats a, Floats b) {
    return {{_mm256_max_ps(a.v[0], b.v[0]), _mm256_max_ps(a.v[1], b.v[1])}};
}
INLINE static float max_lanes(Floats a) {
    const __m256 m = _mm256_max_ps(a.v[0], a.v[1]);
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}
INLINE static Floats neg(Floats a) { return sub(zero_f(), a); }
INLINE static Floats abs_f(Floats a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {{_mm256_andnot_ps(sign, a.v[0]), _mm256_andnot_ps(sign, a.v[1])}};
}
INLINE static Ints round_i(Floats a) { return {{_mm256_cvtps_epi32(a.v[0]), _mm256_cvtps_epi32(a.v[1])}}; }
INLINE static __m256 power_half(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
INLINE static Floats power_of_two(Ints n) { return {{power_half(n.v[0]), power_half(n.v[1])}}; }
INLINE static Floats zero_below(Floats v, Floats x, float limit) {
    const __m256 l = _mm256_set1_ps(limit);
    return {{_mm256_and_ps(v.v[0], _mm256_cmp_ps(x.v[0], l, _CMP_GE_OQ)),
             _mm256_and_ps(v.v[1], _mm256_cmp_ps(x.v[1], l, _CMP_GE_OQ))}};
}
INLINE static __m256 select_half(__m256 a, __m256 b, __m256 x, __m256 y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE static Floats select_less(Floats a, Floats b, Floats x, Floats y) {
    return {{select_half(a.v[0], b.v[0], x.v[0], y.v[0]), select_half(a.v[1], b.v[1], x.v[1], y.v[1])}};
}
INLINE static void store_transposed(float* p, Floats a, Floats b, Floats c, Floats d) {
    for (int h = 0; h < 2; h++) {
        const __m256 ab[2] = {_mm256_unpacklo_ps(a.v[h], b.v[h]), _mm256_unpackhi_ps(a.v[h], b.v[h])};
        const __m256 cd[2] = {_mm256_unpacklo_ps(c.v[h], d.v[h]), _mm256_unpackhi_ps(c.v[h], d.v[h])};
        for (int i = 0; i < 4; i++) {
            const __m256 x = i % 2 ? _mm256_shuffle_ps(ab[i / 2], cd[i / 2], 0xEE)
                                   : _mm256_shuffle_ps(ab[i / 2], cd[i / 2], 0x44);
            _mm_storeu_ps(p + 16 * (8 * h + i), _mm256_castps256_ps128(x));
            _mm_storeu_ps(p + 16 * (8 * h + i + 4), _mm256_extractf128_ps(x, 1));
        }
    }
}
INLINE static float square_root(float v) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(v))); }

#include "tile.h"

}  // namespace

const Kernels& avx2_kernels() { return table; }

}  // namespace phial
