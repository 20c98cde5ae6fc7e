// The two lists as tables, and the choice at run time.
#include "kernels_internal.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

/// Superblocks are decoded in parts, since a pass of a product, or a slice of its result, may end inside one.
_Static_assert(EDGE_INT8_BLOCK % EDGE_SUPERBLOCK_UNIT == 0, "passes are multiples of EDGE_INT8_BLOCK");
#define UNIT(block_elements) (block_elements > EDGE_INT8_BLOCK ? EDGE_SUPERBLOCK_UNIT : block_elements)

static const struct edge_quant_format formats[EDGE_FORMAT_COUNT] = {
#define EDGE_QUANT_FORMAT(name, ggml_type, block_elements, block_bytes, encode, levels)                                  \
    [EDGE_FORMAT_##name] = {                                                                                            \
        #name, ggml_type, block_elements, UNIT(block_elements), block_bytes, edge_decode_##name, encode, levels},
#include "quant_formats.def"
#undef EDGE_QUANT_FORMAT
};

const struct edge_quant_format *edge_quant_format(enum edge_format format) { return &formats[format]; }

enum edge_format edge_format_of_ggml_type(uint32_t ggml_type) {
    for (int format = 0; format < EDGE_FORMAT_COUNT; format++)
        if (formats[format].ggml_type == ggml_type) return (enum edge_format)format;
    return EDGE_FORMAT_COUNT;
}

static const struct {
    const char *name;
    bool (*supported)(void);
    void (*install)(struct edge_kernel_set *);
    double (*peak)(enum edge_compute, size_t, float *);
} kernel_sets[] = {
#define EDGE_KERNEL_SET(symbol, name) {name, edge_supports_##symbol, edge_install_##symbol, edge_peak_##symbol},
#include "kernel_sets.def"
#undef EDGE_KERNEL_SET
};

size_t edge_kernel_set_count(void) { return sizeof kernel_sets / sizeof *kernel_sets; }
const char *edge_kernel_set_name(size_t index) { return kernel_sets[index].name; }
bool edge_kernel_set_supported(size_t index) { return kernel_sets[index].supported(); }

void edge_kernel_set_fill(size_t index, struct edge_kernel_set *set) {
    kernel_sets[index].install(set);
    set->name = kernel_sets[index].name;
}

double edge_peak_loop(size_t kernel_set_index, enum edge_compute compute, size_t rounds, float *sink) {
    return kernel_sets[kernel_set_index].peak(compute, rounds, sink);
}

void edge_flush_denormals(void) {
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | 0x8040); // FTZ | DAZ
#elif defined(__aarch64__)
    uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    __asm__ volatile("msr fpcr, %0" : : "r"(control | 1u << 24)); // FZ
#endif
}
