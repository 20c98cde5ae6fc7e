// AVX-512 F, BW, DQ and VL: Skylake-X and later, Zen 4 and later.
//
//   tile        f32 14 x 32: 28 accumulators, two panel vectors, one broadcast: 31 of 32 registers
//   pack_words  16 x 16 transpositions in registers
//   decode      Q4_0, Q4_1, Q8_0, IQ4_NL, IQ4_XS, F16, BF16, NF4, FP4; multiply then add, never fused: equal to the formats' own
//               bits
#include "../kernels_internal.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)

#include "../elementwise.inc"
#include "../optimizer.inc"
#include "../packing.inc"
#include "avx512_tile.inc"

/// Rows i and i + 4 · step change places of their 128-bit quarters, as the recursion of a blocked transposition asks.
static inline void store_sixteen_by_sixteen(const __m512i row[16], uint32_t *panel) {
    __m512i pairs[16], quads[16], halves[16];
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    // quads[4g + q] holds column q of each quarter, of rows 4g … 4g + 3.
    for (int i = 0; i < 16; i += 4) {
        quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for (int q = 0; q < 4; q++) {
        halves[q] = _mm512_shuffle_i32x4(quads[q], quads[q + 4], 0x88);           // quarters 0, 2 of groups 0, 1
        halves[q + 4] = _mm512_shuffle_i32x4(quads[q], quads[q + 4], 0xdd);       // quarters 1, 3
        halves[q + 8] = _mm512_shuffle_i32x4(quads[q + 8], quads[q + 12], 0x88);  // of groups 2, 3
        halves[q + 12] = _mm512_shuffle_i32x4(quads[q + 8], quads[q + 12], 0xdd);
    }
    for (int q = 0; q < 4; q++) {
        _mm512_store_si512(panel + q * 16, _mm512_shuffle_i32x4(halves[q], halves[q + 8], 0x88));
        _mm512_store_si512(panel + (q + 4) * 16, _mm512_shuffle_i32x4(halves[q + 4], halves[q + 12], 0x88));
        _mm512_store_si512(panel + (q + 8) * 16, _mm512_shuffle_i32x4(halves[q], halves[q + 8], 0xdd));
        _mm512_store_si512(panel + (q + 12) * 16, _mm512_shuffle_i32x4(halves[q + 4], halves[q + 12], 0xdd));
    }
}

static void pack_words(const void *rows, size_t stride, size_t count, size_t words, void *panel) {
    const uint32_t *source = rows;
    uint32_t *packed = panel;
    for (size_t k = 0; k < words; k += 16, packed += 16 * EDGE_PANEL_COLUMNS) {
        const size_t width = words - k < 16 ? words - k : 16;
        const __mmask16 mask = (__mmask16)((1u << width) - 1);
        __m512i row[16];
        for (size_t j = 0; j < 16; j++)
            row[j] = j < count ? _mm512_maskz_loadu_epi32(mask, source + j * stride + k) : _mm512_setzero_si512();
        if (width == 16) {
            store_sixteen_by_sixteen(row, packed);
        } else {
            _Alignas(64) uint32_t whole[16 * EDGE_PANEL_COLUMNS];
            store_sixteen_by_sixteen(row, whole);
            memcpy(packed, whole, width * EDGE_PANEL_COLUMNS * sizeof *whole);
        }
    }
}

static inline __attribute__((always_inline)) void accumulate_f32(const size_t m, const size_t vectors,
                                                                 const struct edge_left *a, const char *panel,
                                                                 size_t panel_bytes, size_t depth,
                                                                 __m512 sums[TILE_ROWS][2]) {
    const char *rows = a->rows;
    for (size_t k = 0; k < depth; k++, panel += 64, rows += a->step) {
        const __m512 b0 = _mm512_load_ps(panel), b1 = vectors == 2 ? _mm512_load_ps(panel + panel_bytes) : b0;
#pragma clang loop unroll(full)
        for (size_t i = 0; i < m; i++) {
            const __m512 value = _mm512_set1_ps(*(const float *)(rows + i * a->stride));
            sums[i][0] = _mm512_fmadd_ps(value, b0, sums[i][0]);
            if (vectors == 2) sums[i][1] = _mm512_fmadd_ps(value, b1, sums[i][1]);
        }
    }
}

#define F32_CASE(rows) EDGE_AVX512_CASE(rows, accumulate_f32, depth * 64)

static void tile_f32(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                     size_t n, bool accumulate) {
    switch (m) { EDGE_AVX512_ROWS(F32_CASE) }
}

static inline __m512 broadcast_half(const void *half) {
    uint16_t bits;
    memcpy(&bits, half, sizeof bits);
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)bits));
}

static inline __m128i low_nibbles(__m128i codes) { return _mm_and_si128(codes, _mm_set1_epi8(15)); }
static inline __m128i high_nibbles(__m128i codes) { return low_nibbles(_mm_srli_epi16(codes, 4)); }

static void decode_q4_1(const void *blocks, size_t first, float *values, size_t count) {
    const char *block = (const char *)blocks + first / 32 * 20;
    for (size_t b = 0; b < count / 32; b++, block += 20, values += 32) {
        const __m512 d = broadcast_half(block), m = broadcast_half(block + 2);
        const __m128i codes = _mm_loadu_si128((const __m128i *)(block + 4));
        const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(low_nibbles(codes)));
        const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(high_nibbles(codes)));
        _mm512_storeu_ps(values, _mm512_add_ps(_mm512_mul_ps(d, low), m));
        _mm512_storeu_ps(values + 16, _mm512_add_ps(_mm512_mul_ps(d, high), m));
    }
}

