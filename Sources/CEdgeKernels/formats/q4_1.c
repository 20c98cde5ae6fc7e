// Q4_1: 32 values as d · code + m. 5 bits a value.
//
//   byte  0  1   2  3   4 … 19
//        [ d ]  [ m ]  [code i in the low nibble, code i + 16 in the high nibble, of byte 4 + i]   d, m: binary16
#include "../kernels_internal.h"

struct block {
    uint16_t d, m;
    uint8_t codes[16];
};
_Static_assert(sizeof(struct block) == 20, "Q4_1 block");

EDGE_TEXT void decode_q4_1(const void *blocks, size_t first, float *values, size_t count) {
    const struct block *block = (const struct block *)blocks + first / 32;
    for (size_t b = 0; b < count / 32; b++, values += 32) {
        const float d = edge_float_of_half(block[b].d), m = edge_float_of_half(block[b].m);
        uint8_t codes[32];
        edge_split_nibbles(block[b].codes, codes);
        for (int i = 0; i < 32; i += 16) edge_store_affine(codes + i, d, m, values + i);
    }
}

EDGE_DECODERS(q4_1)

void edge_encode_q4_1(const float *values, void *blocks, size_t count) {
    struct block *block = blocks;
    for (size_t b = 0; b < count / 32; b++, values += 32) {
        float low = values[0], high = values[0];
        for (int i = 1; i < 32; i++) {
            low = values[i] < low ? values[i] : low;
            high = values[i] > high ? values[i] : high;
        }
        const float d = (high - low) / 15;
        const float inverse = d == 0 ? 0 : 1 / d;
        block[b].d = edge_half_of_float(d);
        block[b].m = edge_half_of_float(low);
        uint8_t codes[32];
        for (int i = 0; i < 32; i++) {
            const float code = (values[i] - low) * inverse + 0.5f;
            codes[i] = code > 15 ? 15 : (uint8_t)code;
        }
        for (int i = 0; i < 16; i++) block[b].codes[i] = (uint8_t)(codes[i] | codes[i + 16] << 4);
    }
}
