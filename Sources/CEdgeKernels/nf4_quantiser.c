// NF4 with double quantisation (arXiv:2305.14314 §3) as bitsandbytes 0.50.2 does it on an x86-64 CPU, bit for bit:
// functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4"). Its steps:
//
//   1  absmax of each 64 values; code = number of midpoints between levels that are below value · (1 / absmax)
//   2  offset = mean of the absmax values, in the order of torch's sum
//   3  absmax - offset, 256 at a time, in the signed dynamic map, by way of 65,536 even steps
//
// Step 2 is torch's on one thread. From 32,768 absmax values on (a weight of 2,097,152) torch sums the halves, thirds, … of
// the vector on as many threads as it has, and the offset's last bit depends on that number. Step 3 on an aarch64 CPU and on
// GPUs is another in bitsandbytes too.
#include "kernels_internal.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

enum { BLOCK = 64, LEVELS = 16, MAP = 256 };

const float *edge_nf4_quant_map(void) { return edge_nf4_levels; }
const float *edge_absmax_quant_map(void) { return edge_dynamic_map_signed; }

// Of the calling thread, which may flush denormals (edge_flush_denormals); torch does not.
static uint64_t keep_denormals(void) {
    uint64_t control = 0;
#if defined(__x86_64__)
    control = _mm_getcsr();
    _mm_setcsr((uint32_t)control & ~0x8040u); // FTZ | DAZ
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    __asm__ volatile("msr fpcr, %0" : : "r"(control & ~((uint64_t)1 << 24))); // FZ
#endif
    return control;
}

static void restore_denormals(uint64_t control) {
#if defined(__x86_64__)
    _mm_setcsr((uint32_t)control);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(control));
#endif
}

// Not inlined, here and below: the compiler would move arithmetic across the changes of the control register.
static __attribute__((noinline)) bool quantise_nf4(const float *values, size_t count, uint8_t *codes, float *absmax) {
    float bounds[LEVELS - 1];
    for (int i = 0; i < LEVELS - 1; i++) bounds[i] = (edge_nf4_levels[i] + edge_nf4_levels[i + 1]) / 2;
    for (size_t block = 0; block < count / BLOCK; block++, values += BLOCK, codes += BLOCK / 2) {
        // Magnitudes are ordered as their bits are, with infinity and NaN last.
        int32_t largest = 0;
        for (int i = 0; i < BLOCK; i++) {
            int32_t bits;
            memcpy(&bits, values + i, sizeof bits);
            bits &= 0x7fffffff;
            largest = bits > largest ? bits : largest;
        }
        if (largest >= 0x7f800000) return false;
        absmax[block] = edge_float_of_bits((uint32_t)largest);
        const float scale = 1 / (absmax[block] < 1e-38f ? 1e-38f : absmax[block]);
        float scaled[BLOCK]; // bitsandbytes clamps these to -1 ... 1, which is outside all bounds
        int32_t below[BLOCK] = {0};
        for (int i = 0; i < BLOCK; i++) scaled[i] = values[i] * scale;
        for (int level = 0; level < LEVELS - 1; level++)
            for (int i = 0; i < BLOCK; i++) below[i] += bounds[level] < scaled[i];
        for (int i = 0; i < BLOCK / 2; i++) codes[i] = (uint8_t)(below[2 * i] << 4 | below[2 * i + 1]);
    }
    return true;
}

bool edge_quantise_nf4(const float *values, size_t count, uint8_t *codes, float *absmax) {
    const uint64_t control = keep_denormals();
    const bool is_finite = quantise_nf4(values, count, codes, absmax);
    restore_denormals(control);
    return is_finite;
}

// ---- The mean, as torch sums ------------------------------------------------------------------------------------

/// ⌈log2⌉ of a count, at least 1.
static size_t ceil_log2(size_t count) {
    size_t power = 1;
    while (((size_t)1 << power) < count) power++;
    return power;
}

enum { LANES = 8, CHAINS = 4, CASCADE = 4 };

