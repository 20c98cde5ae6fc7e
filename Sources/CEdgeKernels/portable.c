// The set that runs everywhere and defines every result.
#include "kernels_internal.h"

#include "elementwise.inc"

enum { TILE_ROWS = 4 };

static void pack_rows(const float *rows, size_t stride, size_t count, size_t depth, float *panel) {
    for (size_t k = 0; k < depth; k++)
        for (size_t j = 0; j < EDGE_PANEL_COLUMNS; j++)
            panel[k * EDGE_PANEL_COLUMNS + j] = j < count ? rows[j * stride + k] : 0;
}

static void tile(size_t depth, const float *a, size_t lda, const float *panel, float *c, size_t ldc, size_t m, size_t n,
                 bool accumulate) {
    float sums[TILE_ROWS][EDGE_PANEL_COLUMNS] = {{0}};
    for (size_t k = 0; k < depth; k++, panel += EDGE_PANEL_COLUMNS)
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < EDGE_PANEL_COLUMNS; j++) sums[i][j] += a[i * lda + k] * panel[j];
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) c[i * ldc + j] = accumulate ? c[i * ldc + j] + sums[i][j] : sums[i][j];
}

bool edge_supports_portable(void) { return true; }

void edge_install_portable(struct edge_kernel_set *set) {
    set->tile_rows = TILE_ROWS;
    for (int format = 0; format < EDGE_FORMAT_COUNT; format++)
        set->decode[format] = edge_quant_format((enum edge_format)format)->decode;
    set->pack_rows = pack_rows;
    set->tile = tile;
    install_elementwise(set);
}

double edge_peak_portable(size_t rounds, float *sink) {
    float sums[32];
    for (int i = 0; i < 32; i++) sums[i] = (float)i;
    const float factor = 0.999f;
    for (size_t round = 0; round < rounds; round++)
        for (int i = 0; i < 32; i++) sums[i] = sums[i] * factor + 1;
    for (int i = 0; i < 32; i++) *sink += sums[i];
    return (double)rounds * 32 * 2;
}
