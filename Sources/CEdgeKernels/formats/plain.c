// F32, F16 and BF16: a block is one value.
#include "../kernels_internal.h"

EDGE_TEXT void decode_f32(const void *blocks, size_t first, float *values, size_t count) {
    memcpy(values, (const char *)blocks + first * sizeof(float), count * sizeof(float));
}

EDGE_TEXT void decode_f16(const void *blocks, size_t first, float *values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, (const char *)blocks + 2 * (first + i), sizeof half);
        values[i] = edge_float_of_half(half);
    }
}

EDGE_TEXT void decode_bf16(const void *blocks, size_t first, float *values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint16_t bfloat;
        memcpy(&bfloat, (const char *)blocks + 2 * (first + i), sizeof bfloat);
        values[i] = edge_float_of_bfloat(bfloat);
    }
}

EDGE_DECODERS(f32)
EDGE_DECODERS(f16)
EDGE_DECODERS(bf16)

void edge_encode_f32(const float *values, void *blocks, size_t count) { memcpy(blocks, values, count * sizeof(float)); }

void edge_encode_f16(const float *values, void *blocks, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const uint16_t half = edge_half_of_float(values[i]);
        memcpy((char *)blocks + 2 * i, &half, sizeof half);
    }
}

void edge_encode_bf16(const float *values, void *blocks, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const uint16_t bfloat = edge_bfloat_of_float(values[i]);
        memcpy((char *)blocks + 2 * i, &bfloat, sizeof bfloat);
    }
}
