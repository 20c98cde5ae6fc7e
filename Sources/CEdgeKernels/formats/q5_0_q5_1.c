// Q5_0: 32 values as d · (code - 16). 5.5 bits a value.
//
//   byte  0  1   2 … 5                            6 … 21
//        [ d ]  [bit i: fifth bit of code i]     [code i in the low nibble, code i + 16 in the high nibble, of byte 6 + i]
//
// Q5_1: 32 values as d · code + m. 6 bits a value.
//
//   byte  0  1   2  3   4 … 7                     8 … 23
//        [ d ]  [ m ]  [bit i: fifth bit of code i]  [code i in the low nibble, code i + 16 in the high nibble, of byte 8 + i]
//
// d, m: binary16
#include "../kernels_internal.h"

struct q5_0_block {
    uint16_t d;
    uint8_t fifth_bits[4], codes[16];
};
_Static_assert(sizeof(struct q5_0_block) == 22, "Q5_0 block");

struct q5_1_block {
    uint16_t d, m;
    uint8_t fifth_bits[4], codes[16];
};
_Static_assert(sizeof(struct q5_1_block) == 24, "Q5_1 block");

/// The 32 codes of a block, 0 … 31.
EDGE_TEXT void codes_of(const uint8_t *fifth_bits, const uint8_t *nibbles, edge_bytes *codes) {
    uint32_t four_bytes;
    memcpy(&four_bytes, fifth_bits, sizeof four_bytes);
    edge_bytes bits;
    for (int i = 0; i < 32; i++) bits[i] = (uint8_t)(four_bytes >> i / 8 * 8);
    const edge_bytes place = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128,
                              1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    edge_split_nibbles(nibbles, (uint8_t *)codes);
    *codes |= (edge_bytes)((bits & place) == place) & 16;
}

EDGE_TEXT void decode_q5_0(const void *blocks, size_t first, float *values, size_t count) {
    const struct q5_0_block *block = (const struct q5_0_block *)blocks + first / 32;
    for (size_t b = 0; b < count / 32; b++, values += 32) {
        const float d = edge_float_of_half(block[b].d);
        edge_bytes codes;
        codes_of(block[b].fifth_bits, block[b].codes, &codes);
        codes -= 16;
        for (int i = 0; i < 32; i += 16) edge_store_scaled((const char *)&codes + i, d, values + i);
    }
}

EDGE_TEXT void decode_q5_1(const void *blocks, size_t first, float *values, size_t count) {
    const struct q5_1_block *block = (const struct q5_1_block *)blocks + first / 32;
    for (size_t b = 0; b < count / 32; b++, values += 32) {
        const float d = edge_float_of_half(block[b].d), m = edge_float_of_half(block[b].m);
        edge_bytes codes;
        codes_of(block[b].fifth_bits, block[b].codes, &codes);
        for (int i = 0; i < 32; i += 16) edge_store_affine((const char *)&codes + i, d, m, values + i);
    }
}

EDGE_DECODERS(q5_0)
EDGE_DECODERS(q5_1)
