#include "attention.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace phial {
namespace {

constexpr int ANNOUNCED_BYTES = 2048;
constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

// Asks for the beginning of what is read next: the processor's own prefetching starts anew in every page.
void announce(const uint8_t* next) {
    for (int i = 0; i < ANNOUNCED_BYTES; i += 64) __builtin_prefetch(next + i, 0, 2);
}

int first_chunk(const QueryTile& tile) {
    int first = tile.first[0];
    for (int r = 1; r < tile.rows; r++) first = tile.first[r] < first ? tile.first[r] : first;
    return first / CHUNK_KEYS;
}

int last_key(const QueryTile& tile) {
    int last = 0;
    for (int r = 0; r < tile.rows; r++) last = tile.last[r] > last ? tile.last[r] : last;
    return last;
}

}  // namespace

Attention::Attention(int head_dim)
    : head_dim_(head_dim), padded_(padded_head_dim(head_dim)), queries_((size_t)QUERY_ROWS * padded_),
      d_((size_t)QUERY_ROWS * padded_ / 32), sum_(d_.size()), scores_((size_t)QUERY_ROWS * CHUNK_KEYS), acc_((size_t)QUERY_ROWS * padded_), total_(acc_.size()),
      q_((size_t)QUERY_ROWS * padded_), isum_((size_t)QUERY_ROWS * padded_ / 16) {}

void Attention::load_queries(const Kernels& k, const QueryTile& tile, bool q8) {
    const int stride = q8 ? padded_ : head_dim_;
    for (int r = 0; r < tile.rows; r++) {
        float* row = queries_.data() + (size_t)r * stride;
        std::memcpy(row, tile.query[r], sizeof(float) * (size_t)head_dim_);
        if (!q8) continue;
        std::memset(row + head_dim_, 0, sizeof(float) * (size_t)(padded_ - head_dim_));
        const size_t parts = (size_t)r * padded_ / 32;
        k.quantize(row, padded_, q_.data() + (size_t)r * padded_, d_.data() + parts, sum_.data() + parts,
                   isum_.data() + 2 * parts);
    }
}

// Scores of one page's keys into scores_[row][at ..], masked by what each row sees. `key` is the page's first position.
void Attention::scores(const Kernels& k, const Cache& cache, const QueryTile& tile, uint8_t* page, int layer, int head,
                       int key, int at) {
    const bool q8 = cache.type() == Type::Q8_0;
    const Activations a = {queries_.data(), q_.data(), d_.data(), sum_.data(), isum_.data(), q8 ? padded_ : head_dim_};
    float tile_out[GEMV_TOKENS * TILE_ROWS];
    for (int g = 0; g < PAGE_TOKENS / KEY_GROUP; g++) {
        const uint8_t* keys = cache.keys(page, layer, head, g);
        for (int r0 = 0; r0 < tile.rows; r0 += GEMV_TOKENS) {
            const int n = tile.rows - r0 < GEMV_TOKENS ? tile.rows - r0 : GEMV_TOKENS;
            k.gemv(cache.type(), keys, a, r0, n, tile_out);
            for (int r = 0; r < n; r++)
                std::memcpy(&scores_[(size_t)(r0 + r) * CHUNK_KEYS + at + g * KEY_GROUP], tile_out + TILE_ROWS * r,
                            sizeof(float) * KEY_GROUP);
        }
    }
    for (int r = 0; r < tile.rows; r++) {
        float* s = &scores_[(size_t)r * CHUNK_KEYS + at];
        for (int i = 0; i < PAGE_TOKENS && key + i < tile.first[r]; i++) s[i] = MINUS_INFINITY;
        for (int i = tile.last[r] > key ? tile.last[r] - key : 0; i < PAGE_TOKENS; i++) s[i] = MINUS_INFINITY;
    }
}

void Attention::chunk(const Kernels& k, const Cache& cache, const QueryTile& tile, uint8_t* const* pages, int layer,
                      int head, int chunk, Partial* partial, float* acc) {
    const bool q8 = cache.type() == Type::Q8_0;
    load_queries(k, tile, q8);
    const int begin = chunk * CHUNK_KEYS, last = last_key(tile);
    const int left = (last - begin + PAGE_TOKENS - 1) / PAGE_TOKENS, n_pages = left < CHUNK_PAGES ? left : CHUNK_PAGES;
    uint8_t* const* page = pages + begin / PAGE_TOKENS;
    for (int p = 0; p < n_pages; p++) {
        announce(p + 1 < n_pages ? cache.keys(page[p + 1], layer, head, 0) : cache.values(page[0], layer, head));
        scores(k, cache, tile, page[p], layer, head, begin + p * PAGE_TOKENS, p * PAGE_TOKENS);
    }
    for (int r = 0; r < tile.rows; r++) {
        float* s = &scores_[(size_t)r * CHUNK_KEYS];
        partial[r].sum = k.softmax(s, n_pages * PAGE_TOKENS, &partial[r].max);
        if (partial[r].sum == 0) std::memset(s, 0, sizeof(float) * (size_t)n_pages * PAGE_TOKENS);
    }
    std::memset(acc, 0, sizeof(float) * (size_t)tile.rows * padded_);
    const auto values_16 = cache.type() == Type::F16 ? k.values_f16 : k.values_bf16;
    for (int p = 0; p < n_pages; p++) {
        uint8_t* v = cache.values(page[p], layer, head);
        if (p + 1 < n_pages) announce(cache.values(page[p + 1], layer, head));
        else if (begin + CHUNK_KEYS < last) announce(cache.keys(page[CHUNK_PAGES], layer, head, 0));
        const float* weights = scores_.data() + p * PAGE_TOKENS;
        if (q8)
            k.values_q8(weights, CHUNK_KEYS, tile.rows, (int8_t*)v, cache.value_scales(v), PAGE_TOKENS, padded_, acc);
        else
            values_16(weights, CHUNK_KEYS, tile.rows, (uint16_t*)v, PAGE_TOKENS, padded_, acc);
    }
}

void merge(const Kernels& k, Partial& state, float* values, const Partial& partial, const float* acc, int dims) {
    if (partial.sum == 0) return;
    const float max = partial.max > state.max ? partial.max : state.max;
    const float old = std::exp(state.max - max), fresh = std::exp(partial.max - max);
    k.scale_add(values, old, acc, fresh, dims);
    state = {max, state.sum * old + partial.sum * fresh};
}

void Attention::attend(const Kernels& k, const Cache& cache, const QueryTile& tile, uint8_t* const* pages, int layer,
                       int head) {
    Partial state[QUERY_ROWS], partial[QUERY_ROWS];
    for (int r = 0; r < tile.rows; r++) state[r] = {MINUS_INFINITY, 0};
    std::memset(total_.data(), 0, sizeof(float) * total_.size());
    const int chunks = (last_key(tile) + CHUNK_KEYS - 1) / CHUNK_KEYS;
    for (int c = first_chunk(tile); c < chunks; c++) {
        chunk(k, cache, tile, pages, layer, head, c, partial, acc_.data());
        for (int r = 0; r < tile.rows; r++)
            merge(k, state[r], &total_[(size_t)r * padded_], partial[r], &acc_[(size_t)r * padded_], padded_);
    }
    for (int r = 0; r < tile.rows; r++)
        for (int d = 0; d < head_dim_; d++) tile.out[r][d] = total_[(size_t)r * padded_ + d] / state[r].sum;
}

}  // namespace phial
