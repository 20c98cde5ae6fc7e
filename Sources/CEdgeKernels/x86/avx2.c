// AVX2 with FMA and F16C: Haswell and later, Zen, and the small cores from Gracemont (N100) on.
//
//   tile        6 x 16: twelve accumulators, two panel vectors, one broadcast: 15 of 16 registers, two FMA a load
//   pack_words  8 x 8 transpositions in registers
//   decode      Q4_0, Q4_1, Q8_0, IQ4_NL, IQ4_XS, F16, BF16, NF4, FP4; multiply then add, never fused: equal to the formats' own
//               bits
#include "../kernels_internal.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)

#include "../elementwise.inc"
#include "../optimizer.inc"
#include "../packing.inc"

enum { TILE_ROWS = 6 };

static inline void store_eight_by_eight(const __m256 row[8], float *panel) {
    __m256 pairs[8], quads[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
        quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_store_ps(panel + i * EDGE_PANEL_COLUMNS, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20));
        _mm256_store_ps(panel + (i + 4) * EDGE_PANEL_COLUMNS, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31));
    }
}

static void pack_words(const void *rows, size_t stride, size_t count, size_t words, void *panel) {
    const float *source = rows;
    float *packed = panel;
    size_t k = 0;
    for (; k + 8 <= words; k += 8, packed += 8 * EDGE_PANEL_COLUMNS)
        for (size_t half = 0; half < EDGE_PANEL_COLUMNS; half += 8) {
            __m256 row[8];
            for (size_t j = 0; j < 8; j++)
                row[j] = half + j < count ? _mm256_loadu_ps(source + (half + j) * stride + k) : _mm256_setzero_ps();
            store_eight_by_eight(row, packed + half);
        }
    for (; k < words; k++, packed += EDGE_PANEL_COLUMNS)
        for (size_t j = 0; j < EDGE_PANEL_COLUMNS; j++) packed[j] = j < count ? source[j * stride + k] : 0;
}

static inline __attribute__((always_inline)) void tile_of(const size_t m, const struct edge_left *a, const void *panels,
                                                          size_t depth, float *c, size_t ldc, size_t n, bool accumulate) {
    const float *panel = panels;
    const char *rows = a->rows;
    __m256 left[TILE_ROWS], right[TILE_ROWS];
#pragma clang loop unroll(full)
    for (size_t i = 0; i < m; i++) left[i] = right[i] = _mm256_setzero_ps();
    for (size_t k = 0; k < depth; k++, panel += EDGE_PANEL_COLUMNS, rows += a->step) {
        const __m256 b0 = _mm256_load_ps(panel), b1 = _mm256_load_ps(panel + 8);
#pragma clang loop unroll(full)
        for (size_t i = 0; i < m; i++) {
            const __m256 value = _mm256_broadcast_ss((const float *)(rows + i * a->stride));
            left[i] = _mm256_fmadd_ps(value, b0, left[i]);
            right[i] = _mm256_fmadd_ps(value, b1, right[i]);
        }
    }
#pragma clang loop unroll(full)
    for (size_t i = 0; i < m; i++, c += ldc) {
        if (n == EDGE_PANEL_COLUMNS) {
            if (accumulate) {
                left[i] = _mm256_add_ps(_mm256_loadu_ps(c), left[i]);
                right[i] = _mm256_add_ps(_mm256_loadu_ps(c + 8), right[i]);
            }
            _mm256_storeu_ps(c, left[i]);
            _mm256_storeu_ps(c + 8, right[i]);
        } else {
            float sums[EDGE_PANEL_COLUMNS];
            _mm256_storeu_ps(sums, left[i]);
            _mm256_storeu_ps(sums + 8, right[i]);
            for (size_t j = 0; j < n; j++) c[j] = accumulate ? c[j] + sums[j] : sums[j];
        }
    }
}

static void tile_f32(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                     size_t n, bool accumulate) {
    switch (m) {
    case 6: tile_of(6, a, panels, depth, c, ldc, n, accumulate); break;
    case 5: tile_of(5, a, panels, depth, c, ldc, n, accumulate); break;
    case 4: tile_of(4, a, panels, depth, c, ldc, n, accumulate); break;
    case 3: tile_of(3, a, panels, depth, c, ldc, n, accumulate); break;
    case 2: tile_of(2, a, panels, depth, c, ldc, n, accumulate); break;
    default: tile_of(1, a, panels, depth, c, ldc, n, accumulate);
    }
}

