// A tile holds 16 rows of a matrix; rows past the end are zero. Planes of each ggml block are interleaved by 32-bit
// words: word w of row r goes to position 16 * w + r. What else is moved is noted below.
#include "pack.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace phial {

#if defined(__unix__) || defined(__APPLE__)

Buffer::Buffer(size_t bytes) {
    bytes_ = bytes;
    if (!bytes_) return;
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (bytes_ >= (2u << 20)) madvise(p, bytes_, MADV_HUGEPAGE);
#endif
    data_ = (uint8_t*)p;
}

Buffer::~Buffer() {
    if (data_ && owned_) munmap(data_, bytes_);
}

#else

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
    if (!bytes_) return;
    data_ = (uint8_t*)::operator new(bytes_, std::align_val_t(64));
    std::memset(data_, 0, bytes_);
}

Buffer::~Buffer() {
    if (data_ && owned_) ::operator delete(data_, std::align_val_t(64));
}

#endif

Buffer Arena::take(size_t bytes) {
    constexpr size_t REGION = 64u << 20, LINE = 64;
    bytes = (bytes + LINE - 1) / LINE * LINE;
    if (regions_.empty() || used_ + bytes > regions_.back().bytes()) {
        regions_.emplace_back(bytes > REGION ? bytes : REGION);
        used_ = 0;
    }
    uint8_t* data = regions_.back().data() + used_;
    used_ += bytes;
    return Buffer::view(data, bytes);
}

BlockSize block_size(Type type) {
    switch (type) {
        case Type::F32: return {1, 4};
        case Type::F16: return {1, 2};
        case Type::BF16: return {1, 2};
        case Type::Q4_0: return {32, 18};
        case Type::Q4_1: return {32, 20};
        case Type::Q5_0: return {32, 22};
        case Type::Q5_1: return {32, 24};
        case Type::Q8_0: return {32, 34};
        case Type::Q2_K: return {256, 84};
        case Type::Q3_K: return {256, 110};
        case Type::Q4_K: return {256, 144};
        case Type::Q5_K: return {256, 176};
        case Type::Q6_K: return {256, 210};
    }
    throw std::invalid_argument("unknown tensor type " + std::to_string((int)type));
}

namespace {

// Bytes of 16 rows' blocks (BYTES in format.h).
size_t packed_block_bytes(Type type) {
    switch (type) {
        case Type::Q4_0: return 288;
        case Type::Q4_1: return 320;
        case Type::Q5_0: return 352;
        case Type::Q5_1: return 384;
        case Type::Q8_0: return 544;
        case Type::Q2_K: return 1600;
        case Type::Q3_K: return 1856;
        case Type::Q4_K: return 2368;
        case Type::Q5_K: return 2880;
        case Type::Q6_K: return 3392;
        default: return 16 * (size_t)block_size(type).bytes;
    }
}

struct Cursor {  // where one row's part of a packed block goes
    uint8_t* block;
    int row;

