#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "fused.h"
#include "threads.h"

namespace octavo {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr double below_one = 1.0 - 1.1102230246251565e-16;
constexpr int64_t piece_blocks = 64; // that a thread takes of a row which several share
constexpr Border no_border{-infinity, std::numeric_limits<int32_t>::max()};

int64_t blocks_of(int64_t size) { return (size + logit_block - 1) / logit_block; }

// This thread's, so that nothing is allocated in a step.
struct Scratch {
    std::vector<float> maxima, masses, values, weights;
    std::vector<float> shared; // maxima and masses of rows that several threads see
    std::vector<int32_t> ids;

    static Scratch& here() {
        static thread_local Scratch scratch;
        return scratch;
    }
    template <class T>
    static T* room(std::vector<T>& memory, int64_t count) {
        if (memory.size() < static_cast<size_t>(count)) memory.resize(static_cast<size_t>(count));
        return memory.data();
    }
};

// A row that was summed up.
struct Row {
    Logits logits;
    float* maxima;
    float* masses; // of blocks, relative to their maxima; may be written to
    int64_t blocks;
    float greatest, inverse; // NaN where a logit is; 1 / temperature

    Row(Logits logits, float* maxima, float* masses, float inverse)
        : logits(logits), maxima(maxima), masses(masses), blocks(blocks_of(logits.size)), greatest(-infinity),
          inverse(inverse) {
        for (int64_t block = 0; block < blocks; ++block) {
            if (!(maxima[block] <= greatest)) greatest = maxima[block];
            if (greatest != greatest) break;
        }
    }

    bool is_sound() const { return std::isfinite(greatest); }

    int64_t find_greatest() const {
        int64_t block = 0;
        while (block + 1 < blocks && !(maxima[block] == greatest || maxima[block] != maxima[block])) ++block;
        return fused_kernels().find(logits, block, greatest);
    }

    // Masses of blocks relative to the row's maximum, and their sum.
    double scale_masses() {
        Scratch& scratch = Scratch::here();
        float* factors = Scratch::room(scratch.weights, blocks);
        fused_kernels().weigh(maxima, blocks, greatest, inverse, factors);
        double total = 0;
        for (int64_t block = 0; block < blocks; ++block) total += masses[block] *= factors[block];
        return total;
    }
};

Logits logits_of(const LogitRows& rows, int64_t row) {
    return {static_cast<const char*>(rows.data) + row * rows.stride * size_of(rows.type), rows.type, rows.size};
}

// ---- truncation ------------------------------------------------------------------------------------------------------

double sum(const float* weights, int64_t n) {
    double sums[4] = {};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; ++j) sums[j] += weights[i + j];
    for (; i < n; ++i) sums[0] += weights[i];
    return sums[0] + sums[1] + sums[2] + sums[3];
}

struct Truncation {
    int64_t top_k;
    float top_p;
    float floor; // of min_p: least logit, minus infinity where it is off
    bool has_top_k(int64_t size) const { return top_k > 0 && top_k < size; }
    bool has_top_p() const { return top_p < 1; }
    bool is_by_mass(int64_t size) const { return has_top_p() && !has_top_k(size) && floor == -infinity; }
};

// Where top_p cuts these values, which are all of the row from some logit on.
Border cut(const Row& row, float* values, float* weights, int64_t n, double target) {
    const Selected found = fused_kernels().select(values, weights, n, target);
    float each;
    fused_kernels().weigh(&found.value, 1, row.greatest, row.inverse, &each);
    if (each > 0) {
        const double wanted = std::ceil((target - found.above) / each);
        if (wanted < static_cast<double>(found.num_equal)) {
            const int64_t count = std::max<int64_t>(1, static_cast<int64_t>(wanted));
            return {found.value, fused_kernels().find_nth(row.logits, row.maxima, found.value, count)};
        }
    }
    return {found.value, no_border.last_id};
}

