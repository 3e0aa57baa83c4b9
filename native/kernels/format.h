// How each quantised type's tile is read, written once over the vector primitives of an instruction set.
//
// Included inside an ISA file's anonymous namespace, after it has defined: Codes (64 bytes: 16 rows x 4 inputs),
// Ints and Floats (16 lanes), and the functions on them (see scalar.cpp for the plain meaning of each).
// A block of BLOCK inputs of 16 rows takes BYTES bytes, scales included: one stream of memory. (Scales in a run of
// their own keep every load aligned, but measured a quarter slower in decode.) It is read in steps of one or two times 32
// inputs, STEP bytes each behind HEAD.
//
//   codes<G>(step, c)        inputs 4G .. 4G+3 of each 32 of a step, as bytes
//   scale(block, step, i)    multiplier of the step's part i (of SUB inputs);  low(...): the minimum added, where MIN

template <Type T> struct Format;

// Two blocks at a time: 8 vectors of codes, then both scales, so that every vector is one cache line. (Blocks of 288
// bytes, each with its scale, read a sixth slower.)
template <> struct Format<Type::Q4_0> {
    static constexpr int BLOCK = 64, HEAD = 0, BYTES = 576, STEP = BYTES, SUB = 32, OFFSET = 8;
    static constexpr bool MIN = false, WIDE = false;
    template <int G> INLINE static void codes(const uint8_t* b, Codes (&c)[2]) {
        for (int n = 0; n < 2; n++) {
            const Codes v = load_codes(b + 256 * n + 64 * (G % 4));
            c[n] = G < 4 ? low_nibble(v) : high_nibble(v);
        }
    }
    INLINE static Floats scale(const uint8_t* b, const uint8_t*, int i) { return load_f16(b + 512 + 32 * i); }
    INLINE static Floats low(const uint8_t*, const uint8_t*, int) { return zero_f(); }
};

template <> struct Format<Type::Q4_1> {
    static constexpr int BLOCK = 32, HEAD = 0, BYTES = 320, STEP = BYTES, SUB = 32, OFFSET = 0;
    static constexpr bool MIN = true, WIDE = false;
    template <int G> INLINE static void codes(const uint8_t* b, Codes (&c)[1]) {
        const Codes v = load_codes(b + 64 * (G % 4));
        c[0] = G < 4 ? low_nibble(v) : high_nibble(v);
    }
    INLINE static Floats scale(const uint8_t* b, const uint8_t*, int) { return load_f16(b + 256); }
    INLINE static Floats low(const uint8_t* b, const uint8_t*, int) { return load_f16(b + 288); }
};

// What is left of rows with an odd number of Q4_0 blocks.
struct LastQ4_0 : Format<Type::Q4_1> {
    static constexpr int BYTES = 288, STEP = BYTES, OFFSET = 8;
    static constexpr bool MIN = false;
};

// The fifth bits are 8 masks of 64 bits, one per vector: bit j belongs to byte j.
template <> struct Format<Type::Q5_0> : LastQ4_0 {
    static constexpr int BYTES = 352, STEP = BYTES, OFFSET = 16;
    template <int G> INLINE static void codes(const uint8_t* b, Codes (&c)[1]) {
        LastQ4_0::codes<G>(b, c);
        c[0] = or_mask(c[0], b + 256 + 8 * G, 16);
    }
    INLINE static Floats scale(const uint8_t* b, const uint8_t*, int) { return load_f16(b + 320); }
};

template <> struct Format<Type::Q5_1> : Format<Type::Q5_0> {
    static constexpr int BYTES = 384, STEP = BYTES, OFFSET = 0;
    static constexpr bool MIN = true;
    INLINE static Floats scale(const uint8_t* b, const uint8_t*, int) { return load_f16(b + 320); }
    INLINE static Floats low(const uint8_t* b, const uint8_t*, int) { return load_f16(b + 352); }
};

template <> struct Format<Type::Q8_0> : LastQ4_0 {
    static constexpr int BYTES = 544, STEP = BYTES, OFFSET = WIDE_OFFSET;
    static constexpr bool WIDE = true;
    template <int G> INLINE static void codes(const uint8_t* b, Codes (&c)[1]) {
        c[0] = wide_codes(load_codes(b + 64 * G));
    }
    INLINE static Floats scale(const uint8_t* b, const uint8_t*, int) { return load_f16(b + 512); }
};

// A K block is a head (d, and dmin where there is one) and four steps of two sub-blocks, each step laid out in the order
// in which it is read: 8 vectors of codes of both, further bits, scales. Memory is then read straight on, which is what
// the processor's own prefetching follows (a block in planes of 256 inputs ran at a third of the bandwidth).

