// Kernels of edgetune: block formats of frozen weights, blocked products that decode them while packing, and the
// element-wise arithmetic of a decoder. Plain functions on caller's memory: no allocation, threads, I/O or errors.
//
// Two lists that do not multiply: quant_formats.def (how a weight is stored) and kernel_sets.def (what a machine is
// good at). A set starts as a copy of a weaker one and overwrites what it improves, so no set is ever incomplete.
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
#define EDGE_QUANT_FORMAT(name, ...) EDGE_FORMAT_##name,
#include "../quant_formats.def"
#undef EDGE_QUANT_FORMAT
    EDGE_FORMAT_COUNT
};

/// Decodes values first ..< first + count of a run of blocks that begins at `blocks`; both are multiples of the format's unit.
typedef void (*edge_decode_fn)(const void *blocks, size_t first, float *values, size_t count);
/// Encodes `count` values, whole blocks, rounding to nearest.
typedef void (*edge_encode_fn)(const float *values, void *blocks, size_t count);

struct edge_quant_format {
    const char *name;
    uint32_t ggml_type;      // ggml's number of this type; UINT32_MAX: none
    uint32_t block_elements; // values a block
    uint32_t unit_elements;  // values that are decoded together: a block, or less of a long one; divides EDGE_INT8_BLOCK
    uint32_t block_bytes;    // bytes a block
    edge_decode_fn decode;   // defines the values; an absmax that lies beside a block is taken as 1
    edge_encode_fn encode;   // NULL: the format is only read
    const float *levels;     // [16], the values of the codes where a block's absmax lies beside it; else NULL
};

/// The format's entry; `format` is below EDGE_FORMAT_COUNT.
const struct edge_quant_format *edge_quant_format(enum edge_format format);
/// Whether `edge_scale_blocks` can scale blocks of this format: values themselves, or binary16 scales.
bool edge_has_block_scales(enum edge_format format);
/// Multiplies all values of `count` blocks, whose codes stay: each scale is rounded once. False: one is not finite any more.
bool edge_scale_blocks(enum edge_format format, void *blocks, size_t count, float factor);
/// EDGE_FORMAT_COUNT when no format has this ggml type.
enum edge_format edge_format_of_ggml_type(uint32_t ggml_type);

/// A matrix [rows][columns] whose rows are runs of blocks.
struct edge_matrix {
    const void *blocks;
    size_t row_bytes;
    size_t rows, columns;
    enum edge_format format;
    /// Of formats with levels, and else NULL or 0: absmax of block b is absmax[b], or where the absmax values are in 8 bits
    /// themselves (absmax_codes is not NULL)
    /// signed dynamic map[absmax_codes[b]] · absmax[b / EDGE_NESTED_BLOCK] + nested_offset.
    const uint8_t *absmax_codes;
    const float *absmax;
    float nested_offset;
    /// The b of the first block here: not 0 in a matrix that is some rows of another, whose scales are counted from the other's
    /// first block.
    size_t first_block;
};

/// Blocks whose absmax values in 8 bits share an absmax of their own.
enum { EDGE_NESTED_BLOCK = 256 };

// ---- Kernel sets ----------------------------------------------------------------------------------------------

/// What AdamW update t (from 1) needs beside the tensors. Each is computed in f64 and rounded once, as torch does:
/// 1 - beta2 from a beta2 in f32 would be 5e-5 off.
struct edge_adamw {
    float decay;            // 1 - learning rate · weight decay
    float step;             // learning rate / (1 - beta1^t)
    float root_correction2; // √(1 - beta2^t)
    float beta1, rate1;     // rate = 1 - beta
    float beta2, rate2;
    float epsilon;
    float gradient_scale;   // clipping's factor
};

/// Elements that share an absmax in an 8-bit moment.
enum { EDGE_MOMENT_BLOCK = 256 };

/// A moment in 8 bits: element i is map[codes[i]] · absmax[i / EDGE_MOMENT_BLOCK], the map being bitsandbytes' dynamic one
/// (arXiv:2110.02861 §2.1, 2.2).
struct edge_moment8 {
    uint8_t *codes;
    float *absmax;
};

