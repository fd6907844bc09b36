#include "linear.h"

#include <cstdlib>
#include <new>
#include <stdexcept>

#include "isa.h"
#include "threads.h"

namespace octavo {
namespace {

const LinearKernels& kernels() {
    switch (active()) {
#if defined(OCTAVO_AMX)
    case Isa::amx: return amx_linear;
#endif
#if defined(OCTAVO_AVX512)
    case Isa::avx512: return avx512_linear;
#endif
#if defined(OCTAVO_AVX2)
    case Isa::avx2: return avx2_linear;
#endif
    default: return generic_linear;
    }
}

struct Memory {
    void* data = nullptr;
    size_t bytes = 0;
    ~Memory() { std::free(data); }
};

// Bytes of x that a thread goes over again and again, so they should stay in its second-level cache, half of which may
// be somebody else's. Fewer rows would read weights too often; more gain nothing.
constexpr int64_t rows_bytes = 1 << 19, fewest_rows = 160, most_rows = 384;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Hands out one allocation in pieces that begin at multiples of 64 bytes.
class Pieces {
  public:
    template <class T>
    size_t reserve(int64_t count) {
        const size_t at = size_;
        size_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
        return at;
    }
    void allocate() { data_ = static_cast<char*>(scratch(0, size_)); }
    template <class T>
    T* at(size_t place) const { return reinterpret_cast<T*>(data_ + place); }

