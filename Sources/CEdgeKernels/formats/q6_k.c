// Q6_K: 256 values in 16 parts of 16, each d · scale · (code - 32). 6.5625 bits a value.
//
//   byte  0 … 127      128 … 191      192 … 207              208 209
//        [low nibbles] [top two bits] [scale of part p,      [ d ]      d: binary16
//                                      signed, in byte 192 + p]
//
// Code of value 128h + 64t + 32s + i: nibble t of byte 64h + 32s + i, and above it bits 4t + 2s, 4t + 2s + 1 of byte
// 128 + 32h + i.
#include "../kernels_internal.h"

struct block {
    uint8_t nibbles[128], top_bits[64];
    int8_t scales[16];
    uint16_t d;
};
_Static_assert(sizeof(struct block) == 210, "Q6_K block");

EDGE_TEXT void decode_q6_k(const void *blocks, size_t first, float *values, size_t count) {
    for (size_t unit = first / 32, end = (first + count) / 32; unit < end;) {
        const struct block *block = (const struct block *)blocks + unit / 8;
        const float d = edge_float_of_half(block->d);
        for (const size_t stop = edge_superblock_end(unit, end); unit < stop; unit++, values += 32) {
            const size_t half = unit % 8 / 4, quarter = unit % 4;
            const uint8_t shift = quarter / 2 * 4, top_shift = quarter * 2;
            edge_bytes codes, top_bits;
            memcpy(&codes, block->nibbles + half * 64 + quarter % 2 * 32, sizeof codes);
            memcpy(&top_bits, block->top_bits + half * 32, sizeof top_bits);
            codes = ((codes >> shift & 15) | (top_bits >> top_shift & 3) << 4) - 32;
            for (int part = 0; part < 2; part++) {
                const float scale = d * (float)block->scales[unit % 8 * 2 + (size_t)part];
                edge_store_scaled((const char *)&codes + 16 * part, scale, values + 16 * part);
            }
        }
    }
}

EDGE_DECODERS(q6_k)