/// In which type the products with frozen weights are computed. Sums are f32 in all of them.
enum edge_compute {
    EDGE_COMPUTE_f32,
    /// Both operands rounded to bfloat16, to nearest even.
    EDGE_COMPUTE_bf16,
    /// Both operands divided by their block's largest magnitude, as in int8, and rounded to binary16; products and sums of
    /// EDGE_F16_CHAIN contracted elements are binary16, sums of those f32.
    EDGE_COMPUTE_f16,
    /// Both operands rounded to 8-bit integers, with one scale per EDGE_INT8_BLOCK contracted elements of a token and
    /// of an output; sums over a block are exact.
    EDGE_COMPUTE_int8,
    EDGE_COMPUTE_COUNT
};

enum {
    /// Columns of a packed panel. One number for all sets: a row of a panel is 64 bytes.
    EDGE_PANEL_COLUMNS = 16,
    /// Contracted elements a panel holds at most: 320 x 16 x 4 bytes = 20 KiB, so that a panel and a tile of the left
    /// operand stay in a 32 KiB L1 (Goto and van de Geijn, doi:10.1145/1356052.1356053, §4).
    EDGE_PANEL_DEPTH = 320,
    /// Columns of the result that one call of a product makes: the unit of work handed to a thread.
    EDGE_SLICE_COLUMNS = 64,
    /// Floats of scratch that a product needs per thread: four panels, and sixteen decoded rows.
    EDGE_PRODUCT_SCRATCH = EDGE_PANEL_DEPTH * (EDGE_SLICE_COLUMNS + EDGE_PANEL_COLUMNS),
    /// Contracted elements that share a scale when computing in 8 bits or binary16.
    EDGE_INT8_BLOCK = 64,
    /// 32-bit words of such a block of a panel: its codes, four to a word, and the scales of its columns.
    EDGE_INT8_BLOCK_WORDS = (EDGE_INT8_BLOCK / 4 + 1) * EDGE_PANEL_COLUMNS,
    /// Of the same block in binary16, two to a word.
    EDGE_F16_BLOCK_WORDS = (EDGE_INT8_BLOCK / 2 + 1) * EDGE_PANEL_COLUMNS,
    EDGE_F16_CHAIN = 32,
};

/// The left operand of a product: activations, or output gradients.
struct edge_left {
    enum edge_compute compute;
    /// f32, bf16, f16 or int8; bf16 padded with zeros to an even length, f16 and int8 to whole blocks.
    const void *rows;
    /// Bytes between rows, and between contracted elements: the element's size, but for f32 any distance, so that a
    /// transposed operand needs no copy.
    size_t stride, step;
    /// f16 and int8 only, [rows][blocks]: value = scale · element.
    const float *scales;
    /// int8 only, [rows][blocks]: -128 · Σ codes, what it costs to carry the right operand's codes unsigned.
    const int32_t *offsets;
    size_t blocks;
    /// int8 only, [columns], or NULL: what `round_rows` has divided each contracted element by and
    /// what the forward product multiplies the weights with (SmoothQuant, arXiv:2211.10438 §4). A channel far above its
    /// neighbours would else take all the codes of its block.
    const float *smoothing;
};

/// c[i][j] (+)= Σ over k of a[i][k] · panel[k][j], i < m <= tile_rows, j < n <= tile_columns. `panels` holds
/// ⌈n / EDGE_PANEL_COLUMNS⌉ panels of `depth`, one after the other. Sums run over k in order, so an element's bits depend
/// neither on m nor on n.
///
/// Layouts: f32 [k][16]; bf16 [k / 2][16][2]; f16 per block [k][16] and [16] f32 scales; int8 per block [k / 4][16][4] and
/// [16] scales, codes unsigned with 128 added. A set may lay out bf16 and int8 differently if it overrides `pack…` together with `tile`.
typedef void (*edge_tile_fn)(const struct edge_left *a, const void *panels, size_t depth, float *c, size_t ldc, size_t m,
                             size_t n, bool accumulate);

/// Tokens that a sparse product takes at once: two cache lines of an input.
enum { EDGE_SPARSE_TOKENS = 32 };

/// Entries of a sparse matrix, sorted by row and then by column. Rows and columns are whole numbers in f32, as they lie in an adapter's
/// block; `first_row` is the row whose output is the first of `row_count`.
struct edge_sparse {
    const float *values;
    const float *rows;
    const float *columns;
    size_t count;
    size_t first_row;
    size_t row_count;
};

