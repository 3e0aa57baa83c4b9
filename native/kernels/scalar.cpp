// The plain meaning of every primitive, in portable C++: the truth the other sets are tested against, and what runs on a
// CPU without AVX2 or dot-product instructions. Compiled without contraction, so a multiply and an add round twice.
#include "../kernels.h"

#include <cmath>

#define INLINE inline  // forced inlining of 64-byte structs costs minutes of compile time here
#define INLINE_LAMBDA
#define KERNELS_NAME "scalar"
#define LANES for (int i = 0; i < 16; i++)

namespace phial {
namespace {

constexpr int PANEL_TOKENS = 2;
constexpr bool PANEL_PAIR = false;
constexpr int WIDE_OFFSET = 0;

struct Codes { uint8_t v[64]; };  // byte 4 * row + input
struct Inputs { int8_t v[4]; };
struct Ints { int32_t v[16]; };
struct Floats { float v[16]; };

bool is_float_type(Type t) { return is_float(t); }

template <class F> INLINE static Codes each_byte(F&& f) {
    Codes r;
    for (int i = 0; i < 64; i++) r.v[i] = f(i);
    return r;
}
INLINE static Codes load_codes(const uint8_t* p) {
    return each_byte([&](int i) { return p[i]; });
}
INLINE static void store_codes(uint8_t* p, Codes c) { __builtin_memcpy(p, c.v, 64); }
INLINE static void opaque(Codes& c) { __asm__ __volatile__("" : "+m"(c)); }
INLINE static Codes low_nibble(Codes c) {
    return each_byte([&](int i) { return (uint8_t)(c.v[i] & 15); });
}
INLINE static Codes high_nibble(Codes c) {
    return each_byte([&](int i) { return (uint8_t)(c.v[i] >> 4); });
}
INLINE static Codes or_codes(Codes a, Codes b) {
    return each_byte([&](int i) { return (uint8_t)(a.v[i] | b.v[i]); });
}
INLINE static Codes or_mask(Codes c, const uint8_t* bits, int value) {
    return each_byte([&](int i) { return (uint8_t)(c.v[i] | ((bits[i / 8] >> (i % 8)) & 1 ? value : 0)); });
}
template <int BIT, int VALUE> INLINE static Codes or_bit(Codes c, Codes plane) {
    return each_byte([&](int i) { return (uint8_t)(c.v[i] | ((plane.v[i] >> BIT) & 1 ? VALUE : 0)); });
}
template <int SHIFT> INLINE static Codes pair_low(Codes plane) {
    return each_byte([&](int i) { return (uint8_t)((plane.v[i] >> SHIFT) & 3); });
}
template <int SHIFT> INLINE static Codes pair_high(Codes plane) {
    return each_byte([&](int i) { return (uint8_t)(((plane.v[i] >> SHIFT) & 3) << 4); });
}
INLINE static Codes wide_codes(Codes c) { return c; }

INLINE static Inputs broadcast4(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
INLINE static Ints zero_i() { return {}; }
INLINE static Ints set1_i(int v) {
    Ints r;
    LANES r.v[i] = v;
    return r;
}
INLINE static Ints dot(Ints acc, Codes c, Inputs in) {
    LANES for (int j = 0; j < 4; j++) acc.v[i] += (int)c.v[4 * i + j] * in.v[j];
    return acc;
}
INLINE static Ints dot_wide(Ints acc, Codes c, Inputs in) {
    LANES for (int j = 0; j < 4; j++) acc.v[i] += (int)(int8_t)c.v[4 * i + j] * in.v[j];
    return acc;
}
INLINE static int sum_lanes_i(Ints v) {
    int s = 0;
    LANES s += v.v[i];
    return s;
}
INLINE static void store_s8(int8_t* p, Ints v) { LANES p[i] = (int8_t)v.v[i]; }

template <class F> INLINE static Floats each(F&& f) {
    Floats r;
    LANES r.v[i] = f(i);
    return r;
}
INLINE static float half_to_float(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)mantissa * 0x1p-24f;
    const uint32_t bits = sign | (exponent == 31 ? 0x7F800000 : (exponent + 112) << 23) | mantissa << 13;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
}
INLINE static uint16_t float_to_half(float f) {  // to nearest, ties to even
    uint32_t bits;
    __builtin_memcpy(&bits, &f, 4);
    const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return (uint16_t)(sign | 0x7E00);
    if (bits >= 0x477FF000) return (uint16_t)(sign | 0x7C00);
    if (bits < 0x38800000) {  // subnormal: adding 0.5 aligns the mantissa and rounds
        float a;
        __builtin_memcpy(&a, &bits, 4);
        a += 0.5f;
        uint32_t r;
        __builtin_memcpy(&r, &a, 4);
        return (uint16_t)(sign | (r - 0x3F000000));
    }
    bits += 0xFFF + ((bits >> 13) & 1);
    return (uint16_t)(sign | ((bits - 0x38000000) >> 13));
}
INLINE static Floats zero_f() { return {}; }
INLINE static Floats set1(float v) {
    return each([&](int) { return v; });
}
INLINE static Floats load_f(const float* p) {
    return each([&](int i) { return p[i]; });
}
INLINE static void store_f(float* p, Floats v) { __builtin_memcpy(p, v.v, 64); }
INLINE static Floats load_f16(const uint8_t* p) {
    return each([&](int i) { return half_to_float((uint16_t)(p[2 * i] | p[2 * i + 1] << 8)); });
}
INLINE static void store_f16(uint16_t* p, Floats v) { LANES p[i] = float_to_half(v.v[i]); }
INLINE static Floats load_bf16(const uint8_t* p) {
    return each([&](int i) {
        const uint32_t bits = (uint32_t)(p[2 * i] | p[2 * i + 1] << 8) << 16;
        float f;
        __builtin_memcpy(&f, &bits, 4);
        return f;
    });
}
INLINE static uint16_t float_to_bf16(float f) {  // to nearest, ties to even; a NaN stays one
    uint32_t bits;
    __builtin_memcpy(&bits, &f, 4);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
INLINE static void store_bf16(uint16_t* p, Floats v) { LANES p[i] = float_to_bf16(v.v[i]); }
INLINE static Floats load_u8(const uint8_t* p) {
    return each([&](int i) { return (float)p[i]; });
}
INLINE static Floats load_s8(const uint8_t* p) {
    return each([&](int i) { return (float)(int8_t)p[i]; });
}
INLINE static Floats to_float(Ints v) {
    return each([&](int i) { return (float)v.v[i]; });
}
INLINE static Floats add(Floats a, Floats b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
}
INLINE static Floats sub(Floats a, Floats b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
}
INLINE static Floats mul(Floats a, Floats b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
}
INLINE static Floats divide(Floats a, Floats b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
}
INLINE static Floats fma(Floats a, Floats b, Floats c) {
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
INLINE static Floats min_f(Floats a, Floats b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
INLINE static Floats max_f(Floats a, Floats b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
INLINE static float max_lanes(Floats a) {
    float m = a.v[0];
    LANES m = a.v[i] > m ? a.v[i] : m;
    return m;
}
INLINE static Floats neg(Floats a) { return sub(zero_f(), a); }
INLINE static Floats abs_f(Floats a) {
    return each([&](int i) { return a.v[i] < 0 ? -a.v[i] : a.v[i]; });
}
INLINE static Ints round_i(Floats a) {
    Ints r;
    LANES r.v[i] = (int)__builtin_nearbyintf(a.v[i]);
    return r;
}
INLINE static Floats power_of_two(Ints n) {
    return each([&](int i) {
        const uint32_t bits = (uint32_t)(n.v[i] + 127) << 23;
        float f;
        __builtin_memcpy(&f, &bits, 4);
        return f;
    });
}
INLINE static Floats zero_below(Floats v, Floats x, float limit) {
    return each([&](int i) { return x.v[i] >= limit ? v.v[i] : 0.0f; });
}
INLINE static Floats select_less(Floats a, Floats b, Floats x, Floats y) {  // a < b ? x : y
    return each([&](int i) { return a.v[i] < b.v[i] ? x.v[i] : y.v[i]; });
}
// p (16, stride 16) becomes the transpose of four vectors.
INLINE static void store_transposed(float* p, Floats a, Floats b, Floats c, Floats d) {
    LANES p[16 * i] = a.v[i], p[16 * i + 1] = b.v[i], p[16 * i + 2] = c.v[i], p[16 * i + 3] = d.v[i];
}
INLINE static float square_root(float v) { return __builtin_sqrtf(v); }

#include "tile.h"

}  // namespace

const Kernels& scalar_kernels() { return table; }

}  // namespace phial
