// Checks every kernel set this CPU (or emulator) can run against plain loops in double precision, on random weights.
//
// For machines where the Python tests cannot run: built with -DPHIAL_MODULE=OFF, by a cross compiler too. One line per
// set; exit status 1 where one is wrong, 2 where a set named as an argument is not usable here. Leaves out what packing
// does to a file's blocks (test_kernels.py): codes and scales are taken as the scalar set unpacks them.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cpu.h"
#include "pack.h"

using namespace phial;

namespace {

constexpr double EPS = 0x1p-23;  // one rounding is off by EPS / 2 at most
constexpr int TOKENS = 7;
constexpr Type TYPES[] = {Type::F32,  Type::F16,  Type::BF16, Type::Q4_0, Type::Q4_1, Type::Q5_0, Type::Q5_1,
                          Type::Q8_0, Type::Q2_K, Type::Q3_K, Type::Q4_K, Type::Q5_K, Type::Q6_K};

using Floats = std::vector<float>;

std::mt19937 rng(1);
long comparisons, failures;  // of the set at hand

void expect(bool good, const char* what, Type type = (Type)-1) {
    comparisons++;
    if (good) return;
    if (++failures <= 10) std::printf("  wrong: %s, type %d\n", what, (int)type);
}

void near(double got, double truth, double bound, const char* what, Type type = (Type)-1) {
    expect(std::fabs(got - truth) <= bound, what, type);
}

// ---- operands -------------------------------------------------------------------------------------------------------

// Offsets of the halves in a block that hold scales: random bytes there could be infinite.
std::vector<int> scale_offsets(Type t) {
    switch (t) {
        case Type::Q4_0: case Type::Q5_0: case Type::Q8_0: case Type::F16: return {0};
        case Type::Q4_1: case Type::Q5_1: case Type::Q4_K: case Type::Q5_K: return {0, 2};
        case Type::Q2_K: return {80, 82};
        case Type::Q3_K: return {108};
        case Type::Q6_K: return {208};
        default: return {};
    }
}

uint16_t finite_half() {  // of either sign: one in 13 subnormal, the others 1/64 to 1/32
    const uint32_t r = rng();
    return (uint16_t)((r >> 16 & 0x83FF) | (r % 13 ? 0x2400 : 0));
}

double value_of(uint16_t half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const double size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                        : exponent     ? std::ldexp(1024 + mantissa, exponent - 25)
                                       : std::ldexp(mantissa, -24);
    return half >> 15 ? -size : size;
}

Floats random_floats(size_t n) {
    Floats x(n);
    for (float& v : x) v = std::normal_distribution<float>()(rng);
    return x;
}

std::vector<uint8_t> random_blocks(Type type, int columns) {
    const BlockSize size = block_size(type);
    std::vector<uint8_t> data((size_t)TILE_ROWS * (columns / size.elements) * size.bytes);
    for (uint8_t& b : data) b = (uint8_t)rng();
    for (size_t at = 0; at < data.size(); at += size.bytes) {
        const uint16_t bf16 = (uint16_t)((rng() & 0x80FF) | 0x3C00);
        const float f32 = std::normal_distribution<float>()(rng);
        if (type == Type::BF16) std::memcpy(&data[at], &bf16, 2);
        if (type == Type::F32) std::memcpy(&data[at], &f32, 4);
        for (int offset : scale_offsets(type)) {
            const uint16_t scale = finite_half();
            std::memcpy(&data[at + offset], &scale, 2);
        }
    }
    return data;
}

struct Inputs {  // TOKENS rows of activations
    Floats x, d, sum;
    std::vector<int8_t> q;
    std::vector<int32_t> isum16;
    int k;
    Activations view() const { return {x.data(), q.data(), d.data(), sum.data(), isum16.data(), k}; }
};

Inputs quantise(const Kernels& set, const Floats& x, int k) {
    const size_t n = x.size();
    Inputs r{x, Floats(n / 32), Floats(n / 32), std::vector<int8_t>(n), std::vector<int32_t>(n / 16), k};
    set.quantize(x.data(), (int)n, r.q.data(), r.d.data(), r.sum.data(), r.isum16.data());
    return r;
}

struct Expanded {
    std::vector<uint8_t> codes;
    Floats scale, min, values;
    Panel panel{};
};

Expanded expand(const Kernels& set, Type type, const uint8_t* tile, int k) {
    const size_t n = (size_t)k * TILE_ROWS;
    Expanded e{std::vector<uint8_t>(n), Floats(n / 16), Floats(n / 16), Floats(n)};
    e.panel.codes = e.codes.data(), e.panel.scale = e.scale.data();
    e.panel.min = e.min.data(), e.panel.values = e.values.data();
    set.expand(type, tile, k, e.panel);
    return e;
}

// ---- products -------------------------------------------------------------------------------------------------------

// A code without its offset, so that sets which store it with another offset compare equal.
int code(const Expanded& e, int row, int i) {
    const uint8_t byte = e.codes[(size_t)(i / 4) * 64 + row * 4 + i % 4];
    const bool is_signed = e.panel.wide && e.panel.offset == 0;
    return (is_signed ? (int)(int8_t)byte : (int)byte) - e.panel.offset;
}

struct Truth { double value, bound; };

// One row times one token, and the bound of kernels.h: 4 * n_blocks * eps * sum of |scale * integer|.
Truth product(const Expanded& e, const Activations& a, int token, int row) {
    double value = 0, magnitude = 0;
    const auto add = [&](double term) { value += term, magnitude += std::fabs(term); };
    const size_t at = (size_t)token * a.k;
    if (e.panel.is_float) {
        for (int i = 0; i < a.k; i++) add((double)e.values[(size_t)i * 16 + row] * a.x[at + i]);
        return {value, 4 * a.k * EPS * magnitude};
    }
    const int sub = e.panel.sub16 ? 16 : 32;
    for (int j = 0; j < a.k / sub; j++) {
        int64_t total = 0, sum = 0;
        for (int i = j * sub; i < (j + 1) * sub; i++) {
            total += a.q[at + i] * code(e, row, i);
            sum += a.q[at + i];
        }
        const double d = a.d[(at + (size_t)j * sub) / 32];
        add(d * e.scale[(size_t)j * 16 + row] * (double)total);
        if (e.panel.has_min) add(d * e.min[(size_t)j * 16 + row] * (double)sum);
    }
    return {value, 4.0 * (a.k / sub) * EPS * magnitude};
}

Floats gemv(const Kernels& set, Type type, const uint8_t* tile, const Activations& a, int group) {
    Floats out(TOKENS * 16);
    for (int t = 0; t < TOKENS; t += group) set.gemv(type, tile, a, t, std::min(group, TOKENS - t), &out[t * 16]);
    return out;
}

struct Pair { Floats first, second; };  // (TOKENS, 16) each

Pair panels(const Kernels& set, const Panel& p, const Panel& other, const Activations& a, int group) {
    Floats out((size_t)TOKENS * 32);
    for (int t = 0; t < TOKENS; t += group) set.panels(p, other, a, t, std::min(group, TOKENS - t), &out[t * 32]);
    Pair r;
    for (int t = 0; t < TOKENS; t++) {
        r.first.insert(r.first.end(), &out[t * 32], &out[t * 32] + 16);
        r.second.insert(r.second.end(), &out[t * 32] + 16, &out[t * 32] + 32);
    }
    return r;
}

Matrix random_tile(Type type, int k) {
    Matrix m = make_matrix(type, TILE_ROWS, k);
    pack_tiles(m, random_blocks(type, k).data(), 0, 1);
    return m;
}

void check_product(const Kernels& set, Type type, int k) {
    const Matrix m = random_tile(type, k);
    const Inputs in = quantise(scalar_kernels(), random_floats((size_t)TOKENS * k), k);
    const Activations a = in.view();
    const Expanded truth = expand(scalar_kernels(), type, m.tile(0), k), mine = expand(set, type, m.tile(0), k);
    for (int i = 0; i < k * TILE_ROWS && !truth.panel.is_float; i++)
        expect(code(mine, i % 16, i / 16) == code(truth, i % 16, i / 16), "unpacked code", type);
    expect(mine.scale == truth.scale && mine.min == truth.min && mine.values == truth.values, "unpacked scales", type);

    const Floats y = gemv(set, type, m.tile(0), a, 1), scalar = gemv(scalar_kernels(), type, m.tile(0), a, 1);
    for (int i = 0; i < TOKENS * 16; i++) {
        const Truth t = product(truth, a, i / 16, i % 16);
        near(y[i], t.value, t.bound, "product", type);
        near(y[i], scalar[i], t.bound, "product against the scalar set's", type);
    }
    for (int group = 2; group <= GEMV_TOKENS; group++)
        expect(gemv(set, type, m.tile(0), a, group) == y, "gemv of several tokens", type);
    for (int group = 1; group <= set.panel_tokens; group++) {
        const Pair twice = panels(set, mine.panel, mine.panel, a, group);
        expect(twice.first == y && twice.second == y, "panels", type);
    }
}

// Two packed tiles at once give what each gives alone.
void check_tiles(const Kernels& set, Type type, int k) {
    if (!set.tiles || is_float(type)) return;
    const Matrix m[2] = {random_tile(type, k), random_tile(type, k)};
    const Inputs in = quantise(set, random_floats((size_t)TOKENS * k), k);
    const Activations a = in.view();
    const Floats alone[2] = {gemv(set, type, m[0].tile(0), a, 1), gemv(set, type, m[1].tile(0), a, 1)};
    for (int group = 1; group <= set.panel_tokens; group++)
        for (int t = 0; t < TOKENS; t += group) {
            const int n = std::min(group, TOKENS - t);
            Floats out((size_t)n * 32);
            set.tiles(type, m[0].tile(0), m[1].tile(0), a, t, n, out.data());
            for (int i = 0; i < n * 32; i++)
                expect(out[(size_t)i] == alone[i / 16 % 2][(size_t)(t + i / 32) * 16 + i % 16], "two tiles", type);
        }
}

// Two panels at once give what each gives alone, whether they are of one kind or not.
void check_pair(const Kernels& set, Type type, Type other, int k) {
    const Matrix m[2] = {random_tile(type, k), random_tile(other, k)};
    const Expanded e[2] = {expand(set, type, m[0].tile(0), k), expand(set, other, m[1].tile(0), k)};
    const Inputs in = quantise(set, random_floats((size_t)TOKENS * k), k);
    const Activations a = in.view();
    const Floats alone[2] = {gemv(set, type, m[0].tile(0), a, 1), gemv(set, other, m[1].tile(0), a, 1)};
    for (int group = 1; group <= set.panel_tokens; group++) {
        const Pair both = panels(set, e[0].panel, e[1].panel, a, group);
        expect(both.first == alone[0] && both.second == alone[1], "two panels", type);
    }
}

// ---- elementwise ----------------------------------------------------------------------------------------------------

void check_quantize(const Kernels& set) {
    constexpr int N = 1024;
    Floats x = random_floats(N);
    std::fill_n(x.begin(), 32, 0.0f);  // a block without a scale
    x[40] = -3000;
    const Inputs mine = quantise(set, x, N), scalar = quantise(scalar_kernels(), x, N);
    expect(mine.q == scalar.q && mine.isum16 == scalar.isum16, "quantize: codes");
    expect(mine.d == scalar.d && mine.sum == scalar.sum, "quantize: scales");
    for (int i = 0; i < N; i++) {
        const double d = mine.d[i / 32];
        near(d * mine.q[i], x[i], d * (0.5 + 127 * 2 * EPS), "quantize: value");
    }
    for (int j = 0; j < N / 16; j++) {
        int sum = 0;
        for (int i = 16 * j; i < 16 * j + 16; i++) sum += mine.q[i];
        expect(mine.isum16[j] == sum, "quantize: sum");
    }
}

// Rounding: 32 additions in a lane, 16 over lanes, 15 in the tail, halved by the root; then four operations.
void check_rms_norm(const Kernels& set, int n) {
    const Floats x = random_floats(n), w = random_floats(n);
    Floats y(n);
    set.rms_norm(x.data(), w.data(), 1e-5f, n, y.data());
    double squares = 0;
    for (float v : x) squares += (double)v * v;
    const double scale = 1 / std::sqrt(squares / n + 1e-5f);
    for (int i = 0; i < n; i++) near(y[i], x[i] * scale * w[i], 20 * EPS * std::fabs(x[i] * scale * w[i]), "rms_norm");
}

// exp: 1 ulp is promised, 2 EPS; below -87.3 it is 0, above 88 it stays.
void check_exponentials(const Kernels& set) {
    constexpr int N = 512;
    Floats x = random_floats(N), up = random_floats(N), y(N);
    for (float& v : x) v *= 20;
    x[7] = -300, x[8] = 300, x[9] = 0;
    set.silu_mul(x.data(), up.data(), N, y.data());
    for (int i = 0; i < N; i++) {
        const double truth = up[i] * (double)x[i] / (1 + std::exp(-(double)x[i]));
        near(y[i], truth, 4 * EPS * std::fabs(truth) + 1e-35 * std::fabs(up[i]), "silu_mul");
    }

    x[3] = -INFINITY;
    y = x;
    float top, sum = set.softmax(y.data(), N, &top);
    double total = 0;
    expect(top == 300 && y[3] == 0 && y[7] == 0, "softmax: ends");
    x[8] = top = 12;  // a second run, where more than one term counts
    for (float& v : x) v = std::min(v, top);
    y = x;
    sum = set.softmax(y.data(), N, &top);
    expect(top == 12, "softmax: maximum");
    for (int i = 0; i < N; i++) {
        const float below = x[i] - top;
        const double truth = below < -87.3f ? 0 : std::exp((double)below);
        near(y[i], truth, 2 * EPS * truth, "softmax");
        total += truth;
    }
    near(sum, total, (2 + 24) * EPS * total, "softmax: sum");  // 32 additions in a lane, 16 over lanes
    std::fill(y.begin(), y.end(), -INFINITY);
    expect(set.softmax(y.data(), N, &top) == 0, "softmax: nothing to see");
}

void check_rotate_and_scale(const Kernels& set) {
    constexpr int N = 96, HALF = N / 2;
    const Floats x = random_floats(N), cos = random_floats(HALF), sin = random_floats(HALF), start = random_floats(N);
    Floats y = x;
    set.rotate_half(y.data(), cos.data(), sin.data(), HALF);
    for (int i = 0; i < HALF; i++) {
        const double ac = (double)x[i] * cos[i], bs = (double)x[i + HALF] * sin[i];
        const double bc = (double)x[i + HALF] * cos[i], as = (double)x[i] * sin[i];
        near(y[i], ac - bs, 1.01 * EPS * (std::fabs(ac) + std::fabs(bs)), "rotate_half");
        near(y[i + HALF], bc + as, 1.01 * EPS * (std::fabs(bc) + std::fabs(as)), "rotate_half");
    }
    y = start;
    set.scale_add(y.data(), 0.3f, x.data(), -1.7f, N);
    for (int i = 0; i < N; i++) {
        const double a = start[i] * (double)0.3f, b = x[i] * (double)-1.7f;
        near(y[i], a + b, 1.01 * EPS * (std::fabs(a) + std::fabs(b)), "scale_add");
    }
}

void check_to_half(const Kernels& set) {
    const struct { float x; uint16_t half; } CASES[] = {
        {0.0f, 0}, {-0.0f, 0x8000}, {1.0f, 0x3C00}, {65504.0f, 0x7BFF}, {65519.996f, 0x7BFF}, {65520.0f, 0x7C00},
        {-INFINITY, 0xFC00}, {0x1p-25f, 0}, {0x1.000002p-25f, 1}, {0x1.8p-24f, 2}, {0x1.ff4p-15f, 0x3FE},
        {0x1p-14f, 0x400}, {1 + 0x1p-11f, 0x3C00}, {1 + 0x3p-11f, 0x3C02}, {-1e-9f, 0x8000},
    };
    Floats x = random_floats(37);  // two vectors and a tail
    for (size_t i = 0; i < std::size(CASES); i++) x.insert(x.begin() + 3 * i, CASES[i].x);
    std::vector<uint16_t> h(x.size() + 1, 0xABCD);
    set.to_half(x.data(), (int)x.size(), h.data());
    for (size_t i = 0; i < std::size(CASES); i++) expect(h[3 * i] == CASES[i].half, "to_half: edge");
    for (size_t i = 0; i < x.size(); i++)
        if (std::fabs(x[i]) < 65504) near(value_of(h[i]), x[i], 0x1p-11 * std::fabs(x[i]) + 0x1p-25, "to_half");
    expect(h.back() == 0xABCD, "to_half: writes past the end");
}

double value_of_bf16(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

void check_to_bf16(const Kernels& set) {
    const struct { float x; uint16_t bits; } CASES[] = {
        {0.0f, 0}, {-0.0f, 0x8000}, {1.0f, 0x3F80}, {1 + 0x1p-8f, 0x3F80}, {1 + 0x3p-8f, 0x3F82},
        {0x1.00fffep0f, 0x3F80}, {0x1.010002p0f, 0x3F81}, {0x1.fep127f, 0x7F7F}, {0x1.fefffep127f, 0x7F7F},
        {0x1.ffp127f, 0x7F80}, {-INFINITY, 0xFF80}, {0x1p-133f, 1}, {0x1p-134f, 0}, {-0x1.8p-133f, 0x8002},
    };
    Floats x = random_floats(37);
    for (size_t i = 0; i < std::size(CASES); i++) x.insert(x.begin() + 3 * i, CASES[i].x);
    for (uint32_t nan : {0x7FFFFFFFu, 0xFF800001u}) {  // adding to these would carry into the sign, or leave infinity
        x.emplace_back();
        std::memcpy(&x.back(), &nan, 4);
    }
    std::vector<uint16_t> h(x.size() + 1, 0xABCD);
    set.to_bf16(x.data(), (int)x.size(), h.data());
    for (size_t i = 0; i < std::size(CASES); i++) expect(h[3 * i] == CASES[i].bits, "to_bf16: edge");
    for (size_t i = 0; i < x.size(); i++)
        if (std::fabs(x[i]) < 0x1p120) near(value_of_bf16(h[i]), x[i], 0x1p-8 * std::fabs(x[i]) + 0x1p-134, "to_bf16");
    expect(h[x.size() - 2] == 0x7FFF && h[x.size() - 1] == 0xFFC0, "to_bf16: not a number");
    expect(h.back() == 0xABCD, "to_bf16: writes past the end");
}

// acc + p * values over the keys; one rounding per key, and one of p * scale.
void check_values(const Kernels& set) {
    constexpr int KEYS = 37, DIMS = 96, QUERIES = 6, STRIDE = 48;
    const Floats p = random_floats(STRIDE * QUERIES), start = random_floats(DIMS * QUERIES);
    std::vector<uint16_t> v(KEYS * DIMS), scale(KEYS * DIMS / 32);
    std::vector<int8_t> q(KEYS * DIMS);
    for (uint16_t& h : v) h = finite_half();
    for (uint16_t& h : scale) h = finite_half();
    for (int8_t& c : q) c = (int8_t)rng();
    const auto check = [&](const Floats& got, const std::function<double(int)>& value, const char* what) {
        for (int i = 0; i < DIMS * QUERIES; i++) {
            double truth = start[i], magnitude = std::fabs(start[i]);
            for (int key = 0; key < KEYS; key++) {
                const double term = p[(size_t)(i / DIMS) * STRIDE + key] * value(key * DIMS + i % DIMS);
                truth += term, magnitude += std::fabs(term);
            }
            near(got[i], truth, (KEYS + 1) * EPS * magnitude, what);
        }
    };
    Floats acc = start;
    set.values_f16(p.data(), STRIDE, QUERIES, v.data(), KEYS, DIMS, acc.data());
    check(acc, [&](int i) { return value_of(v[i]); }, "values_f16");
    acc = start;
    set.values_bf16(p.data(), STRIDE, QUERIES, v.data(), KEYS, DIMS, acc.data());
    check(acc, [&](int i) { return value_of_bf16(v[i]); }, "values_bf16");
    acc = start;
    set.values_q8(p.data(), STRIDE, QUERIES, q.data(), scale.data(), KEYS, DIMS, acc.data());
    check(acc, [&](int i) { return q[i] * value_of(scale[i / 32]); }, "values_q8");
}

// ---- the search for scales ------------------------------------------------------------------------------------------

struct Coding { Type type; int bias, group, groups; bool affine, k; };
constexpr Coding CODINGS[] = {
    {Type::Q4_0, 8, 32, 1, false, false}, {Type::Q4_1, 0, 32, 1, true, false},  {Type::Q5_0, 16, 32, 1, false, false},
    {Type::Q5_1, 0, 32, 1, true, false},  {Type::Q8_0, 0, 32, 1, false, false}, {Type::Q2_K, 0, 16, 16, true, true},
    {Type::Q3_K, 4, 16, 16, false, true}, {Type::Q4_K, 0, 32, 8, true, true},   {Type::Q5_K, 0, 32, 8, true, true},
    {Type::Q6_K, 32, 16, 16, false, true},
};

double decoded(const Coding& c, const ScaledBlock& b, int i, int row) {
    const int at = 16 * (i / c.group) + row, byte = b.codes[16 * i + row];
    const int code = c.type == Type::Q8_0 ? (int8_t)byte : byte - c.bias;
    const double step = value_of(b.d[row]) * (c.k ? b.scale[at] : 1);
    const double low = !c.affine ? 0 : c.k ? -value_of(b.m[row]) * b.minimum[at] : value_of(b.m[row]);
    return code * step + low;
}

// What is claimed to be lost is what is lost, and it is what the scalar set loses but for near ties.
void check_search(const Kernels& set, const Coding& c) {
    constexpr int ROWS = 13, STRIDE = 300;
    const int n = c.group * c.groups;
    const float trials[][2] = {{c.affine ? 0.3f : -1.01f * c.bias, 0.2f}, {c.affine ? -0.4f : -0.9f * c.bias, -0.5f}};
    const float q8[][2] = {{-127, 0}, {-125, 0}};
    const int32_t moves[][2] = {{1, 0}, {-1, 0}, {1, 1}, {-1, -1}};
    const ScalePlan plan = {c.type == Type::Q8_0 ? q8[0] : trials[0], moves[0], 2, 4, 2};
    const Floats x = random_floats(ROWS * STRIDE), random = random_floats(n);
    Floats w, w_sums(c.groups);
    for (int i = 0; i < n; i++) w.push_back(random[i] * random[i] + 0.01f), w_sums[i / c.group] += w[i];
    const BlockRows in = {Type::F32, (const uint8_t*)x.data(), 4 * STRIDE, ROWS, w.data(), w_sums.data()};
    ScaledBlock mine, scalar;
    set.search_scales(c.type, in, plan, mine);
    scalar_kernels().search_scales(c.type, in, plan, scalar);
    double total = 0, scalar_total = 0;
    for (int r = 0; r < 16; r++) {
        double error = 0, power = 0;
        for (int i = 0; i < n; i++) {
            const double v = r < ROWS ? x[r * STRIDE + i] : 0, lost = v - decoded(c, mine, i, r);
            error += w[i] * lost * lost, power += w[i] * v * v;
        }
        near(mine.power[r], power, 1e-5 * power, "search: power", c.type);
        near(mine.error[r], error, 1e-3 * error, "search: error claimed", c.type);
        expect(error < 0.1 * power || r >= ROWS, "search: error is small", c.type);
        total += mine.error[r], scalar_total += scalar.error[r];
    }
    near(total, scalar_total, 0.02 * scalar_total, "search: error against the scalar set's", c.type);
}

void check_sources(const Kernels& set) {
    std::vector<uint16_t> half(16 * 32);
    Floats f16(half.size()), bf16(half.size()), w(32, 1.0f);
    for (size_t i = 0; i < half.size(); i++) {
        half[i] = finite_half();
        const uint32_t bits = (uint32_t)half[i] << 16;
        f16[i] = (float)value_of(half[i]);
        std::memcpy(&bf16[i], &bits, 4);
    }
    const float trial[] = {-127, 0}, sum = 32;
    const ScalePlan plan = {trial, nullptr, 1, 0, 0};
    for (Type source : {Type::F16, Type::BF16}) {
        const Floats& floats = source == Type::F16 ? f16 : bf16;
        ScaledBlock a{}, b{};
        set.search_scales(Type::Q8_0, {source, (const uint8_t*)half.data(), 64, 16, w.data(), &sum}, plan, a);
        set.search_scales(Type::Q8_0, {Type::F32, (const uint8_t*)floats.data(), 128, 16, w.data(), &sum}, plan, b);
        expect(!std::memcmp(a.codes, b.codes, 512) && !std::memcmp(a.d, b.d, 32), "search: source", source);
    }
}

void check_set(const Kernels& set) {
    for (size_t i = 0; i < std::size(TYPES); i++) {
        const int block = std::max(block_size(TYPES[i]).elements, 32);
        for (int blocks : {1, 2, 3}) {
            check_product(set, TYPES[i], blocks * block);
            check_tiles(set, TYPES[i], blocks * block);
        }
        check_pair(set, TYPES[i], TYPES[i], 512);
        check_pair(set, TYPES[i], TYPES[(i + 1) % std::size(TYPES)], 512);
    }
    check_quantize(set);
    for (int n : {512, 499}) check_rms_norm(set, n);
    check_exponentials(set);
    check_rotate_and_scale(set);
    check_to_half(set);
    check_to_bf16(set);
    check_values(set);
    for (const Coding& coding : CODINGS) check_search(set, coding);
    check_sources(set);
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<std::string> usable;
    for (const Kernels* set : usable_kernels()) usable.push_back(set->name);
    for (int i = 1; i < argc; i++)
        if (std::find(usable.begin(), usable.end(), argv[i]) == usable.end())
            return std::printf("%s is not usable on this CPU\n", argv[i]), 2;
    bool good = true;
    for (const Kernels* set : usable_kernels()) {
        comparisons = failures = 0;
        check_set(*set);
        good = good && failures == 0;
        std::printf("%s: %zu types, %ld comparisons, ", set->name, std::size(TYPES), comparisons);
        std::printf(failures ? "%ld WRONG\n" : "ok\n", failures);
    }
    return good ? 0 : 1;
}