    void words(size_t at, const uint8_t* source, int bytes) const {
        for (int w = 0; w < bytes / 4; w++) std::memcpy(block + at + 64 * (size_t)w + 4 * row, source + 4 * w, 4);
    }
    void put(size_t at, uint32_t value) const { std::memcpy(block + at + 4 * row, &value, 4); }
    void half(size_t at, const uint8_t* source) const { std::memcpy(block + at + 2 * row, source, 2); }
    void byte(size_t at, int index, uint8_t value) const { block[at + 16 * (size_t)index + row] = value; }
    // Q5_0, Q5_1: one 32-bit word of fifth bits becomes bits 4 * row .. of 8 masks.
    void masks(size_t at, const uint8_t* source) const {
        uint32_t bits;
        std::memcpy(&bits, source, 4);
        for (int g = 0; g < 8; g++)
            block[at + 8 * (size_t)g + row / 2] |= (uint8_t)(((bits >> (4 * g)) & 15) << (4 * (row % 2)));
    }
};

// The K types' layout: a head of HEAD_K bytes, then a step of two sub-blocks four times (see format.h).
constexpr size_t HEAD_K = 64;

uint32_t word(const uint8_t* p, int i) {
    uint32_t w;
    std::memcpy(&w, p + 4 * i, 4);
    return w;
}

// ggml keeps eight 6-bit scales and minimums in 12 bytes; they become one byte each.
void unpack_scales_k(const uint8_t* s, const Cursor& to, size_t at, size_t step) {
    for (int i = 0; i < 8; i++) {
        const uint8_t scale = i < 4 ? s[i] & 63 : (s[i + 4] & 15) | (s[i - 4] >> 6) << 4;
        const uint8_t low = i < 4 ? s[i + 4] & 63 : (s[i + 4] >> 4) | (s[i] >> 6) << 4;
        to.byte(at + step * (size_t)(i / 2), i % 2, scale);
        to.byte(at + step * (size_t)(i / 2), 2 + i % 2, low);
    }
}

// Q3_K: sixteen 6-bit scales in 12 bytes, stored plus 32.
void unpack_scales_q3(const uint8_t* s, const Cursor& to, size_t at, size_t step) {
    for (int i = 0; i < 16; i++) {
        const int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4;
        const int high = (s[8 + i % 4] >> (2 * (i / 4))) & 3;
        to.byte(at + step * (size_t)(i / 4), i % 4, (uint8_t)((low | high << 4) - 32));
    }
}

// 32 bytes whose bit S belongs to sub-block S become 32 bytes a sub-block, in which bit G belongs to word G.
void unpack_bits(const uint8_t* bits, const Cursor& to, size_t at, size_t step) {
    for (int s = 0; s < 8; s++) {
        uint32_t gathered = 0;
        for (int g = 0; g < 8; g++) gathered |= ((word(bits, g) >> s) & 0x01010101u) << g;
        to.put(at + step * (size_t)(s / 2) + 64 * (size_t)(s % 2), gathered);
    }
}

// 32 bytes of four sub-blocks' pairs of bits, lowest first: the first two go to one step, the last two to the next.
void unpack_pairs(const uint8_t* pairs, const Cursor& to, size_t at, size_t step) {
    constexpr uint32_t LOW = 0x0f0f0f0fu;
    for (int i = 0; i < 4; i++) {
        const uint32_t a = word(pairs, i), b = word(pairs, i + 4);
        to.put(at + 64 * (size_t)i, (a & LOW) | (b & LOW) << 4);
        to.put(at + step + 64 * (size_t)i, (a >> 4 & LOW) | (b & ~LOW));
    }
}

// Q6_K: 64 bytes of nibbles, of sub-blocks 0 and 2, then 1 and 3, become those of 0 and 1, then 2 and 3.
void unpack_nibbles_q6(const uint8_t* nibbles, const Cursor& to, size_t at, size_t step) {
    constexpr uint32_t LOW = 0x0f0f0f0fu;
    for (int i = 0; i < 8; i++) {
        const uint32_t a = word(nibbles, i), b = word(nibbles, i + 8);
        to.put(at + 64 * (size_t)i, (a & LOW) | (b & LOW) << 4);
        to.put(at + step + 64 * (size_t)i, (a >> 4 & LOW) | (b & ~LOW));
    }
}

void pack_block_k(Type type, const uint8_t* b, const Cursor& to) {
    switch (type) {
        case Type::Q4_K:
        case Type::Q5_K: {
            const bool fifth = type == Type::Q5_K;
            const size_t step = fifth ? 704 : 576;
            to.half(0, b); to.half(32, b + 2);
            for (int p = 0; p < 4; p++) to.words(HEAD_K + step * (size_t)p, b + (fifth ? 48 : 16) + 32 * p, 32);
            if (fifth) unpack_bits(b + 16, to, HEAD_K + 512, step);
            unpack_scales_k(b + 4, to, HEAD_K + step - 64, step);
            break;
        }
        case Type::Q6_K:
            to.half(0, b + 208);
            for (size_t half = 0; half < 2; half++) {
                const size_t at = HEAD_K + 2 * 832 * half;
                unpack_nibbles_q6(b + 64 * half, to, at, 832);
                unpack_pairs(b + 128 + 32 * half, to, at + 512, 832);
            }
            for (int i = 0; i < 16; i++) to.byte(HEAD_K + 768 + 832 * (size_t)(i / 4), i % 4, b[192 + i]);
            break;
        case Type::Q3_K:
            to.half(0, b + 108);
            for (size_t half = 0; half < 2; half++) unpack_pairs(b + 32 + 32 * half, to, HEAD_K + 2 * 448 * half, 448);
            unpack_bits(b, to, HEAD_K + 256, 448);
            unpack_scales_q3(b + 96, to, HEAD_K + 384, 448);
            break;
        default:  // Q2_K
            to.half(0, b + 80); to.half(32, b + 82);
            for (size_t half = 0; half < 2; half++) unpack_pairs(b + 16 + 32 * half, to, HEAD_K + 2 * 384 * half, 384);
            for (int i = 0; i < 16; i++) {
                const size_t at = HEAD_K + 256 + 384 * (size_t)(i / 4);
                to.byte(at, i % 4, b[i] & 15);
                to.byte(at, 4 + i % 4, b[i] >> 4);
            }
    }
}

void pack_block(Type type, const uint8_t* b, const Cursor& to) {
    switch (type) {
        case Type::Q4_1: to.half(256, b); to.half(288, b + 2); to.words(0, b + 4, 16); break;
        case Type::Q5_0: to.half(320, b); to.masks(256, b + 2); to.words(0, b + 6, 16); break;
        case Type::Q5_1:
            to.half(320, b); to.half(352, b + 2); to.masks(256, b + 4); to.words(0, b + 8, 16);
            break;
        case Type::Q8_0: to.half(512, b); to.words(0, b + 2, 32); break;
        default: pack_block_k(type, b, to); break;
    }
}

// Block `index` of a row: two share a step (format.h), a last one of an odd number has its own.
void pack_q4_0(uint8_t* tile, int row, const uint8_t* b, int index, int blocks) {
    const int place = index % 2;
    const size_t scales = place == 0 && index + 1 == blocks ? 256 : 512;
    const Cursor to = {tile + 576 * (size_t)(index / 2), row};
    to.words(256 * (size_t)place, b + 2, 16);
    to.half(scales + 32 * (size_t)place, b);
}

void pack_floats(uint8_t* tile, const uint8_t* row_data, int row, int columns, size_t size) {
    for (int i = 0; i < columns; i++)
        std::memcpy(tile + size * ((size_t)TILE_ROWS * i + row), row_data + size * (size_t)i, size);
}

}  // namespace

