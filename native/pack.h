// Weights in the layout of kernels.h: repacked once at load, tile by tile, from ggml's blocks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"

namespace phial {

// Zeroed memory straight from the operating system, in huge pages where it offers them; returned on destruction.
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t bytes);  // throws std::bad_alloc
    ~Buffer();
    Buffer(Buffer&& o) noexcept
        : data_(std::exchange(o.data_, nullptr)), bytes_(std::exchange(o.bytes_, 0)), owned_(o.owned_) {}
    Buffer& operator=(Buffer&& o) noexcept {
        std::swap(data_, o.data_);
        std::swap(bytes_, o.bytes_);
        std::swap(owned_, o.owned_);
        return *this;
    }
    // Memory that somebody else frees, after the view's last use.
    static Buffer view(uint8_t* data, size_t bytes) {
        Buffer b;
        b.data_ = data;
        b.bytes_ = bytes;
        b.owned_ = false;
        return b;
    }
    uint8_t* data() const { return data_; }
    size_t bytes() const { return bytes_; }
    template <class T> T* as() const { return (T*)data_; }

  private:
    uint8_t* data_ = nullptr;
    size_t bytes_ = 0;
    bool owned_ = true;
};

// Buffers cut from large regions, so that small ones lie in huge pages too; freed all together.
class Arena {
  public:
    Buffer take(size_t bytes);  // zeroed, on a cache line of its own; throws std::bad_alloc

  private:
    std::vector<Buffer> regions_;
    size_t used_ = 0;  // of the last region
};

struct BlockSize { int elements, bytes; };
BlockSize block_size(Type type);          // throws std::invalid_argument for an unknown type
size_t tile_bytes(Type type, int columns);

struct Matrix {
    Type type = Type::F32;
    int rows = 0, columns = 0;
    size_t bytes_per_tile = 0;
    Buffer buffer;

    int tiles() const { return (rows + TILE_ROWS - 1) / TILE_ROWS; }
    const uint8_t* tile(int i) const { return buffer.data() + bytes_per_tile * (size_t)i; }
    explicit operator bool() const { return rows > 0; }
};

// Memory of its own, or from the arena. Throws std::invalid_argument where columns do not fit blocks.
Matrix make_matrix(Type type, int rows, int columns, Arena* arena = nullptr);
size_t packed_bytes(Type type, int rows, int columns);  // of its buffer; throws as make_matrix does
// Over tiles that are packed already, packed_bytes of them on a cache line, which must outlive it.
Matrix view_matrix(Type type, int rows, int columns, const uint8_t* tiles);
// Packs tiles [first, last) from `data`, the tensor's ggml blocks, row after row. Thread-safe over disjoint tiles.
void pack_tiles(Matrix& m, const uint8_t* data, int first, int last);
// One row (0 to 15) of an unpacked tile as floats.
void panel_row(const Panel& p, int row, int columns, float* out);

}  // namespace phial
