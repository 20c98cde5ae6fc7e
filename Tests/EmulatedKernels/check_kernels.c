// Every kernel set that this processor supports, run.sh's emulated ones above all: products against sums in f64, the
// rest against the portable set bit for bit.
//
// Sums in f64 are over exactly the operands that a compute type defines: this file rounds them a second time, by other
// means than packing.inc. Whatever a kernel may read or write ends at a page that faults, so reading beyond an operand
// is a failure too; in front of it, and between rows, there are guard values.
#include "edge_kernels.h"

#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// WIDEST and LONGEST hold a superblock of the widest format, and the shortest row of them that one pass ends inside.
enum { SETS_AT_MOST = 16, FAILURES_SHOWN = 20, FRONT_BYTES = 256, LONGEST = 1280, WIDEST = 256, MOST_TOKENS = 129 };

// All tails along one axis of a shape while the others keep an odd length; then all axes at once.
static const size_t tails[] = {1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129};
enum { TAILS = sizeof tails / sizeof *tails };
static const char *const compute_names[EDGE_COMPUTE_COUNT] = {"f32", "bf16", "f16", "int8"};

static struct edge_kernel_set portable, sets[SETS_AT_MOST];
static size_t set_count, checks[SETS_AT_MOST], failures;

// ---- What is being checked, for the report ----------------------------------------------------------------------

static size_t current_set;
static char current_case[160];

static void begin(size_t set, const char *text, ...) {
    current_set = set;
    va_list arguments;
    va_start(arguments, text);
    vsnprintf(current_case, sizeof current_case, text, arguments);
    va_end(arguments);
}

static void fail(const char *text, ...) {
    if (failures++ >= FAILURES_SHOWN) return;
    printf("FAILED %s: %s: ", sets[current_set].name, current_case);
    va_list arguments;
    va_start(arguments, text);
    vprintf(text, arguments);
    va_end(arguments);
    printf("\n");
    fflush(stdout);
}

/// A fence was touched, or an instruction is not there: the process cannot go on.
static void fault(int signal) {
    char text[256];
    const int length = snprintf(
        text, sizeof text, "FAILED %s: %s: %s\n", sets[current_set].name, current_case,
        signal == SIGILL ? "illegal instruction" : "touches memory beyond an operand");
    if (write(STDOUT_FILENO, text, (size_t)length) < 0) _exit(2);
    _exit(1);
}

// ---- Values -------------------------------------------------------------------------------------------------------

static uint64_t random_state = 1;

static uint32_t random_bits(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

/// In [-magnitude, magnitude); one in sixteen is 0.
static float random_value(float magnitude) {
    const uint32_t bits = random_bits();
    return bits >> 28 == 0 ? 0 : (float)(int32_t)(bits << 4) * 0x1p-31f * magnitude;
}

static void fill(float *values, size_t count, float magnitude) {
    for (size_t i = 0; i < count; i++) values[i] = random_value(magnitude);
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// ---- Fenced memory ------------------------------------------------------------------------------------------------

/// Memory that ends at a page that faults.
struct region {
    char *start, *end;
};

static struct region new_region(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + FRONT_BYTES + page - 1) / page * page;
    char *start = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(start + whole, page, PROT_NONE) != 0) {
        perror("mmap");
        exit(2);
    }
    return (struct region){start, start + whole};
}

static const unsigned char guard_byte = 0xa7;

/// The last `bytes` of a region, behind guard values.
static void *tail_of(const struct region *region, size_t bytes) {
    char *tail = region->end - bytes;
    if (tail < region->start + FRONT_BYTES) {
        fprintf(stderr, "a region is too small for %s\n", current_case);
        exit(2);
    }
    memset(tail - FRONT_BYTES, guard_byte, FRONT_BYTES);
    return tail;
}

static void *copy_to(const struct region *region, const void *source, size_t bytes) {
    return memcpy(tail_of(region, bytes), source, bytes);
}

static void check_front(const void *tail, const char *what) {
    const unsigned char *front = (const unsigned char *)tail - FRONT_BYTES;
    for (size_t i = 0; i < FRONT_BYTES; i++)
        if (front[i] != guard_byte) return fail("writes %zu bytes in front of %s", FRONT_BYTES - i, what);
}

/// Equal bits, or NaN in both: no one promises a NaN's payload.
static void check_same(const char *what, const float *found, const float *expected, size_t count) {
    checks[current_set]++;
    check_front(found, what);
    for (size_t i = 0; i < count; i++)
        if (bits_of(found[i]) != bits_of(expected[i]) && !(isnan(found[i]) && isnan(expected[i])))
            return fail(
                "%s[%zu]: found %.9g (%08x), expected %.9g (%08x)", what, i, (double)found[i], bits_of(found[i]),
                (double)expected[i], bits_of(expected[i]));
}

static void check_same_bytes(const char *what, const void *found, const void *expected, size_t bytes) {
    checks[current_set]++;
    check_front(found, what);
    const unsigned char *left = found, *right = expected;
    for (size_t i = 0; i < bytes; i++)
        if (left[i] != right[i]) return fail("byte %zu of %s: found %02x, expected %02x", i, what, left[i], right[i]);
}

// ---- Decoding and packing -----------------------------------------------------------------------------------------

static struct region region_a, region_b, region_c, region_d, region_e;

static void check_decoders(void) {
    for (int format = 0; format < EDGE_FORMAT_COUNT; format++) {
        const struct edge_quant_format *entry = edge_quant_format((enum edge_format)format);
        for (size_t t = 0; t < TAILS; t++) {
            const size_t count = tails[t] * entry->block_elements, bytes = tails[t] * entry->block_bytes;
            unsigned char *blocks = tail_of(&region_a, bytes);
            for (size_t i = 0; i < bytes; i++) blocks[i] = (unsigned char)(random_bits() >> 24);
            float *expected = tail_of(&region_b, count * sizeof *expected);
            portable.decode[format](blocks, 0, expected, count);
            const size_t unit = entry->unit_elements, units = count / unit;
            for (size_t s = 0; s < set_count; s++) {
                // All of them; the last unit; some from the second on, which end inside a superblock.
                const size_t starts[] = {0, units - 1, units > 1}, ends[] = {units, units, units > 4 ? units - 3 : units};
                for (int part = 0; part < 3; part++) {
                    const size_t first = starts[part] * unit, length = (ends[part] - starts[part]) * unit;
                    begin(s, "decode %s, values %zu to %zu of %zu", entry->name, first, first + length, count);
                    float *found = tail_of(&region_c, length * sizeof *found);
                    sets[s].decode[format](blocks, first, found, length);
                    check_same("value", found, expected + first, length);
                }
            }
        }
    }
}

/// A format with levels, and its scales: the middle row of three, from the first block on and from the last; and the last row
/// alone, as a part of the matrix.
static void check_scaled_decoders(enum edge_format format, bool nested_absmax) {
    for (size_t t = 0; t < TAILS; t++) {
        const size_t columns = tails[t] * 64, blocks = 3 * tails[t];
        const size_t absmax_count = nested_absmax ? (blocks + EDGE_NESTED_BLOCK - 1) / EDGE_NESTED_BLOCK : blocks;
        uint8_t *codes = tail_of(&region_a, blocks * 32), *absmax_codes = tail_of(&region_d, blocks);
        for (size_t i = 0; i < blocks * 32; i++) codes[i] = (uint8_t)(random_bits() >> 24);
        for (size_t i = 0; i < blocks; i++) absmax_codes[i] = (uint8_t)(random_bits() >> 24);
        float *absmax = tail_of(&region_e, absmax_count * sizeof *absmax);
        for (size_t i = 0; i < absmax_count; i++) absmax[i] = random_value(3);
        const struct edge_matrix w = {
            codes, columns / 2, 3, columns, format, nested_absmax ? absmax_codes : NULL, absmax, nested_absmax ? 0.05f : 0, 0};
        struct edge_matrix last_row = w;
        last_row.blocks = codes + 2 * w.row_bytes;
        last_row.rows = 1;
        last_row.first_block = 2 * tails[t];
        for (int part = 0; part < 3; part++) {
            const size_t row = part == 2 ? 2 : 1, column = part == 1 ? columns - 64 : 0, count = columns - column;
            float *expected = tail_of(&region_b, count * sizeof *expected);
            edge_decode_part(&portable, &w, row, column, count, expected);
            for (size_t s = 0; s < set_count; s++) {
                begin(s, "decode_scaled %s, %zu of %zu values%s", edge_quant_format(format)->name, count, columns,
                      part == 2 ? ", a part" : "");
                float *found = tail_of(&region_c, count * sizeof *found);
                edge_decode_part(&sets[s], part == 2 ? &last_row : &w, part == 2 ? 0 : row, column, count, found);
                check_same("value", found, expected, count);
            }
        }
    }
}

