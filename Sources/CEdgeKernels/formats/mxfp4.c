// MXFP4: 32 values as 2^(e - 127) · level[code]. 4.25 bits a value. (Open Compute Project, Microscaling Formats v1.0, §5.)
//
//   byte  0     1 … 16
//        [ e ]  [code i in the low nibble, code i + 16 in the high nibble, of byte 1 + i]
//
// A code is a sign, two bits of exponent and one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6. As in ggml an e of 255 is no NaN but
// 2^128, and levels are doubled, so that they are integers, and the scale is halved.
#include "../kernels_internal.h"

struct block {
    uint8_t e, codes[16];
};
_Static_assert(sizeof(struct block) == 17, "MXFP4 block");

/// 2^(e - 128); below 2^-126 a denormal, which is 0 where those are flushed.
EDGE_TEXT float half_scale(uint8_t e) { return edge_float_of_bits(e < 2 ? 0x200000u << e : (uint32_t)(e - 1) << 23); }

/// Twice the value of a code; ggml's negative zero is 0.
EDGE_TEXT int8_t doubled(uint8_t code) {
    const int t = code & 7, magnitude = t + (t > 4) + (t > 5) + 3 * (t > 6);
    return (int8_t)(code & 8 ? -magnitude : magnitude);
}

EDGE_TEXT void decode_mxfp4(const void *blocks, size_t first, float *values, size_t count) {
    const struct block *block = (const struct block *)blocks + first / 32;
    for (size_t b = 0; b < count / 32; b++, values += 32) {
        const float scale = half_scale(block[b].e);
        uint8_t codes[32];
        int8_t doubles[32];
        edge_split_nibbles(block[b].codes, codes);
        for (int i = 0; i < 32; i++) doubles[i] = doubled(codes[i]);
        for (int i = 0; i < 32; i += 16) edge_store_scaled(doubles + i, scale, values + i);
    }
}

EDGE_DECODERS(mxfp4)
