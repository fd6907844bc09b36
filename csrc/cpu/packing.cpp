#include "packing.h"

#include <cstring>
#include <vector>

#include "threads.h"

namespace octavo {
namespace {

// One block of 32 values of a row, as ggml stores it, taken apart.
struct Block {
    uint8_t q[32];       // with the offset, so never negative
    uint16_t scale[2];   // simple types: f16 scale and minimum
    uint8_t small[2];    // K types: s and m; q6_k: the two scales
    uint16_t head[2];    // K types: d and dmin
};

uint16_t u16_at(const uint8_t* p) {
    uint16_t value;
    std::memcpy(&value, p, 2);
    return value;
}

int64_t ggml_group_bytes(Format f) {
    switch (f) {
    case Format::q4_0: return 18;
    case Format::q4_1: return 20;
    case Format::q5_0: return 22;
    case Format::q5_1: return 24;
    case Format::q8_0: return 34;
    case Format::q4_k: return 144;
    case Format::q5_k: return 176;
    case Format::q6_k: return 210;
    default: return 0;
    }
}

void read_simple(Format f, const uint8_t* p, Block& out) {
    out.scale[0] = u16_at(p), p += 2;
    if (has_minimum(f)) out.scale[1] = u16_at(p), p += 2;
    if (f == Format::q8_0) {
        for (int i = 0; i < 32; ++i) out.q[i] = p[i] ^ 0x80;
        return;
    }
    uint32_t high = 0;
    if (bits_of(f) == 5) std::memcpy(&high, p, 4), p += 4;
    for (int i = 0; i < 16; ++i) {
        out.q[i] = static_cast<uint8_t>((p[i] & 15) | (high >> i & 1) << 4);
        out.q[i + 16] = static_cast<uint8_t>(p[i] >> 4 | (high >> (i + 16) & 1) << 4);
    }
}

// Block b, 0 to 7, of a group of 256.
void read_k(Format f, const uint8_t* p, int b, Block& out) {
    if (f == Format::q6_k) {
        const uint8_t *low = p + b / 4 * 64 + (b & 1) * 32, *high = p + 128 + b / 4 * 32;
        const int t = b & 3;
        for (int i = 0; i < 32; ++i)
            out.q[i] = static_cast<uint8_t>((t >= 2 ? low[i] >> 4 : low[i] & 15) | (high[i] >> 2 * t & 3) << 4);
        out.small[0] = p[192 + 2 * b], out.small[1] = p[193 + 2 * b];
        out.head[0] = u16_at(p + 208), out.head[1] = 0;
        return;
    }
    out.head[0] = u16_at(p), out.head[1] = u16_at(p + 2);
    const uint8_t* s = p + 4; // 12 bytes with eight times two numbers of 6 bits
    if (b < 4) {
        out.small[0] = s[b] & 63, out.small[1] = s[b + 4] & 63;
    } else {
        out.small[0] = static_cast<uint8_t>((s[b + 4] & 15) | s[b - 4] >> 6 << 4);
        out.small[1] = static_cast<uint8_t>(s[b + 4] >> 4 | s[b] >> 6 << 4);
    }
    const uint8_t *high = p + 16, *low = p + (f == Format::q5_k ? 48 : 16) + b / 2 * 32;
    for (int i = 0; i < 32; ++i) {
        out.q[i] = b & 1 ? low[i] >> 4 : low[i] & 15;
        if (f == Format::q5_k) out.q[i] = static_cast<uint8_t>(out.q[i] | (high[i] >> b & 1) << 4);
    }
}

void write_quants(Format f, const uint8_t* q, int lane, uint8_t* quants) {
    if (bits_of(f) == 8) {
        for (int j = 0; j < 8; ++j) std::memcpy(quants + j * 64 + lane * 4, q + 4 * j, 4);
        return;
    }
    for (int j = 0; j < 4; ++j)
        for (int i = 0; i < 4; ++i)
            quants[j * 64 + lane * 4 + i] =
                static_cast<uint8_t>((q[4 * j + i] & 15) | (q[4 * (j + 4) + i] & 15) << 4);
    uint8_t* high = quants + 256 + lane * 4;
    if (bits_of(f) == 5) {
        for (int i = 0; i < 4; ++i) {
            int bits = 0;
            for (int j = 0; j < 8; ++j) bits |= (q[4 * j + i] >> 4) << j;
            high[i] = static_cast<uint8_t>(bits);
        }
    } else if (bits_of(f) == 6) {
        for (int half = 0; half < 2; ++half)
            for (int i = 0; i < 4; ++i) {
                int bits = 0;
                for (int j = 0; j < 4; ++j) bits |= (q[4 * (4 * half + j) + i] >> 4) << 2 * j;
                high[64 * half + i] = static_cast<uint8_t>(bits);
            }
    }
}

void put(uint8_t* place, int lane, uint16_t value) { std::memcpy(place + 2 * lane, &value, 2); }

void pack_block_panel(Format f, const uint8_t* source, int64_t row_bytes, int rows, int64_t inputs, uint8_t* target) {
    const int64_t group_bytes = ggml_group_bytes(f);
    if (rows < panel_rows) std::memset(target, 0, static_cast<size_t>(panel_bytes(f, inputs)));
    for (int64_t b = 0; b < inputs / 32; ++b) {
        uint8_t* head = target;
        if (has_head(f) && b % 8 == 0) target += head_bytes(f);
        else head = nullptr;
        for (int lane = 0; lane < rows; ++lane) {
            Block block;
            const uint8_t* row = source + lane * row_bytes;
            if (has_head(f)) {
                read_k(f, row + b / 8 * group_bytes, static_cast<int>(b % 8), block);
                if (head != nullptr) put(head, lane, block.head[0]);
                if (head != nullptr && head_bytes(f) == 64) put(head + 32, lane, block.head[1]);
                target[lane] = block.small[0], target[16 + lane] = block.small[1];
            } else {
                read_simple(f, row + b * group_bytes, block);
                put(target, lane, block.scale[0]);
                if (has_minimum(f)) put(target + 32, lane, block.scale[1]);
            }
            write_quants(f, block.q, lane, target + scale_bytes(f));
        }
        target += block_bytes(f);
    }
}

// What the blocks of a row say.
void expand_row(Format f, const uint8_t* row, int64_t inputs, float* to) {
    const int offset = offset_of(f);
    for (int64_t b = 0; b < inputs / 32; ++b, to += 32) {
        Block block;
        float scale[2], minimum = -0.0f; // adding it changes nothing, the sign of a zero included
        if (has_head(f)) {
            read_k(f, row + b / 8 * ggml_group_bytes(f), static_cast<int>(b % 8), block);
            const float d = float_of_f16(block.head[0]);
            if (f == Format::q6_k) {
                for (int i = 0; i < 2; ++i) scale[i] = d * static_cast<float>(static_cast<int8_t>(block.small[i]));
            } else {
                scale[0] = scale[1] = d * block.small[0];
                minimum = -(float_of_f16(block.head[1]) * block.small[1]);
            }
        } else {
            read_simple(f, row + b * ggml_group_bytes(f), block);
            scale[0] = scale[1] = float_of_f16(block.scale[0]);
            if (has_minimum(f)) minimum = float_of_f16(block.scale[1]);
        }
        for (int half = 0; half < 2; ++half)
            for (int k = 16 * half; k < 16 * half + 16; ++k)
                to[k] = scale[half] * static_cast<float>(block.q[k] - offset) + minimum;
    }
}

void pack_number_panel(Format f, const void* source, Number type, int64_t stride, int rows, int64_t inputs,
                       uint8_t* target) {
    if (rows < panel_rows || inputs % 32) std::memset(target, 0, static_cast<size_t>(panel_bytes(f, inputs)));
    for (int lane = 0; lane < rows; ++lane) {
        const int64_t row = lane * stride;
        if (f == Format::bf16 && type == Number::bf16) { // the common case: no arithmetic
            const uint16_t* from = static_cast<const uint16_t*>(source) + row;
            uint16_t* to = reinterpret_cast<uint16_t*>(target) + 2 * lane;
            int64_t k = 0;
            for (; k + 1 < inputs; k += 2) std::memcpy(to + k * 16, from + k, 4);
            if (k < inputs) to[k * 16] = from[k];
            continue;
        }
        for (int64_t k = 0; k < inputs; ++k) {
            const float value = load_number(source, type, row + k);
            if (f == Format::f32) store_number(target, Number::f32, k * 16 + lane, value);
            else if (f == Format::f16) store_number(target, Number::f16, k * 16 + lane, value);
            else store_number(target, Number::bf16, (k / 2 * 16 + lane) * 2 + (k & 1), value);
        }
    }
}

template <class F>
void each_panel(int64_t rows, F&& pack) {
    parallel_for(padded(rows, panel_rows) / panel_rows, 4, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
            const int64_t left = rows - panel * panel_rows;
            pack(panel, static_cast<int>(left < panel_rows ? left : panel_rows));
        }
    });
}

} // namespace

