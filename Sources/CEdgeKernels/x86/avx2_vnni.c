// AVX2 with AVX-VNNI: 8-bit products of four at once. Alder Lake and later, Gracemont boards (N100, N305), Zen 5.
//
//   tile        int8 6 x 16: twelve integer accumulators, two panel vectors, one broadcast of four codes. After each
//               block the sums become floats, are scaled and added to a tile of floats on the stack: c, whose rows may
//               meet in one set of L1, is touched once a panel.
#include "../kernels_internal.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)

enum { TILE_ROWS = 6 };

/// One block, scaled, into (or added to) `whole`.
static inline __attribute__((always_inline)) void block_of(const size_t m, const struct edge_left *a, size_t block,
                                                           const char *panel, __m256 whole[TILE_ROWS][2], bool first) {
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
        const __m256 left_values = _mm256_cvtepi32_ps(left[i]), right_values = _mm256_cvtepi32_ps(right[i]);
        const __m256 left_scale = _mm256_mul_ps(scale, s0), right_scale = _mm256_mul_ps(scale, s1);
        whole[i][0] = first ? _mm256_mul_ps(left_values, left_scale) : _mm256_fmadd_ps(left_values, left_scale, whole[i][0]);
        whole[i][1] =
            first ? _mm256_mul_ps(right_values, right_scale) : _mm256_fmadd_ps(right_values, right_scale, whole[i][1]);
    }
}

static inline __attribute__((always_inline)) void tile_of(const size_t m, const struct edge_left *a, const char *panel,
                                                          size_t depth, float *c, size_t ldc, size_t n, bool accumulate) {
    __m256 whole[TILE_ROWS][2];
    block_of(m, a, 0, panel, whole, true);
    for (size_t block = 1; block * EDGE_INT8_BLOCK < depth; block++)
        block_of(m, a, block, panel + block * EDGE_INT8_BLOCK_WORDS * 4, whole, false);
    for (size_t i = 0; i < m; i++, c += ldc) {
        if (n == EDGE_PANEL_COLUMNS) {
            if (accumulate) {
                whole[i][0] = _mm256_add_ps(_mm256_loadu_ps(c), whole[i][0]);
                whole[i][1] = _mm256_add_ps(_mm256_loadu_ps(c + 8), whole[i][1]);
            }
            _mm256_storeu_ps(c, whole[i][0]);
            _mm256_storeu_ps(c + 8, whole[i][1]);
        } else {
            float sums[EDGE_PANEL_COLUMNS];
            memcpy(sums, whole[i], sizeof sums);
            for (size_t j = 0; j < n; j++) c[j] = accumulate ? c[j] + sums[j] : sums[j];
        }
    }
}

static void tile_int8(const struct edge_left *a, const void *panel, size_t depth, float *c, size_t ldc, size_t m,
                      size_t n, bool accumulate) {
    switch (m) {
    case 6: tile_of(6, a, panel, depth, c, ldc, n, accumulate); break;
    case 5: tile_of(5, a, panel, depth, c, ldc, n, accumulate); break;
    case 4: tile_of(4, a, panel, depth, c, ldc, n, accumulate); break;
    case 3: tile_of(3, a, panel, depth, c, ldc, n, accumulate); break;
    case 2: tile_of(2, a, panel, depth, c, ldc, n, accumulate); break;
    default: tile_of(1, a, panel, depth, c, ldc, n, accumulate);
    }
}

void edge_install_avx2_vnni(struct edge_kernel_set *set) {
    edge_install_avx2(set);
    set->fast[EDGE_COMPUTE_int8] = true;
    set->preferred = EDGE_COMPUTE_int8; // benchmarks/compare_precision.py; faster than bf16 too, where there is both
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
