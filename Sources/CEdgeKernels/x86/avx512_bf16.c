// AVX-512 with BF16: products of two bfloat16 at once. Cooper Lake, Sapphire Rapids, Zen 4 and later.
//
//   tile        bf16 14 x 32, as the f32 tile of avx512.c. `vdpbf16ps` takes denormals as zeros and rounds once per
//               product and sum of two.
#include "../kernels_internal.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), apply_to = function)

#include "avx512_tile.inc"

static inline __attribute__((always_inline)) void accumulate_bf16(const size_t m, const size_t vectors,
                                                                  const struct edge_left *a, const char *panel,
                                                                  size_t panel_bytes, size_t depth,
                                                                  __m512 sums[TILE_ROWS][2]) {
    const char *rows = a->rows;
    for (size_t k = 0; k < depth; k += 2, panel += 64, rows += 4) {
        const __m512bh b0 = (__m512bh)_mm512_load_si512(panel);
        const __m512bh b1 = vectors == 2 ? (__m512bh)_mm512_load_si512(panel + panel_bytes) : b0;
#pragma clang loop unroll(full)
        for (size_t i = 0; i < m; i++) {
            const __m512bh pair = (__m512bh)_mm512_set1_epi32(*(const int32_t *)(rows + i * a->stride));
            sums[i][0] = _mm512_dpbf16_ps(sums[i][0], pair, b0);
            if (vectors == 2) sums[i][1] = _mm512_dpbf16_ps(sums[i][1], pair, b1);
        }
    }
}

#define BF16_CASE(rows) EDGE_AVX512_CASE(rows, accumulate_bf16, (depth + 1) / 2 * 64)

static void tile_bf16(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                     size_t n, bool accumulate) {
    switch (m) { EDGE_AVX512_ROWS(BF16_CASE) }
}

void edge_install_avx512_bf16(struct edge_kernel_set *set) {
    edge_install_avx512_vnni(set);
    set->fast[EDGE_COMPUTE_bf16] = true;
    set->tile[EDGE_COMPUTE_bf16] = tile_bf16;
    set->tile_rows[EDGE_COMPUTE_bf16] = TILE_ROWS;
    set->tile_columns[EDGE_COMPUTE_bf16] = TILE_COLUMNS;
}

double edge_peak_avx512_bf16(enum edge_compute compute, size_t rounds, float *sink) {
    if (compute != EDGE_COMPUTE_bf16) return edge_peak_avx512_vnni(compute, rounds, sink);
    __m512 sums[16];
    for (int i = 0; i < 16; i++) sums[i] = _mm512_set1_ps((float)i);
    const __m512bh halves = (__m512bh)_mm512_set1_epi16(0x3f00);
    for (size_t round = 0; round < rounds; round++) {
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++) sums[i] = _mm512_dpbf16_ps(sums[i], halves, halves);
    }
    for (int i = 0; i < 16; i++) *sink += _mm512_cvtss_f32(sums[i]);
    return (double)rounds * 16 * 32 * 2;
}

#pragma clang attribute pop

bool edge_supports_avx512_bf16(void) {
    __builtin_cpu_init();
    return edge_supports_avx512_vnni() && __builtin_cpu_supports("avx512bf16");
}
#endif