static void check_pack_words(void) {
    static const size_t counts[] = {1, 2, 3, 5, 7, 8, 15, 16};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (size_t t = 0; t < TAILS; t++) {
            const size_t count = counts[c], words = tails[t], stride = words + t % 3;
            const size_t bytes = words * EDGE_PANEL_COLUMNS * 4, source_bytes = ((count - 1) * stride + words) * 4;
            uint32_t *rows = tail_of(&region_a, source_bytes);
            for (size_t i = 0; i < source_bytes / 4; i++) rows[i] = random_bits();
            void *expected = tail_of(&region_b, bytes);
            portable.pack_words(rows, stride, count, words, expected);
            for (size_t s = 0; s < set_count; s++) {
                begin(s, "pack_words %zu rows of %zu", count, words);
                void *found = tail_of(&region_c, bytes);
                sets[s].pack_words(rows, stride, count, words, found);
                check_same_bytes("panel", found, expected, bytes);
            }
        }
}

static size_t blocks_of(size_t contracted) { return (contracted + EDGE_INT8_BLOCK - 1) / EDGE_INT8_BLOCK; }

static void check_round_rows(void) {
    static float x[5 * LONGEST], scales[5 * LONGEST], powers[LONGEST];
    static int32_t offsets[5 * LONGEST];
    static char rounded[5 * LONGEST * 4];
    enum { ROWS = 5 };
    for (int compute = 0; compute < EDGE_COMPUTE_COUNT; compute++)
        for (size_t t = 0; t < TAILS; t++) {
            const size_t columns = tails[t], ldx = columns + 2, blocks = blocks_of(columns);
            const size_t stride = edge_left_stride((enum edge_compute)compute, columns);
            fill(x, ROWS * ldx, 3);
            memset(x + 2 * ldx, 0, columns * sizeof *x);
            x[3 * ldx] = float_of(0x3f808000); // half way between two bfloat16
            x[4 * ldx] = 100; // a column that stands out
            const float *fenced = copy_to(&region_a, x, ((ROWS - 1) * ldx + columns) * sizeof *x);
            const float *smoothing = NULL;
            if (compute == EDGE_COMPUTE_int8 && t % 2 == 1) {
                portable.smooth_columns(fenced, ldx, ROWS, columns, powers);
                for (size_t s = 0; s < set_count; s++) {
                    begin(s, "smooth_columns, %zu columns", columns);
                    float *found = tail_of(&region_e, columns * sizeof *found);
                    sets[s].smooth_columns(fenced, ldx, ROWS, columns, found);
                    check_same("power", found, powers, columns);
                }
                smoothing = copy_to(&region_e, powers, columns * sizeof *powers);
            }
            portable.round_rows[compute](
                fenced, ldx, ROWS, columns, rounded, stride, scales, offsets, blocks, smoothing);
            for (size_t s = 0; s < set_count; s++) {
                begin(s, "round_rows %s, %zu columns%s", compute_names[compute], columns, smoothing ? ", smoothed" : "");
                void *found = tail_of(&region_b, ROWS * stride);
                float *found_scales = tail_of(&region_c, ROWS * blocks * sizeof *scales);
                int32_t *found_offsets = tail_of(&region_d, ROWS * blocks * sizeof *offsets);
                sets[s].round_rows[compute](
                    fenced, ldx, ROWS, columns, found, stride, found_scales, found_offsets, blocks, smoothing);
                check_same_bytes("row", found, rounded, ROWS * stride);
                if (compute != EDGE_COMPUTE_int8 && compute != EDGE_COMPUTE_f16) continue;
                check_same("scale", found_scales, scales, ROWS * blocks);
                if (compute == EDGE_COMPUTE_f16) continue;
                check_same_bytes("offset", found_offsets, offsets, ROWS * blocks * sizeof *offsets);
            }
        }
}

// ---- Products -----------------------------------------------------------------------------------------------------

enum direction { FORWARD, BACKWARD };
static const char *const direction_names[] = {"forward", "backward"};

struct shape {
    enum direction direction;
    enum edge_compute compute;
    enum edge_format format;
    size_t tokens, outputs, contracted;
    bool smoothed; // int8, forward: columns of x that stand out are divided down, and the weights multiplied
};

/// One product: its operands as they are given, and its result in f64 with what bounds its error.
static struct {
    struct shape shape;
    struct edge_matrix w;
    float *x;            // [tokens][contracted]
    float *smoothing;    // [contracted], or NULL
    float *before;       // [tokens][outputs], what is added to
    double *sums;        // [tokens][outputs]
    double *magnitudes;  // [tokens][outputs], Σ |a · b|
    size_t terms;        // of a sum
    double unfused;      // roundings of a term, over those of a sum of fused ones
} product;

static struct region region_w, region_absmax, region_nested, region_x, region_smoothing, region_left, region_scales,
    region_offsets, region_y, region_scratch;
static float *w_values;  // [rows][columns]
static double *right;    // [contracted][outputs], rounded
static double *left_row; // [contracted], rounded

/// To nearest bfloat16, ties to even, by comparing distances.
static double bfloat_of(float value) {
    const uint32_t below = bits_of(value) & 0xffff0000;
    const double low = float_of(below), high = float_of(below + 0x10000);
    const double to_low = fabs((double)value - low), to_high = fabs(high - (double)value);
    if (to_low != to_high) return to_low < to_high ? low : high;
    return below & 0x10000 ? high : low;
}

/// What smoothing does to x, and to the weights.
enum smoothing_side { DIVIDE, MULTIPLY };

/// Codes of up to a block of values, `stride` apart, as f64; returns their scale.
static double codes_of(const float *values, size_t stride, size_t count, enum smoothing_side side,
                       const float *smoothing, double *codes, size_t codes_stride) {
    float smooth[EDGE_INT8_BLOCK], largest = 0;
    for (size_t i = 0; i < count; i++) {
        smooth[i] = values[i * stride];
        if (smoothing) smooth[i] = side == MULTIPLY ? smooth[i] * smoothing[i] : smooth[i] / smoothing[i];
        largest = fmaxf(largest, fabsf(smooth[i]));
    }
    const volatile float factor = largest > 0x1p-100f ? 127 / largest : 0;
    for (size_t i = 0; i < count; i++) {
        const volatile float code = smooth[i] * factor;
        codes[i * codes_stride] = nearbyint(code);
    }
    const volatile float scale = largest / 127;
    return scale;
}

static size_t rows_of(const struct shape *shape) {
    return shape->direction == FORWARD ? shape->outputs : shape->contracted;
}
static size_t columns_of(const struct shape *shape) {
    return shape->direction == FORWARD ? shape->contracted : shape->outputs;
}

/// Σ over k in f64, block by block so that 8-bit sums are exact; `first_k ..< end` of one token.
static void add_terms(size_t token, size_t first_k, size_t end, double left_scale, const double *right_scales) {
    const size_t outputs = product.shape.outputs;
    static double sums[WIDEST], magnitudes[WIDEST];
    memset(sums, 0, sizeof sums);
    memset(magnitudes, 0, sizeof magnitudes);
    for (size_t k = first_k; k < end; k++) {
        const double left = left_row[k];
        const double *row = right + k * outputs;
        for (size_t o = 0; o < outputs; o++) {
            sums[o] += left * row[o];
            magnitudes[o] += fabs(left * row[o]);
        }
    }
    for (size_t o = 0; o < outputs; o++) {
        const double scale = right_scales ? left_scale * right_scales[o] : 1;
        product.sums[token * outputs + o] += sums[o] * scale;
        product.magnitudes[token * outputs + o] += right_scales ? fabs(sums[o] * scale) : magnitudes[o];
    }
}

