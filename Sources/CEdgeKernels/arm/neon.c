// Advanced SIMD as every aarch64 processor has it: Cortex-A53, A55, A72, A76.
//
//   tile        6 x 16: 24 accumulators, six vectors of four left elements, two panel vectors: all 32 registers
//   pack_words  4 x 4 transpositions in registers
//   decode      Q4_0, Q4_1, Q8_0, IQ4_NL, IQ4_XS, F16, BF16, NF4, FP4; multiply then add, never fused: equal to the formats' own
//               bits
#include "../kernels_internal.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>

#include "../elementwise.inc"
#include "../optimizer.inc"
#include "../packing.inc"

#include "neon_tile.inc"

static inline void store_four_by_four(const float32x4_t row[4], float *panel) {
    const float32x4_t even[2] = {vtrn1q_f32(row[0], row[1]), vtrn1q_f32(row[2], row[3])};
    const float32x4_t odd[2] = {vtrn2q_f32(row[0], row[1]), vtrn2q_f32(row[2], row[3])};
    const float64x2_t e0 = vreinterpretq_f64_f32(even[0]), e1 = vreinterpretq_f64_f32(even[1]);
    const float64x2_t o0 = vreinterpretq_f64_f32(odd[0]), o1 = vreinterpretq_f64_f32(odd[1]);
    vst1q_f32(panel, vreinterpretq_f32_f64(vzip1q_f64(e0, e1)));
    vst1q_f32(panel + EDGE_PANEL_COLUMNS, vreinterpretq_f32_f64(vzip1q_f64(o0, o1)));
    vst1q_f32(panel + 2 * EDGE_PANEL_COLUMNS, vreinterpretq_f32_f64(vzip2q_f64(e0, e1)));
    vst1q_f32(panel + 3 * EDGE_PANEL_COLUMNS, vreinterpretq_f32_f64(vzip2q_f64(o0, o1)));
}

static void pack_words(const void *rows, size_t stride, size_t count, size_t words, void *panel) {
    const float *source = rows;
    float *packed = panel;
    size_t k = 0;
    for (; k + 4 <= words; k += 4, packed += 4 * EDGE_PANEL_COLUMNS)
        for (size_t quarter = 0; quarter < EDGE_PANEL_COLUMNS; quarter += 4) {
            float32x4_t row[4];
            for (size_t j = 0; j < 4; j++)
                row[j] = quarter + j < count ? vld1q_f32(source + (quarter + j) * stride + k) : vdupq_n_f32(0);
            store_four_by_four(row, packed + quarter);
        }
    for (; k < words; k++, packed += EDGE_PANEL_COLUMNS)
        for (size_t j = 0; j < EDGE_PANEL_COLUMNS; j++) packed[j] = j < count ? source[j * stride + k] : 0;
}

EDGE_NEON_ROUNDS(rounds_f32, float32x4_t, "fmla", "4s", "s")

// Whole rounds of four elements in assembly; what is left of them, and transposed operands, one element at a time.
static void tile_f32(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m, size_t n,
                     bool accumulate) {
    float32x4_t sums[TILE_ROWS][TILE_VECTORS];
    for (int i = 0; i < TILE_ROWS; i++)
        for (int v = 0; v < TILE_VECTORS; v++) sums[i][v] = vdupq_n_f32(0);
    size_t k = 0;
    if (a->step == sizeof(float) && depth >= 4) {
        k = depth / 4 * 4;
        rounds_f32(a, m, 0, panels, k / 4, sums);
    }
    const float *panel = (const float *)panels + k * EDGE_PANEL_COLUMNS;
    for (; k < depth; k++, panel += EDGE_PANEL_COLUMNS) {
        const float32x4x4_t right = {{vld1q_f32(panel), vld1q_f32(panel + 4), vld1q_f32(panel + 8), vld1q_f32(panel + 12)}};
#pragma clang loop unroll(full)
        for (int i = 0; i < TILE_ROWS; i++) {
            const float left = *(const float *)(row_at(a, m, i) + k * a->step);
#pragma clang loop unroll(full)
            for (int v = 0; v < TILE_VECTORS; v++) sums[i][v] = vfmaq_n_f32(sums[i][v], right.val[v], left);
        }
    }
    float whole[TILE_ROWS][EDGE_PANEL_COLUMNS];
    memcpy(whole, sums, sizeof whole);
    store_tile(whole, c, ldc, m, n, accumulate);
}

