#include "cache.h"

#include <cstring>
#include <stdexcept>

namespace phial {

Cache::Cache(Type type, int layers, int kv_heads, int head_dim)
    : type_(type), layers_(layers), kv_heads_(kv_heads), head_dim_(head_dim), padded_dim_(padded_head_dim(head_dim)) {
    const bool q8 = type == Type::Q8_0;
    group_bytes_ = tile_bytes(type, q8 ? padded_dim_ : head_dim);
    const size_t value_bytes = (size_t)PAGE_TOKENS * (q8 ? padded_dim_ + padded_dim_ / 16 : 2 * padded_dim_);
    head_bytes_ = (group_bytes_ * (PAGE_TOKENS / KEY_GROUP) + value_bytes + 63) / 64 * 64;
    page_bytes_ = head_bytes_ * (size_t)layers * kv_heads;
}

int Cache::new_page() {
    int id;
    if (!free_.empty()) {
        id = free_.back();
        pages_[(size_t)id] = Buffer(page_bytes_);
        free_.pop_back();
    } else {
        pages_.emplace_back(page_bytes_);
        used_.push_back(false);
        id = (int)pages_.size() - 1;
    }
    used_[(size_t)id] = true;
    return id;
}

void Cache::free_page(int id) {
    page(id);
    used_[(size_t)id] = false;
    pages_[(size_t)id] = Buffer();
    free_.push_back(id);
}

uint8_t* Cache::page(int id) const {
    if (id < 0 || id >= (int)pages_.size() || !used_[(size_t)id])
        throw std::invalid_argument("no cache page " + std::to_string(id));
    return pages_[(size_t)id].data();
}

void Cache::copy_page(int source, int target) { std::memcpy(page(target), page(source), page_bytes_); }

void Cache::store(const Kernels& kernels, uint8_t* page, int layer, int head, int slot, const float* key,
                  const float* value) const {
    uint8_t* group = keys(page, layer, head, slot / KEY_GROUP);
    uint8_t* v = values(page, layer, head);
    const int lane = slot % KEY_GROUP;
    if (type_ == Type::Q8_0) return store_q8(kernels, group, v, slot, key, value);
    const auto round = type_ == Type::F16 ? kernels.to_half : kernels.to_bf16;
    uint16_t rounded[MAX_HEAD_DIM];
    round(key, head_dim_, rounded);
    uint16_t* k = (uint16_t*)group;
    for (int d = 0; d < head_dim_; d++) k[KEY_GROUP * d + lane] = rounded[d];
    round(value, head_dim_, (uint16_t*)v + (size_t)slot * padded_dim_);
}

void Cache::store_q8(const Kernels& kernels, uint8_t* group, uint8_t* values, int slot, const float* key,
                     const float* value) const {
    float padded[MAX_HEAD_DIM] = {}, scale[MAX_HEAD_DIM / 32], sum[MAX_HEAD_DIM / 32];
    int8_t q[MAX_HEAD_DIM];
    int32_t isum[MAX_HEAD_DIM / 16];
    uint16_t half_scale[MAX_HEAD_DIM / 32];
    const int lane = slot % KEY_GROUP, parts = padded_dim_ / 32;
    std::memcpy(padded, key, sizeof(float) * (size_t)head_dim_);
    kernels.quantize(padded, padded_dim_, q, scale, sum, isum);
    kernels.to_half(scale, parts, half_scale);
    for (int p = 0; p < parts; p++) {
        uint8_t* block = group + tile_bytes(Type::Q8_0, 32) * (size_t)p;
        for (int w = 0; w < 8; w++) std::memcpy(block + 64 * w + 4 * lane, q + 32 * p + 4 * w, 4);
        std::memcpy(block + 512 + 2 * lane, &half_scale[p], 2);
    }

    std::memcpy(padded, value, sizeof(float) * (size_t)head_dim_);
    kernels.quantize(padded, padded_dim_, (int8_t*)values + (size_t)slot * padded_dim_, scale, sum, isum);
    kernels.to_half(scale, parts, value_scales(values) + (size_t)slot * parts);
}

}  // namespace phial
