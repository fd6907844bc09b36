// Products with packed weights: what the driver (linear.cpp) and the kernels of each instruction set share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "fused.h"
#include "numbers.h"
#include "packing.h"

namespace octavo {

// A run of panels of one format, and where their outputs go.
struct Panels {
    Format format;
    const uint8_t* data;
    int64_t count;   // of panels
    int64_t column;  // of the first output
    int64_t columns; // outputs that are really there; the last panel may have fewer than 16
    const uint8_t* up; // as many panels, which what an activation makes of the others' outputs multiplies; or null
};

// What belongs to 32 inputs of a row in 8 bits, x = scale * q.
struct Rounded {
    float scale, sum;       // scale * the sum of all
    int32_t minus, minus16; // minus the sum of all, of the first 16
};

// Rows of x in the forms that kernels ask for; those nobody asked for are null.
struct Activations {
    int64_t rows, inputs;
    const float* floats; // [rows][stride], zeros beyond inputs
    int64_t stride;      // inputs, padded to 32
    // In 8 bits, rows of a block side by side: [inputs / 32][q_rows][32], and of each block what Rounded says.
    const int8_t* q;
    const Rounded* rounded;
    int64_t q_rows;
    // Rows for tiles: bf16 as they came, `plain_stride` apart, or if `tiles` is not null bf16 tiles
    // [rows / 16][stride / 32][16][32], zeros beyond rows and inputs.
    const uint16_t* plain;
    int64_t plain_stride;
    const uint16_t* tiles;
};

struct Output {
    void* data;
    Number type;
    int64_t stride;   // between rows
    const void* bias; // may be null; one for each column
    Number bias_type;
    Activation activation; // where panels have others for up, whose bias is `up_bias` further
    int64_t up_bias;
};

// One instruction set's kernels.
struct LinearKernels {
    void (*widen)(const void* x, Number type, int64_t n, float* out);
    // One row: its blocks are `q_rows` apart.
    void (*quantize)(const float* x, int64_t inputs, int64_t q_rows, int8_t* q, Rounded* rounded);
    // Weights pass once, whatever the rows: from floats for numbers, from q for quantised blocks.
    void (*few)(const Panels&, const Activations&, const Output&);
    // Weights are expanded, a panel at a time: to float32 for `floats`, or but for float32 itself to bf16 tiles.
    void (*many)(const Panels&, const Activations&, const Output&);
    // Rows [16 * begin, 16 * end) into tiles. Null where `many` takes floats only; where it does not, it is also the
    // quicker for few rows if all are bf16.
    void (*tile)(const void* x, Number type, int64_t stride, int64_t rows, int64_t inputs, uint16_t* tiles,
                 int64_t begin, int64_t end);
    // Rows up to which `few` is quicker: with float32, with shorter numbers, with blocks.
    int64_t most_few_floats, most_few_short, most_few_quantized;
};

extern const LinearKernels generic_linear, avx2_linear, avx512_linear, amx_linear;

// Memory of this thread that stays until it asks for more, aligned to 64 bytes. Two at once: `slot` 0 is the driver's,
// 1 the kernels'.
void* scratch(int slot, size_t bytes);

// The weight of a linear layer: parts of one or several formats that share their input. Does not own the bytes.
class Linear {
  public:
    struct Part {
        Format format;
        int64_t rows;
        const uint8_t* data;
    };

    Linear(int64_t inputs, std::vector<Part> parts);

    int64_t inputs() const { return inputs_; }
    int64_t outputs() const { return outputs_; }

    // out[rows, outputs] = x[rows, inputs] W^T + bias; rows of x are x_stride apart.
    void apply(const void* x, Number type, int64_t x_stride, int64_t rows, const Output& out) const;
    // out[rows, outputs / 2] = activation(gate) * up, [gate, up] being what apply gives; for two parts that are alike.
    bool is_gated() const;
    void apply_gated(const void* x, Number type, int64_t x_stride, int64_t rows, Output out) const;
    // out[n, inputs] = W[ids]; throws std::out_of_range.
    void rows(const int64_t* ids, int64_t n, void* out, Number type) const;

  private:
    void run(const void* x, Number type, int64_t x_stride, int64_t rows, const Output& out, bool is_gated) const;

    int64_t inputs_, outputs_ = 0, num_panels_ = 0;
    std::vector<Part> parts_;
};

} // namespace octavo
