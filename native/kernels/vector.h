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

static float max_lanes(Floats v) {
    float lanes[16];
    store_f(lanes, v);
    float m = lanes[0];
    for (int i = 1; i < 16; i++) m = lanes[i] > m ? lanes[i] : m;
    return m;
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

template <Type TYPE, int Q>
static void values_16_tile(const float* p, int stride, const uint16_t* v, int keys, int dims, float* acc) {
    for (int c = 0; c < dims; c += 32) {
        Floats a[Q], b[Q];
        for (int t = 0; t < Q; t++) {
            a[t] = load_f(acc + (size_t)t * dims + c);
            b[t] = load_f(acc + (size_t)t * dims + c + 16);
        }
        for (int i = 0; i < keys; i++) {
            const Floats v0 = load_16(Tag<TYPE>{}, v + (size_t)i * dims + c);
            const Floats v1 = load_16(Tag<TYPE>{}, v + (size_t)i * dims + c + 16);
            for (int t = 0; t < Q; t++) {
                const Floats w = set1(p[(size_t)t * stride + i]);
                a[t] = fma(v0, w, a[t]);
                b[t] = fma(v1, w, b[t]);
            }
        }
        for (int t = 0; t < Q; t++) {
            store_f(acc + (size_t)t * dims + c, a[t]);
            store_f(acc + (size_t)t * dims + c + 16, b[t]);
        }
    }
}

template <int Q>
static void values_q8_tile(const float* p, int stride, const int8_t* v, const uint16_t* scale, int keys, int dims,
                           float* acc) {
    const int parts = dims / 32;
    for (int c = 0; c < parts; c++) {
        Floats a[Q], b[Q];
        for (int t = 0; t < Q; t++) {
            a[t] = load_f(acc + (size_t)t * dims + 32 * c);
            b[t] = load_f(acc + (size_t)t * dims + 32 * c + 16);
        }
        for (int i = 0; i < keys; i++) {
            const uint8_t* row = (const uint8_t*)(v + (size_t)i * dims + 32 * c);
            const Floats v0 = load_s8(row), v1 = load_s8(row + 16);
            const float d = half_to_float(scale[(size_t)i * parts + c]);
            for (int t = 0; t < Q; t++) {
                const Floats w = set1(p[(size_t)t * stride + i] * d);
                a[t] = fma(v0, w, a[t]);
                b[t] = fma(v1, w, b[t]);
            }
        }
        for (int t = 0; t < Q; t++) {
            store_f(acc + (size_t)t * dims + 32 * c, a[t]);
            store_f(acc + (size_t)t * dims + 32 * c + 16, b[t]);
        }
    }
}

template <Type TYPE>
static void values_16(const float* p, int stride, int queries, const uint16_t* v, int keys, int dims, float* acc) {
    int t = 0;
    for (; t + 4 <= queries; t += 4)
        values_16_tile<TYPE, 4>(p + (size_t)t * stride, stride, v, keys, dims, acc + (size_t)t * dims);
    for (; t < queries; t++)
        values_16_tile<TYPE, 1>(p + (size_t)t * stride, stride, v, keys, dims, acc + (size_t)t * dims);
}

static void values_q8(const float* p, int stride, int queries, const int8_t* v, const uint16_t* scale, int keys,
                      int dims, float* acc) {
    int t = 0;
    for (; t + 4 <= queries; t += 4)
        values_q8_tile<4>(p + (size_t)t * stride, stride, v, scale, keys, dims, acc + (size_t)t * dims);
    for (; t < queries; t++)
        values_q8_tile<1>(p + (size_t)t * stride, stride, v, scale, keys, dims, acc + (size_t)t * dims);
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
