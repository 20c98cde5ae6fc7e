// Advanced SIMD with dot products of four 8-bit integers: Cortex-A55, A75, A76, A78, Neoverse N1 and later.
//
//   tile        int8 6 x 16, as the f32 tile of neon.c. After each block the sums become floats, are scaled and added to a
//               tile of floats on the stack.
//   pack        codes signed, since `sdot` takes both operands so: a->offsets are not used
#include "../kernels_internal.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>

#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)

#include "../packing.inc"
#include "neon_tile.inc"

EDGE_NEON_ROUNDS(rounds_int8, int32x4_t, "sdot", "16b", "4b")

static void tile_int8(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                      size_t n, bool accumulate) {
    float whole[TILE_ROWS][EDGE_PANEL_COLUMNS] = {{0}};
    const int8_t *panel = panels;
    for (size_t block = 0; block * EDGE_INT8_BLOCK < depth; block++, panel += EDGE_INT8_BLOCK_WORDS * 4) {
        park(whole);
        int32x4_t sums[TILE_ROWS][TILE_VECTORS];
        for (int i = 0; i < TILE_ROWS; i++)
            for (int v = 0; v < TILE_VECTORS; v++) sums[i][v] = int_zero();
        rounds_int8(a, m, block * EDGE_INT8_BLOCK, panel, EDGE_INT8_BLOCK / 16, sums);
        const float *scales = (const float *)(panel + EDGE_INT8_BLOCK * EDGE_PANEL_COLUMNS);
#pragma clang loop unroll(full)
        for (size_t i = 0; i < TILE_ROWS; i++) {
            const float scale = a->scales[(i < m ? i : m - 1) * a->blocks + block];
#pragma clang loop unroll(full)
            for (int v = 0; v < TILE_VECTORS; v++) {
                float *sum = whole[i] + 4 * v;
                const float32x4_t both = vmulq_n_f32(vld1q_f32(scales + 4 * v), scale);
                vst1q_f32(sum, vfmaq_f32(vld1q_f32(sum), float_of_int(sums[i][v]), both));
            }
        }
    }
    store_tile(whole, c, ldc, m, n, accumulate);
}

/// Turns unsigned codes with 128 added into signed ones.
static void make_signed(uint8_t *panel, size_t depth) {
    for (size_t k = 0; k < depth; k += EDGE_INT8_BLOCK, panel += EDGE_INT8_BLOCK_WORDS * 4)
        for (size_t i = 0; i < EDGE_INT8_BLOCK * EDGE_PANEL_COLUMNS; i++) panel[i] ^= 128;
}

static void pack_signed_rows(const struct edge_kernel_set *set, const float *rows, size_t count, size_t depth,
                             void *panel) {
    pack_rows_int8(set, rows, count, depth, panel);
    make_signed(panel, depth);
}

static void pack_signed_columns(const float *rows, size_t stride, size_t depth, void *panel) {
    pack_columns_int8(rows, stride, depth, panel);
    make_signed(panel, depth);
}

void edge_install_neon_dotprod(struct edge_kernel_set *set) {
    edge_install_neon(set);
    install_packing(set);
    set->fast[EDGE_COMPUTE_int8] = true;
    set->preferred = EDGE_COMPUTE_int8; // the codes, and so the training, are those of the x86 sets
    set->tile[EDGE_COMPUTE_int8] = tile_int8;
    set->tile_rows[EDGE_COMPUTE_int8] = TILE_ROWS;
    set->pack_rows[EDGE_COMPUTE_int8] = pack_signed_rows;
    set->pack_columns[EDGE_COMPUTE_int8] = pack_signed_columns;
}

double edge_peak_neon_dotprod(enum edge_compute compute, size_t rounds, float *sink) {
    if (compute != EDGE_COMPUTE_int8) return edge_peak_neon(compute, rounds, sink);
    int32x4_t sums[24];
    for (int i = 0; i < 24; i++) sums[i] = vdupq_n_s32(i);
    const int8x16_t codes = vdupq_n_s8(3);
    for (size_t round = 0; round < rounds; round++) {
#pragma clang loop unroll(full)
        for (int i = 0; i < 24; i++) sums[i] = vdotq_laneq_s32(sums[i], codes, codes, 1);
        __asm__ volatile("" : "+w"(sums[0])); // or the compiler finds the sum without the loop
    }
    for (int i = 0; i < 24; i++) *sink += (float)vgetq_lane_s32(sums[i], 0);
    return (double)rounds * 24 * 16 * 2;
}

#pragma clang attribute pop

bool edge_supports_neon_dotprod(void) { return edge_supports_neon() && (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#endif
