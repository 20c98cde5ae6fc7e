// The blocked products of a frozen matrix: which part is decoded when, and in which order sums run.
//
// Both directions decode a slice of W into panels [k][16] in the thread's scratch, at most EDGE_PANEL_DEPTH contracted
// elements deep, and let every token meet them before they are dropped: a weight is decoded once per product. The
// order of every sum depends on the shape of W alone, so neither the number of threads nor the other tokens in the
// batch change a bit of the result.
#include "kernels_internal.h"

static inline const char *row_at(const struct edge_matrix *w, size_t row) {
    return (const char *)w->blocks + row * w->row_bytes;
}

void edge_decode_part(const struct edge_kernel_set *set, const struct edge_matrix *w, size_t row, size_t column,
                      size_t count, float *values) {
    const struct edge_quant_format *format = edge_quant_format(w->format);
    if (format->levels)
        set->decode_scaled(w, (row * w->columns + column) / format->block_elements, values, count);
    else
        set->decode[w->format](row_at(w, row), column, values, count);
}

/// Asks for a part that will be decoded soon. Rows are short runs a row apart, which no hardware prefetcher follows.
static inline void prefetch_part(const struct edge_matrix *w, size_t row, size_t column, size_t count) {
    if (row >= w->rows) return;
    const struct edge_quant_format *format = edge_quant_format(w->format);
    const size_t elements = format->block_elements;
    const char *first = row_at(w, row) + column / elements * format->block_bytes;
    const char *end = row_at(w, row) + (column + count + elements - 1) / elements * format->block_bytes;
    for (; first < end; first += 64) __builtin_prefetch(first, 0, 2);
}

/// Tokens that meet the four panels of a slice before the next tokens do: at most 128 x 320 x 4 bytes stay in a 256 KiB
/// L2. A whole number of tiles.
static size_t token_block(size_t tile_rows) { return 128 / tile_rows * tile_rows; }

size_t edge_panel_depth(size_t contracted) {
    const size_t passes = (contracted + EDGE_PANEL_DEPTH - 1) / EDGE_PANEL_DEPTH;
    const size_t depth = ((contracted + passes - 1) / passes + EDGE_INT8_BLOCK - 1) / EDGE_INT8_BLOCK * EDGE_INT8_BLOCK;
    return depth < contracted ? depth : contracted;
}

static size_t int8_blocks(size_t depth) { return (depth + EDGE_INT8_BLOCK - 1) / EDGE_INT8_BLOCK; }

/// 32-bit words of a panel.
static size_t panel_words(enum edge_compute compute, size_t depth) {
    switch (compute) {
    case EDGE_COMPUTE_bf16: return (depth + 1) / 2 * EDGE_PANEL_COLUMNS;
    case EDGE_COMPUTE_f16: return int8_blocks(depth) * EDGE_F16_BLOCK_WORDS;
    case EDGE_COMPUTE_int8: return int8_blocks(depth) * EDGE_INT8_BLOCK_WORDS;
    default: return depth * EDGE_PANEL_COLUMNS;
    }
}

size_t edge_left_stride(enum edge_compute compute, size_t columns) {
    if (compute == EDGE_COMPUTE_f32) return columns * sizeof(float);
    const size_t whole = int8_blocks(columns) * EDGE_INT8_BLOCK;
    const size_t bytes = compute == EDGE_COMPUTE_bf16 ? (columns + 1) / 2 * 4 : compute == EDGE_COMPUTE_f16 ? 2 * whole : whole;
    // Rows a multiple of 1 KiB apart meet in a few sets of L1: a tile of 14 rows would evict itself.
    return bytes % 1024 == 0 ? bytes + 64 : bytes;
}

struct edge_left edge_left_at(const struct edge_left *left, size_t row, size_t k) {
    struct edge_left part = *left;
    part.rows = (const char *)left->rows + row * left->stride + k * left->step;
    if (left->compute == EDGE_COMPUTE_f16 || left->compute == EDGE_COMPUTE_int8)
        part.scales += row * left->blocks + k / EDGE_INT8_BLOCK;
    if (left->compute == EDGE_COMPUTE_int8) part.offsets += row * left->blocks + k / EDGE_INT8_BLOCK;
    return part;
}

/// c (+)= a[:, k ..< k + depth] · panels.
static void multiply(const struct edge_kernel_set *set, size_t depth, const struct edge_left *a, size_t k, size_t tokens,
                     const float *panels, float *c, size_t ldc, size_t columns, bool accumulate) {
    const edge_tile_fn tile = set->tile[a->compute];
    const size_t rows = set->tile_rows[a->compute], width = set->tile_columns[a->compute];
    const size_t words = panel_words(a->compute, depth), at_once = token_block(rows);
    for (size_t block = 0; block < tokens; block += at_once) {
        const size_t block_end = block + at_once < tokens ? block + at_once : tokens;
        for (size_t j = 0; j < columns; j += width) {
            const size_t n = columns - j < width ? columns - j : width;
            const float *panel = panels + j / EDGE_PANEL_COLUMNS * words;
            for (size_t i = block; i < block_end; i += rows) {
                const struct edge_left part = edge_left_at(a, i, k);
                tile(&part, panel, depth, c + i * ldc + j, ldc, block_end - i < rows ? block_end - i : rows, n, accumulate);
            }
        }
    }
}

void edge_product_forward(const struct edge_kernel_set *set, const struct edge_matrix *w, const struct edge_left *x,
                          size_t tokens, float *y, size_t ldy, size_t first, size_t count, bool accumulate,
                          float *scratch) {
    const size_t pass = edge_panel_depth(w->columns);
    float *const rows = scratch + EDGE_PANEL_DEPTH * EDGE_SLICE_COLUMNS;
    for (size_t k = 0; k < w->columns; k += pass) {
        const size_t depth = w->columns - k < pass ? w->columns - k : pass;
        float *panel = scratch;
        for (size_t j = 0; j < count; j += EDGE_PANEL_COLUMNS, panel += panel_words(x->compute, depth)) {
            const size_t n = count - j < EDGE_PANEL_COLUMNS ? count - j : EDGE_PANEL_COLUMNS;
            if (x->compute == EDGE_COMPUTE_f32 && w->format == EDGE_FORMAT_f32) {
                const float *dense = (const float *)row_at(w, first + j) + k;
                set->pack_words(dense, w->row_bytes / sizeof(float), n, depth, panel);
                continue;
            }
            for (size_t row = 0; row < n; row++) {
                prefetch_part(w, first + j + row + EDGE_PANEL_COLUMNS, k, depth);
                edge_decode_part(set, w, first + j + row, k, depth, rows + row * depth);
                if (x->smoothing)
                    for (size_t i = 0; i < depth; i++) rows[row * depth + i] *= x->smoothing[k + i];
            }
            set->pack_rows[x->compute](set, rows, n, depth, panel);
        }
        multiply(set, depth, x, k, tokens, scratch, y + first, ldy, count, accumulate || k > 0);
    }
}

/// Decoded rows that are packed together in the backward: whole blocks, and as many as the scratch beside the panels holds.
enum { PACKED_ROWS = EDGE_INT8_BLOCK };
_Static_assert(PACKED_ROWS * EDGE_SLICE_COLUMNS <= EDGE_PANEL_DEPTH * EDGE_PANEL_COLUMNS, "the rows fit the scratch");

void edge_product_backward(const struct edge_kernel_set *set, const struct edge_matrix *w, const struct edge_left *dy,
                           size_t tokens, float *dx, size_t lddx, size_t first, size_t count, bool accumulate,
                           float *scratch) {
    const size_t pass = edge_panel_depth(w->rows);
    float *const rows = scratch + EDGE_PANEL_DEPTH * EDGE_SLICE_COLUMNS;
    const size_t padded = (count + EDGE_PANEL_COLUMNS - 1) / EDGE_PANEL_COLUMNS * EDGE_PANEL_COLUMNS;
    memset(rows, 0, PACKED_ROWS * padded * sizeof *rows);
    for (size_t k = 0; k < w->rows; k += pass) {
        const size_t depth = w->rows - k < pass ? w->rows - k : pass;
        const size_t words = panel_words(dy->compute, depth);
        for (size_t i = 0; i < depth; i += PACKED_ROWS) {
            const size_t packed = depth - i < PACKED_ROWS ? depth - i : PACKED_ROWS;
            const float *values = rows;
            size_t stride = padded;
            if (w->format == EDGE_FORMAT_f32 && count == padded) {
                values = (const float *)row_at(w, k + i) + first;
                stride = w->row_bytes / sizeof(float);
            } else {
                for (size_t row = 0; row < packed; row++) {
                    prefetch_part(w, k + i + row + PACKED_ROWS, first, count);
                    edge_decode_part(set, w, k + i + row, first, count, rows + row * padded);
                }
            }
            for (size_t j = 0; j < padded; j += EDGE_PANEL_COLUMNS)
                set->pack_columns[dy->compute](
                    values + j, stride, packed,
                    scratch + j / EDGE_PANEL_COLUMNS * words + panel_words(dy->compute, i));
        }
        multiply(set, depth, dy, k, tokens, scratch, dx + first, lddx, count, accumulate || k > 0);
    }
}

void edge_product_vector(const struct edge_kernel_set *set, const struct edge_matrix *w, const float *x, float *y,
                         size_t first, size_t count, bool accumulate, float *scratch) {
    for (size_t row = first; row < first + count; row++) {
        edge_decode_part(set, w, row, 0, w->columns, scratch);
        const float sum = set->dot(scratch, x, w->columns);
        y[row] = accumulate ? y[row] + sum : sum;
    }
}
