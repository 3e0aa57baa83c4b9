// Compares every kernel set this CPU (or emulator) can run with the scalar one, on random packed weights.
//
// For machines where the Python tests cannot run: built with -DPHIAL_MODULE=OFF, by a cross compiler. Prints the sets it
// compared; exit status 1 on a difference. Arguments: the sets that must be among the usable ones, in this order.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu.h"
#include "pack.h"

using namespace phial;

namespace {

constexpr double EPS = 1.1920929e-7;
constexpr int TOKENS = 7;
constexpr Type TYPES[] = {Type::F32,  Type::F16,  Type::BF16, Type::Q4_0, Type::Q4_1, Type::Q5_0, Type::Q5_1,
                          Type::Q8_0, Type::Q2_K, Type::Q3_K, Type::Q4_K, Type::Q5_K, Type::Q6_K};

std::mt19937 rng(1);
int failures = 0;

void expect(bool good, const Kernels& set, const char* what, int type = -1) {
    if (good) return;
    failures++;
    std::printf("FAILED %s: %s, type %d\n", set.name, what, type);
}

// Offsets of the halves in a block that hold scales: random bytes there could be infinite.
std::vector<int> scale_offsets(Type t) {
    switch (t) {
        case Type::Q4_0: case Type::Q5_0: case Type::Q8_0: return {0};
        case Type::Q4_1: case Type::Q5_1: case Type::Q4_K: case Type::Q5_K: return {0, 2};
        case Type::Q2_K: return {80, 82};
        case Type::Q3_K: return {108};
        case Type::Q6_K: return {208};
        default: return {};
    }
}

uint16_t finite_half() {
    const uint32_t r = rng();
    if (r % 13 == 0) return (uint16_t)(r >> 16 & 0x83FF);  // zero or subnormal
    return (uint16_t)((r >> 16 & 0x83FF) | 0x2400);
}

std::vector<uint8_t> random_blocks(Type type, int rows, int columns) {
    const BlockSize size = block_size(type);
    std::vector<uint8_t> data((size_t)rows * (columns / size.elements) * size.bytes);
    for (uint8_t& b : data) b = (uint8_t)rng();
    const auto put = [&](size_t at, uint16_t half) { std::memcpy(&data[at], &half, 2); };
    for (size_t at = 0; at < data.size(); at += size.bytes) {
        for (int offset : scale_offsets(type)) put(at + offset, finite_half());
        if (type == Type::F16) put(at, finite_half());
        if (type == Type::BF16) put(at, (uint16_t)((rng() & 0x807F) | 0x3C00));
        if (type == Type::F32) {
            const float value = std::normal_distribution<float>()(rng);
            std::memcpy(&data[at], &value, 4);
        }
    }
    return data;
}

std::vector<float> random_floats(size_t n) {
    std::vector<float> x(n);
    for (float& v : x) v = std::normal_distribution<float>()(rng);
    return x;
}

struct Quantised {
    std::vector<int8_t> q;
    std::vector<float> d, sum;
    std::vector<int32_t> isum16;
    bool operator==(const Quantised&) const = default;
};

Quantised quantise(const Kernels& set, const std::vector<float>& x) {
    const size_t n = x.size();
    Quantised r{std::vector<int8_t>(n), std::vector<float>(n / 32), std::vector<float>(n / 32), std::vector<int32_t>(n / 16)};
    set.quantize(x.data(), (int)n, r.q.data(), r.d.data(), r.sum.data(), r.isum16.data());
    return r;
}

struct Expanded {
    std::vector<uint8_t> codes;
    std::vector<float> scale, min, values;
    Panel panel{};
};

Expanded expand(const Kernels& set, Type type, const uint8_t* tile, int k) {
    const size_t n = (size_t)k * TILE_ROWS;
    Expanded e{std::vector<uint8_t>(n), std::vector<float>(n / 16), std::vector<float>(n / 16), std::vector<float>(n)};
    e.panel.codes = e.codes.data(), e.panel.scale = e.scale.data();
    e.panel.min = e.min.data(), e.panel.values = e.values.data();
    set.expand(type, tile, k, e.panel);
    return e;
}

// The bound of kernels.h for one row and token: 4 * n_blocks * eps * sum of |scale * integer|.
double bound(const Expanded& e, const Activations& a, int token, int row) {
    double magnitude = 0;
    if (e.panel.is_float) {
        for (int i = 0; i < a.k; i++) magnitude += std::fabs((double)e.values[i * 16 + row] * a.x[(size_t)token * a.k + i]);
        return 4 * a.k * EPS * magnitude;
    }
    const int sub = e.panel.sub16 ? 16 : 32;
    for (int j = 0; j < a.k / sub; j++) {
        int64_t total = 0, sum = 0;
        for (int i = j * sub; i < (j + 1) * sub; i++) {
            const int q = a.q[(size_t)token * a.k + i], byte = e.codes[(i / 4) * 64 + row * 4 + i % 4];
            total += q * ((e.panel.wide ? (int8_t)byte : byte) - e.panel.offset);
            sum += q;
        }
        const double d = a.d[(size_t)token * (a.k / 32) + j * sub / 32];
        magnitude += std::fabs(d * e.scale[j * 16 + row] * (double)total);
        if (e.panel.has_min) magnitude += std::fabs(d * e.min[j * 16 + row] * (double)sum);
    }
    return 4.0 * (a.k / sub) * EPS * magnitude;
}

std::vector<float> gemv(const Kernels& set, Type type, const uint8_t* tile, const Activations& a, int group) {
    std::vector<float> out(TOKENS * 16);
    for (int t = 0; t < TOKENS; t += group) set.gemv(type, tile, a, t, std::min(group, TOKENS - t), &out[t * 16]);
    return out;
}

std::vector<float> panels(const Kernels& set, const Panel& p, const Activations& a, int group) {
    std::vector<float> out(TOKENS * 16), pair((size_t)group * 32);
    for (int t = 0; t < TOKENS; t += group) {
        const int tokens = std::min(group, TOKENS - t);
        set.panels(p, p, a, t, tokens, pair.data());
        for (int i = 0; i < tokens; i++) std::copy_n(&pair[i * 32], 16, &out[(t + i) * 16]);
    }
    return out;
}

void check_product(const Kernels& set, Type type, int k) {
    const Kernels& scalar = scalar_kernels();
    Matrix m = make_matrix(type, 16, k);
    pack_tiles(m, random_blocks(type, 16, k).data(), 0, 1);
    const std::vector<float> x = random_floats((size_t)TOKENS * k);
    const Quantised q = quantise(scalar, x);
    const Activations a = {x.data(), q.q.data(), q.d.data(), q.sum.data(), q.isum16.data(), k};
    const Expanded truth = expand(scalar, type, m.tile(0), k), mine = expand(set, type, m.tile(0), k);
    if (mine.panel.offset == truth.panel.offset) expect(mine.codes == truth.codes, set, "unpacked codes", (int)type);
    expect(mine.scale == truth.scale && mine.min == truth.min && mine.values == truth.values, set, "scales", (int)type);

    const std::vector<float> reference = gemv(scalar, type, m.tile(0), a, 1), y = gemv(set, type, m.tile(0), a, 1);
    for (int i = 0; i < TOKENS * 16; i++)
        expect(std::fabs((double)y[i] - reference[i]) <= bound(truth, a, i / 16, i % 16), set, "product", (int)type);
    for (int group = 2; group <= GEMV_TOKENS; group++)
        expect(gemv(set, type, m.tile(0), a, group) == y, set, "gemv of several tokens", (int)type);
    for (int group = 1; group <= set.panel_tokens; group++)
        expect(panels(set, mine.panel, a, group) == y, set, "panels", (int)type);
}

void expect_close(const Kernels& set, const char* what, const std::vector<float>& a, const std::vector<float>& b,
                  double relative, double absolute) {
    for (size_t i = 0; i < a.size(); i++)
        expect(std::fabs((double)a[i] - b[i]) <= relative * std::fabs(b[i]) + absolute, set, what);
}

void check_elementwise(const Kernels& set) {
    constexpr int N = 512;
    const Kernels& scalar = scalar_kernels();
    std::vector<float> x = random_floats(N), w = random_floats(N), a(N), b(N);
    std::fill_n(x.begin(), 32, 0.0f);  // a block without a scale
    x[40] = -300, x[41] = 300;
    expect(quantise(set, x) == quantise(scalar, x), set, "quantize");

    set.rms_norm(x.data(), w.data(), 1e-5f, N, a.data());
    scalar.rms_norm(x.data(), w.data(), 1e-5f, N, b.data());
    expect_close(set, "rms_norm", a, b, N * EPS, 0);
    set.silu_mul(x.data(), w.data(), N, a.data());
    scalar.silu_mul(x.data(), w.data(), N, b.data());
    expect_close(set, "silu_mul", a, b, 16 * EPS, 1e-37);

    std::vector<uint16_t> ha(N), hb(N);
    set.to_half(x.data(), N, ha.data());
    scalar.to_half(x.data(), N, hb.data());
    expect(ha == hb, set, "to_half");

    a = b = x;
    a[3] = b[3] = -INFINITY;
    float top_a, top_b;
    const float sum_a = set.softmax(a.data(), N, &top_a), sum_b = scalar.softmax(b.data(), N, &top_b);
    expect(top_a == top_b && a[3] == 0, set, "softmax maximum");
    expect_close(set, "softmax", a, b, 16 * EPS, 1e-37);
    expect_close(set, "softmax sum", {sum_a}, {sum_b}, N * EPS, 0);
}

void check_values(const Kernels& set) {
    constexpr int KEYS = 37, DIMS = 96, QUERIES = 6;
    const Kernels& scalar = scalar_kernels();
    const std::vector<float> p = random_floats(KEYS * QUERIES), start = random_floats(DIMS * QUERIES);
    std::vector<uint16_t> v(KEYS * DIMS), scale(KEYS * DIMS / 32);
    std::vector<int8_t> q(KEYS * DIMS);
    for (uint16_t& h : v) h = finite_half();
    for (uint16_t& h : scale) h = finite_half();
    for (int8_t& c : q) c = (int8_t)rng();
    // |p * v| summed over keys is at most this, so is the order's effect times KEYS * eps.
    const double absolute = 4.0 * KEYS * EPS * KEYS * 4 * 0.04 * 128;
    std::vector<float> a = start, b = start;
    set.values_f16(p.data(), KEYS, QUERIES, v.data(), KEYS, DIMS, a.data());
    scalar.values_f16(p.data(), KEYS, QUERIES, v.data(), KEYS, DIMS, b.data());
    expect_close(set, "values_f16", a, b, 0, absolute / 128);
    a = b = start;
    set.values_q8(p.data(), KEYS, QUERIES, q.data(), scale.data(), KEYS, DIMS, a.data());
    scalar.values_q8(p.data(), KEYS, QUERIES, q.data(), scale.data(), KEYS, DIMS, b.data());
    expect_close(set, "values_q8", a, b, 0, absolute);
}

}  // namespace

int main(int argc, char** argv) {
    std::string names, wanted;
    for (const Kernels* set : usable_kernels()) names += std::string(names.empty() ? "" : " ") + set->name;
    for (int i = 1; i < argc; i++) wanted += std::string(i == 1 ? "" : " ") + argv[i];
    std::printf("kernel sets: %s\n", names.c_str());
    if (argc > 1 && names != wanted) return std::printf("FAILED: expected %s\n", wanted.c_str()), 1;
    for (const Kernels* set : usable_kernels()) {
        for (Type type : TYPES)
            for (int blocks : {1, 3}) check_product(*set, type, blocks * std::max(block_size(type).elements, 32));
        check_elementwise(*set);
        check_values(*set);
    }
    std::printf("%d differences\n", failures);
    return failures ? 1 : 0;
}
