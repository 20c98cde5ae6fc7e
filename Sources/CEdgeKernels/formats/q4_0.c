// Q4_0: 32 values as d · (code - 8). 4.5 bits a value.
//
//   byte  0  1   2 … 17
//        [ d ]  [code i in the low nibble, code i + 16 in the high nibble, of byte 2 + i]      d: binary16
#include "../kernels_internal.h"

struct block {
    uint16_t d;
    uint8_t codes[16];
};
_Static_assert(sizeof(struct block) == 18, "Q4_0 block");

EDGE_TEXT void decode_q4_0(const void *blocks, size_t first, float *values, size_t count) {
    const struct block *block = (const struct block *)blocks + first / 32;
    for (size_t b = 0; b < count / 32; b++, values += 32) {
        const float d = edge_float_of_half(block[b].d);
        edge_bytes codes;
        edge_split_nibbles(block[b].codes, (uint8_t *)&codes);
        codes -= 8;
        for (int i = 0; i < 32; i += 16) edge_store_scaled((const char *)&codes + i, d, values + i);
    }
}

EDGE_DECODERS(q4_0)

void edge_encode_q4_0(const float *values, void *blocks, size_t count) {
    struct block *block = blocks;
    for (size_t b = 0; b < count / 32; b++, values += 32) {
        // The value of largest magnitude keeps its sign and becomes code 0, which reaches one level further than 15.
        float extreme = 0;
        for (int i = 0; i < 32; i++)
            if (fabsf(values[i]) > fabsf(extreme)) extreme = values[i];
        const float d = extreme / -8;
        const float inverse = d == 0 ? 0 : 1 / d;
        block[b].d = edge_half_of_float(d);
        uint8_t codes[32];
        for (int i = 0; i < 32; i++) {
            const float code = values[i] * inverse + 8.5f;
            codes[i] = code < 0 ? 0 : code > 15 ? 15 : (uint8_t)code;
        }
        for (int i = 0; i < 16; i++) block[b].codes[i] = (uint8_t)(codes[i] | codes[i + 16] << 4);
    }
}
