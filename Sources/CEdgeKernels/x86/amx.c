// AMX-BF16: products of 16 x 32 by 32 x 16 tiles. Sapphire Rapids and later.
//
//   tile        bf16 32 x 32: four tiles of c, two of each operand, so that four products share four loads. A panel's
//               sixteen rows of 64 bytes are a right operand as they are, and rows of the left operand another.
//
// Not yet run on such a processor, but on an emulation of its instructions (Tests/EmulatedKernels/emulated_amx.h); so
// kernel_sets.def lists it where it is never the default.
#include "../kernels_internal.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)

#if defined(EDGE_EMULATED_AMX)
#include EDGE_EMULATED_AMX
#endif

enum { TILE_ROWS = 32, TILE_COLUMNS = 32, PAIRS = 16 };

/// The argument of LDTILECFG (Intel SDM, vol. 2, "LDTILECFG").
struct tile_configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/// Tiles 0 to 3: c, by rows and columns; 4 and 5: the left operand; 6 and 7: the right. Zeroes them all.
static void configure(size_t m, size_t pairs) {
    struct tile_configuration configuration = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        const size_t lower = tile == 2 || tile == 3 || tile == 5 ? 16 : 0; // first row that the tile holds
        const size_t rows = m <= lower ? 1 : m - lower < 16 ? m - lower : 16;
        configuration.rows[tile] = (uint8_t)(tile >= 6 ? pairs : rows);
        configuration.row_bytes[tile] = (uint16_t)(tile == 4 || tile == 5 ? pairs * 4 : 64);
    }
    _tile_loadconfig(&configuration);
}

static void load_sums(const float *c, size_t bytes, bool below, bool beside) {
    _tile_loadd(0, c, bytes);
    if (beside) _tile_loadd(1, c + 16, bytes);
    if (below) _tile_loadd(2, c + 16 * bytes / sizeof *c, bytes);
    if (below && beside) _tile_loadd(3, c + 16 * bytes / sizeof *c + 16, bytes);
}

static void store_sums(float *c, size_t bytes, bool below, bool beside) {
    _tile_stored(0, c, bytes);
    if (beside) _tile_stored(1, c + 16, bytes);
    if (below) _tile_stored(2, c + 16 * bytes / sizeof *c, bytes);
    if (below && beside) _tile_stored(3, c + 16 * bytes / sizeof *c + 16, bytes);
}

/// c (+)= a · panels over `steps` times `pairs` pairs of contracted elements.
static void multiply(const char *left, size_t stride, const char *right, size_t panel_bytes, size_t steps, size_t pairs,
                     float *c, size_t c_bytes, size_t m, bool beside, bool accumulate) {
    const bool below = m > 16;
    configure(m, pairs);
    if (accumulate) load_sums(c, c_bytes, below, beside);
    for (size_t step = 0; step < steps; step++, left += pairs * 4, right += pairs * 64) {
        _tile_loadd(4, left, stride);
        _tile_loadd(6, right, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (beside) {
            _tile_loadd(7, right + panel_bytes, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (below) {
            _tile_loadd(5, left + 16 * stride, stride);
            _tile_dpbf16ps(2, 5, 6);
            if (beside) _tile_dpbf16ps(3, 5, 7);
        }
    }
    store_sums(c, c_bytes, below, beside);
    _tile_release();
}

static void tile_bf16(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                      size_t n, bool accumulate) {
    const size_t all_pairs = (depth + 1) / 2, steps = all_pairs / PAIRS, rest = all_pairs % PAIRS;
    const char *left = a->rows, *right = panels;
    const bool beside = n > EDGE_PANEL_COLUMNS, whole = n % EDGE_PANEL_COLUMNS == 0;
    float aside[TILE_ROWS * TILE_COLUMNS];
    float *const out = whole ? c : aside;
    const size_t out_bytes = (whole ? ldc : TILE_COLUMNS) * sizeof *c;
    if (!whole && accumulate) {
        memset(aside, 0, sizeof aside);
        for (size_t i = 0; i < m; i++) memcpy(aside + i * TILE_COLUMNS, c + i * ldc, n * sizeof *c);
    }
    if (steps > 0) multiply(left, a->stride, right, all_pairs * 64, steps, PAIRS, out, out_bytes, m, beside, accumulate);
    if (rest > 0)
        multiply(
            left + steps * PAIRS * 4, a->stride, right + steps * PAIRS * 64, all_pairs * 64, 1, rest, out, out_bytes, m,
            beside, accumulate || steps > 0);
    if (!whole)
        for (size_t i = 0; i < m; i++) memcpy(c + i * ldc, aside + i * TILE_COLUMNS, n * sizeof *c);
}

void edge_install_amx(struct edge_kernel_set *set) {
    edge_install_avx512_vnni(set);
    set->fast[EDGE_COMPUTE_bf16] = true;
    set->tile[EDGE_COMPUTE_bf16] = tile_bf16;
    set->tile_rows[EDGE_COMPUTE_bf16] = TILE_ROWS;
    set->tile_columns[EDGE_COMPUTE_bf16] = TILE_COLUMNS;
}

double edge_peak_amx(enum edge_compute compute, size_t rounds, float *sink) {
    if (compute != EDGE_COMPUTE_bf16) return edge_peak_avx512_vnni(compute, rounds, sink);
    float sums[16 * 16];
    configure(TILE_ROWS, PAIRS);
    for (size_t round = 0; round < rounds; round += 16) { // a product is worth 16 of the other loops' rounds
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_release();
    *sink += sums[0];
    return (double)((rounds + 15) / 16) * 4 * 16 * 16 * 32 * 2;
}

#pragma clang attribute pop

bool edge_supports_amx(void) {
#if defined(EDGE_EMULATED_AMX)
    return edge_supports_avx512_vnni();
#else
    unsigned a, b, c, d;
    const unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
    if (!edge_supports_avx512_vnni() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if ((d & amx_bf16) == 0 || (d & amx_tile) == 0) return false;
    // Linux lends the tiles' state to a process that asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#endif
}
#endif