/// Scales beside the blocks of the product's matrix.
static void scale_blocks(size_t blocks) {
    uint8_t *absmax_codes = tail_of(&region_absmax, blocks);
    float *nested = tail_of(&region_nested, (blocks + EDGE_NESTED_BLOCK - 1) / EDGE_NESTED_BLOCK * sizeof *nested);
    for (size_t i = 0; i < blocks; i++) absmax_codes[i] = (uint8_t)(random_bits() >> 24);
    for (size_t i = 0; i * EDGE_NESTED_BLOCK < blocks; i++) nested[i] = random_value(1);
    product.w.absmax_codes = absmax_codes;
    product.w.absmax = nested;
    product.w.nested_offset = 0.5f;
}

/// Blocks of a format that nothing writes: random bytes whose values are of a weight's size. Of random scales many are infinite
/// or next to nothing.
enum { SOME_BLOCKS = 64, MOST_BLOCK_BYTES = 256 };

static const char *some_blocks(const struct edge_quant_format *format) {
    static char known[EDGE_FORMAT_COUNT][SOME_BLOCKS * MOST_BLOCK_BYTES];
    static bool is_known[EDGE_FORMAT_COUNT];
    const int index = (int)(format - edge_quant_format((enum edge_format)0));
    if (is_known[index]) return known[index];
    is_known[index] = true;
    for (size_t b = 0; b < SOME_BLOCKS; b++) {
        char *block = known[index] + b * format->block_bytes;
        float values[256], largest = 0;
        do {
            for (size_t i = 0; i < format->block_bytes; i++) block[i] = (char)(random_bits() >> 24);
            format->decode(block, 0, values, format->block_elements);
            largest = 0;
            for (size_t i = 0; i < format->block_elements; i++)
                largest = isfinite(values[i]) ? fmaxf(largest, fabsf(values[i])) : INFINITY;
        } while (!(largest >= 0x1p-4f && largest <= 0x1p4f));
    }
    return known[index];
}

/// Row `row` of the product's matrix: values of their own encoded, or some blocks; the fourth is zeros.
static void make_row(size_t row, void *blocks) {
    const struct edge_matrix *w = &product.w;
    const struct edge_quant_format *format = edge_quant_format(w->format);
    if (format->encode) {
        format->encode(w_values + row * w->columns, blocks, w->columns);
        return;
    }
    const char *known = some_blocks(format);
    for (size_t at = 0; at < w->row_bytes; at += format->block_bytes)
        memcpy((char *)blocks + at, known + random_bits() % SOME_BLOCKS * format->block_bytes, format->block_bytes);
    if (row == 3) memset(blocks, 0, w->row_bytes);
}

/// The smoothing's definition once more: 2^⌊log2 √largest⌋ a column.
static void smooth(void) {
    for (size_t k = 0; k < product.shape.contracted; k++) {
        float largest = 0;
        for (size_t token = 0; token < product.shape.tokens; token++)
            largest = fmaxf(largest, fabsf(product.x[token * product.shape.contracted + k]));
        int exponent;
        frexpf(sqrtf(largest), &exponent);
        product.smoothing[k] = largest > 0 ? ldexpf(1, exponent - 1) : 1;
    }
}

/// Values as binary16 has them after a division by the largest of their block, multiplied by it again.
static void halves_of(const float *values, size_t stride, size_t count, double *halves, size_t halves_stride) {
    for (size_t first = 0; first < count; first += EDGE_INT8_BLOCK) {
        const size_t end = count - first < EDGE_INT8_BLOCK ? count : first + EDGE_INT8_BLOCK;
        float largest = 0;
        for (size_t k = first; k < end; k++) largest = fmaxf(largest, fabsf(values[k * stride]));
        const float factor = largest > 0x1p-100f ? 1 / largest : 0;
        for (size_t k = first; k < end; k++) {
            const double value = (double)(values[k * stride] * factor);
            int exponent;
            frexp(value, &exponent);
            const double place = ldexp(1, (exponent < -13 ? -13 : exponent) - 11);
            halves[k * halves_stride] = nearbyint(value / place) * place * (double)largest;
        }
    }
}

/// Makes the operands of a shape and sums them.
static void prepare(const struct shape *shape) {
    product.shape = *shape;
    const size_t rows = rows_of(shape), columns = columns_of(shape);
    const size_t tokens = shape->tokens, outputs = shape->outputs, contracted = shape->contracted;
    const struct edge_quant_format *format = edge_quant_format(shape->format);
    const size_t row_bytes = columns / format->block_elements * format->block_bytes;
    random_state = (((tokens * 1000 + outputs) * 10000 + contracted) * 10 + shape->format) * 10 + shape->compute;

    fill(w_values, rows * columns, 1);
    if (rows > 3) memset(w_values + 3 * columns, 0, columns * sizeof *w_values);
    char *blocks = tail_of(&region_w, rows * row_bytes);
    product.w = (struct edge_matrix){
        .blocks = blocks, .row_bytes = row_bytes, .rows = rows, .columns = columns, .format = shape->format};
    if (format->levels) scale_blocks(rows * columns / format->block_elements);
    for (size_t row = 0; row < rows; row++) {
        make_row(row, blocks + row * row_bytes);
        edge_decode_part(&portable, &product.w, row, 0, columns, w_values + row * columns);
    }
    product.x = tail_of(&region_x, tokens * contracted * sizeof *product.x);
    fill(product.x, tokens * contracted, 2);
    if (tokens > 2) memset(product.x + 2 * contracted, 0, contracted * sizeof *product.x);
    for (size_t k = 5; k < contracted; k += 37) // columns that stand out
        for (size_t token = 0; token < tokens; token++) product.x[token * contracted + k] *= 50;
    product.smoothing = shape->smoothed ? tail_of(&region_smoothing, contracted * sizeof *product.smoothing) : NULL;
    if (shape->smoothed) smooth();
    fill(product.before, tokens * outputs, 1);
    memset(product.sums, 0, tokens * outputs * sizeof *product.sums);
    memset(product.magnitudes, 0, tokens * outputs * sizeof *product.magnitudes);

    const size_t output_stride = shape->direction == FORWARD ? columns : 1;
    const size_t k_stride = shape->direction == FORWARD ? 1 : columns;
    const size_t blocks_count = blocks_of(contracted);
    static double right_scales[(LONGEST / EDGE_INT8_BLOCK + 1) * WIDEST];
    for (size_t o = 0; o < outputs; o++) {
        const float *values = w_values + o * output_stride;
        if (shape->compute == EDGE_COMPUTE_int8)
            for (size_t block = 0; block < blocks_count; block++) {
                const size_t k = block * EDGE_INT8_BLOCK, rest = contracted - k;
                right_scales[block * outputs + o] = codes_of(
                    values + k * k_stride, k_stride, rest < EDGE_INT8_BLOCK ? rest : EDGE_INT8_BLOCK, MULTIPLY,
                    product.smoothing ? product.smoothing + k : NULL, right + k * outputs + o, outputs);
            }
        else if (shape->compute == EDGE_COMPUTE_f16)
            halves_of(values, k_stride, contracted, right + o, outputs);
        else
            for (size_t k = 0; k < contracted; k++)
                right[k * outputs + o] =
                    shape->compute == EDGE_COMPUTE_bf16 ? bfloat_of(values[k * k_stride]) : (double)values[k * k_stride];
    }
    for (size_t token = 0; token < tokens; token++) {
        const float *x = product.x + token * contracted;
        if (shape->compute != EDGE_COMPUTE_int8) {
            for (size_t k = 0; k < contracted; k++)
                left_row[k] = shape->compute == EDGE_COMPUTE_bf16 ? bfloat_of(x[k]) : (double)x[k];
            if (shape->compute == EDGE_COMPUTE_f16) halves_of(x, 1, contracted, left_row, 1);
            add_terms(token, 0, contracted, 1, NULL);
            continue;
        }
        for (size_t block = 0; block < blocks_count; block++) {
            const size_t k = block * EDGE_INT8_BLOCK;
            const size_t end = contracted - k < EDGE_INT8_BLOCK ? contracted : k + EDGE_INT8_BLOCK;
            const double scale = codes_of(
                x + k, 1, end - k, DIVIDE, product.smoothing ? product.smoothing + k : NULL, left_row + k, 1);
            add_terms(token, k, end, scale, right_scales + block * outputs);
        }
    }
    // A term of 8 bits is a block: its sum is exact, its scale rounded, and the product with it.
    product.terms = shape->compute == EDGE_COMPUTE_int8 ? blocks_count + 2 : contracted;
    // A chain of binary16, whose last place is 2^13 of binary32's.
    if (shape->compute == EDGE_COMPUTE_f16) product.terms += EDGE_F16_CHAIN << 13;
    // One rounding a product and one a sum of two, or to odd, an ulp wide instead of half: the instructions differ.
    product.unfused = shape->compute == EDGE_COMPUTE_bf16 ? 4 : 1;
}