/// Sixteen codes of one byte each, as two vectors of floats.
static inline void store_codes(__m128i codes, __m256 d, __m256 m, float *values) {
    const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
    const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8)));
    _mm256_storeu_ps(values, _mm256_add_ps(_mm256_mul_ps(d, low), m));
    _mm256_storeu_ps(values + 8, _mm256_add_ps(_mm256_mul_ps(d, high), m));
}

static inline __m256 broadcast_half(const void *half) {
    uint16_t bits;
    memcpy(&bits, half, sizeof bits);
    return _mm256_set1_ps(_cvtsh_ss(bits));
}

static void decode_q4_1(const void *blocks, size_t first, float *values, size_t count) {
    const char *block = (const char *)blocks + first / 32 * 20;
    const __m128i nibble = _mm_set1_epi8(15);
    for (size_t b = 0; b < count / 32; b++, block += 20, values += 32) {
        const __m256 d = broadcast_half(block), m = broadcast_half(block + 2);
        const __m128i codes = _mm_loadu_si128((const __m128i *)(block + 4));
        store_codes(_mm_and_si128(codes, nibble), d, m, values);
        store_codes(_mm_and_si128(_mm_srli_epi16(codes, 4), nibble), d, m, values + 16);
    }
}

// d · (code - 8): the subtraction is exact in integers, so the one rounding is that of the product.
static void decode_q4_0(const void *blocks, size_t first, float *values, size_t count) {
    const char *block = (const char *)blocks + first / 32 * 18;
    const __m128i nibble = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    for (size_t b = 0; b < count / 32; b++, block += 18, values += 32) {
        const __m256 d = broadcast_half(block);
        const __m128i codes = _mm_loadu_si128((const __m128i *)(block + 2));
        const __m128i low = _mm_sub_epi8(_mm_and_si128(codes, nibble), eight);
        const __m128i high = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(codes, 4), nibble), eight);
        const __m128i quarters[4] = {low, _mm_srli_si128(low, 8), high, _mm_srli_si128(high, 8)};
        for (int i = 0; i < 4; i++)
            _mm256_storeu_ps(values + 8 * i, _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(quarters[i]))));
    }
}

static void decode_q8_0(const void *blocks, size_t first, float *values, size_t count) {
    const char *block = (const char *)blocks + first / 32 * 34;
    for (size_t b = 0; b < count / 32; b++, block += 34, values += 32) {
        const __m256 d = broadcast_half(block);
        for (int i = 0; i < 4; i++) {
            const __m128i codes = _mm_loadl_epi64((const __m128i *)(block + 2 + 8 * i));
            _mm256_storeu_ps(values + 8 * i, _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes))));
        }
    }
}

static void decode_f16(const void *blocks, size_t first, float *values, size_t count) {
    const uint16_t *half = (const uint16_t *)blocks + first;
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(values + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(half + i))));
    edge_decode_f16(half, i, values + i, count - i);
}

static void decode_bf16(const void *blocks, size_t first, float *values, size_t count) {
    const uint16_t *bfloat = (const uint16_t *)blocks + first;
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(bfloat + i)));
        _mm256_storeu_si256((__m256i *)(values + i), _mm256_slli_epi32(wide, 16));
    }
    edge_decode_bf16(bfloat, i, values + i, count - i);
}

/// Sixteen levels, looked up in two halves of eight and blended by the code's third bit.
static inline __m256 level_values(__m256i codes, __m256 low, __m256 high, __m256 absmax) {
    const __m256 below = _mm256_permutevar8x32_ps(low, codes), above = _mm256_permutevar8x32_ps(high, codes);
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));
    return _mm256_mul_ps(absmax, _mm256_blendv_ps(below, above, upper));
}

static inline void store_levels(__m128i codes, __m256 low, __m256 high, __m256 scale, float *values) {
    _mm256_storeu_ps(values, level_values(_mm256_cvtepu8_epi32(codes), low, high, scale));
    _mm256_storeu_ps(values + 8, level_values(_mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8)), low, high, scale));
}