// d · (code - 8): the subtraction is exact in integers, so the one rounding is that of the product.
static void decode_q4_0(const void *blocks, size_t first, float *values, size_t count) {
    const char *block = (const char *)blocks + first / 32 * 18;
    const __m128i eight = _mm_set1_epi8(8);
    for (size_t b = 0; b < count / 32; b++, block += 18, values += 32) {
        const __m512 d = broadcast_half(block);
        const __m128i codes = _mm_loadu_si128((const __m128i *)(block + 2));
        const __m128i low = _mm_sub_epi8(low_nibbles(codes), eight), high = _mm_sub_epi8(high_nibbles(codes), eight);
        _mm512_storeu_ps(values, _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low))));
        _mm512_storeu_ps(values + 16, _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high))));
    }
}

static void decode_q8_0(const void *blocks, size_t first, float *values, size_t count) {
    const char *block = (const char *)blocks + first / 32 * 34;
    for (size_t b = 0; b < count / 32; b++, block += 34, values += 32) {
        const __m512 d = broadcast_half(block);
        for (int i = 0; i < 2; i++) {
            const __m128i codes = _mm_loadu_si128((const __m128i *)(block + 2 + 16 * i));
            _mm512_storeu_ps(values + 16 * i, _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))));
        }
    }
}

static void decode_f16(const void *blocks, size_t first, float *values, size_t count) {
    const uint16_t *half = (const uint16_t *)blocks + first;
    size_t i = 0;
    for (; i + 16 <= count; i += 16)
        _mm512_storeu_ps(values + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(half + i))));
    edge_decode_f16(half, i, values + i, count - i);
}

static void decode_bf16(const void *blocks, size_t first, float *values, size_t count) {
    const uint16_t *bfloat = (const uint16_t *)blocks + first;
    size_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(bfloat + i)));
        _mm512_storeu_si512(values + i, _mm512_slli_epi32(wide, 16));
    }
    edge_decode_bf16(bfloat, i, values + i, count - i);
}

static inline void store_levels(__m128i codes, __m512 levels, __m512 scale, float *values) {
    _mm512_storeu_ps(values, _mm512_mul_ps(scale, _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), levels)));
}

static void decode_iq4_nl(const void *blocks, size_t first, float *values, size_t count) {
    const char *block = (const char *)blocks + first / 32 * 18;
    const __m512 levels = _mm512_loadu_ps(edge_iq4_levels);
    for (size_t b = 0; b < count / 32; b++, block += 18, values += 32) {
        const __m128i codes = _mm_loadu_si128((const __m128i *)(block + 2));
        store_levels(low_nibbles(codes), levels, broadcast_half(block), values);
        store_levels(high_nibbles(codes), levels, broadcast_half(block), values + 16);
    }
}

static void decode_iq4_xs(const void *blocks, size_t first, float *values, size_t count) {
    const __m512 levels = _mm512_loadu_ps(edge_iq4_levels);
    for (size_t unit = first / 32; unit < (first + count) / 32; unit++, values += 32) {
        const struct edge_iq4_xs_block *block = (const struct edge_iq4_xs_block *)blocks + unit / 8;
        const __m512 scale = _mm512_mul_ps(
            broadcast_half(&block->d), _mm512_set1_ps((float)edge_iq4_xs_scale(block, unit % 8)));
        const __m128i codes = _mm_loadu_si128((const __m128i *)(block->codes + unit % 8 * 16));
        store_levels(low_nibbles(codes), levels, scale, values);
        store_levels(high_nibbles(codes), levels, scale, values + 16);
    }
}

static void decode_scaled(const struct edge_matrix *w, size_t block, float *values, size_t count) {
    const float *table = edge_quant_format(w->format)->levels;
    const __m512 levels = _mm512_loadu_ps(table);
    for (size_t b = block; b < block + count / 64; b++) {
        const __m512 absmax = _mm512_set1_ps(edge_block_absmax(w, b));
        for (int half = 0; half < 32; half += 16, values += 32) {
            const __m128i bytes = _mm_loadu_si128((const __m128i *)((const char *)w->blocks + 32 * b + half));
            const __m128i even = high_nibbles(bytes), odd = low_nibbles(bytes);
            store_levels(_mm_unpacklo_epi8(even, odd), levels, absmax, values);
            store_levels(_mm_unpackhi_epi8(even, odd), levels, absmax, values + 16);
        }
    }
}

void edge_install_avx512(struct edge_kernel_set *set) {
    edge_install_avx2(set);
    set->tile[EDGE_COMPUTE_f32] = tile_f32;
    set->tile_rows[EDGE_COMPUTE_f32] = TILE_ROWS;
    set->tile_columns[EDGE_COMPUTE_f32] = TILE_COLUMNS;
    set->pack_words = pack_words;
#define EDGE_QUANT_FORMAT(name, ...) set->decode[EDGE_FORMAT_##name] = edge_decode_##name##_avx512;
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

double edge_peak_avx512(enum edge_compute compute, size_t rounds, float *sink) {
    if (compute != EDGE_COMPUTE_f32) return 0;
    __m512 sums[16];
    for (int i = 0; i < 16; i++) sums[i] = _mm512_set1_ps((float)i);
    const __m512 factor = _mm512_set1_ps(0.999f), one = _mm512_set1_ps(1);
    for (size_t round = 0; round < rounds; round++)
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++) sums[i] = _mm512_fmadd_ps(sums[i], factor, one);
    for (int i = 0; i < 16; i++) *sink += _mm512_cvtss_f32(sums[i]);
    return (double)rounds * 16 * 16 * 2;
}

#pragma clang attribute pop

bool edge_supports_avx512(void) {
    __builtin_cpu_init();
    return edge_supports_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
