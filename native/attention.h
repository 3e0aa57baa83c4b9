// Attention over the paged cache: online softmax in chunks of 256 keys, merged in order.
//
// A chunk's arithmetic does not depend on which queries share the pass, on the number of threads or on where the prompt
// was split, so results are the same bits in prefill and decode.
#pragma once
#include <vector>

#include "cache.h"

namespace phial {

constexpr int CHUNK_KEYS = 256, CHUNK_PAGES = CHUNK_KEYS / PAGE_TOKENS, QUERY_ROWS = 16;

// Up to QUERY_ROWS queries of one sequence and key-value head.
struct QueryTile {
    int rows = 0;
    const float* query[QUERY_ROWS];  // head_dim floats, already scaled
    float* out[QUERY_ROWS];          // head_dim floats
    int first[QUERY_ROWS];           // keys [first, last) are seen
    int last[QUERY_ROWS];
};

// What one chunk contributes to a row: softmax weights' sum and maximum, and the unnormalised values.
struct Partial { float max, sum; };

class Attention {
  public:
    explicit Attention(int head_dim);

    // The whole tile, chunk after chunk, into tile.out.
    void attend(const Kernels& k, const Cache& cache, const QueryTile& tile, uint8_t* const* pages, int layer,
                int head);
    // One chunk of it: partial and acc have one entry (padded_dim floats) a row.
    void chunk(const Kernels& k, const Cache& cache, const QueryTile& tile, uint8_t* const* pages, int layer, int head,
               int chunk, Partial* partial, float* acc);

  private:
    void load_queries(const Kernels& k, const QueryTile& tile, bool q8);
    void scores(const Kernels& k, const Cache& cache, const QueryTile& tile, uint8_t* page, int layer, int head, int key,
                int at);

    int head_dim_, padded_;
    std::vector<float> queries_, d_, sum_, scores_, acc_, total_;
    std::vector<int8_t> q_;
    std::vector<int32_t> isum_;
};

// Folds a chunk into a row's running state; the first state is {-inf, 0} with zero values.
void merge(const Kernels& k, Partial& state, float* values, const Partial& partial, const float* acc, int dims);

}  // namespace phial
