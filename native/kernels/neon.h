// The primitives over 128-bit NEON with the dot-product extension: 16 rows are four registers. Codes stay below 128, so
// they are signed bytes as they are and one sdot takes 4 rows x 4 inputs. Included inside an anonymous namespace.

constexpr int WIDE_OFFSET = 0;

struct Codes { uint8x16_t v[4]; };
struct Ints { int32x4_t v[4]; };
struct Floats { float32x4_t v[4]; };
using Inputs = int8x16_t;

#define QUARTERS for (int i = 0; i < 4; i++)

bool is_float_type(Type t) { return is_float(t); }

INLINE static Codes load_codes(const uint8_t* p) {
    Codes c;
    QUARTERS c.v[i] = vld1q_u8(p + 16 * i);
    return c;
}
INLINE static void store_codes(uint8_t* p, Codes c) { QUARTERS vst1q_u8(p + 16 * i, c.v[i]); }
INLINE static Codes and_byte(Codes c, uint8_t byte) {
    QUARTERS c.v[i] = vandq_u8(c.v[i], vdupq_n_u8(byte));
    return c;
}
template <int N> INLINE static Codes shift_right(Codes c) {
    if constexpr (N > 0) QUARTERS c.v[i] = vshrq_n_u8(c.v[i], N);
    return c;
}
template <int N> INLINE static Codes shift_left(Codes c) {
    if constexpr (N > 0) QUARTERS c.v[i] = vshlq_n_u8(c.v[i], N);
    return c;
}
INLINE static void opaque(Codes& c) {
    __asm__ __volatile__("" : "+w"(c.v[0]), "+w"(c.v[1]), "+w"(c.v[2]), "+w"(c.v[3]));
}
INLINE static Codes low_nibble(Codes c) { return and_byte(c, 15); }
INLINE static Codes high_nibble(Codes c) { return shift_right<4>(c); }
INLINE static Codes or_codes(Codes a, Codes b) {
    QUARTERS a.v[i] = vorrq_u8(a.v[i], b.v[i]);
    return a;
}
INLINE static Codes or_mask(Codes c, const uint8_t* bits, int value) {  // 16 bits of `bits` for each quarter
    static const uint8_t BITS[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t bit = vld1q_u8(BITS);
    QUARTERS {
        const uint8x16_t bytes = vcombine_u8(vdup_n_u8(bits[2 * i]), vdup_n_u8(bits[2 * i + 1]));
        c.v[i] = vorrq_u8(c.v[i], vandq_u8(vtstq_u8(bytes, bit), vdupq_n_u8((uint8_t)value)));
    }
    return c;
}
#include "planes.h"

INLINE static Inputs broadcast4(const int8_t* p) {
    int32_t v;
    __builtin_memcpy(&v, p, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(v));
}
INLINE static Ints set1_i(int v) {
    const int32x4_t x = vdupq_n_s32(v);
    return {{x, x, x, x}};
}
INLINE static Ints zero_i() { return set1_i(0); }
INLINE static Ints dot(Ints acc, Codes c, Inputs in) {
    QUARTERS acc.v[i] = vdotq_s32(acc.v[i], vreinterpretq_s8_u8(c.v[i]), in);
    return acc;
}
INLINE static Ints dot_wide(Ints acc, Codes c, Inputs in) { return dot(acc, c, in); }
INLINE static int sum_lanes_i(Ints v) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(v.v[0], v.v[1]), vaddq_s32(v.v[2], v.v[3])));
}
INLINE static void store_s8(int8_t* p, Ints v) {
    const int16x8_t a = vcombine_s16(vqmovn_s32(v.v[0]), vqmovn_s32(v.v[1]));
    const int16x8_t b = vcombine_s16(vqmovn_s32(v.v[2]), vqmovn_s32(v.v[3]));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(a), vqmovn_s16(b)));
}

