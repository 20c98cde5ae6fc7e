// FP4, bitsandbytes' 4-bit floating point: 64 values as absmax · level[code], laid out as NF4's (nf4.c). One bit of sign, two of
// exponent, one of mantissa; divided by the largest, 12.
#include "../kernels_internal.h"

// bitsandbytes' functional.get_4bit_type("fp4").
const float edge_fp4_levels[16] = {
    0.0f, 0.0625f / 12, 8.0f / 12, 1.0f, 4.0f / 12, 6.0f / 12, 2.0f / 12, 3.0f / 12,
    0.0f, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12,
};

EDGE_TEXT void decode_fp4(const void *blocks, size_t first, float *values, size_t count) {
    for (size_t i = 0; i < count; i += 64)
        edge_decode_levels((const uint8_t *)blocks + (first + i) / 2, edge_fp4_levels, 1, values + i);
}

EDGE_DECODERS(fp4)
