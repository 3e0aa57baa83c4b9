// The search for block scales, 16 rows at once, a row to a lane: nothing is ever summed across lanes, and a column's
// weight is a scalar. The algorithm and its reasons are in gguf/scale_search_numpy.py, which this must match.
// Included by tile.h inside an ISA file's anonymous namespace.

// How a type's values are coded: GROUPS groups of GROUP codes LOW to HIGH, stored plus BIAS. LARGEST is the largest
// scale of a group of a K block; 0 where a block is one group.
template <int L, int H, int B, int N, int G, bool IS_AFFINE, int LAST> struct Coding {
    static constexpr int LOW = L, HIGH = H, BIAS = B, GROUP = N, GROUPS = G, LARGEST = LAST;
    static constexpr bool AFFINE = IS_AFFINE, K = LAST > 0;
    // K blocks only subtract their minimums; their signed scales have one more value below.
    static constexpr bool CEILING = AFFINE && K;
    static constexpr int SCALE_LOW = AFFINE ? 0 : -LAST - 1;
};

template <class F> INLINE static void with_coding(Type type, F&& f) {
    switch (type) {
        case Type::Q4_0: return f(Coding<-8, 7, 8, 32, 1, false, 0>{});
        case Type::Q4_1: return f(Coding<0, 15, 0, 32, 1, true, 0>{});
        case Type::Q5_0: return f(Coding<-16, 15, 16, 32, 1, false, 0>{});
        case Type::Q5_1: return f(Coding<0, 31, 0, 32, 1, true, 0>{});
        case Type::Q8_0: return f(Coding<-127, 127, 0, 32, 1, false, 0>{});
        case Type::Q2_K: return f(Coding<0, 3, 0, 16, 16, true, 15>{});
        case Type::Q3_K: return f(Coding<-4, 3, 4, 16, 16, false, 31>{});
        case Type::Q4_K: return f(Coding<0, 15, 0, 32, 8, true, 63>{});
        case Type::Q5_K: return f(Coding<0, 31, 0, 32, 8, true, 63>{});
        case Type::Q6_K: return f(Coding<-32, 31, 32, 16, 16, false, 127>{});
        default: return;
    }
}

constexpr float SMALLEST_STEP = 0x1p-24f, TINY_STEP = 1e-30f, HUGE_STEP = 1e30f, SINGULAR = 1e-5f;
constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer

INLINE static Floats inverse(Floats step) { return zero_below(divide(set1(1.0f), step), abs_f(step), TINY_STEP); }

INLINE static Floats stored(Floats x) {
    uint16_t half[16];
    store_f16(half, x);
    return load_f16((const uint8_t*)half);
}
INLINE static Floats stored_step(Floats x) {
    const Floats size = abs_f(x), least = select_less(x, zero_f(), set1(-SMALLEST_STEP), set1(SMALLEST_STEP));
    const Floats raised = select_less(zero_f(), size, least, zero_f());
    return select_less(size, set1(SMALLEST_STEP), raised, stored(x));
}

// A step beyond float16 where values are NaN, infinite, or so large that the sum of their squares is.
INLINE static Floats usable(Floats error, Floats step) { return select_less(error, set1(3e38f), step, set1(HUGE_STEP)); }

// The code of value y above its low, as a float.
template <class C> INLINE static Floats code_of(Floats y, Floats inverse) {
    const Floats q = fma(y, inverse, set1(ROUNDER));
    return sub(min_f(max_f(q, set1(ROUNDER + C::LOW)), set1(ROUNDER + C::HIGH)), set1(ROUNDER));
}
template <class C> INLINE static Floats above(const float* x, int i, Floats low) {
    const Floats v = load_f(x + 16 * i);
    return C::AFFINE ? sub(v, low) : v;
}

// 16 values of a row, from the i-th on.
template <Type SOURCE> INLINE static Floats load_16(const uint8_t* row, int i) {
    if constexpr (SOURCE == Type::F32) return load_f((const float*)row + i);
    else if constexpr (SOURCE == Type::F16) return load_f16(row + 2 * i);
    else return load_bf16(row + 2 * i);
}

struct Group { const float *x, *w; float w_sum; };  // (GROUP, 16) values, (GROUP) weights

