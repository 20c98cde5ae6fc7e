// Q2_K: 256 values in 16 parts of 16, each d · scale · code - m · minimum. 2.625 bits a value.
//
//   byte  0 … 15                              16 … 79     80 81   82 83
//        [scale of part p in the low nibble, [ codes ]   [ d ]   [ m ]      d, m: binary16
//         its minimum in the high, of byte p]
//
// Code of value 128h + 32s + i: bits 2s, 2s + 1 of byte 16 + 32h + i.
#include "../kernels_internal.h"

struct block {
    uint8_t scales[16], codes[64];
    uint16_t d, m;
};
_Static_assert(sizeof(struct block) == 84, "Q2_K block");

EDGE_TEXT void decode_q2_k(const void *blocks, size_t first, float *values, size_t count) {
    for (size_t unit = first / 32, end = (first + count) / 32; unit < end;) {
        const struct block *block = (const struct block *)blocks + unit / 8;
        const float d = edge_float_of_half(block->d), m = edge_float_of_half(block->m);
        for (const size_t stop = edge_superblock_end(unit, end); unit < stop; unit++, values += 32) {
            const uint8_t *scales = block->scales + unit % 8 * 2, shift = unit % 4 * 2;
            edge_bytes codes;
            memcpy(&codes, block->codes + unit % 8 / 4 * 32, sizeof codes);
            codes = codes >> shift & 3;
            for (int part = 0; part < 2; part++) {
                const float scale = d * (float)(scales[part] & 15), minimum = m * (float)(scales[part] >> 4);
                edge_store_affine((const char *)&codes + 16 * part, scale, -minimum, values + 16 * part);
            }
        }
    }
}

EDGE_DECODERS(q2_k)
