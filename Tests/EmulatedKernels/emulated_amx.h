// The AMX instructions that x86/amx.c uses, in plain C after the Intel SDM (vol. 2, chapter 4), for processors without
// them: for this test only.
#ifndef EMULATED_AMX_H
#define EMULATED_AMX_H

static _Thread_local struct {
    bool configured;
    uint16_t row_bytes[8];
    uint8_t rows[8];
    _Alignas(64) uint8_t data[8][16][64];
} emulated_tiles;

static void emulated_check(int tile) {
    if (!emulated_tiles.configured || emulated_tiles.rows[tile] == 0 || emulated_tiles.row_bytes[tile] == 0) __builtin_trap();
}

/// #GP on a bad palette, more than 16 rows, or more than 64 bytes a row; all tiles become zero.
static void emulated_loadconfig(const void *memory) {
    const uint8_t *bytes = memory;
    if (bytes[0] != 1) __builtin_trap();
    memset(&emulated_tiles, 0, sizeof emulated_tiles);
    for (int tile = 0; tile < 8; tile++) {
        memcpy(&emulated_tiles.row_bytes[tile], bytes + 16 + 2 * tile, 2);
        emulated_tiles.rows[tile] = bytes[48 + tile];
        if (emulated_tiles.rows[tile] > 16 || emulated_tiles.row_bytes[tile] > 64) __builtin_trap();
    }
    emulated_tiles.configured = true;
}

static void emulated_loadd(int tile, const void *base, size_t stride) {
    emulated_check(tile);
    memset(emulated_tiles.data[tile], 0, sizeof emulated_tiles.data[tile]);
    for (int row = 0; row < emulated_tiles.rows[tile]; row++)
        memcpy(emulated_tiles.data[tile][row], (const char *)base + row * stride, emulated_tiles.row_bytes[tile]);
}

static void emulated_stored(int tile, void *base, size_t stride) {
    emulated_check(tile);
    for (int row = 0; row < emulated_tiles.rows[tile]; row++)
        memcpy((char *)base + row * stride, emulated_tiles.data[tile][row], emulated_tiles.row_bytes[tile]);
}

static float emulated_bf16(const uint8_t *bytes) {
    uint16_t half;
    memcpy(&half, bytes, 2);
    return edge_float_of_bits((uint32_t)half << 16);
}

/// #UD when the shapes do not fit each other.
static void emulated_dpbf16ps(int sums, int left, int right) {
    emulated_check(sums), emulated_check(left), emulated_check(right);
    if (emulated_tiles.rows[sums] != emulated_tiles.rows[left] ||
        emulated_tiles.row_bytes[sums] != emulated_tiles.row_bytes[right] ||
        emulated_tiles.row_bytes[left] != emulated_tiles.rows[right] * 4)
        __builtin_trap();
    for (int m = 0; m < emulated_tiles.rows[sums]; m++)
        for (int k = 0; k < emulated_tiles.rows[right]; k++)
            for (int n = 0; n < emulated_tiles.row_bytes[sums] / 4; n++) {
                float sum;
                memcpy(&sum, &emulated_tiles.data[sums][m][4 * n], 4);
                for (int half = 0; half < 2; half++)
                    sum += emulated_bf16(&emulated_tiles.data[left][m][4 * k + 2 * half]) *
                           emulated_bf16(&emulated_tiles.data[right][k][4 * n + 2 * half]);
                memcpy(&emulated_tiles.data[sums][m][4 * n], &sum, 4);
            }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(memory) emulated_loadconfig(memory)
#define _tile_release() (emulated_tiles.configured = false)
#define _tile_loadd(tile, base, stride) emulated_loadd(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated_stored(tile, base, stride)
#define _tile_dpbf16ps(sums, left, right) emulated_dpbf16ps(sums, left, right)

#endif
