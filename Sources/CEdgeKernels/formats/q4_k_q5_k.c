// Q4_K: 256 values in 8 parts of 32, each d · scale · code - m · minimum. 4.5 bits a value.
//
//   byte  0  1   2  3   4 … 15      16 … 143
//        [ d ]  [ m ]  [scales]    [code of value 64q + 32t + i in nibble t of byte 16 + 32q + i]
//
// Q5_K: the same with codes of 5 bits. 5.5 bits a value.
//
//   byte  0  1   2  3   4 … 15      16 … 47                                48 … 175
//        [ d ]  [ m ]  [scales]    [fifth bit of value 32p + i in bit p   [nibbles as above]
//                                   of byte 16 + i]
//
// Scales and minima have 6 bits. Byte 4 + p, p < 4: scale p, and in its top bits the top of scale p + 4; byte 8 + p: minimum p,
// and the top of minimum p + 4; byte 12 + p: the low nibbles of scale p + 4 and of minimum p + 4.      d, m: binary16
#include "../kernels_internal.h"

struct q4_k_block {
    uint16_t d, m;
    uint8_t scales[12], codes[128];
};
_Static_assert(sizeof(struct q4_k_block) == 144, "Q4_K block");

struct q5_k_block {
    uint16_t d, m;
    uint8_t scales[12], fifth_bits[32], codes[128];
};
_Static_assert(sizeof(struct q5_k_block) == 176, "Q5_K block");

EDGE_TEXT int scale_of(const uint8_t *scales, size_t part) {
    return part < 4 ? scales[part] & 63 : (scales[part + 4] & 15) | scales[part - 4] >> 6 << 4;
}

EDGE_TEXT int minimum_of(const uint8_t *scales, size_t part) {
    return part < 4 ? scales[part + 4] & 63 : scales[part + 4] >> 4 | scales[part] >> 6 << 4;
}

EDGE_TEXT void decode_q4_k(const void *blocks, size_t first, float *values, size_t count) {
    for (size_t unit = first / 32, end = (first + count) / 32; unit < end;) {
        const struct q4_k_block *block = (const struct q4_k_block *)blocks + unit / 8;
        const float d = edge_float_of_half(block->d), m = edge_float_of_half(block->m);
        for (const size_t stop = edge_superblock_end(unit, end); unit < stop; unit++, values += 32) {
            const float scale = d * (float)scale_of(block->scales, unit % 8);
            const float minimum = m * (float)minimum_of(block->scales, unit % 8);
            const uint8_t shift = unit % 2 * 4;
            edge_bytes codes;
            memcpy(&codes, block->codes + unit % 8 / 2 * 32, sizeof codes);
            codes = codes >> shift & 15;
            for (int i = 0; i < 32; i += 16) edge_store_affine((const char *)&codes + i, scale, -minimum, values + i);
        }
    }
}

EDGE_TEXT void decode_q5_k(const void *blocks, size_t first, float *values, size_t count) {
    for (size_t unit = first / 32, end = (first + count) / 32; unit < end;) {
        const struct q5_k_block *block = (const struct q5_k_block *)blocks + unit / 8;
        const float d = edge_float_of_half(block->d), m = edge_float_of_half(block->m);
        for (const size_t stop = edge_superblock_end(unit, end); unit < stop; unit++, values += 32) {
            const float scale = d * (float)scale_of(block->scales, unit % 8);
            const float minimum = m * (float)minimum_of(block->scales, unit % 8);
            const uint8_t shift = unit % 2 * 4, fifth = unit % 8;
            edge_bytes codes, fifth_bits;
            memcpy(&codes, block->codes + unit % 8 / 2 * 32, sizeof codes);
            memcpy(&fifth_bits, block->fifth_bits, sizeof fifth_bits);
            codes = (codes >> shift & 15) | (fifth_bits >> fifth & 1) << 4;
            for (int i = 0; i < 32; i += 16) edge_store_affine((const char *)&codes + i, scale, -minimum, values + i);
        }
    }
}

EDGE_DECODERS(q4_k)
EDGE_DECODERS(q5_k)
