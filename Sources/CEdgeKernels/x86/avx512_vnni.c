// AVX-512 with VNNI: 8-bit products of four at once. Cascade Lake, Ice Lake, Zen 4 and later.
//
//   tile        int8 14 x 32: 28 integer accumulators, two panel vectors, one broadcast of four codes. After each block
//               the sums become floats, are scaled and added to a tile of floats on the stack: c, whose rows may meet in
//               one set of L1, is touched once a panel.
#include "../kernels_internal.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)

#include "avx512_tile.inc"

/// One block, scaled, into (or added to) `whole`.
static inline __attribute__((always_inline)) void block_of(const size_t m, const size_t vectors, const struct edge_left *a,
                                                           size_t block, const char *panel, size_t panel_bytes,
                                                           __m512 whole[TILE_ROWS][2], bool first) {
    __m512i sums[TILE_ROWS][2];
#pragma clang loop unroll(full)
    for (size_t i = 0; i < m; i++) sums[i][0] = sums[i][1] = _mm512_set1_epi32(a->offsets[i * a->blocks + block]);
    const char *rows = (const char *)a->rows + block * EDGE_INT8_BLOCK;
    for (size_t k = 0; k < EDGE_INT8_BLOCK; k += 4, panel += 64, rows += 4) {
        const __m512i b0 = _mm512_load_si512(panel), b1 = vectors == 2 ? _mm512_load_si512(panel + panel_bytes) : b0;
#pragma clang loop unroll(full)
        for (size_t i = 0; i < m; i++) {
            const __m512i four = _mm512_set1_epi32(*(const int32_t *)(rows + i * a->stride));
            sums[i][0] = _mm512_dpbusd_epi32(sums[i][0], b0, four);
            if (vectors == 2) sums[i][1] = _mm512_dpbusd_epi32(sums[i][1], b1, four);
        }
    }
    const __m512 scales[2] = {_mm512_load_ps(panel), vectors == 2 ? _mm512_load_ps(panel + panel_bytes) : _mm512_setzero_ps()};
#pragma clang loop unroll(full)
    for (size_t i = 0; i < m; i++) {
        const __m512 scale = _mm512_set1_ps(a->scales[i * a->blocks + block]);
#pragma clang loop unroll(full)
        for (size_t v = 0; v < vectors; v++) {
            const __m512 values = _mm512_cvtepi32_ps(sums[i][v]), both = _mm512_mul_ps(scale, scales[v]);
            whole[i][v] = first ? _mm512_mul_ps(values, both) : _mm512_fmadd_ps(values, both, whole[i][v]);
        }
    }
}

static inline __attribute__((always_inline)) void tile_of(const size_t m, const size_t vectors, const struct edge_left *a,
                                                          const char *panel, size_t depth, float *c, size_t ldc, size_t n,
                                                          bool accumulate) {
    const size_t blocks = (depth + EDGE_INT8_BLOCK - 1) / EDGE_INT8_BLOCK;
    const size_t block_bytes = EDGE_INT8_BLOCK_WORDS * 4;
    __m512 whole[TILE_ROWS][2];
    block_of(m, vectors, a, 0, panel, blocks * block_bytes, whole, true);
    for (size_t block = 1; block < blocks; block++)
        block_of(m, vectors, a, block, panel + block * block_bytes, blocks * block_bytes, whole, false);
    store_tile(m, vectors, whole, c, ldc, n, accumulate);
}

#define INT8_CASE(rows)                                                                                                  \
    case rows:                                                                                                          \
        if (n > EDGE_PANEL_COLUMNS)                                                                                     \
            tile_of(rows, 2, a, panels, depth, c, ldc, n, accumulate);                                                  \
        else                                                                                                            \
            tile_of(rows, 1, a, panels, depth, c, ldc, n, accumulate);                                                  \
        break;

static void tile_int8(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                      size_t n, bool accumulate) {
    switch (m) { EDGE_AVX512_ROWS(INT8_CASE) }
}

void edge_install_avx512_vnni(struct edge_kernel_set *set) {
    edge_install_avx512(set);
    set->fast[EDGE_COMPUTE_int8] = true;
    set->preferred = EDGE_COMPUTE_int8; // benchmarks/compare_precision.py; faster than bf16 too, where there is both
    set->tile[EDGE_COMPUTE_int8] = tile_int8;
    set->tile_rows[EDGE_COMPUTE_int8] = TILE_ROWS;
    set->tile_columns[EDGE_COMPUTE_int8] = TILE_COLUMNS;
}

double edge_peak_avx512_vnni(enum edge_compute compute, size_t rounds, float *sink) {
    if (compute != EDGE_COMPUTE_int8) return edge_peak_avx512(compute, rounds, sink);
    __m512i sums[16];
    for (int i = 0; i < 16; i++) sums[i] = _mm512_set1_epi32(i);
    const __m512i codes = _mm512_set1_epi8(3);
    for (size_t round = 0; round < rounds; round++) {
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++) sums[i] = _mm512_dpbusd_epi32(sums[i], codes, codes);
        __asm__ volatile("" : "+v"(sums[0])); // or the compiler finds the sum without the loop
    }
    for (int i = 0; i < 16; i++) *sink += (float)_mm512_cvtsi512_si32(sums[i]);
    return (double)rounds * 16 * 64 * 2;
}

#pragma clang attribute pop

bool edge_supports_avx512_vnni(void) {
    __builtin_cpu_init();
    return edge_supports_avx512() && __builtin_cpu_supports("avx512vnni");
}
#endif
