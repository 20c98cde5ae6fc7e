// Kernels of edgetune: block formats of frozen weights, blocked products that decode them while packing, and the
// element-wise arithmetic of a decoder. Plain functions on caller's memory: no allocation, threads, I/O or errors.
//
// Two lists that do not multiply: quant_formats.def (how a weight is stored) and kernel_sets.def (what a machine is
// good at). A set starts as a copy of `portable` and overwrites what it improves, so no set is ever incomplete.
//
// Matrices are row-major f32 unless said otherwise; `ld…` is the distance between rows, in elements.
#ifndef EDGE_KERNELS_H
#define EDGE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---- Quantisation formats -------------------------------------------------------------------------------------

enum edge_format {
#define EDGE_QUANT_FORMAT(name, ggml_type, block_elements, block_bytes) EDGE_FORMAT_##name,
#include "../quant_formats.def"
#undef EDGE_QUANT_FORMAT
    EDGE_FORMAT_COUNT
};

/// Decodes `count` values; `count` is a multiple of the format's block and `blocks` starts at a block.
typedef void (*edge_decode_fn)(const void *blocks, float *values, size_t count);
/// Encodes `count` values, rounding to nearest; same multiple.
typedef void (*edge_encode_fn)(const float *values, void *blocks, size_t count);

struct edge_quant_format {
    const char *name;
    uint32_t ggml_type;      // ggml's number of this type
    uint32_t block_elements; // values a block
    uint32_t block_bytes;    // bytes a block
    edge_decode_fn decode;   // defines the values
    edge_encode_fn encode;
};

/// The format's entry; `format` is below EDGE_FORMAT_COUNT.
const struct edge_quant_format *edge_quant_format(enum edge_format format);
/// EDGE_FORMAT_COUNT when no format has this ggml type.
enum edge_format edge_format_of_ggml_type(uint32_t ggml_type);

// ---- Kernel sets ----------------------------------------------------------------------------------------------

/// What one AdamW update needs beside the tensors; see `edge_kernel_set.adamw`.
struct edge_adamw {
    float learning_rate, beta1, beta2, epsilon, weight_decay;
    float correction1, correction2;
    float gradient_scale;
};

enum {
    /// Columns of a packed panel. One number for all sets: a panel is [k][EDGE_PANEL_COLUMNS], 64 bytes a row.
    EDGE_PANEL_COLUMNS = 16,
    /// Contracted elements a panel holds at most: 320 x 16 x 4 bytes = 20 KiB, so that a panel and a tile of the left
    /// operand stay in a 32 KiB L1 (Goto and van de Geijn, doi:10.1145/1356052.1356053, §4).
    EDGE_PANEL_DEPTH = 320,
    /// Columns of the result that one call of a product makes: the unit of work handed to a thread.
    EDGE_SLICE_COLUMNS = 64,
    /// Floats of scratch that a product needs per thread: four panels, and sixteen decoded rows.
    EDGE_PRODUCT_SCRATCH = EDGE_PANEL_DEPTH * (EDGE_SLICE_COLUMNS + EDGE_PANEL_COLUMNS),
};

struct edge_kernel_set {
    const char *name;
    /// Rows of the left operand that `tile` takes at once.
    size_t tile_rows;
    edge_decode_fn decode[EDGE_FORMAT_COUNT];

    /// panel[k][j] = rows[j][k], for `count` rows of `depth` values at distance `stride`; columns from `count` to 16
    /// become zero.
    void (*pack_rows)(const float *rows, size_t stride, size_t count, size_t depth, float *panel);

    /// c[i][j] (+)= sum over k of a[i][k] · panel[k][j], i < m <= tile_rows, j < n <= 16. Sums run over k in order,
    /// so an element's bits depend neither on m nor on n.
    void (*tile)(size_t depth, const float *a, size_t lda, const float *panel, float *c, size_t ldc, size_t m, size_t n,
                 bool accumulate);

    /// y = x / rms(x) · weight, per row; inverse_rms[i] = 1 / sqrt(mean(x²) + epsilon) (arXiv:1910.07467).
    void (*rms_norm)(const float *x, const float *weight, float *y, float *inverse_rms, size_t rows, size_t columns,
                     float epsilon);
    /// dx += the gradient of rms_norm with respect to x.
    void (*rms_norm_backward)(const float *dy, const float *x, const float *weight, const float *inverse_rms, float *dx,
                              size_t rows, size_t columns);

