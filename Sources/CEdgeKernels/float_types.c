// Conversions between the float types of checkpoints, rounding to nearest even.
#include "kernels_internal.h"

void edge_floats_of_halves(const uint16_t *halves, float *values, size_t count) {
    for (size_t i = 0; i < count; i++) values[i] = edge_float_of_half(halves[i]);
}

void edge_floats_of_bfloats(const uint16_t *bfloats, float *values, size_t count) {
    for (size_t i = 0; i < count; i++) values[i] = edge_float_of_bfloat(bfloats[i]);
}

void edge_bfloats_of_floats(const float *values, uint16_t *bfloats, size_t count) {
    for (size_t i = 0; i < count; i++) bfloats[i] = edge_bfloat_of_float(values[i]);
}