  private:
    size_t size_ = 0;
    char* data_ = nullptr;
};

// A stretch of n panels cut into whole pairs, each piece half of what is left: whoever works on it walks through memory,
// and one that is held up leaves what remains to others.
constexpr int64_t pieces_of_stretch = 6;

int64_t cut_of(int64_t n, int64_t piece) {
    return piece == pieces_of_stretch ? n : least(n, padded(n - (n >> piece), 2));
}

constexpr int64_t least_rows_a_thread = 128; // from which on threads share rows, and each goes through all weights

} // namespace

void* scratch(int slot, size_t bytes) {
    static thread_local Memory memory[2];
    Memory& m = memory[slot];
    if (m.bytes < bytes) {
        std::free(m.data);
        m.bytes = (bytes + bytes / 4 + 4095) / 4096 * 4096;
        m.data = std::aligned_alloc(64, m.bytes);
        if (m.data == nullptr) {
            m.bytes = 0;
            throw std::bad_alloc();
        }
    }
    return m.data;
}

Linear::Linear(int64_t inputs, std::vector<Part> parts) : inputs_(inputs), parts_(std::move(parts)) {
    for (const Part& part : parts_) {
        outputs_ += part.rows;
        num_panels_ += padded(part.rows, panel_rows) / panel_rows;
    }
}

bool Linear::is_gated() const {
    return parts_.size() == 2 && parts_[0].rows == parts_[1].rows && parts_[0].format == parts_[1].format;
}

void Linear::apply(const void* x, Number type, int64_t x_stride, int64_t rows, const Output& out) const {
    run(x, type, x_stride, rows, out, false);
}

void Linear::apply_gated(const void* x, Number type, int64_t x_stride, int64_t rows, Output out) const {
    if (!is_gated()) throw std::invalid_argument("a gated product has two parts of one size and format");
    out.up_bias = parts_[0].rows;
    run(x, type, x_stride, rows, out, true);
}

void Linear::run(const void* x, Number type, int64_t x_stride, int64_t rows, const Output& out, bool is_gated) const {
    if (rows <= 0) return;
    const LinearKernels& kernel = kernels();
    const bool is_plain = type == Number::bf16 && inputs_ % 32 == 0 && kernel.tile != nullptr; // tiles as they are
    const auto is_few = [&](Format format) {
        if (is_quantized(format)) return rows <= kernel.most_few_quantized;
        if (format == Format::f32) return rows <= kernel.most_few_floats;
        return rows <= kernel.most_few_short && !(is_plain && format == Format::bf16);
    };
    bool any_many = false, needs_tiles = false, needs_q = false, needs_floats = false;
    for (const Part& part : parts_) {
        if (is_few(part.format)) {
            if (is_quantized(part.format)) needs_q = true;
            needs_floats = true; // from which q is made
            continue;
        }
        any_many = true;
        if (kernel.tile == nullptr || part.format == Format::f32) needs_floats = true;
        else if (!is_plain) needs_tiles = true;
    }

    Activations a{};
    a.rows = rows, a.inputs = inputs_, a.stride = padded(inputs_, 32);
    const int64_t blocks = inputs_ / 32;
    Pieces pieces;
    const size_t floats = pieces.reserve<float>(needs_floats ? rows * a.stride : 0);
    const size_t q = pieces.reserve<int8_t>(needs_q ? rows * inputs_ : 0);
    const size_t rounded = pieces.reserve<Rounded>(needs_q ? rows * blocks : 0);
    a.plain = static_cast<const uint16_t*>(x), a.plain_stride = x_stride;
    const int64_t num_tiles = needs_tiles ? (rows + 15) / 16 : 0;
    const size_t tiles = pieces.reserve<uint16_t>(num_tiles * 16 * a.stride);
    pieces.allocate();
    if (needs_floats) {
        a.floats = pieces.at<float>(floats);
        if (needs_q) a.q = pieces.at<int8_t>(q), a.rounded = pieces.at<Rounded>(rounded), a.q_rows = rows;
        parallel_for(rows, most(1, 16384 / most(inputs_, 1)), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                float* to = pieces.at<float>(floats) + row * a.stride;
                kernel.widen(static_cast<const char*>(x) + row * x_stride * size_of(type), type, inputs_, to);
                for (int64_t k = inputs_; k < a.stride; ++k) to[k] = 0;
                if (needs_q)
                    kernel.quantize(to, inputs_, rows, pieces.at<int8_t>(q) + row * 32,
                                    pieces.at<Rounded>(rounded) + row);
            }
        });
    }
    if (needs_tiles) {
        a.tiles = pieces.at<uint16_t>(tiles);
        parallel_for(num_tiles, most(1, 65536 / (16 * a.stride)), [&](int64_t begin, int64_t end) {
            kernel.tile(x, type, x_stride, rows, inputs_, pieces.at<uint16_t>(tiles), begin, end);
        });
    }

    // Threads share the panels of all parts; or rows, which stay in a thread's cache from one product to the next.
    const int64_t threads = num_threads(), num_panels = is_gated ? num_panels_ / 2 : num_panels_;
    const bool by_rows = any_many && threads > 1 && rows >= least_rows_a_thread * threads;
    const int64_t block = by_rows ? padded((rows + threads - 1) / threads, 32) : rows; // of rows
    // rows in pieces that stay in a cache
    const int64_t row_bytes = a.stride * (needs_floats ? 4 : 2);
    const int64_t chunk = any_many ? least(most(rows_bytes / row_bytes / 32 * 32, fewest_rows), most_rows) : rows;
    const auto multiply = [&](int64_t begin, int64_t end, int64_t first, int64_t last) { // panels, rows
        for (; first < last; first += chunk) {
            Activations here = a;
            here.rows = least(chunk, last - first);
            if (here.floats) here.floats += first * a.stride;
            here.plain += first * a.plain_stride;
            if (here.tiles) here.tiles += first * a.stride;
            if (here.q) here.q += first * 32, here.rounded += first;
            Output to = out;
            to.data = static_cast<char*>(out.data) + first * out.stride * size_of(out.type);
            int64_t panel = 0, column = 0;
            for (const Part& part : parts_) {
                const int64_t count = padded(part.rows, panel_rows) / panel_rows;
                const int64_t from = most(begin - panel, 0), until = least(end - panel, count);
                if (from < until) {
                    const int64_t skipped = from * panel_bytes(part.format, inputs_);
                    Panels panels{part.format, part.data + skipped, until - from, column + from * panel_rows,
                                  part.rows - from * panel_rows, is_gated ? parts_[1].data + skipped : nullptr};
                    (is_few(part.format) ? kernel.few : kernel.many)(panels, here, to);
                }
                panel += count, column += part.rows;
            }
        }
    };
    if (threads == 1) return multiply(0, num_panels, 0, rows);
    parallel_for(threads * pieces_of_stretch, 1, [&](int64_t first, int64_t last) {
        for (; first < last; ++first) {
            const int64_t thread = first / pieces_of_stretch, piece = first % pieces_of_stretch;
            int64_t begin = 0, end = num_panels, row = 0, row_end = rows;
            if (by_rows) {
                row = least(thread * block, rows), row_end = least(row + block, rows);
            } else {
                begin = least(padded(num_panels * thread / threads, 2), num_panels);
                if (thread + 1 < threads) end = least(padded(num_panels * (thread + 1) / threads, 2), num_panels);
            }
            multiply(begin + cut_of(end - begin, piece), begin + cut_of(end - begin, piece + 1), row, row_end);
        }
    });
}

void Linear::rows(const int64_t* ids, int64_t n, void* out, Number type) const {
    for (int64_t i = 0; i < n; ++i)
        if (ids[i] < 0 || ids[i] >= outputs_) throw std::out_of_range("row of a weight that has fewer");
    parallel_for(n, most(1, 4096 / most(inputs_, 1)), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            int64_t row = ids[i];
            for (const Part& part : parts_) {
                if (row >= part.rows) {
                    row -= part.rows;
                    continue;
                }
                const uint8_t* panel = part.data + row / panel_rows * panel_bytes(part.format, inputs_);
                unpack_row(part.format, panel, static_cast<int>(row % panel_rows), inputs_,
                           static_cast<char*>(out) + i * inputs_ * size_of(type), type);
                break;
            }
        }
    });
}

} // namespace octavo