struct edge_kernel_set {
    const char *name;
    /// What a job computes in when it does not say: the fastest type that has been shown to train as well as f32.
    enum edge_compute preferred;
    /// Whether the set has instructions for a type; without them the portable tile computes it, slowly.
    bool fast[EDGE_COMPUTE_COUNT];
    edge_decode_fn decode[EDGE_FORMAT_COUNT];
    /// A format with levels, and its scales: `count` values from `block` of the matrix on.
    void (*decode_scaled)(const struct edge_matrix *w, size_t block, float *values, size_t count);

    edge_tile_fn tile[EDGE_COMPUTE_COUNT];
    /// What `tile` takes at once; tile_columns is EDGE_PANEL_COLUMNS or twice that.
    size_t tile_rows[EDGE_COMPUTE_COUNT];
    size_t tile_columns[EDGE_COMPUTE_COUNT];

    /// panel[k][j] = word k of row j, for `count` rows of `words` 32-bit words at `stride` words; columns from `count`
    /// to 16 become zero.
    void (*pack_words)(const void *rows, size_t stride, size_t count, size_t words, void *panel);
    /// One panel in each type from `count` decoded rows of `depth` values at distance `depth`: contracted along the rows
    /// (forward).
    void (*pack_rows[EDGE_COMPUTE_COUNT])(const struct edge_kernel_set *set, const float *rows, size_t count, size_t depth,
                                          void *panel);
    /// The same from `depth` decoded rows of 16 values at distance `stride`: contracted across the rows (backward). f16 and
    /// int8: one block, depth <= EDGE_INT8_BLOCK.
    void (*pack_columns[EDGE_COMPUTE_COUNT])(const float *rows, size_t stride, size_t depth, void *panel);
    /// Rows of a left operand: `out` has room for `stride` bytes a row, `scales` and `offsets` for `blocks` a row.
    void (*round_rows[EDGE_COMPUTE_COUNT])(const float *x, size_t ldx, size_t rows, size_t columns, void *out,
                                           size_t stride, float *scales, int32_t *offsets, size_t blocks,
                                           const float *smoothing);
    /// smoothing[j] = the root of column j's largest magnitude; 1 where that is 0 or infinite.
    void (*smooth_columns)(const float *x, size_t ldx, size_t rows, size_t columns, float *smoothing);

    /// y = x / rms(x) · (weight_offset + weight), per row; inverse_rms[i] = 1 / sqrt(mean(x²) + epsilon) (arXiv:1910.07467).
    void (*rms_norm)(const float *x, const float *weight, float weight_offset, float *y, float *inverse_rms, size_t rows,
                     size_t columns, float epsilon);
    /// dx (+)= the gradient of rms_norm with respect to x. Where it overwrites, dx may be dy.
    void (*rms_norm_backward)(const float *dy, const float *x, const float *weight, float weight_offset,
                              const float *inverse_rms, float *dx, size_t rows, size_t columns, bool accumulate);
    /// y = (x - mean(x)) · inverse_deviation · weight + bias, per row (arXiv:1607.06450).
    void (*layer_norm)(const float *x, const float *weight, const float *bias, float *y, float *inverse_deviation, size_t rows,
                       size_t columns, float epsilon);
    /// dx (+)= the gradient of layer_norm with respect to x. Where it overwrites, dx may be dy.
    void (*layer_norm_backward)(const float *dy, const float *x, const float *weight, const float *inverse_deviation, float *dx,
                                size_t rows, size_t columns, bool accumulate);

    /// Rotates the first `pairs` pairs of each head by the angles of the row's position, in place (arXiv:2104.09864). `cosines`
    /// and `sines` are [positions][pairs]. `pair_stride` 1: pairs (2i, 2i+1); else pairs (i, i + pair_stride).
    /// `direction` 1 is forward, -1 is backward (the inverse rotation is the transpose).
    void (*rotate)(float *x, size_t ldx, const int32_t *positions, const float *cosines, const float *sines, size_t rows,
                   size_t heads, size_t head_dim, size_t pairs, size_t pair_stride, float direction);

