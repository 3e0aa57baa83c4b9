// The elementwise kernels: quantising activations, norms, SwiGLU, RoPE, softmax, attention values.
// Included by tile.h inside an ISA file's anonymous namespace.

// exp(x) to about 1 ulp for x <= 88; 0 below -87.3. Polynomial after Cephes' expf: x = n ln 2 + r.
INLINE static Floats exp_f(Floats x) {
    const Floats clamped = max_f(min_f(x, set1(88.0f)), set1(-87.3f));
    const Ints n = round_i(mul(clamped, set1(1.44269504f)));
    const Floats nf = to_float(n);
    Floats r = fma(nf, set1(-0.693359375f), clamped);
    r = fma(nf, set1(2.12194440e-4f), r);
    Floats y = set1(1.9875691500e-4f);
    y = fma(y, r, set1(1.3981999507e-3f));
    y = fma(y, r, set1(8.3334519073e-3f));
    y = fma(y, r, set1(4.1665795894e-2f));
    y = fma(y, r, set1(1.6666665459e-1f));
    y = fma(y, r, set1(5.0000001201e-1f));
    y = fma(y, mul(r, r), add(r, set1(1.0f)));
    return zero_below(mul(y, power_of_two(n)), x, -87.3f);
}

static float sum_lanes(Floats v) {
    float lanes[16], s = 0;
    store_f(lanes, v);
    for (int i = 0; i < 16; i++) s += lanes[i];
    return s;
}

static void quantize(const float* x, int k, int8_t* q, float* d, float* sum, int32_t* isum16) {
    for (int j = 0; j < k / 32; j++) {
        const Floats a = load_f(x + 32 * j), b = load_f(x + 32 * j + 16);
        const float amax = max_lanes(max_f(abs_f(a), abs_f(b)));
        const float scale = amax / 127.0f;
        const Floats inverse = set1(amax > 1e-36f ? 127.0f / amax : 0.0f);  // below, the quotient would overflow
        const Ints qa = round_i(mul(a, inverse)), qb = round_i(mul(b, inverse));
        store_s8(q + 32 * j, qa);
        store_s8(q + 32 * j + 16, qb);
        isum16[2 * j] = sum_lanes_i(qa);
        isum16[2 * j + 1] = sum_lanes_i(qb);
        d[j] = scale;
        sum[j] = scale * (float)(isum16[2 * j] + isum16[2 * j + 1]);
    }
}

static void rms_norm(const float* x, const float* weight, float eps, int n, float* y) {
    Floats squares = zero_f();
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const Floats v = load_f(x + i);
        squares = fma(v, v, squares);
    }
    float total = sum_lanes(squares);
    for (; i < n; i++) total += x[i] * x[i];
    const float scale = 1.0f / square_root(total / (float)n + eps);
    for (i = 0; i + 16 <= n; i += 16) store_f(y + i, mul(mul(load_f(x + i), set1(scale)), load_f(weight + i)));
    for (; i < n; i++) y[i] = x[i] * scale * weight[i];
}

// n is a multiple of 16 or the buffers are padded to one.
static void silu_mul(const float* gate, const float* up, int n, float* y) {
    for (int i = 0; i < n; i += 16) {
        const Floats g = load_f(gate + i);
        store_f(y + i, mul(load_f(up + i), divide(g, add(set1(1.0f), exp_f(neg(g))))));
    }
}

