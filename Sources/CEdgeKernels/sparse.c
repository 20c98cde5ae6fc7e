// Sixteen rows of tokens as the sparse products take them, and back: copies, the same for every instruction set.
#include "include/edge_kernels.h"

void edge_pack_tokens(const float *x, size_t ldx, size_t tokens, size_t columns, float *packed) {
    for (size_t column = 0; column < columns; column++, packed += EDGE_SPARSE_TOKENS) {
        for (size_t t = 0; t < tokens; t++) packed[t] = x[t * ldx + column];
        for (size_t t = tokens; t < EDGE_SPARSE_TOKENS; t++) packed[t] = 0;
    }
}

void edge_add_packed_tokens(const float *packed, size_t tokens, size_t columns, float *x, size_t ldx) {
    for (size_t column = 0; column < columns; column++, packed += EDGE_SPARSE_TOKENS)
        for (size_t t = 0; t < tokens; t++) x[t * ldx + column] += packed[t];
}
