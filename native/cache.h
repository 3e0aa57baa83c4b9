// The key-value cache: pages of 64 tokens for all layers, handed out one by one. Which page belongs to which sequence is
// Python's business (engine/cache.py); here is only memory and layout.
//
// Keys lie in groups of 16 as a weight tile of 16 rows and head_dim inputs (F16, BF16 or Q8_0 as in kernels.h), so the
// matmul kernels compute the scores. Values lie row by row, padded to 32 dimensions.
#pragma once
#include <string>
#include <vector>

#include "pack.h"

namespace phial {

constexpr size_t SLAB_BYTES = 8u << 20;
constexpr int PAGE_TOKENS = 64, KEY_GROUP = TILE_ROWS, MAX_HEAD_DIM = 512;

inline int padded_head_dim(int head_dim) { return (head_dim + 31) / 32 * 32; }

class Cache {
  public:
    // `type` is F16, BF16 or Q8_0; keys rotate in pairs (2i, 2i + 1) where interleaved.
    Cache(Type type, int layers, int kv_heads, int head_dim, bool rope_interleaved);
    Cache(const Cache&) = delete;

    int new_page();  // zeroed or reused memory; throws std::bad_alloc
    void free_page(int id);
    void copy_page(int source, int target);
    uint8_t* page(int id) const;  // throws std::invalid_argument for an id that is not in use

    bool made_for(int layers, int kv_heads, int head_dim) const {
        return layers == layers_ && kv_heads == kv_heads_ && head_dim == head_dim_;
    }
    size_t page_bytes() const { return page_bytes_; }
    int pages_in_use() const { return (int)used_.size() - (int)free_.size(); }
    Type type() const { return type_; }
    int padded_dim() const { return padded_dim_; }
    int head_dim() const { return head_dim_; }

    // Inside a page: one key group (tile), and the values of one head (PAGE_TOKENS rows, then their scales for Q8_0).
    uint8_t* keys(uint8_t* page, int layer, int head, int group) const {
        return page + head_bytes_ * ((size_t)layer * kv_heads_ + head) + group_bytes_ * (size_t)group;
    }
    uint8_t* values(uint8_t* page, int layer, int head) const {
        return keys(page, layer, head, 0) + group_bytes_ * (PAGE_TOKENS / KEY_GROUP);
    }
    uint16_t* value_scales(uint8_t* values) const { return (uint16_t*)(values + (size_t)PAGE_TOKENS * padded_dim_); }

    // Stores one token's key and value of one head; `slot` is its place in the page.
    void store(const Kernels& kernels, uint8_t* page, int layer, int head, int slot, const float* key,
               const float* value) const;
    // Turns every key of a page, layer by layer and head by head: slot s by cos[s], sin[s] (PAGE_TOKENS, half). Keys are
    // rounded to the cache's type once more; a rotation by nothing leaves the F16 and BF16 ones as they are.
    void rotate_keys(const Kernels& kernels, uint8_t* page, const float* cos, const float* sin, int half) const;

  private:
    void store_key(const Kernels& kernels, uint8_t* group, int lane, const float* key) const;
    void store_value(const Kernels& kernels, uint8_t* values, int slot, const float* value) const;

    Type type_;
    int layers_, kv_heads_, head_dim_, padded_dim_;
    bool rope_interleaved_;
    size_t group_bytes_, head_bytes_, page_bytes_;
    struct Slab { Buffer memory; int pages_used = 0; };  // pages side by side: several small ones share a huge page
    std::vector<Slab> slabs_;
    int slab_pages_ = 1;
    std::vector<int> free_;
    std::vector<bool> used_;
};

}  // namespace phial