// Of a sound row; scales its masses where top_p alone needs them.
Border border_of(Row& row, const Truncation& truncation) {
    const FusedKernels& kernel = fused_kernels();
    const int64_t size = row.logits.size, top_k = truncation.top_k;
    Scratch& scratch = Scratch::here();
    const auto nth_maximum = [&](int64_t n) {
        float* copy = Scratch::room(scratch.values, row.blocks + list_slack);
        std::memcpy(copy, row.maxima, static_cast<size_t>(row.blocks) * 4);
        return kernel.select(copy, nullptr, row.blocks, static_cast<double>(n)).value;
    };
    int64_t n = 0;
    float *values = nullptr, *weights = nullptr;
    const auto gather = [&](float threshold) { // all logits from there on
        values = Scratch::room(scratch.values, size + list_slack);
        n = kernel.gather(row.logits, row.maxima, threshold, values);
    };
    const auto weigh = [&] {
        weights = Scratch::room(scratch.weights, size + list_slack);
        kernel.weigh(values, n, row.greatest, row.inverse, weights);
        return sum(weights, n);
    };
    const auto target_of = [&](double mass) { // the likeliest always stays
        return std::max(static_cast<double>(truncation.top_p) * mass, std::numeric_limits<double>::min());
    };

    if (truncation.is_by_mass(size)) {
        const double target = target_of(row.scale_masses());
        for (int64_t count : {row.blocks / 16, row.blocks / 4}) {
            if (count < 1) continue;
            gather(nth_maximum(count));
            if (weigh() >= target) return cut(row, values, weights, n, target);
        }
        gather(-infinity);
        weigh();
        return cut(row, values, weights, n, target);
    }
    float low = truncation.floor;
    if (truncation.has_top_k(size)) {
        // as many blocks have logits of at least the top_k-th largest maximum
        if (top_k <= row.blocks) low = std::max(low, nth_maximum(top_k));
        gather(low);
        if (n > top_k) low = std::max(low, kernel.select(values, nullptr, n, static_cast<double>(top_k)).value);
    }
    if (!truncation.has_top_p()) return {low, no_border.last_id};
    gather(low);
    const double target = target_of(weigh());
    return cut(row, values, weights, n, target);
}

// ---- the draw --------------------------------------------------------------------------------------------------------

// The place that `uniform` of [0, 1) falls on when it is divided by weights of this sum, and where inside; the last of
// any weight where rounding leads past it.
struct Place {
    int64_t index;
    double share;
};

Place invert(const float* weights, int64_t n, double total, double uniform) {
    const double target = uniform * total;
    double end = 0;
    int64_t last = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (!(weights[i] > 0)) continue;
        end += weights[i];
        last = i;
        if (end > target)
            return {i, std::min(std::max(1.0 - (end - target) / weights[i], 0.0), below_one)};
    }
    return {last, below_one};
}

// By the masses of blocks, which then are relative to the row's maximum; border or not.
int64_t draw(Row& row, bool is_cut, Border border, double uniform) {
    const FusedKernels& kernel = fused_kernels();
    float weights[logit_block];
    double total = 0;
    if (is_cut) {
        for (int64_t block = 0; block < row.blocks; ++block) {
            float& mass = row.masses[block];
            mass = row.maxima[block] >= border.threshold
                       ? kernel.weigh_block(row.logits, block, row.greatest, row.inverse, border, weights)
                       : 0;
            total += mass;
        }
    } else {
        total = row.scale_masses();
    }
    const Place place = invert(row.masses, row.blocks, total, uniform);
    kernel.weigh_block(row.logits, place.index, row.greatest, row.inverse, border, weights);
    double inside = 0; // in order, as `invert` adds
    for (float weight : weights) inside += weight;
    return place.index * logit_block + invert(weights, logit_block, inside, place.share).index;
}

// ---- rows over threads -----------------------------------------------------------------------------------------------

// inverse_of(row), needs_masses(row), finish(row, Row&). Many rows are each one thread's from the first to the last; of
// few, threads share the pass over all logits.
template <class Inverse, class NeedsMasses, class Finish>
void each_row(const LogitRows& rows, Inverse&& inverse_of, NeedsMasses&& needs_masses, Finish&& finish) {
    const FusedKernels& kernel = fused_kernels();
    const int64_t blocks = blocks_of(rows.size);
    const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(rows.size, 1));
    if (rows.rows >= 4 * num_threads() || num_threads() == 1 || blocks < 2 * piece_blocks) {
        parallel_for(rows.rows, grain, [&](int64_t begin, int64_t end) {
            Scratch& scratch = Scratch::here();
            float* maxima = Scratch::room(scratch.maxima, blocks);
            float* masses = Scratch::room(scratch.masses, blocks);
            for (int64_t i = begin; i < end; ++i) {
                const Logits logits = logits_of(rows, i);
                const float inverse = inverse_of(i);
                kernel.summarise(logits, 0, blocks, inverse, maxima, needs_masses(i) ? masses : nullptr);
                Row row(logits, maxima, masses, inverse);
                finish(i, row);
            }
        });
        return;
    }
    float* all = Scratch::room(Scratch::here().shared, 2 * rows.rows * blocks);
    const auto maxima_of = [&](int64_t i) { return all + 2 * i * blocks; };
    const int64_t pieces = (blocks + piece_blocks - 1) / piece_blocks;
    parallel_for(rows.rows * pieces, 1, [&](int64_t begin, int64_t end) {
        for (int64_t piece = begin; piece < end; ++piece) {
            const int64_t i = piece / pieces, first = piece % pieces * piece_blocks;
            float* maxima = maxima_of(i);
            kernel.summarise(logits_of(rows, i), first, std::min(blocks, first + piece_blocks), inverse_of(i), maxima,
                             needs_masses(i) ? maxima + blocks : nullptr);
        }
    });
    parallel_for(rows.rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            Row row(logits_of(rows, i), maxima_of(i), maxima_of(i) + blocks, inverse_of(i));
            finish(i, row);
        }
    });
}

