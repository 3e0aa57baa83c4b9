// The kernels themselves, written once over the primitives an ISA file defines (included inside its anonymous
// namespace, so that nothing here is shared between instruction sets and no encoding leaks into another file).
//
// An ISA file sets: PANEL_TOKENS (tokens per register tile), PANEL_PAIR (two panels at once: needs 32 vector registers)
// and WIDE_OFFSET (what wide_codes adds to signed bytes; 0 where the dot product is signed).
//
// Every sum runs in the same order in gemv and panels: per 32 inputs one exact integer, then one fused multiply-add.

#include "format.h"

template <int N> struct Index { static constexpr int value = N; };

template <int N, int I = 0, class F> INLINE static void unrolled(F&& f) {
    if constexpr (I < N) {
        f(Index<I>{});
        unrolled<N, I + 1>(f);
    }
}

// ---- one tile, few tokens: decode -----------------------------------------------------------------------------------

// One token's view of the activations.
struct Row {
    const int8_t* q;
    const float *d, *sum;
    const int32_t* isum16;
};

INLINE static Row row_of(const Activations& a, int t) {
    const size_t nb = (size_t)a.k / 32;
    return {a.q + (size_t)t * a.k, a.d + t * nb, a.sum + t * nb, a.isum16 + 2 * t * nb};
}

// f[t] += a step's N sub-blocks, the first of which is the row's block j.
template <class Fm, int N, int T>
INLINE static void gemv_step(const uint8_t* block, const uint8_t* step, const Row (&a)[T], int j, Floats (&f)[T]) {
    constexpr int PARTS = 32 / Fm::SUB;
    Ints x[N][PARTS][T];
    for (int n = 0; n < N; n++)
        for (int h = 0; h < PARTS; h++)
            for (int t = 0; t < T; t++) {
                const int32_t* s = a[t].isum16 + 2 * (j + n);
                x[n][h][t] = Fm::OFFSET ? set1_i(-Fm::OFFSET * (PARTS == 2 ? s[h] : s[0] + s[1])) : zero_i();
            }
    unrolled<8>([&](auto g) INLINE_LAMBDA {
        constexpr int G = decltype(g)::value, H = G * PARTS / 8;
        Codes c[N];
        Fm::template codes<G>(step, c);
        for (int n = 0; n < N; n++)
            for (int t = 0; t < T; t++) {
                const Inputs in = broadcast4(a[t].q + 32 * (j + n) + 4 * G);
                x[n][H][t] = Fm::WIDE ? dot_wide(x[n][H][t], c[n], in) : dot(x[n][H][t], c[n], in);
            }
    });
    for (int n = 0; n < N; n++)
        for (int h = 0; h < PARTS; h++) {
            const Floats scale = Fm::scale(block, step, PARTS * n + h);
            for (int t = 0; t < T; t++) f[t] = fma(to_float(x[n][h][t]), mul(scale, set1(a[t].d[j + n])), f[t]);
            if constexpr (Fm::MIN) {
                const Floats low = Fm::low(block, step, PARTS * n + h);
                for (int t = 0; t < T; t++) {
                    const float s = PARTS == 2 ? a[t].d[j + n] * (float)a[t].isum16[2 * (j + n) + h] : a[t].sum[j + n];
                    f[t] = fma(low, set1(s), f[t]);
                }
            }
        }
}

template <Type TYPE, int T> static void gemv_quantised(const uint8_t* tile, const Activations& a, int t0, float* out) {
    using Fm = Format<TYPE>;
    constexpr int N = Fm::BLOCK == 32 ? 1 : 2, STEPS = Fm::BLOCK / (32 * N);
    const int blocks = a.k / Fm::BLOCK;
    Row rows[T];
    Floats f[T];
    for (int t = 0; t < T; t++) {
        rows[t] = row_of(a, t0 + t);
        f[t] = zero_f();
    }
    for (int b = 0; b < blocks; b++) {
        const uint8_t* block = tile + (size_t)b * Fm::BYTES;
        for (int s = 0; s < STEPS; s++) {
            const uint8_t* step = block + Fm::HEAD + Fm::STEP * s;
            gemv_step<Fm, N, T>(block, step, rows, N * (b * STEPS + s), f);
        }
    }
    if constexpr (Fm::BLOCK == 64) {
        const uint8_t* last = tile + (size_t)blocks * Fm::BYTES;
        if (a.k % 64) gemv_step<LastQ4_0, 1, T>(last, last, rows, 2 * blocks, f);
    }
    for (int t = 0; t < T; t++) store_f(out + TILE_ROWS * t, f[t]);
}