INLINE static Floats set1(float v) {
    const float32x4_t x = vdupq_n_f32(v);
    return {{x, x, x, x}};
}
INLINE static Floats zero_f() { return set1(0.0f); }
INLINE static Floats load_f(const float* p) {
    Floats f;
    QUARTERS f.v[i] = vld1q_f32(p + 4 * i);
    return f;
}
INLINE static void store_f(float* p, Floats f) { QUARTERS vst1q_f32(p + 4 * i, f.v[i]); }
INLINE static Floats load_f16(const uint8_t* p) {
    Floats f;
    QUARTERS f.v[i] = vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p + 8 * i)));
    return f;
}
INLINE static void store_f16(uint16_t* p, Floats f) {
    QUARTERS vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(f.v[i])));
}
INLINE static float half_to_float(uint16_t h) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}
INLINE static Floats load_bf16(const uint8_t* p) {
    Floats f;
    QUARTERS f.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p + 8 * i)), 16));
    return f;
}
INLINE static void store_bf16(uint16_t* p, Floats f) {  // to nearest, ties to even; a NaN stays one
    QUARTERS {
        const uint32x4_t bits = vreinterpretq_u32_f32(f.v[i]), high = vshrq_n_u32(bits, 16);
        const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(vandq_u32(high, vdupq_n_u32(1)), vdupq_n_u32(0x7FFF)));
        const uint32x4_t is_number = vceqq_f32(f.v[i], f.v[i]), quiet = vorrq_u32(high, vdupq_n_u32(0x40));
        vst1_u16(p + 4 * i, vmovn_u32(vbslq_u32(is_number, vshrq_n_u32(rounded, 16), quiet)));
    }
}
INLINE static Floats load_u8(const uint8_t* p) {
    const uint8x16_t b = vld1q_u8(p);
    const uint16x8_t w[2] = {vmovl_u8(vget_low_u8(b)), vmovl_u8(vget_high_u8(b))};
    return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(w[0]))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(w[0]))),
             vcvtq_f32_u32(vmovl_u16(vget_low_u16(w[1]))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(w[1])))}};
}
INLINE static Floats load_s8(const uint8_t* p) {
    const int8x16_t b = vreinterpretq_s8_u8(vld1q_u8(p));
    const int16x8_t w[2] = {vmovl_s8(vget_low_s8(b)), vmovl_s8(vget_high_s8(b))};
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(w[0]))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(w[0]))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(w[1]))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(w[1])))}};
}
template <class F> INLINE static Floats each(F&& f) { return {{f(0), f(1), f(2), f(3)}}; }
INLINE static Floats to_float(Ints v) {
    return each([&](int i) INLINE_LAMBDA { return vcvtq_f32_s32(v.v[i]); });
}
INLINE static Floats add(Floats a, Floats b) {
    return each([&](int i) INLINE_LAMBDA { return vaddq_f32(a.v[i], b.v[i]); });
}
INLINE static Floats sub(Floats a, Floats b) {
    return each([&](int i) INLINE_LAMBDA { return vsubq_f32(a.v[i], b.v[i]); });
}
INLINE static Floats mul(Floats a, Floats b) {
    return each([&](int i) INLINE_LAMBDA { return vmulq_f32(a.v[i], b.v[i]); });
}
INLINE static Floats divide(Floats a, Floats b) {
    return each([&](int i) INLINE_LAMBDA { return vdivq_f32(a.v[i], b.v[i]); });
}
INLINE static Floats fma(Floats a, Floats b, Floats c) {
    return each([&](int i) INLINE_LAMBDA { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
INLINE static Floats min_f(Floats a, Floats b) {
    return each([&](int i) INLINE_LAMBDA { return vminq_f32(a.v[i], b.v[i]); });
}
INLINE static Floats max_f(Floats a, Floats b) {
    return each([&](int i) INLINE_LAMBDA { return vmaxq_f32(a.v[i], b.v[i]); });
}
INLINE static float max_lanes(Floats a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3])));
}
INLINE static Floats neg(Floats a) {
    return each([&](int i) INLINE_LAMBDA { return vnegq_f32(a.v[i]); });
}
INLINE static Floats abs_f(Floats a) {
    return each([&](int i) INLINE_LAMBDA { return vabsq_f32(a.v[i]); });
}
INLINE static Ints round_i(Floats a) {
    Ints n;
    QUARTERS n.v[i] = vcvtnq_s32_f32(a.v[i]);
    return n;
}
INLINE static Floats power_of_two(Ints n) {
    return each([&](int i) INLINE_LAMBDA {
        return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.v[i], vdupq_n_s32(127)), 23));
    });
}
INLINE static Floats zero_below(Floats v, Floats x, float limit) {
    return each([&](int i) INLINE_LAMBDA {
        const uint32x4_t keep = vcgeq_f32(x.v[i], vdupq_n_f32(limit));
        return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v.v[i]), keep));
    });
}
INLINE static Floats select_less(Floats a, Floats b, Floats x, Floats y) {
    return each([&](int i) INLINE_LAMBDA { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), x.v[i], y.v[i]); });
}
INLINE static void store_transposed(float* p, Floats a, Floats b, Floats c, Floats d) {
    QUARTERS {
        const float32x4_t ab[2] = {vzip1q_f32(a.v[i], b.v[i]), vzip2q_f32(a.v[i], b.v[i])};
        const float32x4_t cd[2] = {vzip1q_f32(c.v[i], d.v[i]), vzip2q_f32(c.v[i], d.v[i])};
        for (int j = 0; j < 2; j++) {
            vst1q_f32(p + 16 * (4 * i + 2 * j), vcombine_f32(vget_low_f32(ab[j]), vget_low_f32(cd[j])));
            vst1q_f32(p + 16 * (4 * i + 2 * j + 1), vcombine_f32(vget_high_f32(ab[j]), vget_high_f32(cd[j])));
        }
    }
}
INLINE static float square_root(float v) { return vget_lane_f32(vsqrt_f32(vdup_n_f32(v)), 0); }
