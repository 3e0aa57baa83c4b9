#include "cache.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "rope.h"

namespace phial {
namespace {

// A head as Q8_0: codes (padded) and a float16 scale for each 32.
struct Blocks {
    int8_t q[MAX_HEAD_DIM];
    uint16_t scale[MAX_HEAD_DIM / 32];
    Blocks(const Kernels& kernels, const float* x, int dims, int padded) {
        float values[MAX_HEAD_DIM] = {}, d[MAX_HEAD_DIM / 32], sum[MAX_HEAD_DIM / 32];
        int32_t isum[MAX_HEAD_DIM / 16];
        std::memcpy(values, x, sizeof(float) * (size_t)dims);
        kernels.quantize(values, padded, q, d, sum, isum);
        kernels.to_half(d, padded / 32, scale);
    }
};

}  // namespace

Cache::Cache(Type type, int layers, int kv_heads, int head_dim, bool rope_interleaved)
    : type_(type), layers_(layers), kv_heads_(kv_heads), head_dim_(head_dim), padded_dim_(padded_head_dim(head_dim)),
      rope_interleaved_(rope_interleaved) {
    const bool q8 = type == Type::Q8_0;
    group_bytes_ = tile_bytes(type, q8 ? padded_dim_ : head_dim);
    const size_t value_bytes = (size_t)PAGE_TOKENS * (q8 ? padded_dim_ + padded_dim_ / 16 : 2 * padded_dim_);
    head_bytes_ = (group_bytes_ * (PAGE_TOKENS / KEY_GROUP) + value_bytes + 63) / 64 * 64;
    page_bytes_ = head_bytes_ * (size_t)layers * kv_heads;
    slab_pages_ = (int)std::max<size_t>(1, SLAB_BYTES / page_bytes_);
}

int Cache::new_page() {
    if (free_.empty()) {
        slabs_.emplace_back();
        for (int i = slab_pages_; i-- > 0;) free_.push_back(((int)slabs_.size() - 1) * slab_pages_ + i);
        used_.resize(slabs_.size() * (size_t)slab_pages_, false);
    }
    const int id = free_.back();
    Slab& slab = slabs_[(size_t)(id / slab_pages_)];
    if (!slab.memory.data()) slab.memory = Buffer(page_bytes_ * (size_t)slab_pages_);
    free_.pop_back();
    slab.pages_used++;
    used_[(size_t)id] = true;
    return id;
}

void Cache::free_page(int id) {
    page(id);
    used_[(size_t)id] = false;
    Slab& slab = slabs_[(size_t)(id / slab_pages_)];
    if (--slab.pages_used == 0) slab.memory = Buffer();
    free_.push_back(id);
}

uint8_t* Cache::page(int id) const {
    if (id < 0 || (size_t)id >= used_.size() || !used_[(size_t)id])
        throw std::invalid_argument("no cache page " + std::to_string(id));
    return slabs_[(size_t)(id / slab_pages_)].memory.data() + page_bytes_ * (size_t)(id % slab_pages_);
}

void Cache::copy_page(int source, int target) { std::memcpy(page(target), page(source), page_bytes_); }

void Cache::store(const Kernels& kernels, uint8_t* page, int layer, int head, int slot, const float* key,
                  const float* value) const {
    store_key(kernels, keys(page, layer, head, slot / KEY_GROUP), slot % KEY_GROUP, key);
    store_value(kernels, values(page, layer, head), slot, value);
}

void Cache::store_key(const Kernels& kernels, uint8_t* group, int lane, const float* key) const {
    if (type_ == Type::Q8_0) {
        const Blocks b(kernels, key, head_dim_, padded_dim_);
        for (int p = 0; p < padded_dim_ / 32; p++) {
            uint8_t* block = group + tile_bytes(Type::Q8_0, 32) * (size_t)p;
            for (int w = 0; w < 8; w++) std::memcpy(block + 64 * w + 4 * lane, b.q + 32 * p + 4 * w, 4);
            std::memcpy(block + 512 + 2 * lane, &b.scale[p], 2);
        }
        return;
    }
    uint16_t rounded[MAX_HEAD_DIM];
    (type_ == Type::F16 ? kernels.to_half : kernels.to_bf16)(key, head_dim_, rounded);
    for (int d = 0; d < head_dim_; d++) ((uint16_t*)group)[KEY_GROUP * d + lane] = rounded[d];
}

void Cache::store_value(const Kernels& kernels, uint8_t* values, int slot, const float* value) const {
    if (type_ == Type::Q8_0) {
        const Blocks b(kernels, value, head_dim_, padded_dim_);
        const size_t parts = (size_t)padded_dim_ / 32;
        std::memcpy(values + (size_t)slot * padded_dim_, b.q, (size_t)padded_dim_);
        std::memcpy(value_scales(values) + (size_t)slot * parts, b.scale, 2 * parts);
        return;
    }
    uint16_t* row = (uint16_t*)values + (size_t)slot * padded_dim_;
    (type_ == Type::F16 ? kernels.to_half : kernels.to_bf16)(value, head_dim_, row);
}

void Cache::rotate_keys(const Kernels& kernels, uint8_t* page, const float* cos, const float* sin, int half) const {
    const int columns = type_ == Type::Q8_0 ? padded_dim_ : head_dim_;
    std::vector<float> values((size_t)columns * TILE_ROWS), scale((size_t)columns), key((size_t)columns);
    Panel panel{};
    panel.codes = (uint8_t*)values.data();
    panel.values = values.data();
    panel.scale = scale.data();
    for (int layer = 0; layer < layers_; layer++)
        for (int head = 0; head < kv_heads_; head++)
            for (int slot = 0; slot < PAGE_TOKENS; slot++) {
                uint8_t* group = keys(page, layer, head, slot / KEY_GROUP);
                const int lane = slot % KEY_GROUP;
                if (lane == 0) kernels.expand(type_, group, columns, panel);
                panel_row(panel, lane, columns, key.data());
                rotate(kernels, key.data(), cos + (size_t)slot * half, sin + (size_t)slot * half, half, rope_interleaved_);
                store_key(kernels, group, lane, key.data());
            }
}

}  // namespace phial