static inline float32x4_t broadcast_half(const void *half) {
    uint16_t bits;
    memcpy(&bits, half, sizeof bits);
    return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits)));
}

/// Sixteen codes of one byte each, as four vectors of floats.
static inline float32x4x4_t floats_of_codes(int8x16_t codes) {
    const int16x8_t low = vmovl_s8(vget_low_s8(codes)), high = vmovl_high_s8(codes);
    return (float32x4x4_t){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
                            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}

static void decode_q4_1(const void *blocks, size_t first, float *values, size_t count) {
    const uint8_t *block = (const uint8_t *)blocks + first / 32 * 20;
    for (size_t b = 0; b < count / 32; b++, block += 20, values += 32) {
        const float32x4_t d = broadcast_half(block), m = broadcast_half(block + 2);
        const uint8x16_t codes = vld1q_u8(block + 4);
        const float32x4x4_t halves[2] = {
            floats_of_codes(vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(15)))),
            floats_of_codes(vreinterpretq_s8_u8(vshrq_n_u8(codes, 4)))};
        for (int i = 0; i < 8; i++) vst1q_f32(values + 4 * i, vaddq_f32(vmulq_f32(d, halves[i / 4].val[i % 4]), m));
    }
}

// d · (code - 8): the subtraction is exact in integers, so the one rounding is that of the product.
static void decode_q4_0(const void *blocks, size_t first, float *values, size_t count) {
    const uint8_t *block = (const uint8_t *)blocks + first / 32 * 18;
    const int8x16_t eight = vdupq_n_s8(8);
    for (size_t b = 0; b < count / 32; b++, block += 18, values += 32) {
        const float32x4_t d = broadcast_half(block);
        const uint8x16_t codes = vld1q_u8(block + 2);
        const float32x4x4_t halves[2] = {
            floats_of_codes(vsubq_s8(vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(15))), eight)),
            floats_of_codes(vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(codes, 4)), eight))};
        for (int i = 0; i < 8; i++) vst1q_f32(values + 4 * i, vmulq_f32(d, halves[i / 4].val[i % 4]));
    }
}

static void decode_q8_0(const void *blocks, size_t first, float *values, size_t count) {
    const int8_t *block = (const int8_t *)blocks + first / 32 * 34;
    for (size_t b = 0; b < count / 32; b++, block += 34, values += 32) {
        const float32x4_t d = broadcast_half(block);
        const float32x4x4_t halves[2] = {floats_of_codes(vld1q_s8(block + 2)), floats_of_codes(vld1q_s8(block + 18))};
        for (int i = 0; i < 8; i++) vst1q_f32(values + 4 * i, vmulq_f32(d, halves[i / 4].val[i % 4]));
    }
}

static void decode_f16(const void *blocks, size_t first, float *values, size_t count) {
    const uint16_t *half = (const uint16_t *)blocks + first;
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const float16x8_t eight = vreinterpretq_f16_u16(vld1q_u16(half + i));
        vst1q_f32(values + i, vcvt_f32_f16(vget_low_f16(eight)));
        vst1q_f32(values + i + 4, vcvt_high_f32_f16(eight));
    }
    edge_decode_f16(half, i, values + i, count - i);
}

static void decode_bf16(const void *blocks, size_t first, float *values, size_t count) {
    const uint16_t *bfloat = (const uint16_t *)blocks + first;
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const uint16x8_t eight = vld1q_u16(bfloat + i);
        vst1q_f32(values + i, vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(eight), 16)));
        vst1q_f32(values + i + 4, vreinterpretq_f32_u32(vshll_high_n_u16(eight, 16)));
    }
    edge_decode_bf16(bfloat, i, values + i, count - i);
}

/// Sixteen codes as levels: a table lookup for each of a float's four bytes, which are then put together.
static inline float32x4x4_t level_values(uint8x16x4_t bytes, uint8x16_t codes) {
    const uint8x16_t byte0 = vqtbl1q_u8(bytes.val[0], codes), byte1 = vqtbl1q_u8(bytes.val[1], codes);
    const uint8x16_t byte2 = vqtbl1q_u8(bytes.val[2], codes), byte3 = vqtbl1q_u8(bytes.val[3], codes);
    const uint16x8_t low0 = vreinterpretq_u16_u8(vzip1q_u8(byte0, byte1)), low1 = vreinterpretq_u16_u8(vzip2q_u8(byte0, byte1));
    const uint16x8_t high0 = vreinterpretq_u16_u8(vzip1q_u8(byte2, byte3));
    const uint16x8_t high1 = vreinterpretq_u16_u8(vzip2q_u8(byte2, byte3));
    return (float32x4x4_t){
        {vreinterpretq_f32_u16(vzip1q_u16(low0, high0)), vreinterpretq_f32_u16(vzip2q_u16(low0, high0)),
         vreinterpretq_f32_u16(vzip1q_u16(low1, high1)), vreinterpretq_f32_u16(vzip2q_u16(low1, high1))}};
}