struct Fit {
    Floats step, low, error;
    INLINE void or_better(const Fit& o) {
        step = select_less(o.error, error, o.step, step);
        low = select_less(o.error, error, o.low, low);
        error = select_less(o.error, error, o.error, error);
    }
};

struct Sums {
    Floats rr, rq, qq, r, q, one;

    INLINE Floats error(Floats step, Floats low) const {
        const Floats minus2 = set1(-2.0f);
        const Floats by_step = mul(step, fma(qq, step, mul(minus2, rq))), by_low = mul(low, fma(one, low, mul(minus2, r)));
        return fma(mul(add(q, q), step), low, add(add(rr, by_step), by_low));
    }
    INLINE Floats solve_step(Floats low) const {
        return divide(sub(rq, mul(q, low)), select_less(zero_f(), qq, qq, set1(1.0f)));
    }
    // step and low, or the given ones where codes are equal.
    INLINE void solve(Floats& step, Floats& low) const {
        const Floats product = mul(qq, one), determinant = sub(product, mul(q, q)), limit = mul(set1(SINGULAR), product);
        const Floats over = divide(set1(1.0f), select_less(limit, determinant, determinant, set1(1.0f)));
        step = select_less(limit, determinant, mul(sub(mul(rq, one), mul(r, q)), over), step);
        low = select_less(limit, determinant, mul(sub(mul(r, qq), mul(rq, q)), over), low);
    }
};

template <class C> INLINE static Sums sums(const Group& g, Floats step, Floats low) {
    Sums s = {zero_f(), zero_f(), zero_f(), zero_f(), zero_f(), set1(g.w_sum)};
    const Floats over = inverse(step), minus = neg(step);
    for (int i = 0; i < C::GROUP; i++) {
        const Floats y = above<C>(g.x, i, low), q = code_of<C>(y, over), r = fma(q, minus, y), w = set1(g.w[i]);
        const Floats wr = mul(w, r), wq = mul(w, q);
        s.rr = fma(wr, r, s.rr);
        s.rq = fma(wr, q, s.rq);
        s.qq = fma(wq, q, s.qq);
        if constexpr (C::AFFINE) {
            s.r = add(s.r, wr);
            s.q = add(s.q, wq);
        }
    }
    return s;
}

template <class C> INLINE static Floats error_of(const Group& g, Floats step, Floats low) {
    Floats even = zero_f(), odd = zero_f();  // two chains hide the latency of one
    const Floats over = inverse(step), minus = neg(step);
    for (int i = 0; i < C::GROUP; i += 2) {
        const Floats a = above<C>(g.x, i, low), b = above<C>(g.x, i + 1, low);
        const Floats ra = fma(code_of<C>(a, over), minus, a), rb = fma(code_of<C>(b, over), minus, b);
        even = fma(mul(set1(g.w[i]), ra), ra, even);
        odd = fma(mul(set1(g.w[i + 1]), rb), rb, odd);
    }
    return add(even, odd);
}

template <class C> static Fit refit(const Group& g, Floats step, Floats low) {
    const Sums s = sums<C>(g, step, low);
    if constexpr (!C::AFFINE) {
        const Floats by = s.solve_step(zero_f());
        return {add(step, by), low, s.error(by, zero_f())};
    } else {
        Floats by = zero_f(), low_by = divide(s.r, s.one);
        s.solve(by, low_by);
        if constexpr (C::CEILING) {
            const Floats reached = add(low, low_by);
            low_by = select_less(zero_f(), reached, neg(low), low_by);
            by = select_less(zero_f(), reached, s.solve_step(low_by), by);
        }
        by = max_f(by, neg(step));
        return {add(step, by), add(low, low_by), s.error(by, low_by)};
    }
}

struct Range { Floats low, high, power; };  // power: the weighted sum of squares

template <class C> INLINE static Range range_of(const Group& g) {
    Range r = {load_f(g.x), load_f(g.x), zero_f()};
    for (int i = 0; i < C::GROUP; i++) {
        const Floats v = load_f(g.x + 16 * i);
        r = {min_f(r.low, v), max_f(r.high, v), fma(mul(set1(g.w[i]), v), v, r.power)};
    }
    if constexpr (C::CEILING) r = {min_f(r.low, zero_f()), max_f(r.high, zero_f()), r.power};
    return r;
}

