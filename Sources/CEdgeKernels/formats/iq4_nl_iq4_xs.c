// IQ4_NL: 32 values as d · level[code]. 4.5 bits a value.
//
//   byte  0  1   2 … 17
//        [ d ]  [code i in the low nibble, code i + 16 in the high nibble, of byte 2 + i]
//
// IQ4_XS: 256 values in 8 parts of 32, each d · (scale - 32) · level[code]. 4.25 bits a value.
//
//   byte  0  1   2  3             4 … 7                        8 … 135
//        [ d ]  [bits 2p, 2p + 1: [low nibble of the scale of  [codes of part p in bytes 8 + 16p …, as above]
//                top of part p's   part p in nibble p % 2
//                scale]            of byte 4 + p / 2]
//
// d: binary16
#include "../kernels_internal.h"

// llama.cpp's kvalues_iq4nl (ggml-common.h).
const float edge_iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct iq4_nl_block {
    uint16_t d;
    uint8_t codes[16];
};
_Static_assert(sizeof(struct iq4_nl_block) == 18, "IQ4_NL block");

_Static_assert(sizeof(struct edge_iq4_xs_block) == 136, "IQ4_XS block");

EDGE_TEXT void decode_part(const uint8_t *codes, float scale, float *values) {
    for (int i = 0; i < 16; i++) {
        values[i] = scale * edge_iq4_levels[codes[i] & 15];
        values[i + 16] = scale * edge_iq4_levels[codes[i] >> 4];
    }
}

EDGE_TEXT void decode_iq4_nl(const void *blocks, size_t first, float *values, size_t count) {
    const struct iq4_nl_block *block = (const struct iq4_nl_block *)blocks + first / 32;
    for (size_t b = 0; b < count / 32; b++, values += 32)
        decode_part(block[b].codes, edge_float_of_half(block[b].d), values);
}

EDGE_TEXT void decode_iq4_xs(const void *blocks, size_t first, float *values, size_t count) {
    for (size_t unit = first / 32; unit < (first + count) / 32; unit++, values += 32) {
        const struct edge_iq4_xs_block *block = (const struct edge_iq4_xs_block *)blocks + unit / 8;
        const float scale = edge_float_of_half(block->d) * (float)edge_iq4_xs_scale(block, unit % 8);
        decode_part(block->codes + unit % 8 * 16, scale, values);
    }
}

EDGE_DECODERS(iq4_nl)
EDGE_DECODERS(iq4_xs)