/// γ_n = n·u / (1 - n·u) times Σ|a·b| bounds any order of an f32 sum of n products (Higham, §3.1).
static double bound(size_t terms, double magnitude) {
    const double nu = (double)(terms + 2) * 0x1p-24;
    return nu / (1 - nu) * magnitude;
}

/// The left operand of `tokens` rows of x, rounded by the set, in fenced memory.
static struct edge_left left_of(const struct edge_kernel_set *set, enum edge_compute compute, const float *x,
                                size_t tokens, size_t contracted) {
    const size_t stride = edge_left_stride(compute, contracted);
    const size_t blocks = compute == EDGE_COMPUTE_int8 || compute == EDGE_COMPUTE_f16 ? blocks_of(contracted) : 0;
    void *rows = tail_of(&region_left, tokens * stride);
    float *scales = tail_of(&region_scales, tokens * blocks * sizeof *scales);
    int32_t *offsets = tail_of(&region_offsets, tokens * blocks * sizeof *offsets);
    set->round_rows[compute](x, contracted, tokens, contracted, rows, stride, scales, offsets, blocks, product.smoothing);
    static const size_t element_bytes[EDGE_COMPUTE_COUNT] = {4, 2, 2, 1};
    return (struct edge_left){
        .compute = compute, .rows = rows, .stride = stride, .step = element_bytes[compute], .scales = scales,
        .offsets = offsets, .blocks = blocks, .smoothing = product.smoothing};
}

/// All slices of the prepared product with another left operand, into y; the scratch begins as NaN.
static void multiply(const struct edge_kernel_set *set, const struct edge_left *left, size_t tokens, float *y, size_t ldy,
                     size_t slice, bool accumulate) {
    const size_t bytes = EDGE_PRODUCT_SCRATCH * sizeof(float), outputs = product.shape.outputs;
    float *scratch = tail_of(&region_scratch, bytes);
    memset(scratch, 0xff, bytes);
    for (size_t first = 0; first < outputs; first += slice) {
        const size_t count = outputs - first < slice ? outputs - first : slice;
        (product.shape.direction == FORWARD ? edge_product_forward : edge_product_backward)(
            set, &product.w, left, tokens, y, ldy, first, count, accumulate, scratch);
    }
    check_front(scratch, "scratch");
}

static void begin_product(size_t set, const char *what) {
    const struct shape *shape = &product.shape;
    begin(
        set, "%s %s %s %zu tokens x %zu outputs x %zu contracted%s%s", direction_names[shape->direction],
        compute_names[shape->compute], edge_quant_format(shape->format)->name, shape->tokens, shape->outputs,
        shape->contracted, shape->smoothed ? ", smoothed" : "", what);
}

static const float guard_value = -7.25e31f;

static void check_product(size_t s, bool accumulate) {
    const size_t tokens = product.shape.tokens, outputs = product.shape.outputs, ldy = outputs + 3;
    begin_product(s, accumulate ? ", accumulated" : "");
    checks[s]++;
    const struct edge_left left =
        left_of(&sets[s], product.shape.compute, product.x, tokens, product.shape.contracted);
    float *y = tail_of(&region_y, ((tokens - 1) * ldy + outputs) * sizeof *y);
    for (size_t i = 0; i < (tokens - 1) * ldy + outputs; i++) y[i] = guard_value;
    // What is overwritten begins as NaN.
    for (size_t token = 0; token < tokens; token++)
        for (size_t o = 0; o < outputs; o++)
            y[token * ldy + o] = accumulate ? product.before[token * outputs + o] : float_of(0x7fc00000);
    multiply(&sets[s], &left, tokens, y, ldy, EDGE_SLICE_COLUMNS, accumulate);
    check_front(y, "y");
    for (size_t token = 0; token < tokens; token++) {
        for (size_t o = 0; o < outputs; o++) {
            const size_t i = token * outputs + o;
            const double before = accumulate ? (double)product.before[i] : 0, expected = before + product.sums[i];
            const double allowed =
                product.unfused * bound(product.terms + accumulate, product.magnitudes[i] + fabs(before) + 1e-30);
            const double found = (double)y[token * ldy + o];
            if (!(fabs(found - expected) <= allowed))
                return fail("y[%zu][%zu]: found %.9g, expected %.9g within %.3g", token, o, found, expected, allowed);
        }
        for (size_t o = outputs; o < ldy && token + 1 < tokens; o++)
            if (y[token * ldy + o] != guard_value) return fail("writes y[%zu][%zu], beyond the outputs", token, o);
    }
}

static void check_shape(const struct shape *shape) {
    prepare(shape);
    for (size_t s = 0; s < set_count; s++) {
        check_product(s, false);
        check_product(s, true);
    }
}

/// One of the two accumulations, for products take the emulator long: a length has the other in the other direction, and its
/// neighbours have it in this one.
static void check_shape_once(const struct shape *shape, size_t length) {
    prepare(shape);
    for (size_t s = 0; s < set_count; s++) check_product(s, (length + shape->format + shape->direction) % 2 == 0);
}

/// What a product does with a format is decode it, which check_decoders holds to the bit, and part it by its blocks: so the first
/// format of each length of block stands for the others.
static bool is_first_of_its_length(enum edge_format format) {
    for (int other = 0; other < (int)format; other++)
        if (edge_quant_format((enum edge_format)other)->block_elements == edge_quant_format(format)->block_elements) return false;
    return true;
}

static void check_products(enum direction direction, enum edge_compute compute, enum edge_format format) {
    static const size_t several_passes[] = {320, 321, 449, 641, 704, LONGEST};
    const size_t unit = edge_quant_format(format)->block_elements, widest = unit > 192 ? unit : 192;
    const size_t output_unit = direction == BACKWARD ? unit : 1, contracted_unit = direction == FORWARD ? unit : 1;
    struct shape base = {direction, compute, format, 7, 17, 33, false};
    if (output_unit > 1) base.outputs = 3 * unit < WIDEST ? 3 * unit : unit;
    if (contracted_unit > 1) base.contracted = 3 * unit < WIDEST ? 3 * unit : unit;
    if (!is_first_of_its_length(format)) {
        check_shape(&base);
        base.contracted = contracted_unit > 64 ? LONGEST : 640; // several passes
        check_shape(&base);
        return;
    }
    for (size_t t = 0; t < TAILS; t++) {
        struct shape shape = base;
        shape.tokens = tails[t];
        check_shape_once(&shape, t);
    }
    // Whole tiles of every set (4, 6, 14 rows): the last row of one is the last of the operand.
    struct shape whole = base;
    whole.tokens = 84;
    whole.contracted = contracted_unit > 1 ? base.contracted : 64;
    check_shape(&whole);
    for (size_t t = 0; t < TAILS && tails[t] * output_unit <= widest; t++) {
        struct shape shape = base;
        shape.outputs = tails[t] * output_unit;
        check_shape_once(&shape, t);
    }
    for (size_t t = 0; t < TAILS && tails[t] * contracted_unit <= LONGEST; t++) {
        struct shape shape = base;
        shape.contracted = tails[t] * contracted_unit;
        check_shape_once(&shape, t);
        if (compute != EDGE_COMPUTE_int8 || direction != FORWARD) continue;
        shape.smoothed = true;
        check_shape_once(&shape, t + 1);
    }
    for (size_t p = 0; p < sizeof several_passes / sizeof *several_passes; p++) {
        struct shape shape = base;
        shape.contracted = several_passes[p] / contracted_unit * contracted_unit;
        if (shape.contracted == LONGEST && contracted_unit < 256) continue; // others end inside no block
        check_shape_once(&shape, p);
    }
    // Up to one more than a slice: what is beyond it, an axis by itself has met.
    for (size_t t = 0; t < TAILS && tails[t] <= EDGE_SLICE_COLUMNS + 1; t++) {
        struct shape shape = {direction, compute, format, tails[t], tails[t], tails[t], false};
        shape.smoothed = t % 2 == 0 && compute == EDGE_COMPUTE_int8 && direction == FORWARD;
        shape.outputs = (shape.outputs + output_unit - 1) / output_unit * output_unit;
        shape.contracted = (shape.contracted + contracted_unit - 1) / contracted_unit * contracted_unit;
        check_shape_once(&shape, t);
    }
}

