// Advanced SIMD with products of 2 x 2 tiles, 8-bit and bfloat16: Cortex-A510, A710, X2, Neoverse V1, N2 and later.
//
//   tile        int8 and bf16 6 x 16: 3 x 8 accumulators of 2 x 2, of which `smmla` and `bfmmla` take 8 bytes of two rows by
//               8 bytes of two columns. `bfmmla` takes denormals as zeros and rounds to odd.
//   pack        the words of each two 64-byte rows of the usual panel interleaved, so that a column has 8 bytes in a row:
//               [k / 8][16][8] int8, signed, and [k / 4][16][4] bf16, of which up to seven k at the end stay as they were
#include "../kernels_internal.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>

#pragma clang attribute push(__attribute__((target("i8mm,bf16,dotprod"))), apply_to = function)

#include "../packing.inc"
#include "neon_tile.inc"

enum { TILE_PAIRS = TILE_ROWS / 2, PANEL_PAIRS = EDGE_PANEL_COLUMNS / 2 };

// The inner loop, as that of neon_tile.inc: 24 sums, three vectors of two rows' 8 bytes each, three of
// the 8 bytes after them, and two of the panel are all registers. A round takes 16 bytes of every row: 48 multiply-adds, 28
// loads and 3 for the loop.
#define LEFT(v, first, second) "ldr d" #v ", [%[row" #first "]], #8\n" "ld1 {v" #v ".d}[1], [%[row" #second "]], #8\n"
#define RIGHT(v, offset) "ldr q" #v ", [%[panel], #" offset "]\n"
#define ADD(p, q, l, r, op, type) op " %[s" #p #q "].4s, v" #l "." type ", v" #r "." type "\n"
#define COLUMNS(q, l0, l1, l2, r, ...) ADD(0, q, l0, r, __VA_ARGS__) ADD(1, q, l1, r, __VA_ARGS__) ADD(2, q, l2, r, __VA_ARGS__)
/// And the columns after the next, which are used next from the same register; `step` is 0 or 1.
#define COLUMNS_LOAD(step, q, l0, l1, l2, r, ...)                                                                        \
    COLUMNS(q, l0, l1, l2, r, __VA_ARGS__) RIGHT(r, "(" #step "*128+" #q "*16+32)")
#define STEP_BUT_FOUR_COLUMNS(step, l0, l1, l2, next0, next1, ...)                                                       \
    COLUMNS_LOAD(step, 0, l0, l1, l2, 6, __VA_ARGS__) next0 COLUMNS_LOAD(step, 1, l0, l1, l2, 7, __VA_ARGS__)           \
    COLUMNS_LOAD(step, 2, l0, l1, l2, 6, __VA_ARGS__) next1 COLUMNS_LOAD(step, 3, l0, l1, l2, 7, __VA_ARGS__)
#define STEP(step, l0, l1, l2, n0, n1, n2, ...)                                                                          \
    STEP_BUT_FOUR_COLUMNS(step, l0, l1, l2, LEFT(n0, 0, 1), LEFT(n1, 2, 3), __VA_ARGS__)                                \
    COLUMNS_LOAD(step, 4, l0, l1, l2, 6, __VA_ARGS__) LEFT(n2, 4, 5) COLUMNS_LOAD(step, 5, l0, l1, l2, 7, __VA_ARGS__)  \
    COLUMNS_LOAD(step, 6, l0, l1, l2, 6, __VA_ARGS__) COLUMNS_LOAD(step, 7, l0, l1, l2, 7, __VA_ARGS__)
#define LAST_STEP(l0, l1, l2, ...)                                                                                       \
    STEP_BUT_FOUR_COLUMNS(1, l0, l1, l2, , , __VA_ARGS__)                                                               \
    COLUMNS_LOAD(1, 4, l0, l1, l2, 6, __VA_ARGS__) COLUMNS_LOAD(1, 5, l0, l1, l2, 7, __VA_ARGS__)                       \
    COLUMNS(6, l0, l1, l2, 6, __VA_ARGS__) COLUMNS(7, l0, l1, l2, 7, __VA_ARGS__)
#define SUMS(p)                                                                                                          \
    [s##p##0] "+w"(sums[p][0]), [s##p##1] "+w"(sums[p][1]), [s##p##2] "+w"(sums[p][2]), [s##p##3] "+w"(sums[p][3]),     \
        [s##p##4] "+w"(sums[p][4]), [s##p##5] "+w"(sums[p][5]), [s##p##6] "+w"(sums[p][6]), [s##p##7] "+w"(sums[p][7])
#define ROW(i) [row##i] "+r"(row##i)

/// Defines a function that adds to the sums, of type `sum`, the product of `rounds` x 16 bytes, at least once, of the rows
/// of the left operand from byte `from` on by a panel.
#define ROUNDS(name, sum, ...)                                                                                           \
    static inline __attribute__((always_inline)) void name(const struct edge_left *a, size_t m, size_t from,            \
                                                           const void *panel, size_t rounds,                            \
                                                           sum sums[TILE_PAIRS][PANEL_PAIRS]) {                         \
        const char *row0 = row_at(a, m, 0) + from, *row1 = row_at(a, m, 1) + from, *row2 = row_at(a, m, 2) + from;      \
        const char *row3 = row_at(a, m, 3) + from, *row4 = row_at(a, m, 4) + from, *row5 = row_at(a, m, 5) + from;      \
        __asm__(RIGHT(6, "0") LEFT(0, 0, 1) LEFT(1, 2, 3) LEFT(2, 4, 5) RIGHT(7, "16")                                  \
                "subs %[rounds], %[rounds], #1\n"                                                                       \
                "b.eq 2f\n"                                                                                             \
                "1:\n"                                                                                                  \
                "subs %[rounds], %[rounds], #1\n"                                                                       \
                STEP(0, 0, 1, 2, 3, 4, 5, __VA_ARGS__)                                                                  \
                STEP(1, 3, 4, 5, 0, 1, 2, __VA_ARGS__)                                                                  \
                "add %[panel], %[panel], #256\n"                                                                        \
                "b.ne 1b\n"                                                                                             \
                "2:\n"                                                                                                  \
                STEP(0, 0, 1, 2, 3, 4, 5, __VA_ARGS__)                                                                  \
                LAST_STEP(3, 4, 5, __VA_ARGS__)                                                                         \
                : SUMS(0), SUMS(1), SUMS(2), ROW(0), ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), [panel] "+r"(panel),       \
                  [rounds] "+r"(rounds)                                                                                 \
                :                                                                                                       \
                : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "cc", "memory");                                      \
    }

ROUNDS(rounds_int8, int32x4_t, "smmla", "16b")
ROUNDS(rounds_bf16, float32x4_t, "bfmmla", "8h")

static inline void rows_of_pairs(float32x4_t pairs[TILE_PAIRS][PANEL_PAIRS], float rows[TILE_ROWS][EDGE_PANEL_COLUMNS]) {
    for (int p = 0; p < TILE_PAIRS; p++)
        for (int q = 0; q < PANEL_PAIRS; q++) {
            vst1_f32(rows[2 * p] + 2 * q, vget_low_f32(pairs[p][q]));
            vst1_f32(rows[2 * p + 1] + 2 * q, vget_high_f32(pairs[p][q]));
        }
}

static void tile_int8(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                      size_t n, bool accumulate) {
    float32x4_t pairs[TILE_PAIRS][PANEL_PAIRS];
    for (int p = 0; p < TILE_PAIRS; p++)
        for (int q = 0; q < PANEL_PAIRS; q++) pairs[p][q] = vdupq_n_f32(0);
    const int8_t *panel = panels;
    for (size_t block = 0; block * EDGE_INT8_BLOCK < depth; block++, panel += EDGE_INT8_BLOCK_WORDS * 4) {
        park(pairs);
        int32x4_t sums[TILE_PAIRS][PANEL_PAIRS];
        for (int p = 0; p < TILE_PAIRS; p++)
            for (int q = 0; q < PANEL_PAIRS; q++) sums[p][q] = int_zero();
        rounds_int8(a, m, block * EDGE_INT8_BLOCK, panel, EDGE_INT8_BLOCK / 16, sums);
        const float *scales = (const float *)(panel + EDGE_INT8_BLOCK * EDGE_PANEL_COLUMNS);
#pragma clang loop unroll(full)
        for (size_t p = 0; p < TILE_PAIRS; p++) {
            const float *row_scales = a->scales + block;
            const float32x4_t scale = vcombine_f32(
                vld1_dup_f32(row_scales + (2 * p < m ? 2 * p : m - 1) * a->blocks),
                vld1_dup_f32(row_scales + (2 * p + 1 < m ? 2 * p + 1 : m - 1) * a->blocks));
#pragma clang loop unroll(full)
            for (int q = 0; q < PANEL_PAIRS; q++) {
                const float32x2_t columns = vld1_f32(scales + 2 * q);
                const float32x4_t both = vmulq_f32(vcombine_f32(columns, columns), scale);
                pairs[p][q] = vfmaq_f32(pairs[p][q], float_of_int(sums[p][q]), both);
            }
        }
    }
    float whole[TILE_ROWS][EDGE_PANEL_COLUMNS];
    rows_of_pairs(pairs, whole);
    store_tile(whole, c, ldc, m, n, accumulate);
}

// Whole rounds of eight elements in assembly; up to seven after them as the portable tile does.
static void tile_bf16(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                      size_t n, bool accumulate) {
    float32x4_t pairs[TILE_PAIRS][PANEL_PAIRS];
    for (int p = 0; p < TILE_PAIRS; p++)
        for (int q = 0; q < PANEL_PAIRS; q++) pairs[p][q] = vdupq_n_f32(0);
    size_t k = depth / 8 * 8;
    if (k > 0) rounds_bf16(a, m, 0, panels, k / 8, pairs);
    float sums[TILE_ROWS][EDGE_PANEL_COLUMNS];
    rows_of_pairs(pairs, sums);
    for (const uint32_t *panel = (const uint32_t *)panels + k / 2 * EDGE_PANEL_COLUMNS; k < depth;
         k += 2, panel += EDGE_PANEL_COLUMNS)
        for (size_t i = 0; i < TILE_ROWS; i++) {
            const uint32_t pair = *(const uint32_t *)(row_at(a, m, i) + 2 * k);
            const float even = edge_float_of_bits(pair << 16), odd = edge_float_of_bits(pair & 0xffff0000);
            for (int j = 0; j < EDGE_PANEL_COLUMNS; j++) {
                sums[i][j] += even * edge_float_of_bits(panel[j] << 16);
                sums[i][j] += odd * edge_float_of_bits(panel[j] & 0xffff0000);
            }
        }
    store_tile(sums, c, ldc, m, n, accumulate);
}

/// Interleaves the words of each two of `rows` rows of a panel, in place, and flips the bits of `flipped`.
static inline void interleave_rows(uint32_t *panel, size_t rows, uint32_t flipped) {
    const uint32x4_t bits = vdupq_n_u32(flipped);
    for (size_t row = 0; row + 2 <= rows; row += 2, panel += 2 * EDGE_PANEL_COLUMNS) {
        uint32x4x2_t pairs[TILE_VECTORS];
        for (size_t v = 0; v < TILE_VECTORS; v++) {
            pairs[v].val[0] = veorq_u32(vld1q_u32(panel + 4 * v), bits);
            pairs[v].val[1] = veorq_u32(vld1q_u32(panel + EDGE_PANEL_COLUMNS + 4 * v), bits);
        }
        for (size_t v = 0; v < TILE_VECTORS; v++) vst2q_u32(panel + 8 * v, pairs[v]);
    }
}

static void interleave_int8(uint32_t *panel, size_t depth) {
    for (size_t k = 0; k < depth; k += EDGE_INT8_BLOCK, panel += EDGE_INT8_BLOCK_WORDS)
        interleave_rows(panel, EDGE_INT8_BLOCK / 4, 0x80808080);
}

static void pack_row_pairs_int8(const struct edge_kernel_set *set, const float *rows, size_t count, size_t depth,
                                void *panel) {
    pack_rows_int8(set, rows, count, depth, panel);
    interleave_int8(panel, depth);
}

static void pack_column_pairs_int8(const float *rows, size_t stride, size_t depth, void *panel) {
    pack_columns_int8(rows, stride, depth, panel);
    interleave_int8(panel, depth);
}

static void pack_row_pairs_bf16(const struct edge_kernel_set *set, const float *rows, size_t count, size_t depth,
                                void *panel) {
    pack_rows_bf16(set, rows, count, depth, panel);
    interleave_rows(panel, depth / 8 * 4, 0);
}

static void pack_column_pairs_bf16(const float *rows, size_t stride, size_t depth, void *panel) {
    pack_columns_bf16(rows, stride, depth, panel);
    interleave_rows(panel, depth / 8 * 4, 0);
}

void edge_install_neon_i8mm_bf16(struct edge_kernel_set *set) {
    edge_install_neon_fp16(set);
    install_packing(set);
    set->fast[EDGE_COMPUTE_bf16] = set->fast[EDGE_COMPUTE_int8] = true;
    set->tile[EDGE_COMPUTE_bf16] = tile_bf16;
    set->tile[EDGE_COMPUTE_int8] = tile_int8;
    set->tile_rows[EDGE_COMPUTE_bf16] = set->tile_rows[EDGE_COMPUTE_int8] = TILE_ROWS;
    set->pack_rows[EDGE_COMPUTE_bf16] = pack_row_pairs_bf16;
    set->pack_rows[EDGE_COMPUTE_int8] = pack_row_pairs_int8;
    set->pack_columns[EDGE_COMPUTE_bf16] = pack_column_pairs_bf16;
    set->pack_columns[EDGE_COMPUTE_int8] = pack_column_pairs_int8;
}

double edge_peak_neon_i8mm_bf16(enum edge_compute compute, size_t rounds, float *sink) {
    if (compute == EDGE_COMPUTE_f32 || compute == EDGE_COMPUTE_f16) return edge_peak_neon_fp16(compute, rounds, sink);
    if (compute == EDGE_COMPUTE_int8) {
        int32x4_t sums[24];
        for (int i = 0; i < 24; i++) sums[i] = vdupq_n_s32(i);
        const int8x16_t codes = vdupq_n_s8(3);
        for (size_t round = 0; round < rounds; round++) {
#pragma clang loop unroll(full)
            for (int i = 0; i < 24; i++) sums[i] = vmmlaq_s32(sums[i], codes, codes);
            __asm__ volatile("" : "+w"(sums[0])); // or the compiler finds the sum without the loop
        }
        for (int i = 0; i < 24; i++) *sink += (float)vgetq_lane_s32(sums[i], 0);
        return (double)rounds * 24 * 32 * 2;
    }
    float32x4_t sums[24];
    for (int i = 0; i < 24; i++) sums[i] = vdupq_n_f32((float)i);
    const bfloat16x8_t halves = vreinterpretq_bf16_u16(vdupq_n_u16(0x3f00));
    for (size_t round = 0; round < rounds; round++)
#pragma clang loop unroll(full)
        for (int i = 0; i < 24; i++) sums[i] = vbfmmlaq_f32(sums[i], halves, halves);
    for (int i = 0; i < 24; i++) *sink += vgetq_lane_f32(sums[i], 0);
    return (double)rounds * 24 * 16 * 2;
}

#pragma clang attribute pop

bool edge_supports_neon_i8mm_bf16(void) {
    const unsigned long needed = HWCAP2_I8MM | HWCAP2_BF16;
    return edge_supports_neon_fp16() && (getauxval(AT_HWCAP2) & needed) == needed;
}
#endif
