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
#if defined(__aarch64__) // every such processor converts
    __fp16 value;
    memcpy(&value, &half, sizeof value);
    return (float)value;
#else
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t exponent = (half >> 10) & 0x1f;
    const uint32_t mantissa = half & 0x3ff;
    if (exponent == 0x1f) return edge_float_of_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent != 0) return edge_float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    // Subnormal: mantissa · 2^-24, a normal binary32, so flushing denormals cannot touch it.
    const float magnitude = (float)mantissa * 0x1p-24f;
    return sign ? -magnitude : magnitude;
#endif
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

// ---- Formats --------------------------------------------------------------------------------------------------

enum { EDGE_SUPERBLOCK_UNIT = 32 };

/// `decode_name(blocks, first, values, count)` is the one text of a format's decoder; EDGE_DECODERS(name) compiles it for every
/// width of registers. A set replaces those that intrinsics do better.
#define EDGE_TEXT static inline __attribute__((always_inline))
#define EDGE_DECODER(symbol, text, attribute)                                                                            \
    attribute void symbol(const void *blocks, size_t first, float *values, size_t count) {                              \
        text(blocks, first, values, count);                                                                             \
    }
#if defined(__x86_64__)
#define EDGE_AVX2 __attribute__((target("avx2,fma,f16c")))
#define EDGE_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define EDGE_DECODERS(name)                                                                                              \
    EDGE_DECODER(edge_decode_##name, decode_##name, )                                                                   \
    EDGE_DECODER(edge_decode_##name##_avx2, decode_##name, EDGE_AVX2)                                                   \
    EDGE_DECODER(edge_decode_##name##_avx512, decode_##name, EDGE_AVX512)
#else
#define EDGE_DECODERS(name) EDGE_DECODER(edge_decode_##name, decode_##name, )
#endif

/// Where the superblock of `unit` ends, or the units do.
EDGE_TEXT size_t edge_superblock_end(size_t unit, size_t end) {
    const size_t next = (unit / 8 + 1) * 8;
    return next < end ? next : end;
}

/// The compiler's vectors: plain loops over codes with a shift that varies become scalar code. Only within a function, since how
/// they are passed depends on the target.
typedef uint8_t edge_bytes __attribute__((vector_size(32)));
typedef int8_t edge_codes __attribute__((vector_size(16)));
typedef float edge_values __attribute__((vector_size(64)));

/// Sixteen codes of one signed byte each: scale · code.
EDGE_TEXT void edge_store_scaled(const void *codes, float scale, float *values) {
    edge_codes sixteen;
    memcpy(&sixteen, codes, sizeof sixteen);
    const edge_values products = scale * __builtin_convertvector(sixteen, edge_values);
    memcpy(values, &products, sizeof products);
}

/// scale · code + added, rounded twice.
EDGE_TEXT void edge_store_affine(const void *codes, float scale, float added, float *values) {
    edge_codes sixteen;
    memcpy(&sixteen, codes, sizeof sixteen);
    const edge_values sums = scale * __builtin_convertvector(sixteen, edge_values) + added;
    memcpy(values, &sums, sizeof sums);
}

/// Sixteen bytes of nibbles as thirty-two codes: the low ones, then the high ones.
EDGE_TEXT void edge_split_nibbles(const void *nibbles, uint8_t *codes) {
    edge_codes both;
    memcpy(&both, nibbles, sizeof both);
    const edge_codes low = both & 15, high = both >> 4 & 15;
    memcpy(codes, &low, sizeof low);
    memcpy(codes + 16, &high, sizeof high);
}

typedef void edge_decoder(const void *blocks, size_t first, float *values, size_t count);
#define EDGE_QUANT_FORMAT(name, ...)                                                                                     \
    edge_decoder edge_decode_##name, edge_decode_##name##_avx2, edge_decode_##name##_avx512; /* where they are */       \
    void edge_encode_##name(const float *values, void *blocks, size_t count); /* of those that have one */
#include "quant_formats.def"
#undef EDGE_QUANT_FORMAT

extern const float edge_nf4_levels[16], edge_fp4_levels[16], edge_iq4_levels[16];
/// IQ4_XS (formats/iq4_nl_iq4_xs.c), whose levels the sets look up their own way.
struct edge_iq4_xs_block {
    uint16_t d, high_scales;
    uint8_t low_scales[4], codes[128];
};
/// Of one of the eight parts of a block, -32 … 31.
static inline int edge_iq4_xs_scale(const struct edge_iq4_xs_block *block, size_t part) {
    const int low = block->low_scales[part / 2] >> part % 2 * 4 & 15, high = block->high_scales >> 2 * part & 3;
    return (low | high << 4) - 32;
}

/// Values of the codes of 8-bit absmax values and moments, rising.
extern const float edge_dynamic_map_signed[256], edge_dynamic_map_unsigned[256];
/// Absmax of one block of a matrix whose format has levels.
float edge_block_absmax(const struct edge_matrix *w, size_t block);
/// One block of such a format: absmax · level of each code.
void edge_decode_levels(const uint8_t *codes, const float *levels, float absmax, float *values);
void edge_decode_scaled(const struct edge_matrix *w, size_t block, float *values, size_t count);

#define EDGE_KERNEL_SET(symbol, name)                                                                                   \
    bool edge_supports_##symbol(void);                                                                                  \
    void edge_install_##symbol(struct edge_kernel_set *set);                                                            \
    double edge_peak_##symbol(enum edge_compute compute, size_t rounds, float *sink);
#include "kernel_sets.def"
#undef EDGE_KERNEL_SET

#endif