// Step: 8 vectors of nibbles (low: the first sub-block), scales (2, 16), minimums (2, 16).
template <> struct Format<Type::Q4_K> {
    static constexpr int BLOCK = 256, HEAD = 64, STEP = 576, BYTES = HEAD + 4 * STEP, SUB = 32, OFFSET = 0;
    static constexpr bool MIN = true, WIDE = false;
    template <int G> INLINE static void codes(const uint8_t* step, Codes (&c)[2]) {
        const Codes v = load_codes(step + 64 * G);
        c[0] = low_nibble(v);
        c[1] = high_nibble(v);
    }
    INLINE static Floats scale(const uint8_t* b, const uint8_t* step, int i) {
        return mul(load_f16(b), load_u8(step + 512 + 16 * i));
    }
    INLINE static Floats low(const uint8_t* b, const uint8_t* step, int i) {
        return neg(mul(load_f16(b + 32), load_u8(step + 544 + 16 * i)));
    }
};

// As Q4_K with two vectors of fifth bits before the scales, one a sub-block: bit G of a byte belongs to vector G.
template <> struct Format<Type::Q5_K> : Format<Type::Q4_K> {
    static constexpr int STEP = 704, BYTES = HEAD + 4 * STEP;
    template <int G> INLINE static void codes(const uint8_t* step, Codes (&c)[2]) {
        Format<Type::Q4_K>::codes<G>(step, c);
        for (int n = 0; n < 2; n++) c[n] = or_bit<G, 16>(c[n], load_codes(step + 512 + 64 * n));
    }
    INLINE static Floats scale(const uint8_t* b, const uint8_t* step, int i) {
        return Format<Type::Q4_K>::scale(b, step + 128, i);
    }
    INLINE static Floats low(const uint8_t* b, const uint8_t* step, int i) {
        return Format<Type::Q4_K>::low(b, step + 128, i);
    }
};

// Pairs of bits: vector G % 4 holds, from its low bits, the first and second sub-block's of G < 4, then of G >= 4.
// Step: 8 vectors of low nibbles, 4 of high pairs, signed scales (4, 16).
template <> struct Format<Type::Q6_K> {
    static constexpr int BLOCK = 256, HEAD = 64, STEP = 832, BYTES = HEAD + 4 * STEP, SUB = 16, OFFSET = 32;
    static constexpr bool MIN = false, WIDE = false;
    template <int G> INLINE static void codes(const uint8_t* step, Codes (&c)[2]) {
        const Codes v = load_codes(step + 64 * G), pairs = load_codes(step + 512 + 64 * (G % 4));
        c[0] = or_codes(low_nibble(v), pair_high<G / 4 * 4>(pairs));
        c[1] = or_codes(high_nibble(v), pair_high<G / 4 * 4 + 2>(pairs));
    }
    INLINE static Floats scale(const uint8_t* b, const uint8_t* step, int i) {
        return mul(load_f16(b), load_s8(step + 768 + 16 * i));
    }
    INLINE static Floats low(const uint8_t*, const uint8_t*, int) { return zero_f(); }
};

// Step: 4 vectors of pairs, 2 of third bits (as Q5_K's fifth), signed scales (4, 16).
template <> struct Format<Type::Q3_K> {
    static constexpr int BLOCK = 256, HEAD = 64, STEP = 448, BYTES = HEAD + 4 * STEP, SUB = 16, OFFSET = 4;
    static constexpr bool MIN = false, WIDE = false;
    template <int G> INLINE static void codes(const uint8_t* step, Codes (&c)[2]) {
        const Codes pairs = load_codes(step + 64 * (G % 4));
        c[0] = or_bit<G, 4>(pair_low<G / 4 * 4>(pairs), load_codes(step + 256));
        c[1] = or_bit<G, 4>(pair_low<G / 4 * 4 + 2>(pairs), load_codes(step + 320));
    }
    INLINE static Floats scale(const uint8_t* b, const uint8_t* step, int i) {
        return mul(load_f16(b), load_s8(step + 384 + 16 * i));
    }
    INLINE static Floats low(const uint8_t*, const uint8_t*, int) { return zero_f(); }
};

// Step: 4 vectors of pairs, scales (4, 16), minimums (4, 16).
template <> struct Format<Type::Q2_K> {
    static constexpr int BLOCK = 256, HEAD = 64, STEP = 384, BYTES = HEAD + 4 * STEP, SUB = 16, OFFSET = 0;
    static constexpr bool MIN = true, WIDE = false;
    template <int G> INLINE static void codes(const uint8_t* step, Codes (&c)[2]) {
        const Codes pairs = load_codes(step + 64 * (G % 4));
        c[0] = pair_low<G / 4 * 4>(pairs);
        c[1] = pair_low<G / 4 * 4 + 2>(pairs);
    }
    INLINE static Floats scale(const uint8_t* b, const uint8_t* step, int i) {
        return mul(load_f16(b), load_u8(step + 256 + 16 * i));
    }
    INLINE static Floats low(const uint8_t* b, const uint8_t* step, int i) {
        return neg(mul(load_f16(b + 32), load_u8(step + 320 + 16 * i)));
    }
};
