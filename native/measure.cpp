#include "measure.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <vector>

#include "cpu.h"
#include "pack.h"
#include "threads.h"

namespace phial {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

// The shortest run of `pass`, which is given a counter to share work by.
double best_pass(int n_threads, double seconds, const std::function<void(std::atomic<size_t>&)>& pass) {
    ThreadPool pool(n_threads);
    double best = 1e30;
    for (const auto start = Clock::now(); best == 1e30 || since(start) < seconds;) {
        const auto begin = Clock::now();
        std::atomic<size_t> next{0};
        pool.run(n_threads, [&](int) { pass(next); });
        best = std::min(best, since(begin));
    }
    return best;
}

// What one thread needs to unpack a pair of tiles.
struct Panels {
    Buffer memory[2];
    Panel panel[2];
    explicit Panels(size_t k) {
        for (int i = 0; i < 2; i++) {
            memory[i] = Buffer(3 * k * TILE_ROWS * sizeof(float));
            panel[i].values = memory[i].as<float>();
            panel[i].codes = memory[i].data();
            panel[i].scale = panel[i].values + k * TILE_ROWS;
            panel[i].min = panel[i].scale + k * TILE_ROWS;
        }
    }
};

void multiply_pair(const Kernels& k, const Matrix& m, int tile, const Activations& a, int tokens, Panels& p) {
    float out[16 * 2 * TILE_ROWS];
    const uint8_t* both[2] = {m.tile(tile), m.tile(tile + 1)};
    if (tokens <= (k.tiles ? 2 : GEMV_TOKENS)) {
        for (const uint8_t* t : both) k.gemv(m.type, t, a, 0, tokens, out);
        return;
    }
    const bool packed = k.tiles && tokens <= FEW_TOKENS;
    for (int i = 0; i < 2 && !packed; i++) k.expand(m.type, both[i], a.k, p.panel[i]);
    for (int t = 0; t < tokens; t += k.panel_tokens) {
        const int n = std::min(k.panel_tokens, tokens - t);
        if (packed) k.tiles(m.type, both[0], both[1], a, t, n, out);
        else k.panels(p.panel[0], p.panel[1], a, t, n, out);
    }
}

}  // namespace

double read_bandwidth(int n_threads, double seconds) {
    constexpr size_t BYTES = 1024u << 20, CHUNK = 1 << 20;
    Buffer data(BYTES);
    std::memset(data.data(), 1, BYTES);
    const Kernels& k = current_kernels();
    std::atomic<double> sink{0};
    return BYTES / 1e9 / best_pass(n_threads, seconds, [&](std::atomic<size_t>& next) {
        for (size_t at; (at = next.fetch_add(CHUNK)) < BYTES;) sink = sink + k.read(data.data() + at, CHUNK);
    });
}

double dot_rate(int n_threads, double seconds) {
    constexpr int STEPS = 1 << 18;
    const Kernels& k = current_kernels();
    std::atomic<double> operations{0};
    const double pass = best_pass(n_threads, seconds, [&](std::atomic<size_t>&) { operations = k.dots(STEPS); });
    return operations * n_threads / 1e9 / pass;
}

double matmul_seconds(Type type, int rows, int columns, int tokens, int n_threads, double seconds) {
    Matrix m = make_matrix(type, (rows + 31) / 32 * 32, columns);
    std::memset(m.buffer.data(), 0x11, m.buffer.bytes());  // finite scales; the codes do not matter to the speed
    const Kernels& k = current_kernels();
    const size_t n = (size_t)tokens * columns;
    std::vector<float> x(n), d(n / 32), sum(n / 32);
    std::vector<int8_t> q(n);
    std::vector<int32_t> isum(n / 16);
    for (size_t i = 0; i < n; i++) x[i] = (float)(i % 251) - 125;
    k.quantize(x.data(), (int)n, q.data(), d.data(), sum.data(), isum.data());
    const Activations a = {x.data(), q.data(), d.data(), sum.data(), isum.data(), columns};
    return best_pass(n_threads, seconds, [&](std::atomic<size_t>& next) {
        Panels p((size_t)columns);
        const size_t part = tokens <= FEW_TOKENS ? 32 : 2, end = (size_t)m.tiles();
        for (size_t first; (first = next.fetch_add(part)) < end;)
            for (size_t t = first; t < std::min(first + part, end); t += 2) multiply_pair(k, m, (int)t, a, tokens, p);
    });
}

}  // namespace phial
