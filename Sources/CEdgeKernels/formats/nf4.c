// NF4, QLoRA's 4-bit NormalFloat (arXiv:2305.14314 §3): 64 values as absmax · level[code]. 4 bits a value, and with the
// absmax values themselves quantised to 8 bits (double quantisation) 4.127.
//
//   byte  0 … 31
//        [code of value 2i in the high nibble, of 2i + 1 in the low nibble, of byte i]      bitsandbytes' layout
//
// The scales lie beside the blocks (`struct edge_matrix`). A block alone decodes with an absmax of 1.
#include "../kernels_internal.h"

// Quantiles of N(0, 1) scaled to [-1, 1], as bitsandbytes rounds them.
const float edge_nf4_levels[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

float edge_nf4_absmax(const struct edge_matrix *w, size_t block) {
    return edge_dynamic_map_signed[w->absmax_codes[block]] * w->nested_absmax[block / EDGE_NESTED_BLOCK] + w->nested_offset;
}

static void decode_block(const uint8_t *codes, float absmax, float *values) {
    for (int i = 0; i < 32; i++) {
        values[2 * i] = absmax * edge_nf4_levels[codes[i] >> 4];
        values[2 * i + 1] = absmax * edge_nf4_levels[codes[i] & 15];
    }
}

void edge_decode_nf4(const void *blocks, float *values, size_t count) {
    for (size_t b = 0; b < count / 64; b++) decode_block((const uint8_t *)blocks + 32 * b, 1, values + 64 * b);
}

void edge_decode_nf4_scaled(const struct edge_matrix *w, size_t first_block, float *values, size_t count) {
    for (size_t b = 0; b < count / 64; b++)
        decode_block(
            (const uint8_t *)w->blocks + 32 * (first_block + b), edge_nf4_absmax(w, first_block + b), values + 64 * b);
}

void edge_encode_nf4(const float *values, void *blocks, size_t count) {
    uint8_t *codes = blocks;
    for (size_t i = 0; i < count; i++) {
        int nearest = 0;
        for (int level = 1; level < 16; level++)
            if (fabsf(values[i] - edge_nf4_levels[level]) < fabsf(values[i] - edge_nf4_levels[nearest])) nearest = level;
        codes[i / 2] = (uint8_t)(i % 2 == 0 ? nearest << 4 : codes[i / 2] | nearest);
    }
}