template <class C> INLINE static Fit trial(const Range& r, float below, float above) {
    if constexpr (!C::AFFINE) {
        const Floats peak = select_less(r.high, neg(r.low), r.low, r.high);
        return {mul(peak, set1((float)(1.0 / (double)below))), zero_f(), zero_f()};
    } else {
        const Floats step = mul(sub(r.high, r.low), set1((float)(1.0 / ((double)C::HIGH + below + above))));
        const Floats low = add(r.low, mul(set1(below), step));
        return {step, C::CEILING ? min_f(low, zero_f()) : low, zero_f()};
    }
}

template <class C> INLINE static Fit search(const Group& g, const Range& range, const ScalePlan& plan) {
    const auto tried = [&](int i) INLINE_LAMBDA {
        const Fit start = trial<C>(range, plan.trials[2 * i], plan.trials[2 * i + 1]);
        return refit<C>(g, start.step, start.low);
    };
    Fit best = tried(0);
    for (int i = 1; i < plan.n_trials; i++) best.or_better(tried(i));
    return best;
}

template <class C> INLINE static void store_codes_of(const Group& g, Floats step, Floats low, uint8_t* codes) {
    const Floats over = inverse(step);
    for (int i = 0; i < C::GROUP; i++) {
        const Floats q = code_of<C>(above<C>(g.x, i, low), over);
        store_s8((int8_t*)codes + 16 * i, round_i(add(q, set1((float)C::BIAS))));
    }
}

template <class C> static void encode_group(const Group& g, const ScalePlan& plan, ScaledBlock& out) {
    const Range range = range_of<C>(g);
    const Fit fit = search<C>(g, range, plan), plain = trial<C>(range, C::AFFINE ? 0.0f : (float)C::LOW, 0.0f);
    const auto kept = [&](Floats step, Floats low) INLINE_LAMBDA { return Fit{step, low, error_of<C>(g, step, low)}; };
    const Floats low = stored(fit.low);
    Fit best = kept(stored_step(add(fit.step, sums<C>(g, fit.step, low).solve_step(zero_f()))), low);
    best.or_better(kept(stored_step(plain.step), stored(plain.low)));
    best.step = usable(best.error, best.step);
    store_f16(out.d, best.step);
    store_f16(out.m, best.low);
    store_f(out.error, best.error);
    store_f(out.power, range.power);
    store_codes_of<C>(g, best.step, best.low, out.codes);
}

