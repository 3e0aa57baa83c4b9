// A block of 16 rows is put together as an image, (bytes of the block, 16 rows), and turned into 16 blocks at the end:
// packing codes and scales is then the same few operations on 16 bytes side by side.
#include "quantize.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "cpu.h"
#include "pack.h"
#include "threads.h"

namespace phial {
namespace {

// `bits` bits of each code, from bit `shift` on, in chunks of `run` bytes at `offset`: the lowest field of every byte
// first (BlockFormat in gguf/formats.py).
struct Field { int offset, bits, run, shift; };

struct Layout {
    Type type;
    int group;         // values under one scale
    Field low, high;   // high: bits 0 where there is none
    int d, m, scales;  // offsets; -1 where there is none
};

constexpr Field NONE = {0, 0, 0, 0};
constexpr Layout LAYOUTS[] = {
    {Type::Q4_0, 32, {2, 4, 16, 0}, NONE, 0, -1, -1},
    {Type::Q4_1, 32, {4, 4, 16, 0}, NONE, 0, 2, -1},
    {Type::Q5_0, 32, {6, 4, 16, 0}, {2, 1, 1, 4}, 0, -1, -1},
    {Type::Q5_1, 32, {8, 4, 16, 0}, {4, 1, 1, 4}, 0, 2, -1},
    {Type::Q8_0, 32, {2, 8, 32, 0}, NONE, 0, -1, -1},
    {Type::Q2_K, 16, {16, 2, 32, 0}, NONE, 80, 82, 0},
    {Type::Q3_K, 16, {32, 2, 32, 0}, {0, 1, 32, 2}, 108, -1, 96},
    {Type::Q4_K, 32, {16, 4, 32, 0}, NONE, 0, 2, 4},
    {Type::Q5_K, 32, {48, 4, 32, 0}, {16, 1, 32, 4}, 0, 2, 4},
    {Type::Q6_K, 16, {0, 4, 64, 0}, {128, 2, 32, 4}, 208, -1, 192},
};

const Layout& layout_of(Type type) {
    for (const Layout& layout : LAYOUTS)
        if (layout.type == type) return layout;
    throw std::invalid_argument("type " + std::to_string((int)type) + " has no block scales");
}

struct Image {
    uint8_t bytes[210 * TILE_ROWS];

    uint8_t* at(int offset) { return bytes + TILE_ROWS * offset; }
    template <class F> void put(int offset, F&& value) {  // value(row)
        uint8_t* to = at(offset);
        for (int r = 0; r < TILE_ROWS; r++) to[r] = (uint8_t)value(r);
    }
    void halves(int offset, const uint16_t* h) {
        if (offset < 0) return;
        put(offset, [&](int r) { return h[r]; });
        put(offset + 1, [&](int r) { return h[r] >> 8; });
    }
};

void put_codes(Image& image, const Field& f, const uint8_t* codes, int elements) {
    if (!f.bits) return;
    const int bits = f.bits, shift = f.shift, run = f.run, fields = 8 / bits, chunk = TILE_ROWS * run;
    const uint64_t mask = 0x0101010101010101 * ((1u << bits) - 1);  // eight rows at a time
    uint8_t* to = image.at(f.offset);
    for (; elements > 0; elements -= run * fields, codes += chunk * fields)
        for (int at = 0; at < chunk; at += 8, to += 8) {
            uint64_t bytes = 0, word;
            for (int i = 0; i < fields; i++) {
                std::memcpy(&word, codes + at + chunk * i, 8);
                bytes |= (word >> shift & mask) << (bits * i);
            }
            std::memcpy(to, &bytes, 8);
        }
}

void put_scales(Image& image, Type type, int offset, const ScaledBlock& block) {
    const auto scale = [&](int group, int r) { return block.scale[TILE_ROWS * group + r]; };
    const auto minimum = [&](int group, int r) { return block.minimum[TILE_ROWS * group + r]; };
    for (int i = 0; i < 16; i++) {
        const int at = offset + i, j = i % 4;
        if (type == Type::Q6_K) image.put(at, [&](int r) { return scale(i, r); });
        if (type == Type::Q2_K) image.put(at, [&](int r) { return scale(i, r) | minimum(i, r) << 4; });
        if (type == Type::Q3_K && i < 8)  // plus 32: low nibbles, then pairs of high bits
            image.put(at, [&](int r) { return ((scale(i, r) + 32) & 15) | ((scale(i + 8, r) + 32) & 15) << 4; });
        if (type == Type::Q3_K && i >= 8 && i < 12)
            image.put(at, [&](int r) {
                int byte = 0;
                for (int f = 0; f < 4; f++) byte |= (scale(j + 4 * f, r) + 32) >> 4 << 2 * f;
                return byte;
            });
        if (type != Type::Q4_K && type != Type::Q5_K) continue;  // the last four of both are split in two places
        if (i < 4) image.put(at, [&](int r) { return scale(j, r) | scale(j + 4, r) >> 4 << 6; });
        else if (i < 8) image.put(at, [&](int r) { return minimum(j, r) | minimum(j + 4, r) >> 4 << 6; });
        else if (i < 12) image.put(at, [&](int r) { return (scale(j + 4, r) & 15) | (minimum(j + 4, r) & 15) << 4; });
    }
}

struct Job {
    const Layout& layout;
    Type source;
    const uint8_t* x;
    int64_t rows, columns;
    const float* weights;
    const ScalePlan& plan;
    uint8_t* out;
    std::vector<float> weight_sums;  // of each group
    BlockSize size = block_size(layout.type);