    /// x = softmax(scale · x) over the first `count` values; returns log(sum(exp(scale · x))).
    float (*softmax)(float *x, size_t count, float scale);
    /// For `rows` keys and `columns` queries, transposed as an attention block's backward has them: s becomes
    /// p = exp(scale · s - log_sum_exp[query]), dp becomes ds = p · (dp - delta[query]) · scale. Both are 0 where key i
    /// is after query j, that is where i > j + diagonal.
    void (*softmax_backward)(float *s, float *dp, size_t ld, size_t rows, size_t columns, const float *log_sum_exp,
                             const float *delta, float scale, size_t diagonal);

    /// x = cap · tanh(scale · x / cap) (Gemma 2, arXiv:2408.00118 §2).
    void (*soft_cap)(float *x, size_t count, float scale, float cap);
    /// softmax_backward where query j sees only the last `window` keys up to its own, and scores were soft-capped; `cap` 0: not.
    void (*softmax_backward_limited)(float *s, float *dp, size_t ld, size_t rows, size_t columns, const float *log_sum_exp,
                                     const float *delta, float scale, size_t diagonal, size_t window, float cap);

    /// y = silu(gate) · up (arXiv:2002.05202).
    void (*swiglu)(const float *gate, const float *up, float *y, size_t count);
    /// gate and up become their gradients.
    void (*swiglu_backward)(const float *dy, float *gate, float *up, size_t count);

    /// y = gelu(gate) · up, gelu in its tanh form.
    void (*geglu)(const float *gate, const float *up, float *y, size_t count);
    void (*geglu_backward)(const float *dy, float *gate, float *up, size_t count);

    /// Returns log(sum(exp(logits))) - logits[target], in nats; logits becomes (softmax(logits) - onehot) · scale.
    /// With `scale` 0 logits are left as they are.
    float (*cross_entropy)(float *logits, size_t count, size_t target, float scale);

    /// The same of cap · tanh(logits / cap), the gradient being that of the logits before the cap. With `scale` 0 logits become
    /// capped.
    float (*cross_entropy_capped)(float *logits, size_t count, size_t target, float scale, float cap);

    /// Every row of y += x.
    void (*add_rows)(const float *x, float *y, size_t ldy, size_t rows, size_t columns);
    /// y += scale · x.
    void (*add_scaled)(const float *x, float *y, size_t count, float scale);
    float (*dot)(const float *x, const float *y, size_t count);

    /// Tokens of a product with a sparse matrix: y[t][row] += Σ value · x[column][t], in the order of the entries. x is
    /// [columns][EDGE_SPARSE_TOKENS] (`edge_pack_tokens`); y has `tokens` rows.
    void (*sparse_forward)(const struct edge_sparse *entries, const float *x, float *y, size_t ldy, size_t tokens);
    /// dx[column][t] += value · dy[t][row], dx being packed as x is above.
    void (*sparse_backward)(const struct edge_sparse *entries, const float *dy, size_t lddy, size_t tokens, float *dx);
    /// gradient[k] += Σ over the tokens of dy[t][row] · x[column][t], added in a fixed order.
    void (*sparse_gradient)(const struct edge_sparse *entries, const float *dy, size_t lddy, size_t tokens, const float *x,
                            float *gradient);
    /// y[row] += Σ value · x[column] of one token.
    void (*sparse_vector)(const struct edge_sparse *entries, const float *x, float *y);

    /// y = x · mask / (1 - probability), where element `first + i` of the stream `key` is dropped with `probability`.
    /// Counter-based: the same arguments give the same mask, whatever ran before.
    void (*dropout)(const float *x, float *y, size_t count, uint64_t key, uint64_t first, float probability);

