// How weights lie in memory: one layout for every instruction set, so that it may be forced, or kept in a file.
//
// Rows of a weight (outputs) stand in panels of 16, the last one padded with zeros; a panel is a stream over the inputs
// k in which 16 outputs lie side by side, the width of a vector and of a tile.
//
//   f32, f16   [k][16]
//   bf16       [k / 2][16][2], k padded to a multiple of 32: 32 of them are an AMX tile
//   quantised  blocks of 32 inputs; a value is scale * (q - offset) + minimum
//
//     [head: one in 8 blocks, the K types only | block | block ...]
//     block:  scales | low 4 bits, 256 bytes | high bits, 64 bytes each      (8 bits: 512 bytes of q instead)
//
//     Step j of a block, 0 to 7, is 64 bytes [16][4] with inputs 4j to 4j+3 of each output. The low 4 bits of step j and
//     of step j+4 share a byte of vector j. The fifth bit of step j is bit j of the high vector's bytes; the fifth and
//     sixth are bits 2 (j % 4) and 2 (j % 4) + 1 of high vector j / 4.
//
//              head                        scales of a block                offset   minimum
//     q4_0                                 f16[16]                          8
//     q4_1                                 f16[16], f16[16] minimum         0        as stored
//     q5_0                                 f16[16]                          16
//     q5_1                                 f16[16], f16[16] minimum         0        as stored
//     q8_0                                 f16[16]                          128
//     q4_k     f16[16] d, f16[16] dmin     u8[16] s, u8[16] m: d * s        0        -dmin * m
//     q5_k     as q4_k                     as q4_k                          0        as q4_k
//     q6_k     f16[16] d                   i8[16] for 16 inputs, i8[16]     32
//
// The GGUF types of these names are ggml's (ggml/src/ggml-common.h); no bit of them is lost.
#pragma once

#include <cstdint>

#include "numbers.h"

namespace octavo {

enum class Format : int { f32 = 0, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k };
static constexpr int num_formats = 11;
static constexpr int panel_rows = 16;

static constexpr bool is_quantized(Format f) { return f >= Format::q4_0; }
static constexpr bool has_head(Format f) { return f >= Format::q4_k; }
static constexpr int bits_of(Format f) {
    return f == Format::q8_0                            ? 8
           : f == Format::q6_k                          ? 6
           : f == Format::q5_0 || f == Format::q5_1 || f == Format::q5_k ? 5
                                                        : 4;
}
static constexpr int offset_of(Format f) {
    return f == Format::q4_0   ? 8
           : f == Format::q5_0 ? 16
           : f == Format::q8_0 ? 128
           : f == Format::q6_k ? 32
                               : 0;
}
static constexpr bool has_minimum(Format f) {
    return f == Format::q4_1 || f == Format::q5_1 || f == Format::q4_k || f == Format::q5_k;
}
static constexpr int64_t head_bytes(Format f) { return f == Format::q6_k ? 32 : has_head(f) ? 64 : 0; }
static constexpr int64_t scale_bytes(Format f) { return f == Format::q4_1 || f == Format::q5_1 ? 64 : 32; }
static constexpr int64_t quant_bytes(Format f) { return bits_of(f) == 8 ? 512 : 256 + 64 * (bits_of(f) - 4); }
static constexpr int64_t block_bytes(Format f) { return scale_bytes(f) + quant_bytes(f); }
static constexpr int64_t padded(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Of one panel.
static constexpr int64_t panel_bytes(Format f, int64_t inputs) {
    return f == Format::f32    ? inputs * 64
           : f == Format::f16  ? inputs * 32
           : f == Format::bf16 ? padded(inputs, 32) * 32
                               : inputs / 32 * block_bytes(f) + inputs / 256 * head_bytes(f);
}
static constexpr int64_t packed_bytes(Format f, int64_t rows, int64_t inputs) {
    return padded(rows, panel_rows) / panel_rows * panel_bytes(f, inputs);
}

// Bytes of one row of a GGUF tensor of this type.
int64_t ggml_row_bytes(Format format, int64_t inputs);

// Numbers [rows, inputs], rows `stride` apart, into f32, f16 or bf16 panels.
void pack_numbers(Format format, const void* source, Number type, int64_t stride, int64_t rows, int64_t inputs,
                  uint8_t* target);
// GGUF blocks [rows, ggml_row_bytes] into panels of their type.
void pack_blocks(Format format, const uint8_t* source, int64_t rows, int64_t inputs, uint8_t* target);
// The same blocks as numbers, into f32, f16 or bf16 panels.
void pack_expanded(Format blocks, const uint8_t* source, int64_t rows, int64_t inputs, Format numbers, uint8_t* target);
// One row of a panel as numbers: what embeddings need.
void unpack_row(Format format, const uint8_t* panel, int lane, int64_t inputs, void* target, Number type);

} // namespace octavo