    void store(int64_t tile, int64_t block, const ScaledBlock& found) const {
        Image image;
        put_codes(image, layout.low, found.codes, size.elements);
        put_codes(image, layout.high, found.codes, size.elements);
        image.halves(layout.d, found.d);
        image.halves(layout.m, found.m);
        if (layout.scales >= 0) put_scales(image, layout.type, layout.scales, found);
        const int64_t row_bytes = columns / size.elements * size.bytes;
        const int rows_here = rows_of(tile), bytes = size.bytes;
        for (int r = 0; r < rows_here; r++) {
            const uint8_t* from = image.bytes + r;
            uint8_t* to = out + (tile * TILE_ROWS + r) * row_bytes + block * bytes;
            for (int i = 0; i < bytes; i++) to[i] = from[TILE_ROWS * i];
        }
    }

    int rows_of(int64_t tile) const { return (int)std::min<int64_t>(rows - tile * TILE_ROWS, TILE_ROWS); }

    WeightedError tile(int64_t index, const Kernels& kernels) const {
        const int64_t bytes = block_size(source).bytes;
        ScaledBlock found;
        WeightedError sum;
        for (int64_t b = 0; b < columns / size.elements; b++) {
            const int64_t at = b * size.elements;
            const BlockRows in = {source, x + (index * TILE_ROWS * columns + at) * bytes, columns * bytes, rows_of(index),
                                  weights + at, &weight_sums[(size_t)(at / layout.group)]};
            kernels.search_scales(layout.type, in, plan, found);
            store(index, b, found);
            for (int r = 0; r < in.rows; r++) sum.error += found.error[r], sum.power += found.power[r];
        }
        return sum;
    }
};

}  // namespace

WeightedError quantize(Type type, Type source, const uint8_t* x, int64_t rows, int64_t columns, const float* weights,
                       const ScalePlan& plan, int n_threads, uint8_t* out) {
    Job job = {layout_of(type), source, x, rows, columns, weights, plan, out, {}};
    if (columns % job.size.elements)
        throw std::invalid_argument(std::to_string(columns) + " columns do not fill blocks of " +
                                    std::to_string(job.size.elements));
    for (int64_t at = 0; at < columns; at += job.layout.group) {
        float sum = 0;
        for (int i = 0; i < job.layout.group; i++) sum += weights[at + i];
        job.weight_sums.push_back(sum);
    }
    const Kernels& kernels = current_kernels();
    const int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    ThreadPool pool(n_threads);
    std::atomic<int64_t> next{0};
    std::vector<WeightedError> errors((size_t)tiles);  // added up in order: the sum does not depend on the threads
    pool.run(n_threads, [&](int) {
        for (int64_t t; (t = next.fetch_add(1)) < tiles;) errors[(size_t)t] = job.tile(t, kernels);
    });
    WeightedError total;
    for (const WeightedError& e : errors) total.error += e.error, total.power += e.power;
    return total;
}

}  // namespace phial