/// Other tokens, other slices and, in f32, a transposed operand leave every bit as it is.
static void check_independence(const struct shape *shape) {
    static float together[MOST_TOKENS * WIDEST];
    prepare(shape);
    const size_t tokens = shape->tokens, outputs = shape->outputs, contracted = shape->contracted;
    const size_t unit = shape->direction == BACKWARD ? edge_quant_format(shape->format)->unit_elements : 1;
    static const size_t slices[] = {11, 16, 29, 32};
    for (size_t s = 0; s < set_count; s++) {
        const struct edge_kernel_set *set = &sets[s];
        struct edge_left left = left_of(set, shape->compute, product.x, tokens, contracted);
        multiply(set, &left, tokens, together, outputs, EDGE_SLICE_COLUMNS, false);
        for (size_t i = 0; i < sizeof slices / sizeof *slices; i++) {
            if (slices[i] % unit != 0) continue;
            begin_product(s, ", in other slices");
            float *y = tail_of(&region_y, tokens * outputs * sizeof *y);
            multiply(set, &left, tokens, y, outputs, slices[i], false);
            check_same("y", y, together, tokens * outputs);
        }
        if (shape->compute == EDGE_COMPUTE_f32) {
            float *turned = tail_of(&region_left, tokens * contracted * sizeof *turned);
            for (size_t token = 0; token < tokens; token++)
                for (size_t k = 0; k < contracted; k++) turned[k * tokens + token] = product.x[token * contracted + k];
            left.rows = turned;
            left.stride = sizeof(float);
            left.step = tokens * sizeof(float);
            begin_product(s, ", transposed");
            float *y = tail_of(&region_y, tokens * outputs * sizeof *y);
            multiply(set, &left, tokens, y, outputs, EDGE_SLICE_COLUMNS, false);
            check_same("y", y, together, tokens * outputs);
        }
        // 1, 2, 3 … tokens: every number of rows that a tile can have.
        for (size_t token = 0, count = 0; token < tokens; token += count) {
            count = count + 1 < tokens - token ? count + 1 : tokens - token;
            begin_product(s, ", few tokens at a time");
            left = left_of(set, shape->compute, product.x + token * contracted, count, contracted);
            float *y = tail_of(&region_y, count * outputs * sizeof *y);
            multiply(set, &left, count, y, outputs, EDGE_SLICE_COLUMNS, false);
            check_same("y", y, together + token * outputs, count * outputs);
        }
    }
}

/// One NaN in x makes its token's outputs NaN, and no other's.
static void check_nan(const struct shape *shape) {
    prepare(shape);
    const size_t tokens = shape->tokens, outputs = shape->outputs, contracted = shape->contracted;
    for (size_t s = 0; s < set_count; s++)
        for (size_t i = 0; i < 4; i++) {
            const size_t token = i * 3 % tokens, k = i * (contracted - 1) / 3;
            float *place = product.x + token * contracted + k, kept = *place;
            *place = float_of(i % 2 == 0 ? 0x7fc00000 : 0xff923456);
            begin_product(s, ", a NaN in x");
            checks[s]++;
            const struct edge_left left = left_of(&sets[s], shape->compute, product.x, tokens, contracted);
            float *y = tail_of(&region_y, tokens * outputs * sizeof *y);
            multiply(&sets[s], &left, tokens, y, outputs, EDGE_SLICE_COLUMNS, false);
            *place = kept;
            for (size_t j = 0; j < tokens * outputs; j++)
                if (isnan(y[j]) != (j / outputs == token)) {
                    fail("x[%zu][%zu] is NaN, y[%zu][%zu] is %g", token, k, j / outputs, j % outputs, (double)y[j]);
                    break;
                }
        }
}

static void check_vector_product(enum edge_format format) {
    const size_t unit = edge_quant_format(format)->block_elements;
    for (size_t t = 0; t < TAILS && tails[t] * unit <= LONGEST; t++) {
        const struct shape shape = {FORWARD, EDGE_COMPUTE_f32, format, 1, 17, tails[t] * unit, false};
        prepare(&shape);
        for (size_t s = 0; s < set_count; s++)
            for (int accumulate = 0; accumulate < 2; accumulate++) {
                begin(s, "vector %s 17 x %zu%s", edge_quant_format(format)->name, shape.contracted,
                      accumulate ? ", accumulated" : "");
                checks[s]++;
                const size_t first = 2, count = 13; // of 17 rows
                float *y = tail_of(&region_y, (first + count) * sizeof *y);
                for (size_t i = 0; i < first + count; i++) y[i] = i < first ? guard_value : product.before[i];
                float *scratch = tail_of(&region_scratch, shape.contracted * sizeof *scratch);
                edge_product_vector(&sets[s], &product.w, product.x, y, first, count, accumulate, scratch);
                check_front(y, "y");
                check_front(scratch, "scratch");
                for (size_t i = 0; i < first + count; i++) {
                    const double before = i < first ? (double)guard_value : accumulate ? (double)product.before[i] : 0;
                    const double expected = before + (i < first ? 0 : product.sums[i]);
                    const double allowed =
                        i < first ? 0 : bound(product.terms + 1, product.magnitudes[i] + fabs(before) + 1e-30);
                    if (!(fabs((double)y[i] - expected) <= allowed)) {
                        fail("y[%zu]: found %.9g, expected %.9g within %.3g", i, (double)y[i], expected, allowed);
                        break;
                    }
                }
            }
    }
}

// ---- Element-wise kernels -----------------------------------------------------------------------------------------

enum { ELEMENTS = 3 * 2 * 2 * 129 + 1100 };
static float in_a[ELEMENTS], in_b[ELEMENTS], in_c[ELEMENTS], in_d[ELEMENTS];
static float out_a[ELEMENTS], out_b[ELEMENTS], out_c[ELEMENTS];

static void fill_inputs(float magnitude) {
    fill(in_a, ELEMENTS, magnitude);
    fill(in_b, ELEMENTS, magnitude);
    fill(in_c, ELEMENTS, magnitude);
    fill(in_d, ELEMENTS, magnitude);
}

static float *input(const struct region *region, const float *values, size_t count) {
    return copy_to(region, values, count * sizeof *values);
}

static void check_result(float found, float expected) {
    if (bits_of(found) != bits_of(expected))
        fail(
            "returns %.9g (%08x), expected %.9g (%08x)", (double)found, bits_of(found), (double)expected,
            bits_of(expected));
}

static void check_norms(size_t columns, float offset, bool accumulate) {
    enum { ROWS = 3 };
    const size_t count = ROWS * columns;
    float inverse[ROWS];
    fill_inputs(2);
    portable.rms_norm(in_a, in_b, offset, out_a, inverse, ROWS, columns, 1e-5f);
    memcpy(out_b, in_c, count * sizeof *out_b);
    portable.rms_norm_backward(in_d, in_a, in_b, offset, inverse, out_b, ROWS, columns, accumulate);
    for (size_t s = 0; s < set_count; s++) {
        begin(s, "rms_norm, %zu columns, offset %g", columns, (double)offset);
        const float *x = input(&region_a, in_a, count), *weight = input(&region_b, in_b, columns);
        float *y = tail_of(&region_c, count * sizeof *y), *found = tail_of(&region_d, sizeof inverse);
        sets[s].rms_norm(x, weight, offset, y, found, ROWS, columns, 1e-5f);
        check_same("y", y, out_a, count);
        check_same("inverse_rms", found, inverse, ROWS);
        begin(s, "rms_norm_backward, %zu columns, offset %g", columns, (double)offset);
        const float *dy = input(&region_e, in_d, count);
        float *dx = input(&region_c, in_c, count);
        sets[s].rms_norm_backward(dy, x, weight, offset, found, dx, ROWS, columns, accumulate);
        check_same("dx", dx, out_b, count);
    }
}

