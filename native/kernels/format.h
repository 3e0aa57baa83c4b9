// How each quantised type's tile is read, written once over the vector primitives of an instruction set.
//
// Included inside an ISA file's anonymous namespace, after it has defined: Codes (64 bytes: 16 rows x 4 inputs),
// Ints and Floats (16 lanes), and the functions on them (see scalar.cpp for the plain meaning of each).
// A block of BLOCK inputs of 16 rows takes BYTES bytes, scales included: one stream of memory. (Scales in a run of
// their own keep every load aligned, but measured a quarter slower in decode.)
//
//   code<S, G>(block)  inputs 4G .. 4G+3 of sub-block S (32 inputs), as bytes
//   scale(block, i)    multiplier of sub-block i (of SUB inputs);  low(block, i): the minimum added, where MIN

template <Type T> struct Format;

template <> struct Format<Type::Q4_0> {
    static constexpr int BLOCK = 32, BYTES = 288, SUB = 32, OFFSET = 8;
    static constexpr bool MIN = false, WIDE = false;
    template <int S, int G> INLINE static Codes code(const uint8_t* b) {
        return G < 4 ? low_nibble(load_codes(b + 64 * (G & 3))) : high_nibble(load_codes(b + 64 * (G & 3)));
    }
    INLINE static Floats scale(const uint8_t* b, int) { return load_f16(b + 256); }
    INLINE static Floats low(const uint8_t*, int) { return zero_f(); }
};

template <> struct Format<Type::Q4_1> : Format<Type::Q4_0> {
    static constexpr int BYTES = 320, OFFSET = 0;
    static constexpr bool MIN = true;
    INLINE static Floats scale(const uint8_t* b, int) { return load_f16(b + 256); }
    INLINE static Floats low(const uint8_t* b, int) { return load_f16(b + 288); }
};

// The fifth bits are 8 masks of 64 bits, one per vector: bit j belongs to byte j.
template <> struct Format<Type::Q5_0> : Format<Type::Q4_0> {
    static constexpr int BYTES = 352, OFFSET = 16;
    template <int S, int G> INLINE static Codes code(const uint8_t* b) {
        return or_mask(Format<Type::Q4_0>::code<S, G>(b), b + 256 + 8 * G, 16);
    }
    INLINE static Floats scale(const uint8_t* b, int) { return load_f16(b + 320); }
};

template <> struct Format<Type::Q5_1> : Format<Type::Q5_0> {
    static constexpr int BYTES = 384, OFFSET = 0;
    static constexpr bool MIN = true;
    INLINE static Floats scale(const uint8_t* b, int) { return load_f16(b + 320); }
    INLINE static Floats low(const uint8_t* b, int) { return load_f16(b + 352); }
};

template <> struct Format<Type::Q8_0> : Format<Type::Q4_0> {
    static constexpr int BYTES = 544, OFFSET = WIDE_OFFSET;
    static constexpr bool WIDE = true;
    template <int S, int G> INLINE static Codes code(const uint8_t* b) { return wide_codes(load_codes(b + 64 * G)); }
    INLINE static Floats scale(const uint8_t* b, int) { return load_f16(b + 512); }
};

// Planes: 32 vectors of nibbles, scales (8, 16), minimums (8, 16), d, dmin.
template <> struct Format<Type::Q4_K> {
    static constexpr int BLOCK = 256, BYTES = 2368, SUB = 32, OFFSET = 0, SCALES = 2048;
    static constexpr bool MIN = true, WIDE = false;
    template <int S, int G> INLINE static Codes code(const uint8_t* b) {
        const Codes v = load_codes(b + 64 * (8 * (S / 2) + G));
        return S % 2 ? high_nibble(v) : low_nibble(v);
    }
    INLINE static Floats scale(const uint8_t* b, int i) {
        return mul(load_f16(b + SCALES + 256), load_u8(b + SCALES + 16 * i));
    }
    INLINE static Floats low(const uint8_t* b, int i) {
        return neg(mul(load_f16(b + SCALES + 288), load_u8(b + SCALES + 128 + 16 * i)));
    }
};

// As Q4_K with 8 vectors of fifth bits (bit S of a byte belongs to sub-block S) before the scales.
template <> struct Format<Type::Q5_K> : Format<Type::Q4_K> {
    static constexpr int BYTES = 2880, SCALES = 2560;
    template <int S, int G> INLINE static Codes code(const uint8_t* b) {
        return or_bit<S, 16>(Format<Type::Q4_K>::code<S, G>(b), load_codes(b + 2048 + 64 * G));
    }
    INLINE static Floats scale(const uint8_t* b, int i) {
        return mul(load_f16(b + SCALES + 256), load_u8(b + SCALES + 16 * i));
    }
    INLINE static Floats low(const uint8_t* b, int i) {
        return neg(mul(load_f16(b + SCALES + 288), load_u8(b + SCALES + 128 + 16 * i)));
    }
};

// Planes: 32 vectors of low nibbles, 16 of high pairs, signed scales (16, 16), d.
template <> struct Format<Type::Q6_K> {
    static constexpr int BLOCK = 256, BYTES = 3360, SUB = 16, OFFSET = 32;
    static constexpr bool MIN = false, WIDE = false;
    template <int S, int G> INLINE static Codes code(const uint8_t* b) {
        constexpr int half = S / 4, quarter = S % 4;
        const Codes v = load_codes(b + 64 * (16 * half + 8 * (quarter % 2) + G));
        const Codes pairs = load_codes(b + 2048 + 64 * (8 * half + G));
        return or_codes(quarter / 2 ? high_nibble(v) : low_nibble(v), pair_high<2 * quarter>(pairs));
    }
    INLINE static Floats scale(const uint8_t* b, int i) {
        return mul(load_f16(b + 3328), load_s8(b + 3072 + 16 * i));
    }
    INLINE static Floats low(const uint8_t*, int) { return zero_f(); }
};

// Planes: 16 vectors of pairs, 8 of third bits, signed scales (16, 16), d.
template <> struct Format<Type::Q3_K> {
    static constexpr int BLOCK = 256, BYTES = 1824, SUB = 16, OFFSET = 4;
    static constexpr bool MIN = false, WIDE = false;
    template <int S, int G> INLINE static Codes code(const uint8_t* b) {
        const Codes pairs = load_codes(b + 64 * (8 * (S / 4) + G));
        return or_bit<S, 4>(pair_low<2 * (S % 4)>(pairs), load_codes(b + 1024 + 64 * G));
    }
    INLINE static Floats scale(const uint8_t* b, int i) {
        return mul(load_f16(b + 1792), load_s8(b + 1536 + 16 * i));
    }
    INLINE static Floats low(const uint8_t*, int) { return zero_f(); }
};

// Planes: 16 vectors of pairs, scales (16, 16), minimums (16, 16), d, dmin.
template <> struct Format<Type::Q2_K> {
    static constexpr int BLOCK = 256, BYTES = 1600, SUB = 16, OFFSET = 0;
    static constexpr bool MIN = true, WIDE = false;
    template <int S, int G> INLINE static Codes code(const uint8_t* b) {
        return pair_low<2 * (S % 4)>(load_codes(b + 64 * (8 * (S / 4) + G)));
    }
    INLINE static Floats scale(const uint8_t* b, int i) {
        return mul(load_f16(b + 1536), load_u8(b + 1024 + 16 * i));
    }
    INLINE static Floats low(const uint8_t* b, int i) {
        return neg(mul(load_f16(b + 1568), load_u8(b + 1280 + 16 * i)));
    }
};