int64_t ggml_row_bytes(Format format, int64_t inputs) {
    return inputs / (has_head(format) ? 256 : 32) * ggml_group_bytes(format);
}

void pack_blocks(Format format, const uint8_t* source, int64_t rows, int64_t inputs, uint8_t* target) {
    const int64_t row_bytes = ggml_row_bytes(format, inputs), bytes = panel_bytes(format, inputs);
    each_panel(rows, [&](int64_t panel, int count) {
        pack_block_panel(format, source + panel * panel_rows * row_bytes, row_bytes, count, inputs,
                         target + panel * bytes);
    });
}

void pack_numbers(Format format, const void* source, Number type, int64_t stride, int64_t rows, int64_t inputs,
                  uint8_t* target) {
    const int64_t bytes = panel_bytes(format, inputs);
    each_panel(rows, [&](int64_t panel, int count) {
        const char* from = static_cast<const char*>(source) + panel * panel_rows * stride * size_of(type);
        pack_number_panel(format, from, type, stride, count, inputs, target + panel * bytes);
    });
}

void pack_expanded(Format blocks, const uint8_t* source, int64_t rows, int64_t inputs, Format numbers,
                   uint8_t* target) {
    const int64_t row_bytes = ggml_row_bytes(blocks, inputs), bytes = panel_bytes(numbers, inputs);
    parallel_for(padded(rows, panel_rows) / panel_rows, 4, [&](int64_t begin, int64_t end) {
        std::vector<float> values(static_cast<size_t>(panel_rows * inputs));
        std::vector<uint16_t> rounded(numbers == Format::bf16 ? values.size() : 0);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t left = rows - i * panel_rows;
            const int count = static_cast<int>(left < panel_rows ? left : panel_rows);
            for (int lane = 0; lane < count; ++lane)
                expand_row(blocks, source + (i * panel_rows + lane) * row_bytes, inputs, values.data() + lane * inputs);
            if (numbers == Format::bf16) {
                for (int64_t k = 0; k < count * inputs; ++k) rounded[k] = bf16_of_float(values[k]);
                pack_number_panel(numbers, rounded.data(), Number::bf16, inputs, count, inputs, target + i * bytes);
            } else {
                pack_number_panel(numbers, values.data(), Number::f32, inputs, count, inputs, target + i * bytes);
            }
        }
    });
}

