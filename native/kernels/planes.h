// Bits of a plane moved to where a code wants them, for sets that shift bytes (AVX2, NEON) rather than mask them. Included
// inside an ISA file's anonymous namespace, after Codes, or_codes, and_byte and the shifts.

template <int BIT, int VALUE> INLINE static Codes or_bit(Codes c, Codes plane) {
    constexpr int TARGET = VALUE == 16 ? 4 : 2;
    if constexpr (BIT >= TARGET) return or_codes(c, and_byte(shift_right<BIT - TARGET>(plane), VALUE));
    else return or_codes(c, and_byte(shift_left<TARGET - BIT>(plane), VALUE));
}
template <int SHIFT> INLINE static Codes pair_low(Codes plane) { return and_byte(shift_right<SHIFT>(plane), 3); }
template <int SHIFT> INLINE static Codes pair_high(Codes plane) {
    if constexpr (SHIFT > 4) return and_byte(shift_right<SHIFT - 4>(plane), 48);
    else return and_byte(shift_left<4 - SHIFT>(plane), 48);
}
INLINE static Codes wide_codes(Codes c) { return c; }