template <class C> struct SuperBlock {
    const Group (&groups)[C::GROUPS];
    Floats d, m, power = zero_f(), scale[C::GROUPS], minimum[C::GROUPS], error[C::GROUPS];

    SuperBlock(const Group (&g)[C::GROUPS], const ScalePlan& plan) : groups(g) {
        Floats step[C::GROUPS], low[C::GROUPS], peak = zero_f(), deepest = zero_f();
        for (int i = 0; i < C::GROUPS; i++) {
            const Range range = range_of<C>(g[i]);
            const Fit fit = search<C>(g[i], range, plan);
            power = add(power, range.power);
            step[i] = fit.step;
            low[i] = neg(fit.low);
            peak = usable(fit.error, select_less(abs_f(peak), abs_f(fit.step), fit.step, peak));
            deepest = max_f(deepest, low[i]);
        }
        d = stored_step(mul(peak, set1((float)(1.0 / (C::AFFINE ? C::LARGEST : C::SCALE_LOW)))));
        m = stored_step(mul(deepest, set1((float)(1.0 / C::LARGEST))));
        const Floats over = inverse(d), m_over = inverse(m);
        for (int i = 0; i < C::GROUPS; i++) {
            scale[i] = clip(to_float(round_i(mul(step[i], over))));
            minimum[i] = clip(to_float(round_i(mul(low[i], m_over))));
            error[i] = error_of<C>(g[i], mul(d, scale[i]), neg(mul(m, minimum[i])));
        }
    }
    INLINE static Floats clip(Floats v) { return min_f(max_f(v, set1((float)C::SCALE_LOW)), set1((float)C::LARGEST)); }

    INLINE Floats total_error() const {
        Floats total = zero_f();
        for (int i = 0; i < C::GROUPS; i++) total = add(total, error[i]);
        return total;
    }

    void move(const ScalePlan& plan) {
        for (int i = 0; i < C::GROUPS; i++) {
            Fit best = {scale[i], minimum[i], error[i]};
            for (int k = 0; k < plan.n_moves; k++) {
                const Floats s = clip(add(scale[i], set1((float)plan.moves[2 * k])));
                const Floats l = clip(add(minimum[i], set1((float)plan.moves[2 * k + 1])));
                best.or_better({s, l, error_of<C>(groups[i], mul(d, s), neg(mul(m, l)))});
            }
            scale[i] = best.step, minimum[i] = best.low, error[i] = best.error;
        }
    }

    void fit() {
        Sums whole = {zero_f(), zero_f(), zero_f(), zero_f(), zero_f(), zero_f()};
        Floats after = zero_f(), errors[C::GROUPS];
        const Floats before = total_error();
        for (int i = 0; i < C::GROUPS; i++) {
            const Floats s = scale[i], l = neg(minimum[i]);
            const Sums each = sums<C>(groups[i], mul(d, s), mul(m, l));
            whole.rr = add(whole.rr, each.rr);
            whole.rq = fma(s, each.rq, whole.rq);
            whole.qq = fma(mul(s, s), each.qq, whole.qq);
            whole.r = fma(l, each.r, whole.r);
            whole.q = fma(mul(s, l), each.q, whole.q);
            whole.one = fma(mul(l, l), each.one, whole.one);
        }
        Floats by = whole.solve_step(zero_f()), m_by = zero_f();
        whole.solve(by, m_by);
        const Floats d2 = stored_step(add(d, by)), m2 = stored(max_f(add(m, m_by), zero_f()));
        for (int i = 0; i < C::GROUPS; i++) {
            errors[i] = error_of<C>(groups[i], mul(d2, scale[i]), neg(mul(m2, minimum[i])));
            after = add(after, errors[i]);
        }
        d = select_less(after, before, d2, d);
        m = select_less(after, before, m2, m);
        for (int i = 0; i < C::GROUPS; i++) error[i] = select_less(after, before, errors[i], error[i]);
    }

    void store(ScaledBlock& out) const {
        store_f16(out.d, d);
        store_f16(out.m, m);
        store_f(out.power, power);
        store_f(out.error, total_error());
        for (int i = 0; i < C::GROUPS; i++) {
            store_s8(out.scale + 16 * i, round_i(scale[i]));
            store_s8(out.minimum + 16 * i, round_i(minimum[i]));
            store_codes_of<C>(groups[i], mul(d, scale[i]), neg(mul(m, minimum[i])), out.codes + 16 * C::GROUP * i);
        }
    }
};

// (elements, 16) floats; the rows that are not there are zero.
template <Type SOURCE, int ELEMENTS> static void load_rows(const BlockRows& in, float* tile) {
    for (int r = 0; r < 16; r += 4)
        for (int i = 0; i < ELEMENTS; i += 16) {
            Floats v[4];
            for (int k = 0; k < 4; k++) v[k] = r + k < in.rows ? load_16<SOURCE>(in.x + (r + k) * in.stride, i) : zero_f();
            store_transposed(tile + 16 * i + r, v[0], v[1], v[2], v[3]);
        }
}

template <class C> static void encode_block(const BlockRows& in, const ScalePlan& plan, ScaledBlock& out) {
    alignas(64) float tile[16 * C::GROUP * C::GROUPS];
    if (in.source == Type::F32) load_rows<Type::F32, C::GROUP * C::GROUPS>(in, tile);
    else if (in.source == Type::F16) load_rows<Type::F16, C::GROUP * C::GROUPS>(in, tile);
    else load_rows<Type::BF16, C::GROUP * C::GROUPS>(in, tile);
    Group groups[C::GROUPS];
    for (int i = 0; i < C::GROUPS; i++) groups[i] = {tile + 16 * C::GROUP * i, in.w + C::GROUP * i, in.w_sums[i]};
    if constexpr (C::K) {
        SuperBlock<C> block(groups, plan);
        for (int i = 0; i < plan.rounds; i++) {
            block.move(plan);
            block.fit();
        }
        block.store(out);
    } else {
        encode_group<C>(groups[0], plan, out);
    }
}

static void search_scales(Type type, const BlockRows& in, const ScalePlan& plan, ScaledBlock& out) {
    with_coding(type, [&](auto coding) INLINE_LAMBDA { encode_block<decltype(coding)>(in, plan, out); });
}
