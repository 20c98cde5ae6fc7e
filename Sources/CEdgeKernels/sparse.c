// Some rows of tokens as the sparse products take them, and back: copies, the same for every instruction set. By tiles, since rows may lie at
// a stride that all falls into one set of a cache.
#include "include/edge_kernels.h"

enum { TILE_COLUMNS = 16 };

static size_t tile_columns(size_t columns, size_t first) {
    return columns - first < TILE_COLUMNS ? columns - first : TILE_COLUMNS;
}

void edge_pack_tokens(const float *x, size_t ldx, size_t tokens, size_t columns, float *packed) {
    for (size_t first = 0; first < columns; first += TILE_COLUMNS, packed += TILE_COLUMNS * EDGE_SPARSE_TOKENS) {
        const size_t count = tile_columns(columns, first);
        for (size_t t = 0; t < tokens; t++)
            for (size_t column = 0; column < count; column++) packed[column * EDGE_SPARSE_TOKENS + t] = x[t * ldx + first + column];
        for (size_t column = 0; column < count; column++)
            for (size_t t = tokens; t < EDGE_SPARSE_TOKENS; t++) packed[column * EDGE_SPARSE_TOKENS + t] = 0;
    }
}

void edge_add_packed_tokens(const float *packed, size_t tokens, size_t columns, float *x, size_t ldx) {
    for (size_t first = 0; first < columns; first += TILE_COLUMNS, packed += TILE_COLUMNS * EDGE_SPARSE_TOKENS) {
        const size_t count = tile_columns(columns, first);
        for (size_t t = 0; t < tokens; t++)
            for (size_t column = 0; column < count; column++) x[t * ldx + first + column] += packed[column * EDGE_SPARSE_TOKENS + t];
    }
}
