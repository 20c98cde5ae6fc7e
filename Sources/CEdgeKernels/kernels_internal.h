// What the files of this target share: half-precision conversions and the names that the lists expand to.
#ifndef EDGE_KERNELS_INTERNAL_H
#define EDGE_KERNELS_INTERNAL_H

#include "edge_kernels.h"

#include <float.h>
#include <math.h>
#include <string.h>

static inline float edge_float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t edge_bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/// IEEE binary16 to binary32, exact; NaN keeps its payload's top bits.
static inline float edge_float_of_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t exponent = (half >> 10) & 0x1f;
    const uint32_t mantissa = half & 0x3ff;
    if (exponent == 0x1f) return edge_float_of_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent != 0) return edge_float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    // Subnormal: mantissa · 2^-24, a normal binary32, so flushing denormals cannot touch it.
    const float magnitude = (float)mantissa * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

/// binary32 to binary16, to nearest even.
static inline uint16_t edge_half_of_float(float value) {
#if defined(__aarch64__) // every such processor converts, and the compiler vectorises that
    const __fp16 half = (__fp16)value;
    uint16_t half_bits;
    memcpy(&half_bits, &half, sizeof half_bits);
    return half_bits;
#else
    const uint32_t bits = edge_bits_of_float(value);
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        // Adding 0.5 aligns the last place of a binary16 subnormal with the last place of the sum: the FPU rounds.
        const float aligned = edge_float_of_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (edge_bits_of_float(aligned) - 0x3f000000));
    }
    const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    return (uint16_t)(sign | ((rounded - 0x38000000) >> 13));
#endif
}

static inline float edge_float_of_bfloat(uint16_t bfloat) { return edge_float_of_bits((uint32_t)bfloat << 16); }

static inline uint16_t edge_bfloat_of_float(float value) {
    const uint32_t bits = edge_bits_of_float(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#define EDGE_QUANT_FORMAT(name, ggml_type, block_elements, block_bytes)                                                  \
    void edge_decode_##name(const void *blocks, float *values, size_t count);                                           \
    void edge_encode_##name(const float *values, void *blocks, size_t count);
#include "quant_formats.def"
#undef EDGE_QUANT_FORMAT

extern const float edge_nf4_levels[16];
/// Values of the codes, rising.
extern const float edge_dynamic_map_signed[256], edge_dynamic_map_unsigned[256];
/// Absmax of one block of an NF4 matrix.
float edge_nf4_absmax(const struct edge_matrix *w, size_t block);
void edge_decode_nf4_scaled(const struct edge_matrix *w, size_t first_block, float *values, size_t count);

#define EDGE_KERNEL_SET(symbol, name)                                                                                   \
    bool edge_supports_##symbol(void);                                                                                  \
    void edge_install_##symbol(struct edge_kernel_set *set);                                                            \
    double edge_peak_##symbol(enum edge_compute compute, size_t rounds, float *sink);
#include "kernel_sets.def"
#undef EDGE_KERNEL_SET

#endif