template <Type TYPE> INLINE static Floats load_values(const uint8_t* tile, int i) {
    if constexpr (TYPE == Type::F32) return load_f((const float*)tile + (size_t)TILE_ROWS * i);
    if constexpr (TYPE == Type::F16) return load_f16(tile + (size_t)2 * TILE_ROWS * i);
    return load_bf16(tile + (size_t)2 * TILE_ROWS * i);
}

// Even and odd inputs have a sum each: two chains hide the latency of one.
template <Type TYPE, int T> static void gemv_float(const uint8_t* tile, const Activations& a, int t0, float* out) {
    const float* x[T];
    Floats even[T], odd[T];
    for (int t = 0; t < T; t++) {
        x[t] = a.x + (size_t)(t0 + t) * a.k;
        even[t] = odd[t] = zero_f();
    }
    int i = 0;
    for (; i + 1 < a.k; i += 2) {
        const Floats w0 = load_values<TYPE>(tile, i), w1 = load_values<TYPE>(tile, i + 1);
        for (int t = 0; t < T; t++) {
            even[t] = fma(w0, set1(x[t][i]), even[t]);
            odd[t] = fma(w1, set1(x[t][i + 1]), odd[t]);
        }
    }
    if (i < a.k)
        for (int t = 0; t < T; t++) even[t] = fma(load_values<TYPE>(tile, i), set1(x[t][i]), even[t]);
    for (int t = 0; t < T; t++) store_f(out + TILE_ROWS * t, add(even[t], odd[t]));
}

template <Type TYPE, int T> static void gemv_typed(const uint8_t* tile, const Activations& a, int t0, float* out) {
    if constexpr (TYPE == Type::F32 || TYPE == Type::F16 || TYPE == Type::BF16)
        gemv_float<TYPE, T>(tile, a, t0, out);
    else
        gemv_quantised<TYPE, T>(tile, a, t0, out);
}

template <Type TYPE>
static void gemv_tokens(const uint8_t* tile, const Activations& a, int t0, int tokens, float* out) {
    switch (tokens) {
        case 1: return gemv_typed<TYPE, 1>(tile, a, t0, out);
        case 2: return gemv_typed<TYPE, 2>(tile, a, t0, out);
        case 3: return gemv_typed<TYPE, 3>(tile, a, t0, out);
        default: return gemv_typed<TYPE, 4>(tile, a, t0, out);
    }
}

// Calls f(TypeTag) for the type at hand; every type of the format is named here once.
template <Type T> struct Tag { static constexpr Type value = T; };
template <class F> INLINE static void with_type(Type type, F&& f) {
    switch (type) {
        case Type::F32: return f(Tag<Type::F32>{});
        case Type::F16: return f(Tag<Type::F16>{});
        case Type::BF16: return f(Tag<Type::BF16>{});
        case Type::Q4_0: return f(Tag<Type::Q4_0>{});
        case Type::Q4_1: return f(Tag<Type::Q4_1>{});
        case Type::Q5_0: return f(Tag<Type::Q5_0>{});
        case Type::Q5_1: return f(Tag<Type::Q5_1>{});
        case Type::Q8_0: return f(Tag<Type::Q8_0>{});
        case Type::Q2_K: return f(Tag<Type::Q2_K>{});
        case Type::Q3_K: return f(Tag<Type::Q3_K>{});
        case Type::Q4_K: return f(Tag<Type::Q4_K>{});
        case Type::Q5_K: return f(Tag<Type::Q5_K>{});
        case Type::Q6_K: return f(Tag<Type::Q6_K>{});
    }
}

static void gemv(Type type, const uint8_t* tile, const Activations& a, int t0, int tokens, float* out) {
    with_type(type, [&](auto tag) INLINE_LAMBDA { gemv_tokens<decltype(tag)::value>(tile, a, t0, tokens, out); });
}

// ---- unpacking a tile into a panel ----------------------------------------------------------------------------------

// A step of N times 32 inputs, from the row's block j on, to its place in the panel.
template <class Fm, int N> INLINE static void expand_step(const uint8_t* block, const uint8_t* step, int j, Panel& p) {
    constexpr int PARTS = 32 / Fm::SUB;
    uint8_t* codes = p.codes + (size_t)j * 32 * TILE_ROWS;
    unrolled<8>([&](auto g) INLINE_LAMBDA {
        constexpr int G = decltype(g)::value;
        Codes c[N];
        Fm::template codes<G>(step, c);
        for (int n = 0; n < N; n++) store_codes(codes + 64 * (8 * n + G), c[n]);
    });
    for (int i = 0; i < N * PARTS; i++) {
        const size_t at = (size_t)TILE_ROWS * ((size_t)j * PARTS + i);
        store_f(p.scale + at, Fm::scale(block, step, i));
        if (Fm::MIN) store_f(p.min + at, Fm::low(block, step, i));
    }
}

template <Type TYPE> static void expand_quantised(const uint8_t* tile, int k, Panel& p) {
    using Fm = Format<TYPE>;
    constexpr int N = Fm::BLOCK == 32 ? 1 : 2, STEPS = Fm::BLOCK / (32 * N);
    p.offset = Fm::OFFSET;
    p.sub16 = Fm::SUB == 16;
    p.has_min = Fm::MIN;
    p.wide = Fm::WIDE;
    const int steps = k / (32 * N);
    for (int i = 0; i < steps; i++) {
        const uint8_t* block = tile + (size_t)(i / STEPS) * Fm::BYTES;
        expand_step<Fm, N>(block, block + Fm::HEAD + Fm::STEP * (i % STEPS), N * i, p);
    }
    if constexpr (Fm::BLOCK == 64) {
        const uint8_t* last = tile + (size_t)steps * Fm::BYTES;
        if (k % 64) expand_step<LastQ4_0, 1>(last, last, 2 * steps, p);
    }
}

static void expand(Type type, const uint8_t* tile, int k, Panel& p) {
    p.is_float = is_float_type(type);
    with_type(type, [&](auto tag) INLINE_LAMBDA {
        constexpr Type T = decltype(tag)::value;
        if constexpr (T == Type::F32 || T == Type::F16 || T == Type::BF16)
            for (int i = 0; i < k; i++) store_f(p.values + (size_t)TILE_ROWS * i, load_values<T>(tile, i));
        else
            expand_quantised<T>(tile, k, p);
    });
}

// ---- R panels against T tokens: prefill -----------------------------------------------------------------------------

// x (R panels, T tokens) += codes (STEPS, 16 rows, 4 inputs) . q (T rows of `stride` bytes).
template <int R, int T, int STEPS, bool WIDE>
INLINE static void panel_product(Ints (&x)[R][T], const uint8_t* const (&codes)[R], const int8_t* q, int stride) {
#ifdef PANEL_PRODUCT  // the instruction set has a matrix product of its own
    for (int r = 0; r < R; r++) panel_product<T, STEPS>(x[r], codes[r], q, stride);
#else
    unrolled<STEPS>([&](auto g) INLINE_LAMBDA {
        constexpr int G = decltype(g)::value;
        Codes c[R];
        for (int r = 0; r < R; r++) c[r] = load_codes(codes[r] + 64 * G);
        for (int t = 0; t < T; t++) {
            const Inputs in = broadcast4(q + (size_t)t * stride + 4 * G);
            for (int r = 0; r < R; r++) x[r][t] = WIDE ? dot_wide(x[r][t], c[r], in) : dot(x[r][t], c[r], in);
        }
    });
#endif
}

template <int R, int T, int PARTS, bool MIN, bool WIDE>
static void panel_quantised(const Panel* const (&p)[R], const Activations& a, int t0, float* out, int out_column) {
    const int nb = a.k / 32, offset = p[0]->offset;
    const int8_t* q = a.q + (size_t)t0 * a.k;
    const float* ad = a.d + (size_t)t0 * nb;
    const float* as = a.sum + (size_t)t0 * nb;
    const int32_t* ai = a.isum16 + (size_t)t0 * 2 * nb;
    Floats f[R][T];
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) f[r][t] = zero_f();
    for (int j = 0; j < nb; j++) {
        for (int h = 0; h < PARTS; h++) {
            Ints x[R][T];
            for (int t = 0; t < T; t++) {
                const int32_t* s = ai + (size_t)t * 2 * nb + 2 * j;
                const Ints start = set1_i(-offset * (PARTS == 2 ? s[h] : s[0] + s[1]));
                for (int r = 0; r < R; r++) x[r][t] = start;
            }
            constexpr int STEPS = 8 / PARTS;
            const int8_t* qj = q + 32 * j + 4 * STEPS * h;
            const size_t at = (size_t)64 * (8 * j + STEPS * h);
            const uint8_t* codes[R];
            for (int r = 0; r < R; r++) codes[r] = p[r]->codes + at;
            panel_product<R, T, STEPS, WIDE>(x, codes, qj, a.k);
            Floats scale[R], low[R];
            for (int r = 0; r < R; r++) {
                scale[r] = load_f(p[r]->scale + (size_t)TILE_ROWS * (PARTS * j + h));
                if (MIN) low[r] = load_f(p[r]->min + (size_t)TILE_ROWS * (PARTS * j + h));
            }
            for (int t = 0; t < T; t++) {
                const float d = ad[(size_t)t * nb + j];
                const Floats dv = set1(d);
                for (int r = 0; r < R; r++) f[r][t] = fma(to_float(x[r][t]), mul(scale[r], dv), f[r][t]);
                if (MIN) {
                    const Floats s = set1(PARTS == 2 ? d * (float)ai[(size_t)t * 2 * nb + 2 * j + h]
                                                     : as[(size_t)t * nb + j]);
                    for (int r = 0; r < R; r++) f[r][t] = fma(low[r], s, f[r][t]);
                }
            }
        }
    }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) store_f(out + 32 * t + 16 * r + out_column, f[r][t]);
}

template <int R, int T>
static void panel_float(const Panel* const (&p)[R], const Activations& a, int t0, float* out, int out_column) {
    const float* x = a.x + (size_t)t0 * a.k;
    Floats even[R][T], odd[R][T];
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) even[r][t] = odd[r][t] = zero_f();
    const auto step = [&](int i, Floats(&f)[R][T]) INLINE_LAMBDA {
        Floats w[R];
        for (int r = 0; r < R; r++) w[r] = load_f(p[r]->values + (size_t)TILE_ROWS * i);
        for (int t = 0; t < T; t++) {
            const Floats v = set1(x[(size_t)t * a.k + i]);
            for (int r = 0; r < R; r++) f[r][t] = fma(w[r], v, f[r][t]);
        }
    };
    int i = 0;
    for (; i + 1 < a.k; i += 2) {
        step(i, even);
        step(i + 1, odd);
    }
    if (i < a.k) step(i, even);
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) store_f(out + 32 * t + 16 * r + out_column, add(even[r][t], odd[r][t]));
}

template <int R, int T>
static void panel_tile(const Panel* const (&p)[R], const Activations& a, int t0, float* out, int column) {
    const Panel& m = *p[0];
    if (m.is_float) return panel_float<R, T>(p, a, t0, out, column);
    if (m.wide && WIDE_OFFSET == 0) return panel_quantised<R, T, 1, false, true>(p, a, t0, out, column);
    if (m.sub16)
        return m.has_min ? panel_quantised<R, T, 2, true, false>(p, a, t0, out, column)
                         : panel_quantised<R, T, 2, false, false>(p, a, t0, out, column);
    return m.has_min ? panel_quantised<R, T, 1, true, false>(p, a, t0, out, column)
                     : panel_quantised<R, T, 1, false, false>(p, a, t0, out, column);
}

template <int R, int T = PANEL_TOKENS>
static void panel_tokens(const Panel* const (&p)[R], const Activations& a, int t0, int tokens, float* out, int column) {
    if constexpr (T > 1) {
        if (tokens < T) return panel_tokens<R, T - 1>(p, a, t0, tokens, out, column);
    }
    panel_tile<R, T>(p, a, t0, out, column);
}

static bool same_kind(const Panel& a, const Panel& b) {
    return a.is_float == b.is_float && a.sub16 == b.sub16 && a.has_min == b.has_min && a.wide == b.wide &&
           a.offset == b.offset;
}

static void panels(const Panel& a, const Panel& b, const Activations& x, int t0, int tokens, float* out) {
    if constexpr (PANEL_PAIR) {
        if (same_kind(a, b)) {
            const Panel* const both[2] = {&a, &b};
            return panel_tokens<2>(both, x, t0, tokens, out, 0);
        }
    }
    const Panel *const first[1] = {&a}, *const second[1] = {&b};
    panel_tokens<1>(first, x, t0, tokens, out, 0);
    panel_tokens<1>(second, x, t0, tokens, out, 16);
}

// ---- two packed tiles against a few tokens: checking a draft ---------------------------------------------------------

