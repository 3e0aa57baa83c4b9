// The contract between the model and the machine: one table of functions per instruction set.
//
// Weights are packed in tiles of 16 output rows. Inside a tile every plane of a ggml block (codes, high bits) is
// interleaved at 32-bit granularity, so that one 64-byte vector holds 4 consecutive inputs of 16 rows: what one
// 512-bit vpdpbusd, two 256-bit ones or four NEON sdot consume. The layout is the same for every kernel set.
// See pack.cpp for the planes of each type and kernels/format.h for how they are read.
//
// Accuracy. Integer parts are exact. A float result y = sum over blocks of scale * integer differs between sets by the
// order and fusing of n_blocks additions only: |y - y'| <= 4 * n_blocks * eps * sum |scale * integer|.
// One set gives the same bits for a row whichever function computes it (gemv or panels, any number of tokens).
#pragma once
#include <cstddef>
#include <cstdint>

namespace phial {

// ggml's type numbers.
enum class Type : int {
    F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
    Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30,
};

inline bool is_float(Type t) { return t == Type::F32 || t == Type::F16 || t == Type::BF16; }

constexpr int TILE_ROWS = 16;   // output rows of a weight tile, keys of a key-cache group
constexpr int GEMV_TOKENS = 4;  // most tokens one gemv call takes
constexpr int FEW_TOKENS = 32;  // up to here tiles are read as they are packed: unpacking costs as much as four tokens

// Rows of activations, one per token: float for float weights; int8 in blocks of 32 for quantised ones.
struct Activations {
    const float* x;          // (tokens, k)
    const int8_t* q;         // (tokens, k)       x ~ d * q
    const float* d;          // (tokens, k / 32)
    const float* sum;        // (tokens, k / 32)  d * sum of q: what a block's minimum is multiplied by
    const int32_t* isum16;   // (tokens, k / 16)  sum of q: what a code's constant offset is multiplied by
    int k;
};

// One tile unpacked for reuse over many tokens: value = scale * (code - offset) + min.
struct Panel {
    uint8_t* codes;   // (k / 4, 16 rows, 4 inputs); signed bytes where `wide`
    float* scale;     // (k / sub, 16)
    float* min;       // (k / sub, 16), where has_min
    float* values;    // (k, 16): float types only
    int32_t offset;
    bool sub16, has_min, wide, is_float;
};

// What the search for scales tries: see gguf/scale_search_numpy.py.
struct ScalePlan {
    const float* trials;   // (n_trials, 2)
    const int32_t* moves;  // (n_moves, 2)
    int n_trials, n_moves, rounds;
};

// A block's values in up to 16 rows, `stride` bytes apart, F32, F16 or BF16; the weights of their squared errors, and the
// sum of these in each group.
struct BlockRows {
    Type source;
    const uint8_t* x;
    int64_t stride;
    int rows;
    const float *w, *w_sums;
};

// One block of 16 rows with its scales found, each plane (…, 16 rows).
struct ScaledBlock {
    uint8_t codes[256 * TILE_ROWS];  // plus the type's bias: as they are stored
    int8_t scale[16 * TILE_ROWS], minimum[16 * TILE_ROWS];  // K types
    uint16_t d[TILE_ROWS], m[TILE_ROWS];                    // float16
    float error[TILE_ROWS], power[TILE_ROWS];  // weighted sums of squares: what is lost, what there was
};

struct Kernels {
    const char* name;
    int panel_tokens;  // tokens a panel step takes at once: the model groups by it

    // x (k) -> q, d, sum, isum16; k a multiple of 32.
    void (*quantize)(const float* x, int k, int8_t* q, float* d, float* sum, int32_t* isum16);
    // out (tokens, 16) = tile (16 rows, k) . activations of tokens t0 .. t0 + tokens - 1; tokens <= GEMV_TOKENS.
    void (*gemv)(Type type, const uint8_t* tile, const Activations& a, int t0, int tokens, float* out);
    // Unpacks one tile; the caller owns the buffers.
    void (*expand)(Type type, const uint8_t* tile, int k, Panel& panel);
    // out (tokens, 32) = two panels against `tokens` activations; b may equal a.
    void (*panels)(const Panel& a, const Panel& b, const Activations& x, int t0, int tokens, float* out);
    // The same from two packed tiles of a quantised type: for few tokens. nullptr where registers are too few for it.
    void (*tiles)(Type type, const uint8_t* a, const uint8_t* b, const Activations& x, int t0, int tokens, float* out);

    void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* y);
    void (*silu_mul)(const float* gate, const float* up, int n, float* y);       // y = up * silu(gate)
    void (*rotate_half)(float* x, const float* cos, const float* sin, int half); // pairs (i, i + half), in place
    // s (n, a multiple of 16) becomes exp(s - max); returns the sum, 0 where every score is -inf.
    float (*softmax)(float* s, int n, float* max);
    // acc (queries, dims) += p (queries, p_stride) over keys; values (keys, dims), dims a multiple of 32.
    void (*values_f16)(const float* p, int p_stride, int queries, const uint16_t* v, int keys, int dims, float* acc);
    void (*values_bf16)(const float* p, int p_stride, int queries, const uint16_t* v, int keys, int dims, float* acc);
    void (*values_q8)(const float* p, int p_stride, int queries, const int8_t* v, const uint16_t* scale, int keys,
                      int dims, float* acc);
    // y = y * a + x * b
    void (*scale_add)(float* y, float a, const float* x, float b, int n);
    void (*to_half)(const float* x, int n, uint16_t* y);
    void (*to_bf16)(const float* x, int n, uint16_t* y);  // both to nearest, ties to even
    double (*dots)(int n);  // n times as many dot products as fill the registers; returns operations done by one thread
    // d is not finite where a row holds NaN or infinity or needs a scale beyond float16.
    void (*search_scales)(Type type, const BlockRows& in, const ScalePlan& plan, ScaledBlock& out);
    double (*read)(const void* data, size_t bytes);  // touches every cache line; for measuring read bandwidth
};

const Kernels& scalar_kernels();
#if defined(__x86_64__) || defined(_M_X64)
const Kernels& avx2_kernels();
const Kernels& avx512vnni_kernels();
#elif defined(__aarch64__) || defined(_M_ARM64)
const Kernels& neon_dotprod_kernels();
const Kernels& neon_i8mm_kernels();
#endif

}  // namespace phial