static void rotate_half(float* x, const float* cos, const float* sin, int half) {
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

static float softmax(float* s, int n, float* max) {
    Floats top = load_f(s);
    for (int i = 16; i < n; i += 16) top = max_f(top, load_f(s + i));
    *max = max_lanes(top);
    if (*max < -1e30f) return 0.0f;
    Floats total = zero_f();
    for (int i = 0; i < n; i += 16) {
        const Floats e = exp_f(sub(load_f(s + i), set1(*max)));
        store_f(s + i, e);
        total = add(total, e);
    }
    return sum_lanes(total);
}

INLINE static Floats load_16(Tag<Type::F16>, const uint16_t* p) { return load_f16((const uint8_t*)p); }
INLINE static Floats load_16(Tag<Type::BF16>, const uint16_t* p) { return load_bf16((const uint8_t*)p); }
INLINE static void store_16(Tag<Type::F16>, uint16_t* p, Floats v) { store_f16(p, v); }
INLINE static void store_16(Tag<Type::BF16>, uint16_t* p, Floats v) { store_bf16(p, v); }

// Cached values as the pass below reads them: 16 dimensions of a key, and what its weight is multiplied by.
template <Type TYPE> struct Values16 {
    const uint16_t* rows;
    INLINE Floats load(int at) const { return load_16(Tag<TYPE>{}, rows + at); }
    INLINE float scaled(float p, int) const { return p; }
};

struct ValuesQ8 {
    const int8_t* rows;
    const uint16_t* scale;  // of 32 dimensions each
    INLINE Floats load(int at) const { return load_s8((const uint8_t*)rows + at); }
    INLINE float scaled(float p, int at) const { return p * half_to_float(scale[at / 32]); }
};

// acc (Q, dims) += p . values, for 16 N dimensions from c on; all of a key's at once, so that memory is read straight on.
template <int Q, int N, class Values>
static void values_pass(const float* p, int stride, const Values& v, int keys, int c, int dims, float* acc) {
    Floats a[Q][N];
    for (int t = 0; t < Q; t++)
        for (int n = 0; n < N; n++) a[t][n] = load_f(acc + (size_t)t * dims + c + 16 * n);
    for (int i = 0; i < keys; i++) {
        Floats w[Q];
        unrolled<N>([&](auto index) INLINE_LAMBDA {
            constexpr int n = decltype(index)::value;
            const int at = i * dims + c + 16 * n;
            if (n % 2 == 0)
                for (int t = 0; t < Q; t++) w[t] = set1(v.scaled(p[(size_t)t * stride + i], at));
            const Floats x = v.load(at);
            for (int t = 0; t < Q; t++) a[t][n] = fma(x, w[t], a[t][n]);
        });
    }
    for (int t = 0; t < Q; t++)
        for (int n = 0; n < N; n++) store_f(acc + (size_t)t * dims + c + 16 * n, a[t][n]);
}

// As many dimensions as registers hold sums for, then what is left of them.
template <int Q, int N, class Values>
static void values_tile(const float* p, int stride, const Values& v, int keys, int c, int dims, float* acc) {
    for (; c + 16 * N <= dims; c += 16 * N) values_pass<Q, N>(p, stride, v, keys, c, dims, acc);
    if constexpr (N > 2) values_tile<Q, N - 2>(p, stride, v, keys, c, dims, acc);
}

template <int Q = 4, class Values>
static void values_rows(const float* p, int stride, int queries, const Values& v, int keys, int dims, float* acc) {
    constexpr int N = PANEL_PAIR ? (Q > 2 ? 6 : 8) : (Q > 1 ? 2 : 4);  // 32 vector registers, or 16 of half the width
    int t = 0;
    for (; t + Q <= queries; t += Q)
        values_tile<Q, N>(p + (size_t)t * stride, stride, v, keys, 0, dims, acc + (size_t)t * dims);
    if constexpr (Q > 1)
        values_rows<Q - 1>(p + (size_t)t * stride, stride, queries - t, v, keys, dims, acc + (size_t)t * dims);
}

template <Type TYPE>
static void values_16(const float* p, int stride, int queries, const uint16_t* v, int keys, int dims, float* acc) {
    values_rows(p, stride, queries, Values16<TYPE>{v}, keys, dims, acc);
}

static void values_q8(const float* p, int stride, int queries, const int8_t* v, const uint16_t* scale, int keys,
                      int dims, float* acc) {
    values_rows(p, stride, queries, ValuesQ8{v, scale}, keys, dims, acc);
}

static void scale_add(float* y, float a, const float* x, float b, int n) {
    const Floats av = set1(a), bv = set1(b);
    for (int i = 0; i < n; i += 16) store_f(y + i, fma(load_f(x + i), bv, mul(load_f(y + i), av)));
}

template <Type TYPE> static void to_16(const float* x, int n, uint16_t* y) {
    int i = 0;
    for (; i + 16 <= n; i += 16) store_16(Tag<TYPE>{}, y + i, load_f(x + i));
    if (i == n) return;
    float padded[16] = {};
    uint16_t halves[16];
    for (int j = i; j < n; j++) padded[j - i] = x[j];
    store_16(Tag<TYPE>{}, halves, load_f(padded));
    for (int j = i; j < n; j++) y[j] = halves[j - i];
}

static double dots(int n) {
    constexpr int SUMS = PANEL_PAIR ? 12 : 4;
    uint8_t bytes[64];
    for (int i = 0; i < 64; i++) bytes[i] = (uint8_t)(n + i) & 15;
    Codes c = load_codes(bytes);
    Inputs in[SUMS];
    Ints x[SUMS];
    for (int i = 0; i < SUMS; i++) {
        in[i] = broadcast4((const int8_t*)bytes + i);
        x[i] = set1_i(i);
    }
    for (int k = 0; k < n; k++) {
        opaque(c);  // else what does not depend on the sums would move out of the loop
        unrolled<SUMS>([&](auto i) INLINE_LAMBDA {
            constexpr int I = decltype(i)::value;
            x[I] = dot(x[I], c, in[I]);
        });
    }
    int total = 0;
    for (int i = 0; i < SUMS; i++) total += sum_lanes_i(x[i]);
    return 128.0 * SUMS * n + (total == 1);  // the sum must count for something, or nothing is computed
}

static double read_lines(const void* data, size_t bytes) {
    const uint8_t* p = (const uint8_t*)data;
    Floats a = zero_f(), b = zero_f(), c = zero_f(), d = zero_f();
    for (size_t i = 0; i + 256 <= bytes; i += 256) {
        a = add(a, load_f((const float*)(p + i)));
        b = add(b, load_f((const float*)(p + i + 64)));
        c = add(c, load_f((const float*)(p + i + 128)));
        d = add(d, load_f((const float*)(p + i + 192)));
    }
    return (double)sum_lanes(add(add(a, b), add(c, d)));
}