static void decode_iq4_nl(const void *blocks, size_t first, float *values, size_t count) {
    const char *block = (const char *)blocks + first / 32 * 18;
    const __m256 low = _mm256_loadu_ps(edge_iq4_levels), high = _mm256_loadu_ps(edge_iq4_levels + 8);
    const __m128i nibble = _mm_set1_epi8(15);
    for (size_t b = 0; b < count / 32; b++, block += 18, values += 32) {
        const __m128i codes = _mm_loadu_si128((const __m128i *)(block + 2));
        store_levels(_mm_and_si128(codes, nibble), low, high, broadcast_half(block), values);
        store_levels(_mm_and_si128(_mm_srli_epi16(codes, 4), nibble), low, high, broadcast_half(block), values + 16);
    }
}

static void decode_iq4_xs(const void *blocks, size_t first, float *values, size_t count) {
    const __m256 low = _mm256_loadu_ps(edge_iq4_levels), high = _mm256_loadu_ps(edge_iq4_levels + 8);
    const __m128i nibble = _mm_set1_epi8(15);
    for (size_t unit = first / 32; unit < (first + count) / 32; unit++, values += 32) {
        const struct edge_iq4_xs_block *block = (const struct edge_iq4_xs_block *)blocks + unit / 8;
        const __m256 scale = _mm256_mul_ps(
            broadcast_half(&block->d), _mm256_set1_ps((float)edge_iq4_xs_scale(block, unit % 8)));
        const __m128i codes = _mm_loadu_si128((const __m128i *)(block->codes + unit % 8 * 16));
        store_levels(_mm_and_si128(codes, nibble), low, high, scale, values);
        store_levels(_mm_and_si128(_mm_srli_epi16(codes, 4), nibble), low, high, scale, values + 16);
    }
}

static void decode_scaled(const struct edge_matrix *w, size_t block, float *values, size_t count) {
    const float *table = edge_quant_format(w->format)->levels;
    const __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
    const __m128i nibble = _mm_set1_epi8(15);
    for (size_t b = block; b < block + count / 64; b++) {
        const __m256 absmax = _mm256_set1_ps(edge_block_absmax(w, b));
        for (int half = 0; half < 32; half += 16, values += 32) {
            const __m128i bytes = _mm_loadu_si128((const __m128i *)((const char *)w->blocks + 32 * b + half));
            const __m128i even = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble), odd = _mm_and_si128(bytes, nibble);
            const __m128i first = _mm_unpacklo_epi8(even, odd), second = _mm_unpackhi_epi8(even, odd);
            store_levels(first, low, high, absmax, values);
            store_levels(second, low, high, absmax, values + 16);
        }
    }
}

void edge_install_avx2(struct edge_kernel_set *set) {
    edge_install_portable(set);
    set->tile[EDGE_COMPUTE_f32] = tile_f32;
    set->tile_rows[EDGE_COMPUTE_f32] = TILE_ROWS;
    set->pack_words = pack_words;
#define EDGE_QUANT_FORMAT(name, ...) set->decode[EDGE_FORMAT_##name] = edge_decode_##name##_avx2;
#include "../quant_formats.def"
#undef EDGE_QUANT_FORMAT
    set->decode[EDGE_FORMAT_q4_0] = decode_q4_0;
    set->decode[EDGE_FORMAT_q4_1] = decode_q4_1;
    set->decode[EDGE_FORMAT_q8_0] = decode_q8_0;
    set->decode[EDGE_FORMAT_f16] = decode_f16;
    set->decode[EDGE_FORMAT_bf16] = decode_bf16;
    set->decode[EDGE_FORMAT_iq4_nl] = decode_iq4_nl;
    set->decode[EDGE_FORMAT_iq4_xs] = decode_iq4_xs;
    set->decode_scaled = decode_scaled;
    install_packing(set);
    install_elementwise(set);
    install_optimizer(set);
}

double edge_peak_avx2(enum edge_compute compute, size_t rounds, float *sink) {
    if (compute != EDGE_COMPUTE_f32) return 0;
    __m256 sums[12];
    for (int i = 0; i < 12; i++) sums[i] = _mm256_set1_ps((float)i);
    const __m256 factor = _mm256_set1_ps(0.999f), one = _mm256_set1_ps(1);
    for (size_t round = 0; round < rounds; round++)
#pragma clang loop unroll(full)
        for (int i = 0; i < 12; i++) sums[i] = _mm256_fmadd_ps(sums[i], factor, one);
    for (int i = 0; i < 12; i++) *sink += _mm256_cvtss_f32(sums[i]);
    return (double)rounds * 12 * 8 * 2;
}

#pragma clang attribute pop

// Outside the region: this runs before anything is known of the processor.
bool edge_supports_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif
