// The blocked products of a frozen matrix: which part is decoded when, and in which order sums run.
//
// Both directions decode a slice of W into panels [k][16] in the thread's scratch, at most EDGE_PANEL_DEPTH contracted
// elements deep, and let every token meet them before they are dropped: a weight is decoded once per product. The
// order of every sum depends on the shape of W alone, so neither the number of threads nor the other tokens in the
// batch change a bit of the result.
#include "kernels_internal.h"

/// Tokens that meet the four panels of a slice before the next tokens do: 128 x 320 x 4 bytes stay in a 256 KiB L2.
enum { TOKEN_BLOCK = 128 };

/// Contracted elements per pass: the fewest passes of equal length, in whole blocks of 32 where a row is longer.
static size_t panel_depth(size_t contracted) {
    const size_t passes = (contracted + EDGE_PANEL_DEPTH - 1) / EDGE_PANEL_DEPTH;
    const size_t depth = ((contracted + passes - 1) / passes + 31) / 32 * 32;
    return depth < contracted ? depth : contracted;
}

static void multiply(const struct edge_kernel_set *set, size_t depth, const float *a, size_t lda, size_t tokens,
                     const float *panels, float *c, size_t ldc, size_t columns, bool accumulate) {
    for (size_t block = 0; block < tokens; block += TOKEN_BLOCK) {
        const size_t block_end = block + TOKEN_BLOCK < tokens ? block + TOKEN_BLOCK : tokens;
        for (size_t j = 0; j < columns; j += EDGE_PANEL_COLUMNS) {
            const size_t n = columns - j < EDGE_PANEL_COLUMNS ? columns - j : EDGE_PANEL_COLUMNS;
            const float *panel = panels + j * depth;
            for (size_t i = block; i < block_end; i += set->tile_rows) {
                const size_t m = block_end - i < set->tile_rows ? block_end - i : set->tile_rows;
                set->tile(depth, a + i * lda, lda, panel, c + i * ldc + j, ldc, m, n, accumulate);
            }
        }
    }
}

void edge_product_forward(const struct edge_kernel_set *set, const struct edge_matrix *w, const float *x, size_t ldx,
                          size_t tokens, float *y, size_t ldy, size_t first, size_t count, bool accumulate,
                          float *scratch) {
    const struct edge_quant_format *format = edge_quant_format(w->format);
    const edge_decode_fn decode = set->decode[w->format];
    const size_t pass = panel_depth(w->columns);
    float *const rows = scratch + EDGE_PANEL_DEPTH * EDGE_SLICE_COLUMNS;
    for (size_t k = 0; k < w->columns; k += pass) {
        const size_t depth = w->columns - k < pass ? w->columns - k : pass;
        for (size_t j = 0; j < count; j += EDGE_PANEL_COLUMNS) {
            const size_t n = count - j < EDGE_PANEL_COLUMNS ? count - j : EDGE_PANEL_COLUMNS;
            for (size_t row = 0; row < n; row++) {
                const char *blocks = (const char *)w->blocks + (first + j + row) * w->row_bytes;
                decode(blocks + k / format->block_elements * format->block_bytes, rows + row * depth, depth);
            }
            set->pack_rows(rows, depth, n, depth, scratch + j * depth);
        }
        multiply(set, depth, x + k, ldx, tokens, scratch, y + first, ldy, count, accumulate || k > 0);
    }
}

void edge_product_backward(const struct edge_kernel_set *set, const struct edge_matrix *w, const float *dy, size_t lddy,
                           size_t tokens, float *dx, size_t lddx, size_t first, size_t count, bool accumulate,
                           float *scratch) {
    const struct edge_quant_format *format = edge_quant_format(w->format);
    const edge_decode_fn decode = set->decode[w->format];
    const char *const column = (const char *)w->blocks + first / format->block_elements * format->block_bytes;
    const size_t pass = panel_depth(w->rows);
    float *const row = scratch + EDGE_PANEL_DEPTH * EDGE_SLICE_COLUMNS;
    const size_t padded = (count + EDGE_PANEL_COLUMNS - 1) / EDGE_PANEL_COLUMNS * EDGE_PANEL_COLUMNS;
    memset(row, 0, padded * sizeof *row);
    for (size_t k = 0; k < w->rows; k += pass) {
        const size_t depth = w->rows - k < pass ? w->rows - k : pass;
        for (size_t i = 0; i < depth; i++) {
            decode(column + (k + i) * w->row_bytes, row, count);
            for (size_t j = 0; j < padded; j += EDGE_PANEL_COLUMNS)
                memcpy(scratch + j * depth + i * EDGE_PANEL_COLUMNS, row + j, EDGE_PANEL_COLUMNS * sizeof *row);
        }
        multiply(set, depth, dy + k, lddy, tokens, scratch, dx + first, lddx, count, accumulate || k > 0);
    }
}

void edge_product_vector(const struct edge_kernel_set *set, const struct edge_matrix *w, const float *x, float *y,
                         size_t first, size_t count, bool accumulate, float *scratch) {
    const edge_decode_fn decode = set->decode[w->format];
    for (size_t row = first; row < first + count; row++) {
        decode((const char *)w->blocks + row * w->row_bytes, scratch, w->columns);
        const float sum = set->dot(scratch, x, w->columns);
        y[row] = accumulate ? y[row] + sum : sum;
    }
}
