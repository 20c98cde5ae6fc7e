// Q3_K: 256 values in 16 parts of 16, each d · (scale - 32) · (code - 4). 3.4375 bits a value.
//
//   byte  0 … 31         32 … 95              96 … 107    108 109
//        [third bits]   [low two bits]       [scales]    [ d ]      d: binary16
//
// Code of value 128h + 32s + i: bits 2s, 2s + 1 of byte 32 + 32h + i, and above them bit 4h + s of byte i.
// Scale of part p: nibble p / 8 of byte 96 + p % 8, and above it bits 2(p / 4), 2(p / 4) + 1 of byte 104 + p % 4.
#include "../kernels_internal.h"

struct block {
    uint8_t third_bits[32], codes[64], scales[12];
    uint16_t d;
};
_Static_assert(sizeof(struct block) == 110, "Q3_K block");

EDGE_TEXT void decode_q3_k(const void *blocks, size_t first, float *values, size_t count) {
    for (size_t unit = first / 32, end = (first + count) / 32; unit < end;) {
        const struct block *block = (const struct block *)blocks + unit / 8;
        const float d = edge_float_of_half(block->d);
        for (const size_t stop = edge_superblock_end(unit, end); unit < stop; unit++, values += 32) {
            const uint8_t shift = unit % 4 * 2, third = unit % 8;
            edge_bytes codes, third_bits;
            memcpy(&codes, block->codes + unit % 8 / 4 * 32, sizeof codes);
            memcpy(&third_bits, block->third_bits, sizeof third_bits);
            codes = ((codes >> shift & 3) | (third_bits >> third & 1) << 2) - 4;
            for (int part = 0; part < 2; part++) {
                const size_t p = unit % 8 * 2 + (size_t)part;
                const int low = block->scales[p % 8] >> p / 8 * 4 & 15, high = block->scales[8 + p % 4] >> p / 4 * 2 & 3;
                const float scale = d * (float)((low | high << 4) - 32);
                edge_store_scaled((const char *)&codes + 16 * part, scale, values + 16 * part);
            }
        }
    }
}

EDGE_DECODERS(q3_k)