float one(int64_t) { return 1.0f; }
bool never(int64_t) { return false; }
bool always(int64_t) { return true; }

uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    return value ^ (value >> 31);
}

void check_ids(const LogitRows& rows, const int64_t* ids, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (ids[i] < 0 || ids[i] >= rows.size) throw std::out_of_range("token id outside the vocabulary");
}

float log_sum(Row& row) {
    if (!row.is_sound()) return row.greatest;
    return static_cast<float>(static_cast<double>(row.greatest) + std::log(row.scale_masses()));
}

} // namespace

// SplitMix64 (Steele, Lea, Flood 2014): stream `mix(seed)`, element `position`; the top 53 bits make the number.
double uniform_of(int64_t seed, int64_t position) {
    constexpr uint64_t golden = 0x9E3779B97F4A7C15u;
    const uint64_t state = mix(static_cast<uint64_t>(seed) + golden) + (static_cast<uint64_t>(position) + 1) * golden;
    return static_cast<double>(mix(state) >> 11) * 1.1102230246251565e-16;
}

void choose_tokens(const LogitRows& rows, const Choices& c, int64_t* ids, float* greatest) {
    // logits are not divided: what is compared are logits, what is weighed differences from the largest
    const auto inverse_of = [&](int64_t i) {
        const float inverse = c.temperature[i] == 0 ? 1.0f : 1.0f / c.temperature[i];
        return std::min(std::max(inverse, std::numeric_limits<float>::min()), std::numeric_limits<float>::max());
    };
    const auto truncation_of = [&](int64_t i, float most) {
        return Truncation{c.top_k[i], c.top_p[i],
                          c.min_p[i] > 0 ? most + std::log(c.min_p[i]) * c.temperature[i] : -infinity};
    };
    const auto needs_masses = [&](int64_t i) {
        if (c.temperature[i] == 0) return false;
        const Truncation truncation = truncation_of(i, 0);
        return truncation.is_by_mass(rows.size) ||
               !(truncation.has_top_k(rows.size) || truncation.has_top_p() || truncation.floor > -infinity);
    };
    each_row(rows, inverse_of, needs_masses, [&](int64_t i, Row& row) {
        const float temperature = c.temperature[i];
        greatest[i] = temperature == 0 ? row.greatest : row.greatest / temperature;
        if (temperature == 0 || !row.is_sound()) {
            ids[i] = row.find_greatest();
            return;
        }
        const double uniform = uniform_of(c.seeds[i], c.positions[i]);
        const Truncation truncation = truncation_of(i, row.greatest);
        if (truncation.has_top_k(rows.size) || truncation.has_top_p() || truncation.floor > -infinity)
            ids[i] = draw(row, true, border_of(row, truncation), uniform);
        else
            ids[i] = draw(row, false, no_border, uniform);
    });
}

void find_maxima(const LogitRows& rows, int64_t* ids, void* greatest) {
    const int bytes = size_of(rows.type);
    each_row(rows, one, never, [&](int64_t i, Row& row) {
        ids[i] = row.find_greatest();
        std::memcpy(static_cast<char*>(greatest) + i * bytes,
                    static_cast<const char*>(row.logits.data) + ids[i] * bytes, static_cast<size_t>(bytes));
    });
}

void sample(const LogitRows& rows, const double* uniform, int64_t* ids) {
    each_row(rows, one, always, [&](int64_t i, Row& row) {
        ids[i] = row.is_sound() ? draw(row, false, no_border, uniform[i]) : row.find_greatest();
    });
}

void mask_truncated(const LogitRows& rows, const int64_t* top_k, const float* top_p, const float* min_p, void* out) {
    const auto is_off = [&](int64_t i) { return top_k[i] <= 0 && top_p[i] >= 1 && min_p[i] <= 0; };
    const auto truncation_of = [&](int64_t i, float most) {
        return Truncation{top_k[i], top_p[i], min_p[i] > 0 ? most + std::log(min_p[i]) : -infinity};
    };
    const auto needs_masses = [&](int64_t i) { return truncation_of(i, 0).is_by_mass(rows.size); };
    const size_t row_bytes = static_cast<size_t>(rows.size) * static_cast<size_t>(size_of(rows.type));
    each_row(rows, one, needs_masses, [&](int64_t i, Row& row) {
        char* to = static_cast<char*>(out) + static_cast<size_t>(i) * row_bytes;
        if (is_off(i)) {
            std::memcpy(to, row.logits.data, row_bytes);
            return;
        }
        Border border{infinity, -1}; // nothing
        if (row.is_sound()) border = border_of(row, truncation_of(i, row.greatest));
        fused_kernels().truncate(row.logits, border, to);
    });
}