// f[r][t] += sub-block n of a step, which is block j of the rows: as panel_quantised, from the packed codes.
template <class Fm, int N, int n, int R, int T>
INLINE static void tiles_sub(const uint8_t* const (&block)[R], const uint8_t* const (&step)[R], const Row& a, int k,
                             int j, Floats (&f)[R][T]) {
    constexpr int PARTS = 32 / Fm::SUB, GROUPS = 8 / PARTS;
    const int nb = k / 32;
    unrolled<PARTS>([&](auto part) INLINE_LAMBDA {
        constexpr int H = decltype(part)::value;
        Ints x[R][T];
        for (int t = 0; t < T; t++) {
            const int32_t* s = a.isum16 + (size_t)t * 2 * nb + 2 * j;
            const Ints start = Fm::OFFSET ? set1_i(-Fm::OFFSET * (PARTS == 2 ? s[H] : s[0] + s[1])) : zero_i();
            for (int r = 0; r < R; r++) x[r][t] = start;
        }
        unrolled<GROUPS>([&](auto g) INLINE_LAMBDA {
            constexpr int G = GROUPS * H + decltype(g)::value;
            Codes c[R][N];
            for (int r = 0; r < R; r++) Fm::template codes<G>(step[r], c[r]);
            for (int t = 0; t < T; t++) {
                const Inputs in = broadcast4(a.q + (size_t)t * k + 32 * j + 4 * G);
                for (int r = 0; r < R; r++)
                    x[r][t] = Fm::WIDE ? dot_wide(x[r][t], c[r][n], in) : dot(x[r][t], c[r][n], in);
            }
        });
        for (int r = 0; r < R; r++) {
            const Floats scale = Fm::scale(block[r], step[r], PARTS * n + H);
            for (int t = 0; t < T; t++)
                f[r][t] = fma(to_float(x[r][t]), mul(scale, set1(a.d[(size_t)t * nb + j])), f[r][t]);
            if constexpr (Fm::MIN) {
                const Floats low = Fm::low(block[r], step[r], PARTS * n + H);
                for (int t = 0; t < T; t++) {
                    const size_t at = (size_t)t * nb + j;
                    f[r][t] = fma(low, set1(PARTS == 2 ? a.d[at] * (float)a.isum16[2 * at + H] : a.sum[at]), f[r][t]);
                }
            }
        }
    });
}

template <Type TYPE, int R, int T>
static void tiles_quantised(const uint8_t* const (&tile)[R], const Activations& a, int t0, float* out) {
    using Fm = Format<TYPE>;
    constexpr int N = Fm::BLOCK == 32 ? 1 : 2, STEPS = Fm::BLOCK / (32 * N);
    const Row rows = row_of(a, t0);
    const int blocks = a.k / Fm::BLOCK;
    Floats f[R][T];
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) f[r][t] = zero_f();
    const uint8_t *block[R], *step[R];
    for (int b = 0; b < blocks; b++)
        for (int s = 0; s < STEPS; s++) {
            for (int r = 0; r < R; r++) {
                block[r] = tile[r] + (size_t)b * Fm::BYTES;
                step[r] = block[r] + Fm::HEAD + Fm::STEP * s;
            }
            unrolled<N>([&](auto n) INLINE_LAMBDA {
                constexpr int SUB = decltype(n)::value;
                tiles_sub<Fm, N, SUB, R, T>(block, step, rows, a.k, N * (b * STEPS + s) + SUB, f);
            });
        }
    if constexpr (Fm::BLOCK == 64) {
        for (int r = 0; r < R; r++) block[r] = tile[r] + (size_t)blocks * Fm::BYTES;
        if (a.k % 64) tiles_sub<LastQ4_0, 1, 0, R, T>(block, block, rows, a.k, 2 * blocks, f);
    }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) store_f(out + 32 * t + 16 * r, f[r][t]);
}

template <Type TYPE, int T = PANEL_TOKENS>
static void tiles_tokens(const uint8_t* const (&tile)[2], const Activations& a, int t0, int tokens, float* out) {
    if constexpr (T > 1) {
        if (tokens < T) return tiles_tokens<TYPE, T - 1>(tile, a, t0, tokens, out);
    }
    tiles_quantised<TYPE, 2, T>(tile, a, t0, out);
}

// Compiled only where PAIR.
template <bool PAIR>
static void tiles(Type type, const uint8_t* a, const uint8_t* b, const Activations& x, int t0, int tokens, float* out) {
    if constexpr (PAIR) {
        const uint8_t* const both[2] = {a, b};
        with_type(type, [&](auto tag) INLINE_LAMBDA {
            constexpr Type T = decltype(tag)::value;
            if constexpr (T != Type::F32 && T != Type::F16 && T != Type::BF16)
                tiles_tokens<T>(both, x, t0, tokens, out);
        });
    }
}

#include "vector.h"
#include "scale_search.h"

static const Kernels table = {
    KERNELS_NAME, PANEL_TOKENS, quantize, gemv, expand, panels, PANEL_PAIR ? tiles<PANEL_PAIR> : nullptr, rms_norm, silu_mul,
    rotate_half, softmax, values_16<Type::F16>, values_16<Type::BF16>, values_q8, scale_add, to_16<Type::F16>,
    to_16<Type::BF16>, dots, search_scales, read_lines,
};
