// Advanced SIMD with binary16 arithmetic: Cortex-A55, A75, A76 and later. Twice the multiply-adds of f32, half of int8's, and
// an error between theirs: for who wants more than 8 bits on a board without bfloat16.
//
//   tile        f16 6 x 16: twelve accumulators of eight columns, for EDGE_F16_CHAIN contracted elements; then they
//               become f32, are scaled and added to a tile of floats on the stack
#include "../kernels_internal.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>

#pragma clang attribute push(__attribute__((target("fullfp16"))), apply_to = function)

#include "neon_tile.inc"

/// Eight contracted elements from `left` and `right` on, into the chain.
static inline __attribute__((always_inline)) void add_eight(const char *const rows[TILE_ROWS], size_t at,
                                                            const float16_t *right, float16x8_t chain[TILE_ROWS][2]) {
    float16x8_t left[TILE_ROWS];
#pragma clang loop unroll(full)
    for (int i = 0; i < TILE_ROWS; i++) left[i] = vld1q_f16((const float16_t *)(rows[i] + at));
#define ADD_ELEMENT(element)                                                                                             \
    {                                                                                                                   \
        const float16x8_t low = vld1q_f16(right + element * EDGE_PANEL_COLUMNS);                                        \
        const float16x8_t high = vld1q_f16(right + element * EDGE_PANEL_COLUMNS + 8);                                   \
        _Pragma("clang loop unroll(full)") for (int i = 0; i < TILE_ROWS; i++) {                                        \
            chain[i][0] = vfmaq_laneq_f16(chain[i][0], low, left[i], element);                                          \
            chain[i][1] = vfmaq_laneq_f16(chain[i][1], high, left[i], element);                                         \
        }                                                                                                               \
    }
    ADD_ELEMENT(0) ADD_ELEMENT(1) ADD_ELEMENT(2) ADD_ELEMENT(3) ADD_ELEMENT(4) ADD_ELEMENT(5) ADD_ELEMENT(6) ADD_ELEMENT(7)
#undef ADD_ELEMENT
}

static void tile_f16(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                     size_t n, bool accumulate) {
    float whole[TILE_ROWS][EDGE_PANEL_COLUMNS] = {{0}};
    const uint32_t *panel = panels;
    for (size_t block = 0; block * EDGE_INT8_BLOCK < depth; block++, panel += EDGE_F16_BLOCK_WORDS) {
        const float *scales = (const float *)(panel + EDGE_INT8_BLOCK / 2 * EDGE_PANEL_COLUMNS);
        const char *rows[TILE_ROWS];
        for (size_t i = 0; i < TILE_ROWS; i++)
            rows[i] = row_at(a, m, i) + block * EDGE_INT8_BLOCK * a->step;
        for (size_t first = 0; first < EDGE_INT8_BLOCK; first += EDGE_F16_CHAIN) {
            float16x8_t chain[TILE_ROWS][2];
            for (int i = 0; i < TILE_ROWS; i++) chain[i][0] = chain[i][1] = vdupq_n_f16(0);
            const float16_t *right = (const float16_t *)panel + first * EDGE_PANEL_COLUMNS;
            for (size_t k = 0; k < EDGE_F16_CHAIN; k += 8)
                add_eight(rows, (first + k) * 2, right + k * EDGE_PANEL_COLUMNS, chain);
#pragma clang loop unroll(full)
            for (size_t i = 0; i < TILE_ROWS; i++) {
                const float scale = a->scales[(i < m ? i : m - 1) * a->blocks + block];
                const float32x4_t quarters[4] = {
                    vcvt_f32_f16(vget_low_f16(chain[i][0])), vcvt_high_f32_f16(chain[i][0]),
                    vcvt_f32_f16(vget_low_f16(chain[i][1])), vcvt_high_f32_f16(chain[i][1])};
#pragma clang loop unroll(full)
                for (int v = 0; v < 4; v++) {
                    const float32x4_t both = vmulq_n_f32(vld1q_f32(scales + 4 * v), scale);
                    vst1q_f32(whole[i] + 4 * v, vfmaq_f32(vld1q_f32(whole[i] + 4 * v), quarters[v], both));
                }
            }
        }
    }
    store_tile(whole, c, ldc, m, n, accumulate);
}

void edge_install_neon_fp16(struct edge_kernel_set *set) {
    edge_install_neon_dotprod(set);
    set->fast[EDGE_COMPUTE_f16] = true;
    set->tile[EDGE_COMPUTE_f16] = tile_f16;
    set->tile_rows[EDGE_COMPUTE_f16] = TILE_ROWS;
}

double edge_peak_neon_fp16(enum edge_compute compute, size_t rounds, float *sink) {
    if (compute != EDGE_COMPUTE_f16) return edge_peak_neon_dotprod(compute, rounds, sink);
    float16x8_t sums[24];
    for (int i = 0; i < 24; i++) sums[i] = vdupq_n_f16((float16_t)i);
    const float16x8_t half = vdupq_n_f16((float16_t)0.5f);
    for (size_t round = 0; round < rounds; round++)
#pragma clang loop unroll(full)
        for (int i = 0; i < 24; i++) sums[i] = vfmaq_laneq_f16(half, sums[i], half, 1);
    for (int i = 0; i < 24; i++) *sink += (float)vgetq_lane_f16(sums[i], 0);
    return (double)rounds * 24 * 8 * 2;
}

#pragma clang attribute pop

bool edge_supports_neon_fp16(void) { return edge_supports_neon_dotprod() && (getauxval(AT_HWCAP) & HWCAP_ASIMDHP) != 0; }
#endif