    /// One AdamW update (arXiv:1711.05101), torch's order of operations.
    void (*adamw)(float *parameter, const float *gradient, float *moment1, float *moment2, size_t count,
                  const struct edge_adamw *settings);
    /// The same with moments stored as bfloat16, rounded to nearest even.
    void (*adamw_bf16)(float *parameter, const float *gradient, uint16_t *moment1, uint16_t *moment2, size_t count,
                       const struct edge_adamw *settings);
    /// bitsandbytes' adamw8bit on a CPU: moment1 in the signed map, moment2 in the unsigned one. `count` is of one tensor, since
    /// blocks run from its start. State of zero bytes is that of moments of zero.
    void (*adamw_8bit)(float *parameter, const float *gradient, const struct edge_moment8 *moment1,
                       const struct edge_moment8 *moment2, size_t count, const struct edge_adamw *settings);
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

/// packed[column][t] = x[t][column], zero from `tokens` to EDGE_SPARSE_TOKENS.
void edge_pack_tokens(const float *x, size_t ldx, size_t tokens, size_t columns, float *packed);
/// The reverse, added: x[t][column] += packed[column][t].
void edge_add_packed_tokens(const float *packed, size_t tokens, size_t columns, float *x, size_t ldx);

/// Decodes `count` values of row `row` from column `column` on, both multiples of the format's unit.
void edge_decode_part(const struct edge_kernel_set *set, const struct edge_matrix *w, size_t row, size_t column,
                      size_t count, float *values);

/// Bytes of a row of `columns` elements as a left operand in `compute`.
size_t edge_left_stride(enum edge_compute compute, size_t columns);
/// The operand that begins at row `row` and contracted element `k`, which is at a block.
struct edge_left edge_left_at(const struct edge_left *left, size_t row, size_t k);

/// Contracted elements per pass of a product over `contracted` of them: the fewest passes of equal length, in whole blocks where
/// there are several. A matrix that is multiplied in parts of whole passes, one after the other, gives the same sums.
size_t edge_panel_depth(size_t contracted);

/// y[:, first ..< first + count] (+)= x · Wᵀ: x [tokens][w.columns], y [tokens][w.rows], count <= EDGE_SLICE_COLUMNS.
/// Each weight of those rows of W is decoded once. `scratch` holds EDGE_PRODUCT_SCRATCH floats, 64-byte aligned.
void edge_product_forward(const struct edge_kernel_set *set, const struct edge_matrix *w, const struct edge_left *x,
                          size_t tokens, float *y, size_t ldy, size_t first, size_t count, bool accumulate,
                          float *scratch);

/// dx[:, first ..< first + count] (+)= dy · W: dy [tokens][w.rows], dx [tokens][w.columns]; `first` and `count` are multiples of
/// the format's unit; count <= EDGE_SLICE_COLUMNS.
void edge_product_backward(const struct edge_kernel_set *set, const struct edge_matrix *w, const struct edge_left *dy,
                           size_t tokens, float *dx, size_t lddx, size_t first, size_t count, bool accumulate,
                           float *scratch);

/// y[first ..< first + count] (+)= W · x for one token: a product that is bound by decoding, without panels.
/// `scratch` holds w.columns floats.
void edge_product_vector(const struct edge_kernel_set *set, const struct edge_matrix *w, const float *x, float *y,
                         size_t first, size_t count, bool accumulate, float *scratch);

// ---- Quantising a checkpoint ------------------------------------------------------------------------------------

/// NF4 of `count` values, a multiple of 64, as bitsandbytes rounds them: codes [count / 2], two to a byte, the first in the high
/// half; absmax [count / 64]. False, and no result, where a value is infinite or NaN.
bool edge_quantise_nf4(const float *values, size_t count, uint8_t *codes, float *absmax);
/// All absmax values of a matrix in 8 bits, as bitsandbytes' double quantisation: codes [blocks], and in nested an absmax for each
/// EDGE_NESTED_BLOCK of them, ⌈blocks / EDGE_NESTED_BLOCK⌉, and then the offset.
void edge_quantise_absmax(const float *absmax, size_t blocks, uint8_t *codes, float *nested);
/// The values of the codes, as bitsandbytes stores them with a matrix: [16] `quant_map` and [256] `nested_quant_map`.
const float *edge_nf4_quant_map(void);
const float *edge_absmax_quant_map(void);

void edge_floats_of_halves(const uint16_t *halves, float *values, size_t count);
void edge_floats_of_bfloats(const uint16_t *bfloats, float *values, size_t count);
/// To nearest even.
void edge_bfloats_of_floats(const float *values, uint16_t *bfloats, size_t count);

/// Denormals become zero on the calling thread, in every set, so that sets agree and slow paths are never taken.
void edge_flush_denormals(void);

/// Runs `rounds` rounds of register-only multiply-adds of the instructions that the set's `compute` tile is made of;
/// returns the operations done, a multiplication and an addition counted as two (keep the result alive through `sink`).
/// The yardstick for shares of peak. 0 when the set has no instruction of its own for `compute`.
double edge_peak_loop(size_t kernel_set_index, enum edge_compute compute, size_t rounds, float *sink);

#ifdef __cplusplus
}
#endif
#endif
