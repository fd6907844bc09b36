// What of a step is neither product nor attention: calls, and the kernels that each instruction set has for them.
//
// Strides count numbers. A kernel takes a range of rows (or tokens, or pieces) of a call, which threads divide.
#pragma once

#include <cstdint>

#include "numbers.h"

namespace octavo {

// Rows [outer][inner][size]; weights are of the rows' type.
struct NormCall {
    const void* x;
    const void* weight;
    void* out; // dense
    Number type;
    int64_t outer, inner, size, outer_stride, inner_stride;
    float eps, weight_offset;
};

// The residual may be float32 beside a narrower x; the sum is then, too.
struct AddNormCall {
    const void* x;
    const void* residual;
    const void* weight;
    void* out;   // dense
    void* total; // dense, of the residual's type
    Number type, wide;
    int64_t rows, size, x_stride, residual_stride;
    float eps, weight_offset;
};

struct GatedNormCall {
    const void* x;
    const void* gate;
    const void* weight;
    void* out; // dense
    Number type;
    int64_t rows, size, x_stride, gate_stride, num_groups;
    float eps;
    bool norm_before_gate;
};

// Rows [tokens][heads][size], heads dense inside.
struct Heads {
    const void* data;
    int64_t count, token_stride, head_stride;
};

struct Pages {
    void* data;
    Number type;
    int64_t num_blocks, block_size;
    int64_t block_stride, part_stride, token_stride, head_stride; // part: keys, then values
};

struct WriteCall {
    Heads k, v;
    Number type;
    Pages pages;
    const int64_t* slots;
    int64_t tokens, size;
};

struct RopeCall {
    WriteCall write;
    Heads q;
    void* out; // dense
    const int64_t* positions;
    const float* cos_sin;
    int64_t num_positions, table_stride, rotated;
    const void* q_norm; // weights of the rows' type; may be null
    const void* k_norm;
    float eps, weight_offset;
};

enum class Activation : int { silu = 0, gelu, gelu_tanh };

struct ActivationCall {
    const void* x; // gate, then up
    void* out;     // dense
    Number type;
    Activation kind;
    int64_t rows, size, stride;
};
constexpr int64_t activation_piece = 2048; // columns that one thread takes at least

struct FiniteCall {
    const void* x;
    Number type;
    int64_t rows, size, stride;
    uint8_t* is_bad; // a row each
};

constexpr int64_t logit_block = 128;       // logits that are summed up as one
constexpr int64_t list_slack = 16;         // numbers that `gather` may write past what it returns

// A row of logits. `maxima` of its blocks: NaN where one is.
struct Logits {
    const void* data;
    Number type;
    int64_t size;
};

// What is left of a row: those above the threshold and, of those equal to it, the ids up to `last_id`.
struct Border {
    float threshold;
    int64_t last_id;
};

struct FusedKernels {
    void (*rms_norm)(const NormCall&, int64_t begin, int64_t end);
    void (*add_rms_norm)(const AddNormCall&, int64_t begin, int64_t end);
    void (*gated_rms_norm)(const GatedNormCall&, int64_t begin, int64_t end);
    void (*write_kv)(const WriteCall&, int64_t begin, int64_t end);
    void (*rope_and_write)(const RopeCall&, int64_t begin, int64_t end);
    void (*activate)(const ActivationCall&, int64_t begin, int64_t end); // pieces
    void (*find_bad)(const FiniteCall&, int64_t begin, int64_t end);

    // Blocks [begin, end): the largest logit of each and, unless null, the sum of exp((x - largest) * inverse).
    void (*summarise)(const Logits&, int64_t begin, int64_t end, float inverse, float* maxima, float* masses);
    // Logits of `threshold` or more in blocks whose maximum is, in order of id. Returns how many.
    int64_t (*gather)(const Logits&, const float* maxima, float threshold, float* values);
    // exp((value - greatest) * inverse)
    void (*weigh)(const float* values, int64_t n, float greatest, float inverse, float* weights);
    // The same of what a block has inside the border, 0 of the rest; all logit_block of them. Returns their sum.
    float (*weigh_block)(const Logits&, int64_t block, float greatest, float inverse, Border, float* weights);
    // The first id in a block whose logit equals the value (or is NaN as well).
    int64_t (*find)(const Logits&, int64_t block, float value);
    int64_t (*count_greater)(const Logits&, float value);
    // out, of the logits' type: minus infinity for what is outside the border.
    void (*truncate)(const Logits&, Border, void* out);
    void (*mask)(void* logits, Number type, int64_t size, const uint32_t* bits); // in place
    void (*penalise)(const Logits&, const uint8_t* in_prompt, const int32_t* counts, float repetition, float frequency,
                     float presence, void* out);
};

extern const FusedKernels generic_fused, avx2_fused, avx512_fused;

const FusedKernels& fused_kernels(); // of the active instruction set

} // namespace octavo