void gather_logprobs(const LogitRows& rows, const int64_t* token_ids, int64_t num_top, int64_t* ids, float* logprobs,
                     int64_t* ranks) {
    check_ids(rows, token_ids, rows.rows);
    const int64_t width = 1 + num_top;
    each_row(rows, one, always, [&](int64_t i, Row& row) {
        const FusedKernels& kernel = fused_kernels();
        int64_t *row_ids = ids + i * width, *row_ranks = ranks + i * width;
        float* row_logprobs = logprobs + i * width;
        const auto logit = [&](int64_t id) { return load_number(row.logits.data, row.logits.type, id); };
        const float mass = log_sum(row);
        row_ids[0] = token_ids[i];
        row_logprobs[0] = logit(token_ids[i]) - mass;
        row_ranks[0] = 1 + kernel.count_greater(row.logits, row.maxima, logit(token_ids[i]));
        if (num_top == 0) return;
        Scratch& scratch = Scratch::here();
        if (row.greatest != row.greatest) { // no order; some ids
            for (int64_t k = 0; k < num_top; ++k)
                row_ids[1 + k] = k, row_logprobs[1 + k] = row.greatest, row_ranks[1 + k] = 1;
            return;
        }
        float* values = Scratch::room(scratch.values, row.logits.size + list_slack);
        float low = -infinity;
        if (num_top <= row.blocks) {
            std::memcpy(values, row.maxima, static_cast<size_t>(row.blocks) * 4);
            low = kernel.select(values, nullptr, row.blocks, static_cast<double>(num_top)).value;
        }
        const int64_t found = kernel.gather(row.logits, row.maxima, low, values);
        if (found > num_top) low = kernel.select(values, nullptr, found, static_cast<double>(num_top)).value;
        int32_t* top = Scratch::room(scratch.ids, row.logits.size);
        const int64_t count = kernel.gather_ids(row.logits, row.maxima, low, top);
        std::partial_sort(top, top + num_top, top + count, [&](int32_t a, int32_t b) {
            const float x = logit(a), y = logit(b);
            return x > y || (x == y && a < b);
        });
        for (int64_t k = 0; k < num_top; ++k) {
            const float value = logit(top[k]);
            row_ids[1 + k] = top[k];
            row_logprobs[1 + k] = value - mass;
            row_ranks[1 + k] = k > 0 && value == logit(top[k - 1]) ? row_ranks[k] : 1 + k;
        }
    });
}

void log_mass(const LogitRows& rows, float* out) {
    each_row(rows, one, always, [&](int64_t i, Row& row) { out[i] = log_sum(row); });
}

void token_ranks(const LogitRows& rows, const int64_t* token_ids, int64_t columns, int64_t* ranks) {
    check_ids(rows, token_ids, rows.rows * columns);
    each_row(rows, one, never, [&](int64_t i, Row& row) {
        for (int64_t k = i * columns; k < (i + 1) * columns; ++k) {
            const float value = load_number(row.logits.data, row.logits.type, token_ids[k]);
            ranks[k] = 1 + fused_kernels().count_greater(row.logits, row.maxima, value);
        }
    });
}

void apply_bitmask(const LogitRows& rows, const int64_t* which, int64_t num_rows, const uint32_t* bits, int64_t words) {
    for (int64_t i = 0; i < num_rows; ++i)
        if (which[i] < 0 || which[i] >= rows.rows) throw std::out_of_range("row of logits that have fewer");
    const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(rows.size, 1));
    parallel_for(num_rows, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            void* data = const_cast<void*>(logits_of(rows, which[i]).data);
            fused_kernels().mask(data, rows.type, rows.size, bits + i * words);
        }
    });
}

void apply_penalties(const LogitRows& rows, const Penalties& p, void* out) {
    for (int64_t i = 0; p.slots != nullptr && i < rows.rows; ++i)
        if (p.slots[i] < 0 || p.slots[i] >= p.num_slots) throw std::out_of_range("slot of a table that has fewer");
    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(rows.size, 1));
    parallel_for(rows.rows, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t slot = p.slots == nullptr ? i : p.slots[i];
            fused_kernels().penalise(logits_of(rows, i), p.in_prompt + slot * p.prompt_stride,
                                     p.counts + slot * p.counts_stride, p.repetition[i], p.frequency[i], p.presence[i],
                                     static_cast<char*>(out) + i * rows.size * size_of(rows.type));
        }
    });
}

} // namespace octavo