/// sums[k] = Σ over i < rows of x[i · width + k], width <= LANES · CHAINS. Runs of 2^power rows are summed one after the other,
/// runs of as many such sums likewise, and so on up to CASCADE levels (multi_row_sum in ATen's native/cpu/SumKernel.cpp).
static void cascade_sum(const float *x, size_t rows, size_t width, float *sums) {
    float level[CASCADE][LANES * CHAINS] = {{0}};
    const size_t quarter = ceil_log2(rows) / CASCADE, power = quarter < 4 ? 4 : quarter;
    const size_t run = (size_t)1 << power;
    size_t i = 0;
    while (i + run <= rows) {
        for (size_t end = i + run; i < end; i++)
            for (size_t k = 0; k < width; k++) level[0][k] += x[i * width + k];
        for (size_t j = 1; j < CASCADE; j++) {
            for (size_t k = 0; k < width; k++) {
                level[j][k] += level[j - 1][k];
                level[j - 1][k] = 0;
            }
            if ((i & ((run - 1) << (j * power))) != 0) break;
        }
    }
    for (; i < rows; i++)
        for (size_t k = 0; k < width; k++) level[0][k] += x[i * width + k];
    for (size_t k = 0; k < width; k++) {
        sums[k] = level[0][k];
        for (size_t j = 1; j < CASCADE; j++) sums[k] += level[j][k];
    }
}

/// torch.sum of a contiguous f32 vector on one thread: as eight columns (AVX2's vectors, which torch takes here on AVX-512 too), of
/// each the sums of every fourth row; fewer than eight values as one column.
static float torch_sum(const float *x, size_t count) {
    const size_t lanes = count < LANES ? 1 : LANES;
    const size_t rows = count / lanes, chained = rows / CHAINS * CHAINS;
    float sums[LANES * CHAINS];
    cascade_sum(x, rows / CHAINS, lanes * CHAINS, sums);
    for (size_t i = chained * lanes; i < rows * lanes; i++) sums[i % lanes] += x[i];
    for (size_t chain = 1; chain < CHAINS; chain++)
        for (size_t lane = 0; lane < lanes; lane++) sums[lane] += sums[chain * lanes + lane];
    float sum = 0;
    for (size_t i = rows * lanes; i < count; i++) sum += x[i];
    for (size_t lane = 0; lane < lanes; lane++) sum += sums[lane];
    return sum;
}

// ---- Absmax values in 8 bits --------------------------------------------------------------------------------------

/// The code of a value between -1 and 1. bitsandbytes' library puts it on one of 65,536 even steps first, with a fused
/// multiply-add (gcc contracts it there), and looks up the code of the step: the nearest value of the map, the lower of two as near.
static uint8_t absmax_code(float value, const float *bounds) {
    const float last_step = 65535, clamped = value < -1 ? -1 : value > 1 ? 1 : value;
    const float half = (clamped + 1) * 0.5f;
    // 24 bits times 16 and a half are exact in binary64, so this is rounded once.
    const int32_t step = clamped == clamped ? (int32_t)(float)((double)half * 65535 + 0.5) : 0;
    const float stepped = (float)(2 * step) / last_step - 1;
    size_t below = 0; // bounds known to be below
    for (size_t part = MAP / 2; part > 0; part /= 2) below += bounds[below + part - 1] < stepped ? part : 0;
    return (uint8_t)below;
}

static __attribute__((noinline)) void quantise_absmax(const float *absmax, size_t blocks, uint8_t *codes, float *nested) {
    float bounds[MAP - 1];
    for (int i = 0; i < MAP - 1; i++) bounds[i] = (edge_dynamic_map_signed[i] + edge_dynamic_map_signed[i + 1]) / 2;
    const float offset = torch_sum(absmax, blocks) / (float)blocks;
    for (size_t first = 0; first < blocks; first += EDGE_NESTED_BLOCK) {
        const size_t length = blocks - first < EDGE_NESTED_BLOCK ? blocks - first : EDGE_NESTED_BLOCK;
        float largest = 0;
        for (size_t i = first; i < first + length; i++) {
            const float magnitude = fabsf(absmax[i] - offset);
            largest = magnitude > largest ? magnitude : largest;
        }
        nested[first / EDGE_NESTED_BLOCK] = largest;
        const float scale = 1 / largest; // unused where it is infinite because all are 0
        for (size_t i = first; i < first + length; i++)
            codes[i] = largest == 0 ? 0 : absmax_code((absmax[i] - offset) * scale, bounds);
    }
    nested[(blocks + EDGE_NESTED_BLOCK - 1) / EDGE_NESTED_BLOCK] = offset;
}

void edge_quantise_absmax(const float *absmax, size_t blocks, uint8_t *codes, float *nested) {
    const uint64_t control = keep_denormals();
    quantise_absmax(absmax, blocks, codes, nested);
    restore_denormals(control);
}