static void check_layer_norms(size_t columns, bool accumulate) {
    enum { ROWS = 3 };
    const size_t count = ROWS * columns;
    float inverse[ROWS];
    fill_inputs(2);
    portable.layer_norm(in_a, in_b, in_c, out_a, inverse, ROWS, columns, 1e-5f);
    memcpy(out_b, in_c, count * sizeof *out_b);
    portable.layer_norm_backward(in_d, in_a, in_b, inverse, out_b, ROWS, columns, accumulate);
    for (size_t s = 0; s < set_count; s++) {
        begin(s, "layer_norm, %zu columns", columns);
        const float *x = input(&region_a, in_a, count), *weight = input(&region_b, in_b, columns);
        const float *bias = input(&region_e, in_c, columns);
        float *y = tail_of(&region_c, count * sizeof *y), *found = tail_of(&region_d, sizeof inverse);
        sets[s].layer_norm(x, weight, bias, y, found, ROWS, columns, 1e-5f);
        check_same("y", y, out_a, count);
        check_same("inverse_deviation", found, inverse, ROWS);
        begin(s, "layer_norm_backward, %zu columns", columns);
        const float *dy = input(&region_e, in_d, count);
        float *dx = input(&region_c, in_c, count);
        sets[s].layer_norm_backward(dy, x, weight, found, dx, ROWS, columns, accumulate);
        check_same("dx", dx, out_b, count);
    }
}

static void check_rotate(size_t pairs, size_t unrotated, size_t pair_stride, float direction) {
    enum { ROWS = 3, HEADS = 2 };
    const size_t head_dim = 2 * pairs + unrotated, ldx = HEADS * head_dim + 1, count = (ROWS - 1) * ldx + HEADS * head_dim;
    static const int32_t positions[ROWS] = {4, 0, 2};
    fill_inputs(1);
    memcpy(out_a, in_a, count * sizeof *out_a);
    portable.rotate(out_a, ldx, positions, in_b, in_c, ROWS, HEADS, head_dim, pairs, pair_stride, direction);
    for (size_t s = 0; s < set_count; s++) {
        begin(s, "rotate, head_dim %zu, pair_stride %zu, direction %g", head_dim, pair_stride, (double)direction);
        float *x = input(&region_a, in_a, count);
        const float *cosines = input(&region_b, in_b, 5 * pairs), *sines = input(&region_c, in_c, 5 * pairs);
        sets[s].rotate(x, ldx, positions, cosines, sines, ROWS, HEADS, head_dim, pairs, pair_stride, direction);
        check_same("x", x, out_a, count);
    }
}

static void check_softmax(size_t count) {
    static const float scales[] = {0.125f, 1, 8};
    for (int i = 0; i < 3; i++) {
        fill_inputs(20);
        memcpy(out_a, in_a, count * sizeof *out_a);
        const float expected = portable.softmax(out_a, count, scales[i]);
        for (size_t s = 0; s < set_count; s++) {
            begin(s, "softmax, %zu values, scale %g", count, (double)scales[i]);
            float *x = input(&region_a, in_a, count);
            check_result(sets[s].softmax(x, count, scales[i]), expected);
            check_same("x", x, out_a, count);
        }
    }
}

static void check_softmax_backward(size_t columns) {
    enum { ROWS = 5 };
    static const size_t diagonals[] = {0, 2, 200};
    const size_t ld = columns + 2, count = (ROWS - 1) * ld + columns;
    for (int i = 0; i < 3; i++) {
        fill_inputs(60);
        memcpy(out_a, in_a, count * sizeof *out_a);
        memcpy(out_b, in_b, count * sizeof *out_b);
        portable.softmax_backward(out_a, out_b, ld, ROWS, columns, in_c, in_d, 0.25f, diagonals[i]);
        for (size_t s = 0; s < set_count; s++) {
            begin(s, "softmax_backward, %zu columns, diagonal %zu", columns, diagonals[i]);
            float *scores = input(&region_a, in_a, count), *dp = input(&region_b, in_b, count);
            const float *log_sum_exp = input(&region_c, in_c, columns), *delta = input(&region_d, in_d, columns);
            sets[s].softmax_backward(scores, dp, ld, ROWS, columns, log_sum_exp, delta, 0.25f, diagonals[i]);
            check_same("s", scores, out_a, count);
            check_same("dp", dp, out_b, count);
        }
    }
}

static void check_softmax_backward_limited(size_t columns) {
    enum { ROWS = 5 };
    static const struct { size_t diagonal, window; float cap; } cases[] = {{0, 3, 0}, {9, 4, 7}, {2, SIZE_MAX, 2}};
    const size_t ld = columns + 2, count = (ROWS - 1) * ld + columns;
    for (int i = 0; i < 3; i++) {
        const size_t diagonal = cases[i].diagonal, window = cases[i].window;
        const float cap = cases[i].cap;
        fill_inputs(60);
        memcpy(out_a, in_a, count * sizeof *out_a);
        memcpy(out_b, in_b, count * sizeof *out_b);
        portable.softmax_backward_limited(out_a, out_b, ld, ROWS, columns, in_c, in_d, 0.25f, diagonal, window, cap);
        for (size_t s = 0; s < set_count; s++) {
            begin(s, "softmax_backward_limited, %zu columns, window %zu, cap %g", columns, window, (double)cap);
            float *scores = input(&region_a, in_a, count), *dp = input(&region_b, in_b, count);
            const float *log_sum_exp = input(&region_c, in_c, columns), *delta = input(&region_d, in_d, columns);
            sets[s].softmax_backward_limited(
                scores, dp, ld, ROWS, columns, log_sum_exp, delta, 0.25f, diagonal, window, cap);
            check_same("s", scores, out_a, count);
            check_same("dp", dp, out_b, count);
        }
    }
}

static void check_soft_cap(size_t count) {
    fill_inputs(100);
    memcpy(out_a, in_a, count * sizeof *out_a);
    portable.soft_cap(out_a, count, 0.25f, 3);
    for (size_t s = 0; s < set_count; s++) {
        begin(s, "soft_cap, %zu values", count);
        float *x = input(&region_a, in_a, count);
        sets[s].soft_cap(x, count, 0.25f, 3);
        check_same("x", x, out_a, count);
    }
}

struct gated {
    const char *name;
    size_t forward, backward; // where the kernels are in a set
};
typedef void (*gated_fn)(const float *, const float *, float *, size_t);
typedef void (*gated_backward_fn)(const float *, float *, float *, size_t);
static gated_fn gated_forward(const struct edge_kernel_set *set, const struct gated *g) {
    return *(const gated_fn *)((const char *)set + g->forward);
}
static gated_backward_fn gated_backward(const struct edge_kernel_set *set, const struct gated *g) {
    return *(const gated_backward_fn *)((const char *)set + g->backward);
}

static void check_gated(const struct gated *g, size_t count) {
    fill_inputs(g->name[0] == 's' ? 100 : 5);
    gated_forward(&portable, g)(in_a, in_b, out_a, count);
    memcpy(out_b, in_a, count * sizeof *out_b);
    memcpy(out_c, in_b, count * sizeof *out_c);
    gated_backward(&portable, g)(in_c, out_b, out_c, count);
    for (size_t s = 0; s < set_count; s++) {
        begin(s, "%s, %zu values", g->name, count);
        float *gate = input(&region_a, in_a, count), *up = input(&region_b, in_b, count);
        float *y = tail_of(&region_c, count * sizeof *y);
        gated_forward(&sets[s], g)(gate, up, y, count);
        check_same("y", y, out_a, count);
        begin(s, "%s_backward, %zu values", g->name, count);
        const float *dy = input(&region_c, in_c, count);
        gated_backward(&sets[s], g)(dy, gate, up, count);
        check_same("gate", gate, out_b, count);
        check_same("up", up, out_c, count);
    }
}

static void check_cross_entropy(size_t count) {
    static const float scales[] = {0, 0.37f};
    for (int i = 0; i < 2; i++) {
        fill_inputs(15);
        const size_t target = random_bits() % count;
        memcpy(out_a, in_a, count * sizeof *out_a);
        const float expected = portable.cross_entropy(out_a, count, target, scales[i]);
        for (size_t s = 0; s < set_count; s++) {
            begin(s, "cross_entropy, %zu values, scale %g", count, (double)scales[i]);
            float *logits = input(&region_a, in_a, count);
            check_result(sets[s].cross_entropy(logits, count, target, scales[i]), expected);
            check_same("logits", logits, out_a, count);
        }
    }
}

