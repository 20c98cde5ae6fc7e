// What a block's values are multiplied by, changed in place: all values of a block times one factor, its codes as they are.
#include "kernels_internal.h"

enum { MOST_SCALES = 2 };

/// Where the binary16 scales of a block stand (llama.cpp, ggml/src/ggml-common.h), and how many there are; 0: there is none such.
static int scale_offsets(enum edge_format format, size_t offsets[MOST_SCALES]) {
    switch (format) {
    case EDGE_FORMAT_q4_0:
    case EDGE_FORMAT_q5_0:
    case EDGE_FORMAT_q8_0:
    case EDGE_FORMAT_iq4_nl:
    case EDGE_FORMAT_iq4_xs:
    case EDGE_FORMAT_f16: offsets[0] = 0; return 1;
    case EDGE_FORMAT_q4_1:
    case EDGE_FORMAT_q5_1:
    case EDGE_FORMAT_q4_k:
    case EDGE_FORMAT_q5_k: offsets[0] = 0, offsets[1] = 2; return 2; // the minimum's, too
    case EDGE_FORMAT_q2_k: offsets[0] = 80, offsets[1] = 82; return 2;
    case EDGE_FORMAT_q3_k: offsets[0] = 108; return 1;
    case EDGE_FORMAT_q6_k: offsets[0] = 208; return 1;
    default: return 0;
    }
}

bool edge_has_block_scales(enum edge_format format) {
    size_t offsets[MOST_SCALES];
    return format == EDGE_FORMAT_f32 || format == EDGE_FORMAT_bf16 || scale_offsets(format, offsets) > 0;
}

// Of formats whose values stand by themselves and are no halves.
static bool scale_value(enum edge_format format, void *block, float factor) {
    float value;
    edge_quant_format(format)->decode(block, 0, &value, 1);
    value *= factor;
    edge_quant_format(format)->encode(&value, block, 1);
    edge_quant_format(format)->decode(block, 0, &value, 1);
    return value - value == 0;
}

bool edge_scale_blocks(enum edge_format format, void *blocks, size_t count, float factor) {
    const size_t bytes = edge_quant_format(format)->block_bytes;
    size_t offsets[MOST_SCALES];
    const int scales = scale_offsets(format, offsets);
    bool is_finite = true;
    for (char *block = blocks; count > 0; count--, block += bytes) {
        if (scales == 0) is_finite &= scale_value(format, block, factor);
        for (int i = 0; i < scales; i++) {
            uint16_t half;
            memcpy(&half, block + offsets[i], sizeof half);
            half = edge_half_of_float(edge_float_of_half(half) * factor);
            is_finite &= (half & 0x7c00) != 0x7c00;
            memcpy(block + offsets[i], &half, sizeof half);
        }
    }
    return is_finite;
}
