// F32, F16 and BF16: a block is one value.
#include "../kernels_internal.h"

void edge_decode_f32(const void *blocks, float *values, size_t count) { memcpy(values, blocks, count * sizeof(float)); }
void edge_encode_f32(const float *values, void *blocks, size_t count) { memcpy(blocks, values, count * sizeof(float)); }

void edge_decode_f16(const void *blocks, float *values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, (const char *)blocks + 2 * i, sizeof half);
        values[i] = edge_float_of_half(half);
    }
}

void edge_encode_f16(const float *values, void *blocks, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const uint16_t half = edge_half_of_float(values[i]);
        memcpy((char *)blocks + 2 * i, &half, sizeof half);
    }
}

void edge_decode_bf16(const void *blocks, float *values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint16_t bfloat;
        memcpy(&bfloat, (const char *)blocks + 2 * i, sizeof bfloat);
        values[i] = edge_float_of_bfloat(bfloat);
    }
}

void edge_encode_bf16(const float *values, void *blocks, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const uint16_t bfloat = edge_bfloat_of_float(values[i]);
        memcpy((char *)blocks + 2 * i, &bfloat, sizeof bfloat);
    }
}