static inline void store_levels(uint8x16x4_t bytes, uint8x16_t codes, float scale, float *values) {
    const float32x4x4_t levels = level_values(bytes, codes);
    for (int i = 0; i < 4; i++) vst1q_f32(values + 4 * i, vmulq_n_f32(levels.val[i], scale));
}

static void decode_iq4_nl(const void *blocks, size_t first, float *values, size_t count) {
    const uint8_t *block = (const uint8_t *)blocks + first / 32 * 18;
    const uint8x16x4_t bytes = vld4q_u8((const uint8_t *)edge_iq4_levels);
    for (size_t b = 0; b < count / 32; b++, block += 18, values += 32) {
        uint16_t d_bits;
        memcpy(&d_bits, block, sizeof d_bits);
        const float d = edge_float_of_half(d_bits);
        const uint8x16_t codes = vld1q_u8(block + 2);
        store_levels(bytes, vandq_u8(codes, vdupq_n_u8(15)), d, values);
        store_levels(bytes, vshrq_n_u8(codes, 4), d, values + 16);
    }
}

static void decode_iq4_xs(const void *blocks, size_t first, float *values, size_t count) {
    const uint8x16x4_t bytes = vld4q_u8((const uint8_t *)edge_iq4_levels);
    for (size_t unit = first / 32; unit < (first + count) / 32; unit++, values += 32) {
        const struct edge_iq4_xs_block *block = (const struct edge_iq4_xs_block *)blocks + unit / 8;
        const float scale = edge_float_of_half(block->d) * (float)edge_iq4_xs_scale(block, unit % 8);
        const uint8x16_t codes = vld1q_u8(block->codes + unit % 8 * 16);
        store_levels(bytes, vandq_u8(codes, vdupq_n_u8(15)), scale, values);
        store_levels(bytes, vshrq_n_u8(codes, 4), scale, values + 16);
    }
}

static void decode_scaled(const struct edge_matrix *w, size_t block, float *values, size_t count) {
    const float *table = edge_quant_format(w->format)->levels;
    const uint8x16x4_t bytes = vld4q_u8((const uint8_t *)table);
    for (size_t b = block; b < block + count / 64; b++) {
        const float absmax = edge_block_absmax(w, b);
        for (int half = 0; half < 32; half += 16, values += 32) {
            const uint8x16_t codes = vld1q_u8((const uint8_t *)w->blocks + 32 * b + half);
            const uint8x16_t even = vshrq_n_u8(codes, 4), odd = vandq_u8(codes, vdupq_n_u8(15));
            store_levels(bytes, vzip1q_u8(even, odd), absmax, values);
            store_levels(bytes, vzip2q_u8(even, odd), absmax, values + 16);
        }
    }
}

void edge_install_neon(struct edge_kernel_set *set) {
    edge_install_portable(set);
    set->tile[EDGE_COMPUTE_f32] = tile_f32;
    set->tile_rows[EDGE_COMPUTE_f32] = TILE_ROWS;
    set->pack_words = pack_words;
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

double edge_peak_neon(enum edge_compute compute, size_t rounds, float *sink) {
    if (compute != EDGE_COMPUTE_f32) return 0;
    float32x4_t sums[24];
    for (int i = 0; i < 24; i++) sums[i] = vdupq_n_f32((float)i);
    const float32x4_t factor = vdupq_n_f32(0.999f), one = vdupq_n_f32(1);
    for (size_t round = 0; round < rounds; round++)
#pragma clang loop unroll(full)
        for (int i = 0; i < 24; i++) sums[i] = vfmaq_laneq_f32(sums[i], factor, one, 1);
    for (int i = 0; i < 24; i++) *sink += vgetq_lane_f32(sums[i], 0);
    return (double)rounds * 24 * 4 * 2;
}

bool edge_supports_neon(void) { return (getauxval(AT_HWCAP) & HWCAP_ASIMD) != 0; }
#endif
