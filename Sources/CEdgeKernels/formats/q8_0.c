// Q8_0: 32 values as d · code. 8.5 bits a value.
//
//   byte  0  1   2 … 33
//        [ d ]  [code i, signed, in byte 2 + i]        d: binary16
#include "../kernels_internal.h"

struct block {
    uint16_t d;
    int8_t codes[32];
};
_Static_assert(sizeof(struct block) == 34, "Q8_0 block");

EDGE_TEXT void decode_q8_0(const void *blocks, size_t first, float *values, size_t count) {
    const struct block *block = (const struct block *)blocks + first / 32;
    for (size_t b = 0; b < count / 32; b++, values += 32) {
        const float d = edge_float_of_half(block[b].d);
        for (int i = 0; i < 32; i += 16) edge_store_scaled(block[b].codes + i, d, values + i);
    }
}

EDGE_DECODERS(q8_0)

void edge_encode_q8_0(const float *values, void *blocks, size_t count) {
    struct block *block = blocks;
    for (size_t b = 0; b < count / 32; b++, values += 32) {
        float largest = 0;
        for (int i = 0; i < 32; i++) largest = fabsf(values[i]) > largest ? fabsf(values[i]) : largest;
        const float d = largest / 127;
        const float inverse = d == 0 ? 0 : 1 / d;
        block[b].d = edge_half_of_float(d);
        for (int i = 0; i < 32; i++) block[b].codes[i] = (int8_t)roundf(values[i] * inverse);
    }
}