    /// Rotates pairs of each head by the angles of the row's position, in place (arXiv:2104.09864). `cosines` and
    /// `sines` are [positions][head_dim / 2]. `pair_stride` 1: pairs (2i, 2i+1); head_dim / 2: pairs (i, i + head_dim/2).
    /// `direction` 1 is forward, -1 is backward (the inverse rotation is the transpose).
    void (*rotate)(float *x, size_t ldx, const int32_t *positions, const float *cosines, const float *sines, size_t rows,
                   size_t heads, size_t head_dim, size_t pair_stride, float direction);

    /// x = softmax(scale · x) over the first `count` values; returns log(sum(exp(scale · x))).
    float (*softmax)(float *x, size_t count, float scale);
    /// p = exp(scale · s - log_sum_exp), in place.
    void (*softmax_again)(float *s, size_t count, float scale, float log_sum_exp);
    /// ds = p · (dp - delta) · scale, in `dp`.
    void (*softmax_backward)(const float *p, float *dp, size_t count, float delta, float scale);

    /// y = silu(gate) · up (arXiv:2002.05202).
    void (*swiglu)(const float *gate, const float *up, float *y, size_t count);
    /// gate and up become their gradients.
    void (*swiglu_backward)(const float *dy, float *gate, float *up, size_t count);

    /// Returns log(sum(exp(logits))) - logits[target], in nats; logits becomes (softmax(logits) - onehot) · scale.
    /// With `scale` 0 logits are left as they are.
    float (*cross_entropy)(float *logits, size_t count, size_t target, float scale);

    /// y += scale · x.
    void (*add_scaled)(const float *x, float *y, size_t count, float scale);
    float (*dot)(const float *x, const float *y, size_t count);

    /// y = x · mask / (1 - probability), where element `first + i` of the stream `key` is dropped with `probability`.
    /// Counter-based: the same arguments give the same mask, whatever ran before.
    void (*dropout)(const float *x, float *y, size_t count, uint64_t key, uint64_t first, float probability);

    /// One AdamW update (arXiv:1711.05101), torch's order of operations. `correction1` = 1 - beta1^t, likewise 2;
    /// `gradient_scale` is clipping's factor.
    void (*adamw)(float *parameter, const float *gradient, float *moment1, float *moment2, size_t count,
                  const struct edge_adamw *settings);
};

/// Sets known to this build, weakest first.
size_t edge_kernel_set_count(void);
/// Name of the set at `index`.
const char *edge_kernel_set_name(size_t index);
/// Whether this processor can run the set at `index`.
bool edge_kernel_set_supported(size_t index);
/// Fills `set` with the kernels of the set at `index`, which must be supported to be run.
void edge_kernel_set_fill(size_t index, struct edge_kernel_set *set);

// ---- Products with a frozen right operand -----------------------------------------------------------------------

/// A matrix [rows][columns] whose rows are runs of blocks.
struct edge_matrix {
    const void *blocks;
    size_t row_bytes;
    size_t rows, columns;
    enum edge_format format;
};

/// y[:, first ..< first + count] (+)= x · Wᵀ: x [tokens][w.columns], y [tokens][w.rows], count <= EDGE_SLICE_COLUMNS.
/// Each weight of those rows of W is decoded once. `scratch` holds EDGE_PRODUCT_SCRATCH floats, 64-byte aligned.
void edge_product_forward(const struct edge_kernel_set *set, const struct edge_matrix *w, const float *x, size_t ldx,
                          size_t tokens, float *y, size_t ldy, size_t first, size_t count, bool accumulate,
                          float *scratch);

/// dx[:, first ..< first + count] (+)= dy · W: dy [tokens][w.rows], dx [tokens][w.columns]; `first` is at a block, and
/// so is `first + count` unless it is the end of the row; count <= EDGE_SLICE_COLUMNS or one block.
void edge_product_backward(const struct edge_kernel_set *set, const struct edge_matrix *w, const float *dy, size_t lddy,
                           size_t tokens, float *dx, size_t lddx, size_t first, size_t count, bool accumulate,
                           float *scratch);

/// y[first ..< first + count] (+)= W · x for one token: a product that is bound by decoding, without panels.
/// `scratch` holds w.columns floats.
void edge_product_vector(const struct edge_kernel_set *set, const struct edge_matrix *w, const float *x, float *y,
                         size_t first, size_t count, bool accumulate, float *scratch);

/// Denormals become zero on the calling thread, in every set, so that sets agree and slow paths are never taken.
void edge_flush_denormals(void);

/// Runs `rounds` rounds of register-only multiply-adds of the set's instructions; returns the FLOP done (keep the
/// result alive through `sink`). The yardstick for shares of peak.
double edge_peak_loop(size_t kernel_set_index, size_t rounds, float *sink);

#ifdef __cplusplus
}
#endif
#endif