size_t tile_bytes(Type type, int columns) {
    return packed_block_bytes(type) * (size_t)(columns / block_size(type).elements);
}

namespace {

Matrix without_memory(Type type, int rows, int columns) {
    const BlockSize block = block_size(type);
    if (rows <= 0 || columns <= 0 || columns % block.elements)
        throw std::invalid_argument("a " + std::to_string(rows) + " x " + std::to_string(columns) +
                                    " matrix does not fit blocks of " + std::to_string(block.elements));
    Matrix m;
    m.type = type;
    m.rows = rows;
    m.columns = columns;
    m.bytes_per_tile = (tile_bytes(type, columns) + 63) / 64 * 64;
    return m;
}

}  // namespace

size_t packed_bytes(Type type, int rows, int columns) {
    const Matrix m = without_memory(type, rows, columns);
    return m.bytes_per_tile * (size_t)m.tiles();
}

Matrix make_matrix(Type type, int rows, int columns, Arena* arena) {
    Matrix m = without_memory(type, rows, columns);
    const size_t bytes = packed_bytes(type, rows, columns);
    m.buffer = arena ? arena->take(bytes) : Buffer(bytes);
    return m;
}

Matrix view_matrix(Type type, int rows, int columns, const uint8_t* tiles) {
    Matrix m = without_memory(type, rows, columns);
    m.buffer = Buffer::view((uint8_t*)tiles, packed_bytes(type, rows, columns));
    return m;
}

void pack_tiles(Matrix& m, const uint8_t* data, int first, int last) {
    const BlockSize size = block_size(m.type);
    const int blocks = m.columns / size.elements;
    const size_t row_bytes = (size_t)blocks * size.bytes, packed = packed_block_bytes(m.type);
    for (int t = first; t < last; t++) {
        uint8_t* tile = m.buffer.data() + m.bytes_per_tile * (size_t)t;
        const int rows = m.rows - t * TILE_ROWS < TILE_ROWS ? m.rows - t * TILE_ROWS : TILE_ROWS;
        for (int r = 0; r < rows; r++) {
            const uint8_t* row = data + row_bytes * (size_t)(t * TILE_ROWS + r);
            if (is_float(m.type)) {
                pack_floats(tile, row, r, m.columns, (size_t)size.bytes);
                continue;
            }
            for (int b = 0; b < blocks; b++) {
                const uint8_t* block = row + (size_t)b * size.bytes;
                if (m.type == Type::Q4_0) pack_q4_0(tile, r, block, b, blocks);
                else pack_block(m.type, block, {tile + packed * (size_t)b, r});
            }
        }
    }
}

void panel_row(const Panel& p, int row, int columns, float* out) {
    const int sub = p.sub16 ? 16 : 32;
    for (int i = 0; i < columns; i++) {
        if (p.is_float) {
            out[i] = p.values[(size_t)TILE_ROWS * i + row];
            continue;
        }
        const uint8_t byte = p.codes[(size_t)64 * (i / 4) + 4 * row + i % 4];
        const int code = p.wide && p.offset == 0 ? (int8_t)byte : (int)byte - p.offset;
        const size_t at = (size_t)TILE_ROWS * (i / sub) + row;
        out[i] = p.scale[at] * (float)code + (p.has_min ? p.min[at] : 0.0f);
    }
}

}  // namespace phial