static void check_cross_entropy_capped(size_t count) {
    static const float scales[] = {0, 0.37f};
    for (int i = 0; i < 2; i++) {
        fill_inputs(15);
        const size_t target = random_bits() % count;
        memcpy(out_a, in_a, count * sizeof *out_a);
        const float expected = portable.cross_entropy_capped(out_a, count, target, scales[i], 4);
        for (size_t s = 0; s < set_count; s++) {
            begin(s, "cross_entropy_capped, %zu values, scale %g", count, (double)scales[i]);
            float *logits = input(&region_a, in_a, count);
            check_result(sets[s].cross_entropy_capped(logits, count, target, scales[i], 4), expected);
            check_same("logits", logits, out_a, count);
        }
    }
}

static void check_add_rows(size_t columns) {
    enum { ROWS = 3 };
    const size_t ldy = columns + 1, count = (ROWS - 1) * ldy + columns;
    fill_inputs(3);
    memcpy(out_a, in_b, count * sizeof *out_a);
    portable.add_rows(in_a, out_a, ldy, ROWS, columns);
    for (size_t s = 0; s < set_count; s++) {
        begin(s, "add_rows, %zu columns", columns);
        const float *x = input(&region_a, in_a, columns);
        float *y = input(&region_b, in_b, count);
        sets[s].add_rows(x, y, ldy, ROWS, columns);
        check_same("y", y, out_a, count);
    }
}

/// A matrix of five rows, the second without an entry, in products with 1 to 31 tokens.
static void check_sparse(size_t columns) {
    enum { ROWS = 5, FIRST_ROW = 3, STEP = 3 };
    static float values[ELEMENTS], rows[ELEMENTS], places[ELEMENTS], packed[EDGE_SPARSE_TOKENS * ELEMENTS], zeros[ELEMENTS];
    struct edge_sparse entries = {values, rows, places, 0, FIRST_ROW, ROWS};
    fill_inputs(3);
    for (size_t row = 0; row < ROWS; row++)
        for (size_t column = row; row != 1 && column < columns; column += STEP, entries.count++) {
            values[entries.count] = in_d[entries.count];
            rows[entries.count] = (float)(FIRST_ROW + row);
            places[entries.count] = (float)column;
        }
    for (size_t tokens = 1; tokens <= EDGE_SPARSE_TOKENS; tokens += 6) {
        if (tokens * columns > ELEMENTS || EDGE_SPARSE_TOKENS * columns > ELEMENTS) return;
        edge_pack_tokens(in_a, columns, tokens, columns, packed);
        memcpy(out_a, in_b, tokens * ROWS * sizeof *out_a);
        portable.sparse_forward(&entries, packed, out_a, ROWS, tokens);
        memcpy(out_b, in_c, EDGE_SPARSE_TOKENS * columns * sizeof *out_b);
        portable.sparse_backward(&entries, in_b, ROWS, tokens, out_b);
        memcpy(out_c, in_c, entries.count * sizeof *out_c);
        portable.sparse_gradient(&entries, in_b, ROWS, tokens, packed, out_c);
        for (size_t s = 0; s < set_count; s++) {
            begin(s, "sparse products, %zu columns, %zu tokens", columns, tokens);
            const float *x = input(&region_a, packed, EDGE_SPARSE_TOKENS * columns);
            float *back = input(&region_b, zeros, tokens * columns);
            edge_add_packed_tokens(x, tokens, columns, back, columns);
            check_same("tokens", back, in_a, tokens * columns);
            float *y = input(&region_b, in_b, tokens * ROWS);
            sets[s].sparse_forward(&entries, x, y, ROWS, tokens);
            check_same("y", y, out_a, tokens * ROWS);
            float *dx = input(&region_c, in_c, EDGE_SPARSE_TOKENS * columns);
            sets[s].sparse_backward(&entries, input(&region_b, in_b, tokens * ROWS), ROWS, tokens, dx);
            check_same("dx", dx, out_b, EDGE_SPARSE_TOKENS * columns);
            float *gradient = input(&region_c, in_c, entries.count);
            sets[s].sparse_gradient(&entries, input(&region_b, in_b, tokens * ROWS), ROWS, tokens, x, gradient);
            check_same("gradient", gradient, out_c, entries.count);
        }
    }
    memcpy(out_a, in_b, ROWS * sizeof *out_a);
    portable.sparse_vector(&entries, in_a, out_a);
    for (size_t s = 0; s < set_count; s++) {
        begin(s, "sparse vector, %zu columns", columns);
        float *y = input(&region_b, in_b, ROWS);
        sets[s].sparse_vector(&entries, input(&region_a, in_a, columns), y);
        check_same("y", y, out_a, ROWS);
    }
}

static void check_vectors(size_t count) {
    fill_inputs(3);
    memcpy(out_a, in_b, count * sizeof *out_a);
    portable.add_scaled(in_a, out_a, count, 0.7f);
    const float dot = portable.dot(in_a, in_b, count);
    const uint64_t key = 0x123456789abcdef1, first = 0xffffffff - count / 2;
    portable.dropout(in_a, out_b, count, key, first, 0.3f);
    for (size_t s = 0; s < set_count; s++) {
        begin(s, "add_scaled, %zu values", count);
        const float *x = input(&region_a, in_a, count);
        float *y = input(&region_b, in_b, count);
        sets[s].add_scaled(x, y, count, 0.7f);
        check_same("y", y, out_a, count);
        begin(s, "dot, %zu values", count);
        checks[s]++;
        check_result(sets[s].dot(x, input(&region_b, in_b, count), count), dot);
        begin(s, "dropout, %zu values", count);
        float *dropped = tail_of(&region_c, count * sizeof *dropped);
        sets[s].dropout(x, dropped, count, key, first, 0.3f);
        check_same("y", dropped, out_b, count);
    }
}

static const struct edge_adamw adamw_settings = {
    .decay = 0.99999f, .step = 3.69e-3f, .root_correction2 = 0.0548f, .beta1 = 0.9f, .rate1 = 0.1f, .beta2 = 0.999f,
    .rate2 = 0.001f, .epsilon = 1e-8f, .gradient_scale = 0.8f};

static void check_adamw(size_t count) {
    fill_inputs(1);
    for (size_t i = 0; i < count; i++) in_d[i] = fabsf(in_d[i]);
    memcpy(out_a, in_a, count * sizeof *out_a);
    memcpy(out_b, in_c, count * sizeof *out_b);
    memcpy(out_c, in_d, count * sizeof *out_c);
    portable.adamw(out_a, in_b, out_b, out_c, count, &adamw_settings);
    for (size_t s = 0; s < set_count; s++) {
        begin(s, "adamw, %zu values", count);
        float *parameter = input(&region_a, in_a, count), *moment1 = input(&region_c, in_c, count);
        float *moment2 = input(&region_d, in_d, count);
        sets[s].adamw(parameter, input(&region_b, in_b, count), moment1, moment2, count, &adamw_settings);
        check_same("parameter", parameter, out_a, count);
        check_same("moment1", moment1, out_b, count);
        check_same("moment2", moment2, out_c, count);
    }
}

enum { OPTIMIZER_STEPS = 3, MOST_OPTIMIZED = 513, MOST_MOMENT_BLOCKS = (MOST_OPTIMIZED - 1) / EDGE_MOMENT_BLOCK + 1 };

// Several steps from moments of zero, so that every stored moment is one that the kernel has made.
static void check_adamw_bf16(size_t count) {
    fill_inputs(1);
    uint16_t expected1[MOST_OPTIMIZED] = {0}, expected2[MOST_OPTIMIZED] = {0};
    const uint16_t zeros[MOST_OPTIMIZED] = {0};
    memcpy(out_a, in_a, count * sizeof *out_a);
    for (int step = 0; step < OPTIMIZER_STEPS; step++)
        portable.adamw_bf16(out_a, in_b + step, expected1, expected2, count, &adamw_settings);
    for (size_t s = 0; s < set_count; s++) {
        begin(s, "adamw_bf16, %zu values", count);
        float *parameter = input(&region_a, in_a, count);
        uint16_t *moment1 = copy_to(&region_c, zeros, count * sizeof *zeros);
        uint16_t *moment2 = copy_to(&region_d, zeros, count * sizeof *zeros);
        for (int step = 0; step < OPTIMIZER_STEPS; step++)
            sets[s].adamw_bf16(parameter, input(&region_b, in_b + step, count), moment1, moment2, count, &adamw_settings);
        check_same("parameter", parameter, out_a, count);
        check_same_bytes("moment1", moment1, expected1, count * sizeof *moment1);
        check_same_bytes("moment2", moment2, expected2, count * sizeof *moment2);
    }
}

