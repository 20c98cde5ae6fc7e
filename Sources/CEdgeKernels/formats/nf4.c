// NF4, QLoRA's 4-bit NormalFloat (arXiv:2305.14314 §3): 64 values as absmax · level[code]. 4 bits a value, and with the
// absmax values themselves quantised to 8 bits (double quantisation) 4.127.
//
//   byte  0 … 31
//        [code of value 2i in the high nibble, of 2i + 1 in the low nibble, of byte i]      bitsandbytes' layout
//
// The scales lie beside the blocks (`struct edge_matrix`). A block alone decodes with an absmax of 1. FP4 has other levels, and
// shares the rest.
#include "../kernels_internal.h"

// Quantiles of N(0, 1) scaled to [-1, 1], as bitsandbytes rounds them.
const float edge_nf4_levels[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

float edge_block_absmax(const struct edge_matrix *w, size_t block) {
    const size_t b = w->first_block + block;
    if (!w->absmax_codes) return w->absmax[b];
    return edge_dynamic_map_signed[w->absmax_codes[b]] * w->absmax[b / EDGE_NESTED_BLOCK] + w->nested_offset;
}

void edge_decode_levels(const uint8_t *codes, const float *levels, float absmax, float *values) {
    for (int i = 0; i < 32; i++) {
        values[2 * i] = absmax * levels[codes[i] >> 4];
        values[2 * i + 1] = absmax * levels[codes[i] & 15];
    }
}

void edge_decode_scaled(const struct edge_matrix *w, size_t block, float *values, size_t count) {
    const float *levels = edge_quant_format(w->format)->levels;
    for (size_t b = block; b < block + count / 64; b++, values += 64)
        edge_decode_levels((const uint8_t *)w->blocks + 32 * b, levels, edge_block_absmax(w, b), values);
}

EDGE_TEXT void decode_nf4(const void *blocks, size_t first, float *values, size_t count) {
    for (size_t i = 0; i < count; i += 64)
        edge_decode_levels((const uint8_t *)blocks + (first + i) / 2, edge_nf4_levels, 1, values + i);
}

EDGE_DECODERS(nf4)

void edge_encode_nf4(const float *values, void *blocks, size_t count) {
    uint8_t *codes = blocks;
    for (size_t i = 0; i < count; i++) {
        int nearest = 0;
        for (int level = 1; level < 16; level++)
            if (fabsf(values[i] - edge_nf4_levels[level]) < fabsf(values[i] - edge_nf4_levels[nearest])) nearest = level;
        codes[i / 2] = (uint8_t)(i % 2 == 0 ? nearest << 4 : codes[i / 2] | nearest);
    }
}
