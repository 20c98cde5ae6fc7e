// The set that runs everywhere and defines every result.
#include "kernels_internal.h"

#include "elementwise.inc"
#include "optimizer.inc"
#include "packing.inc"

enum { TILE_ROWS = 4 };

static inline void store_sums(float sums[TILE_ROWS][EDGE_PANEL_COLUMNS], float *c, size_t ldc, size_t m, size_t n,
                              bool accumulate) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) c[i * ldc + j] = accumulate ? c[i * ldc + j] + sums[i][j] : sums[i][j];
}

static void tile_f32(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                           size_t n, bool accumulate) {
    const float *panel = panels;
    float sums[TILE_ROWS][EDGE_PANEL_COLUMNS] = {{0}};
    for (size_t k = 0; k < depth; k++, panel += EDGE_PANEL_COLUMNS)
        for (size_t i = 0; i < m; i++) {
            const float left = *(const float *)((const char *)a->rows + i * a->stride + k * a->step);
            for (size_t j = 0; j < EDGE_PANEL_COLUMNS; j++) sums[i][j] += left * panel[j];
        }
    store_sums(sums, c, ldc, m, n, accumulate);
}

static void tile_bf16(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                            size_t n, bool accumulate) {
    const uint32_t *panel = panels;
    float sums[TILE_ROWS][EDGE_PANEL_COLUMNS] = {{0}};
    for (size_t k = 0; k < depth; k += 2, panel += EDGE_PANEL_COLUMNS)
        for (size_t i = 0; i < m; i++) {
            const uint32_t pair = ((const uint32_t *)((const char *)a->rows + i * a->stride))[k / 2];
            const float even = edge_float_of_bits(pair << 16), odd = edge_float_of_bits(pair & 0xffff0000);
            for (size_t j = 0; j < EDGE_PANEL_COLUMNS; j++) {
                sums[i][j] += even * edge_float_of_bits(panel[j] << 16);
                sums[i][j] += odd * edge_float_of_bits(panel[j] & 0xffff0000);
            }
        }
    store_sums(sums, c, ldc, m, n, accumulate);
}

// A binary16 multiply-add rounds once; here the product is exact in binary32 and the sum rounds twice, which the
// tolerance of this type covers.
static void tile_f16(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                     size_t n, bool accumulate) {
    const uint32_t *panel = panels;
    float sums[TILE_ROWS][EDGE_PANEL_COLUMNS] = {{0}};
    for (size_t block = 0; block * EDGE_INT8_BLOCK < depth; block++, panel += EDGE_F16_BLOCK_WORDS) {
        const uint16_t *right = (const uint16_t *)panel;
        const float *panel_scales = (const float *)(panel + EDGE_INT8_BLOCK / 2 * EDGE_PANEL_COLUMNS);
        for (size_t i = 0; i < m; i++) {
            const uint16_t *left = (const uint16_t *)((const char *)a->rows + i * a->stride) + block * EDGE_INT8_BLOCK;
            const float scale = a->scales[i * a->blocks + block];
            for (size_t first = 0; first < EDGE_INT8_BLOCK; first += EDGE_F16_CHAIN)
                for (size_t j = 0; j < EDGE_PANEL_COLUMNS; j++) {
                    float chain = 0;
                    for (size_t k = first; k < first + EDGE_F16_CHAIN; k++) {
                        const float product = edge_float_of_half(left[k]) * edge_float_of_half(right[k * EDGE_PANEL_COLUMNS + j]);
                        chain = edge_float_of_half(edge_half_of_float(chain + product));
                    }
                    sums[i][j] += chain * (scale * panel_scales[j]);
                }
        }
    }
    store_sums(sums, c, ldc, m, n, accumulate);
}

static void tile_int8(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                            size_t n, bool accumulate) {
    const uint32_t *panel = panels;
    float sums[TILE_ROWS][EDGE_PANEL_COLUMNS] = {{0}};
    for (size_t block = 0; block * EDGE_INT8_BLOCK < depth; block++, panel += EDGE_INT8_BLOCK_WORDS) {
        const float *panel_scales = (const float *)(panel + EDGE_INT8_BLOCK / 4 * EDGE_PANEL_COLUMNS);
        for (size_t i = 0; i < m; i++) {
            const int8_t *left = (const int8_t *)a->rows + i * a->stride + block * EDGE_INT8_BLOCK;
            int32_t products[EDGE_PANEL_COLUMNS];
            for (size_t j = 0; j < EDGE_PANEL_COLUMNS; j++) products[j] = a->offsets[i * a->blocks + block];
            for (size_t k = 0; k < EDGE_INT8_BLOCK; k++)
                for (size_t j = 0; j < EDGE_PANEL_COLUMNS; j++)
                    products[j] += left[k] * (int32_t)(panel[k / 4 * EDGE_PANEL_COLUMNS + j] >> k % 4 * 8 & 0xff);
            const float scale = a->scales[i * a->blocks + block];
            for (size_t j = 0; j < EDGE_PANEL_COLUMNS; j++) sums[i][j] += (float)products[j] * (scale * panel_scales[j]);
        }
    }
    store_sums(sums, c, ldc, m, n, accumulate);
}

static void pack_words(const void *rows, size_t stride, size_t count, size_t words, void *panel) {
    const uint32_t *source = rows;
    uint32_t *packed = panel;
    for (size_t k = 0; k < words; k++)
        for (size_t j = 0; j < EDGE_PANEL_COLUMNS; j++)
            packed[k * EDGE_PANEL_COLUMNS + j] = j < count ? source[j * stride + k] : 0;
}

bool edge_supports_portable(void) { return true; }

void edge_install_portable(struct edge_kernel_set *set) {
    set->preferred = EDGE_COMPUTE_f32;
    for (int format = 0; format < EDGE_FORMAT_COUNT; format++)
        set->decode[format] = edge_quant_format((enum edge_format)format)->decode;
    set->decode_scaled = edge_decode_scaled;
    set->pack_words = pack_words;
    const edge_tile_fn tiles[EDGE_COMPUTE_COUNT] = {
        [EDGE_COMPUTE_f32] = tile_f32, [EDGE_COMPUTE_bf16] = tile_bf16, [EDGE_COMPUTE_f16] = tile_f16,
        [EDGE_COMPUTE_int8] = tile_int8};
    for (int compute = 0; compute < EDGE_COMPUTE_COUNT; compute++) {
        set->tile[compute] = tiles[compute];
        set->tile_rows[compute] = TILE_ROWS;
        set->tile_columns[compute] = EDGE_PANEL_COLUMNS;
        set->fast[compute] = compute == EDGE_COMPUTE_f32;
    }
    install_packing(set);
    install_elementwise(set);
    install_optimizer(set);
}

double edge_peak_portable(enum edge_compute compute, size_t rounds, float *sink) {
    if (compute != EDGE_COMPUTE_f32) return 0;
    float sums[32];
    for (int i = 0; i < 32; i++) sums[i] = (float)i;
    const float factor = 0.999f;
    for (size_t round = 0; round < rounds; round++)
        for (int i = 0; i < 32; i++) sums[i] = sums[i] * factor + 1;
    for (int i = 0; i < 32; i++) *sink += sums[i];
    return (double)rounds * 32 * 2;
}