/// The gradient of the last block is zero: its moments are, and stay, blocks of zeros.
static void check_adamw_8bit(size_t count) {
    const size_t blocks = (count - 1) / EDGE_MOMENT_BLOCK + 1;
    fill_inputs(1);
    if (blocks > 1) memset(in_b + (blocks - 1) * EDGE_MOMENT_BLOCK, 0, (EDGE_MOMENT_BLOCK + OPTIMIZER_STEPS) * sizeof *in_b);
    uint8_t codes1[MOST_OPTIMIZED] = {0}, codes2[MOST_OPTIMIZED] = {0};
    float absmax1[MOST_MOMENT_BLOCKS] = {0}, absmax2[MOST_MOMENT_BLOCKS] = {0};
    const struct edge_moment8 expected1 = {codes1, absmax1}, expected2 = {codes2, absmax2};
    const uint8_t zeros[MOST_OPTIMIZED] = {0};
    memcpy(out_a, in_a, count * sizeof *out_a);
    for (int step = 0; step < OPTIMIZER_STEPS; step++)
        portable.adamw_8bit(out_a, in_b + step, &expected1, &expected2, count, &adamw_settings);
    for (size_t s = 0; s < set_count; s++) {
        begin(s, "adamw_8bit, %zu values", count);
        float *parameter = input(&region_a, in_a, count);
        const struct edge_moment8 moment1 = {
            copy_to(&region_c, zeros, count), copy_to(&region_scales, zeros, blocks * sizeof *absmax1)};
        const struct edge_moment8 moment2 = {
            copy_to(&region_d, zeros, count), copy_to(&region_e, zeros, blocks * sizeof *absmax2)};
        for (int step = 0; step < OPTIMIZER_STEPS; step++)
            sets[s].adamw_8bit(parameter, input(&region_b, in_b + step, count), &moment1, &moment2, count, &adamw_settings);
        check_same("parameter", parameter, out_a, count);
        check_same_bytes("codes of moment1", moment1.codes, codes1, count);
        check_same_bytes("codes of moment2", moment2.codes, codes2, count);
        check_same("absmax of moment1", moment1.absmax, absmax1, blocks);
        check_same("absmax of moment2", moment2.absmax, absmax2, blocks);
    }
}

static void check_optimizer(size_t count) {
    check_adamw(count);
    check_adamw_bf16(count);
    check_adamw_8bit(count);
}

static void check_elementwise(void) {
    static const size_t vocabularies[] = {511, 512, 513, 1025};
    static const struct gated gated[] = {
        {"swiglu", offsetof(struct edge_kernel_set, swiglu), offsetof(struct edge_kernel_set, swiglu_backward)},
        {"geglu", offsetof(struct edge_kernel_set, geglu), offsetof(struct edge_kernel_set, geglu_backward)},
    };
    static const size_t optimized[] = {255, 256, 257, 512, MOST_OPTIMIZED};
    for (size_t t = 0; t < TAILS; t++) {
        const size_t count = tails[t];
        for (int variant = 0; variant < 2; variant++) {
            check_norms(count, (float)variant, variant == 0);
            check_layer_norms(count, variant == 0);
        }
        for (int direction = -1; direction <= 1; direction += 2) {
            check_rotate(count, 0, 1, (float)direction);
            check_rotate(count, 6, count, (float)direction);
        }
        check_softmax(count);
        check_softmax_backward(count);
        check_softmax_backward_limited(count);
        check_soft_cap(count);
        for (size_t g = 0; g < sizeof gated / sizeof *gated; g++) check_gated(&gated[g], count);
        check_cross_entropy(count);
        check_cross_entropy_capped(count);
        check_add_rows(count);
        check_sparse(count);
        check_vectors(count);
        check_optimizer(count);
    }
    for (size_t i = 0; i < sizeof optimized / sizeof *optimized; i++) check_optimizer(optimized[i]);
    for (size_t i = 0; i < sizeof vocabularies / sizeof *vocabularies; i++) check_cross_entropy(vocabularies[i]);
}

// -------------------------------------------------------------------------------------------------------------------

static void *room(size_t bytes) {
    void *memory = malloc(bytes);
    if (memory == NULL) exit(2);
    return memory;
}

static void make_room(void) {
    const size_t matrix = (size_t)LONGEST * WIDEST, result = MOST_TOKENS * WIDEST;
    struct region *const plain[] = {&region_a, &region_b, &region_c, &region_d, &region_e};
    for (int i = 0; i < 5; i++) *plain[i] = new_region(129 * 256 * sizeof(float));
    region_w = new_region(matrix * sizeof(float));
    region_absmax = new_region(matrix / 64);
    region_nested = new_region(matrix / 64 / EDGE_NESTED_BLOCK * sizeof(float) + sizeof(float));
    region_x = new_region((size_t)MOST_TOKENS * LONGEST * sizeof(float));
    region_smoothing = new_region(LONGEST * sizeof(float));
    region_left = new_region((size_t)MOST_TOKENS * LONGEST * sizeof(float));
    region_scales = new_region(MOST_TOKENS * (LONGEST / EDGE_INT8_BLOCK + 1) * sizeof(float));
    region_offsets = new_region(MOST_TOKENS * (LONGEST / EDGE_INT8_BLOCK + 1) * sizeof(int32_t));
    region_y = new_region(MOST_TOKENS * (WIDEST + 3) * sizeof(float));
    region_scratch = new_region(EDGE_PRODUCT_SCRATCH * sizeof(float));
    w_values = room(matrix * sizeof *w_values);
    right = room(matrix * sizeof *right);
    left_row = room(LONGEST * sizeof *left_row);
    product.before = room(result * sizeof *product.before);
    product.sums = room(result * sizeof *product.sums);
    product.magnitudes = room(result * sizeof *product.magnitudes);
}

int main(int argument_count, char **arguments) {
    const bool keep_denormals = argument_count == 2 && strcmp(arguments[1], "keep-denormals") == 0;
    if (argument_count > 1 && !keep_denormals) {
        fprintf(stderr, "usage: check_kernels [keep-denormals]\n");
        return 2;
    }
    for (size_t i = 0; i < edge_kernel_set_count(); i++)
        if (edge_kernel_set_supported(i)) edge_kernel_set_fill(i, &sets[set_count++]);
    portable = sets[0];
    signal(SIGSEGV, fault);
    signal(SIGBUS, fault);
    signal(SIGILL, fault);
    if (!keep_denormals) edge_flush_denormals();
    make_room();

    check_decoders();
    for (int format = 0; format < EDGE_FORMAT_COUNT; format++) {
        if (!edge_quant_format((enum edge_format)format)->levels) continue;
        check_scaled_decoders((enum edge_format)format, true);
        check_scaled_decoders((enum edge_format)format, false);
    }
    check_pack_words();
    check_round_rows();
    check_elementwise();
    for (int format = 0; format < EDGE_FORMAT_COUNT; format++) {
        check_vector_product((enum edge_format)format);
        for (int compute = 0; compute < EDGE_COMPUTE_COUNT; compute++)
            for (int direction = FORWARD; direction <= BACKWARD; direction++)
                check_products((enum direction)direction, (enum edge_compute)compute, (enum edge_format)format);
    }
    for (int compute = 0; compute < EDGE_COMPUTE_COUNT; compute++)
        for (int direction = FORWARD; direction <= BACKWARD; direction++) {
            const struct shape quantised = {
                (enum direction)direction, (enum edge_compute)compute, EDGE_FORMAT_q8_0, 20, 64, 352,
                compute == EDGE_COMPUTE_int8 && direction == FORWARD};
            const struct shape dense = {
                (enum direction)direction, (enum edge_compute)compute, EDGE_FORMAT_f32, 91, 70, 131, false};
            // Several passes: 256 outputs or elements that are contracted are the fewest of the format.
            const struct shape superblocks = {
                (enum direction)direction, (enum edge_compute)compute, EDGE_FORMAT_q4_k, 20, direction == FORWARD ? 96 : 256,
                direction == FORWARD ? LONGEST : 352, false};
            check_independence(&superblocks);
            check_independence(&quantised);
            check_independence(&dense);
            check_nan(&quantised);
            check_nan(&dense);
        }

    for (size_t s = 0; s < set_count; s++) printf("%s: %zu checks\n", sets[s].name, checks[s]);
    if (failures > 0) printf("%zu failures\n", failures);
    return failures > 0;
}
