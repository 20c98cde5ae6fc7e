// AVX2 with AVX-VNNI: 8-bit products of four at once. Alder Lake and later, Gracemont boards (N100, N305), Zen 5.
//
//   tile        int8 6 x 16: twelve integer accumulators, two panel vectors, one broadcast of four codes. After each
//               block the sums become floats, are scaled and added to c, which is in L1.
#include "../kernels_internal.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)

enum { TILE_ROWS = 6 };

/// c (+)= sums · scales.
static inline void add_block(__m256i sums, __m256 scales, float *c, bool accumulate) {
    const __m256 values = _mm256_cvtepi32_ps(sums);
    _mm256_storeu_ps(
        c, accumulate ? _mm256_fmadd_ps(values, scales, _mm256_loadu_ps(c)) : _mm256_mul_ps(values, scales));
}

/// One block into m rows of 16 columns at c.
static inline __attribute__((always_inline)) void block_of(const size_t m, const struct edge_left *a, size_t block,
                                                           const int8_t *panel, float *c, size_t ldc, bool accumulate) {
    __m256i left[TILE_ROWS], right[TILE_ROWS];
#pragma clang loop unroll(full)
    for (size_t i = 0; i < m; i++) left[i] = right[i] = _mm256_set1_epi32(a->offsets[i * a->blocks + block]);
    const char *rows = (const char *)a->rows + block * EDGE_INT8_BLOCK;
    for (size_t k = 0; k < EDGE_INT8_BLOCK; k += 4, panel += 64, rows += 4) {
        const __m256i b0 = _mm256_load_si256((const __m256i *)panel), b1 = _mm256_load_si256((const __m256i *)(panel + 32));
#pragma clang loop unroll(full)
        for (size_t i = 0; i < m; i++) {
            const __m256i four = _mm256_castps_si256(_mm256_broadcast_ss((const float *)(rows + i * a->stride)));
            left[i] = _mm256_dpbusd_avx_epi32(left[i], b0, four);
            right[i] = _mm256_dpbusd_avx_epi32(right[i], b1, four);
        }
    }
    const __m256 s0 = _mm256_load_ps((const float *)panel), s1 = _mm256_load_ps((const float *)panel + 8);
#pragma clang loop unroll(full)
    for (size_t i = 0; i < m; i++) {
        const __m256 scale = _mm256_broadcast_ss(a->scales + i * a->blocks + block);
        add_block(left[i], _mm256_mul_ps(scale, s0), c + i * ldc, accumulate);
        add_block(right[i], _mm256_mul_ps(scale, s1), c + i * ldc + 8, accumulate);
    }
}

static inline __attribute__((always_inline)) void tile_of(const size_t m, const struct edge_left *a, const int8_t *panel,
                                                          size_t depth, float *c, size_t ldc, bool accumulate) {
    for (size_t block = 0; block * EDGE_INT8_BLOCK < depth; block++, panel += EDGE_INT8_BLOCK_WORDS * 4)
        block_of(m, a, block, panel, c, ldc, accumulate || block > 0);
}

static void tile_whole(const struct edge_left *a, const void *panel, size_t depth, float *c, size_t ldc, size_t m,
                       bool accumulate) {
    switch (m) {
    case 6: tile_of(6, a, panel, depth, c, ldc, accumulate); break;
    case 5: tile_of(5, a, panel, depth, c, ldc, accumulate); break;
    case 4: tile_of(4, a, panel, depth, c, ldc, accumulate); break;
    case 3: tile_of(3, a, panel, depth, c, ldc, accumulate); break;
    case 2: tile_of(2, a, panel, depth, c, ldc, accumulate); break;
    default: tile_of(1, a, panel, depth, c, ldc, accumulate);
    }
}

static void tile_int8(const struct edge_left *a, const void *panel, size_t depth, float *c, size_t ldc, size_t m,
                      size_t n, bool accumulate) {
    if (n == EDGE_PANEL_COLUMNS) return tile_whole(a, panel, depth, c, ldc, m, accumulate);
    float whole[TILE_ROWS * EDGE_PANEL_COLUMNS];
    for (size_t i = 0; accumulate && i < m; i++) memcpy(whole + i * EDGE_PANEL_COLUMNS, c + i * ldc, n * sizeof *c);
    tile_whole(a, panel, depth, whole, EDGE_PANEL_COLUMNS, m, accumulate);
    for (size_t i = 0; i < m; i++) memcpy(c + i * ldc, whole + i * EDGE_PANEL_COLUMNS, n * sizeof *c);
}

void edge_install_avx2_vnni(struct edge_kernel_set *set) {
    edge_install_avx2(set);
    set->fast[EDGE_COMPUTE_int8] = true;
    set->tile[EDGE_COMPUTE_int8] = tile_int8;
    set->tile_rows[EDGE_COMPUTE_int8] = TILE_ROWS;
}

double edge_peak_avx2_vnni(enum edge_compute compute, size_t rounds, float *sink) {
    if (compute != EDGE_COMPUTE_int8) return edge_peak_avx2(compute, rounds, sink);
    __m256i sums[12];
    for (int i = 0; i < 12; i++) sums[i] = _mm256_set1_epi32(i);
    const __m256i codes = _mm256_set1_epi8(3);
    for (size_t round = 0; round < rounds; round++) {
#pragma clang loop unroll(full)
        for (int i = 0; i < 12; i++) sums[i] = _mm256_dpbusd_avx_epi32(sums[i], codes, codes);
        __asm__ volatile("" : "+x"(sums[0])); // or the compiler finds the sum without the loop
    }
    for (int i = 0; i < 12; i++) *sink += (float)_mm256_cvtsi256_si32(sums[i]);
    return (double)rounds * 12 * 32 * 2;
}

#pragma clang attribute pop

bool edge_supports_avx2_vnni(void) {
    __builtin_cpu_init();
    return edge_supports_avx2() && __builtin_cpu_supports("avxvnni");
}
#endif