void unpack_row(Format format, const uint8_t* panel, int lane, int64_t inputs, void* target, Number type) {
    if (!is_quantized(format)) {
        for (int64_t k = 0; k < inputs; ++k) {
            const float value = format == Format::f32   ? load_number(panel, Number::f32, k * 16 + lane)
                                : format == Format::f16 ? load_number(panel, Number::f16, k * 16 + lane)
                                                        : load_number(panel, Number::bf16,
                                                                      (k / 2 * 16 + lane) * 2 + (k & 1));
            store_number(target, type, k, value);
        }
        return;
    }
    float d = 0, dmin = 0;
    for (int64_t b = 0; b < inputs / 32; ++b) {
        if (has_head(format) && b % 8 == 0) {
            d = float_of_f16(u16_at(panel + 2 * lane));
            if (head_bytes(format) == 64) dmin = float_of_f16(u16_at(panel + 32 + 2 * lane));
            panel += head_bytes(format);
        }
        float scale[2], minimum = 0;
        if (format == Format::q6_k) {
            for (int half = 0; half < 2; ++half)
                scale[half] = d * static_cast<float>(static_cast<int8_t>(panel[16 * half + lane]));
        } else if (has_head(format)) {
            scale[0] = scale[1] = d * panel[lane];
            minimum = -(dmin * panel[16 + lane]);
        } else {
            scale[0] = scale[1] = float_of_f16(u16_at(panel + 2 * lane));
            if (has_minimum(format)) minimum = float_of_f16(u16_at(panel + 32 + 2 * lane));
        }
        const uint8_t* quants = panel + scale_bytes(format) + lane * 4;
        for (int k = 0; k < 32; ++k) {
            const int j = k / 4, i = k % 4;
            int q;
            if (bits_of(format) == 8) {
                q = quants[j * 64 + i];
            } else {
                q = j < 4 ? quants[j * 64 + i] & 15 : quants[(j - 4) * 64 + i] >> 4;
                if (bits_of(format) == 5) q |= (quants[256 + i] >> j & 1) << 4;
                if (bits_of(format) == 6) q |= (quants[256 + 64 * (j / 4) + i] >> 2 * (j % 4) & 3) << 4;
            }
            const float value = scale[k / 16] * static_cast<float>(q - offset_of(format)) + minimum;
            store_number(target, type, 32 * b + k, value);
        }
        panel += block_bytes(format);
    }
}

} // namespace octavo
