// Passes over logits, over the 16 lanes of lanes_*.h.
#pragma once

#include "norm_impl.h"

namespace octavo {
namespace {

constexpr float infinity = __builtin_inff();
constexpr int vectors = logit_block / 16; // of a block

inline int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }

// 16 logits; minus infinity past the end.
template <Number N>
inline Vec logits_at(const Logits& row, int64_t i) {
    const int64_t left = row.size - i;
    if (left >= 16) return get<N>(row.data, i);
    if (left <= 0) return set(-infinity);
    return select(flags_of((1u << left) - 1), get<N>(row.data, i, left), set(-infinity));
}

template <Number N> struct Summarise {
    static void run(const Logits& row, int64_t begin, int64_t end, float inverse, float* maxima, float* masses) {
        for (int64_t block = begin; block < end; ++block) {
            const int64_t first = block * logit_block;
            Vec x[vectors];
            if (first + logit_block <= row.size)
                for (int v = 0; v < vectors; ++v) x[v] = get<N>(row.data, first + 16 * v);
            else
                for (int v = 0; v < vectors; ++v) x[v] = logits_at<N>(row, first + 16 * v);
            // a NaN is lost by a maximum that sees a number after it, so they are looked for by a sum
            Vec most = x[0], sum = mul(x[0], set(0));
            for (int v = 1; v < vectors; ++v) most = largest(most, x[v]), sum = fma(x[v], set(0), sum);
            const float greatest = largest_of(most);
            maxima[block] = greatest;
            if (bits_of(is_nan(sum)) != 0) { // NaN, or only infinite
                for (int v = 0; v < vectors; ++v)
                    if (bits_of(is_nan(x[v])) != 0) maxima[block] = __builtin_nanf("");
            }
            if (masses == nullptr) continue;
            if (!(maxima[block] > -infinity && maxima[block] < infinity)) {
                masses[block] = 0;
                continue;
            }
            const Vec top = set(greatest), factor = set(inverse);
            Vec mass = set(0);
            for (int v = 0; v < vectors; ++v) mass = add(mass, exp_of(mul(sub(x[v], top), factor)));
            masses[block] = sum_of(mass);
        }
    }
};

template <Number N> struct Gather {
    static void run(const Logits& row, const float* maxima, float threshold, float* values, int64_t* found) {
        const Vec low = set(threshold);
        int64_t n = 0;
        for (int64_t block = 0; block * logit_block < row.size; ++block) {
            if (!(maxima[block] >= threshold)) continue;
            const int64_t first = block * logit_block, end = lower(row.size, first + logit_block);
            int64_t i = first;
            for (; i + 16 <= end; i += 16) {
                const Vec x = get<N>(row.data, i);
                n += store_flagged(values + n, at_least(x, low), x);
            }
            if (i < end) {
                const Vec x = logits_at<N>(row, i);
                const uint32_t there = (1u << (end - i)) - 1;
                n += store_flagged(values + n, flags_of(bits_of(at_least(x, low)) & there), x);
            }
        }
        *found = n;
    }
};

template <Number N>
inline Flags inside(Vec x, int64_t i, Border border) {
    const Flags above = greater(x, set(border.threshold));
    const int64_t ids = border.last_id - i + 1; // of these 16 that a tie lets in
    if (ids <= 0) return above;
    const uint32_t low = ids >= 16 ? 0xffff : (1u << ids) - 1;
    return flags_of(bits_of(above) | (bits_of(equal(x, set(border.threshold))) & low));
}

template <Number N> struct WeighBlock {
    static void run(const Logits& row, int64_t block, float greatest, float inverse, Border border, float* weights,
                    float* sum) {
        Vec mass = set(0);
        for (int v = 0; v < vectors; ++v) {
            const int64_t i = block * logit_block + 16 * v;
            const Vec x = logits_at<N>(row, i);
            const Vec weight = exp_of(mul(sub(x, set(greatest)), set(inverse)));
            const Vec kept = select(inside<N>(x, i, border), weight, set(0));
            store(weights + 16 * v, kept);
            mass = add(mass, kept);
        }
        *sum = sum_of(mass);
    }
};

template <Number N> struct Find {
    static void run(const Logits& row, int64_t block, float value, int64_t* found) {
        for (int v = 0; v < vectors; ++v) {
            const int64_t i = block * logit_block + 16 * v, left = row.size - i;
            if (left <= 0) break;
            const Vec x = logits_at<N>(row, i);
            uint32_t bits = bits_of(value == value ? equal(x, set(value)) : is_nan(x));
            if (left < 16) bits &= (1u << left) - 1;
            if (bits != 0) {
                *found = i + __builtin_ctz(bits);
                return;
            }
        }
        *found = block * logit_block; // not there
    }
};

inline float middle(float a, float b, float c) {
    const float low = a < b ? a : b, high = a < b ? b : a;
    return c < low ? low : c > high ? high : c;
}

inline float pivot_of(const float* values, int64_t n) {
    if (n < 64) return middle(values[0], values[n / 2], values[n - 1]);
    const int64_t e = n / 8;
    return middle(middle(values[0], values[e], values[2 * e]), middle(values[3 * e], values[4 * e], values[5 * e]),
                  middle(values[6 * e], values[7 * e], values[n - 1]));
}

// As sorting by halves does, but going on with the half where the target is alone.
Selected select(float* values, float* weights, int64_t n, double target) {
    double before = 0;
    for (;;) {
        const float pivot = pivot_of(values, n);
        const Vec border = set(pivot);
        int64_t num_above = 0, num_equal = 0;
        double above = 0, equal_mass = 0;
        for (int64_t first = 0; first < n; first += 256) { // short sums, so that float32 is enough
            Vec sum_above = set(0), sum_equal = set(0);
            for (int64_t i = first; i < lower(n, first + 256); i += 16) {
                const uint32_t there = n - i < 16 ? (1u << (n - i)) - 1 : 0xffff;
                const Vec x = load(values + i);
                const uint32_t is_above = bits_of(greater(x, border)) & there;
                const uint32_t is_equal = bits_of(equal(x, border)) & there;
                num_above += __builtin_popcount(is_above), num_equal += __builtin_popcount(is_equal);
                if (weights == nullptr) continue;
                const Vec weight = load(weights + i);
                sum_above = add(sum_above, select(flags_of(is_above), weight, set(0)));
                if (is_equal != 0) sum_equal = add(sum_equal, select(flags_of(is_equal), weight, set(0)));
            }
            above += sum_of(sum_above), equal_mass += sum_of(sum_equal);
        }
        if (weights == nullptr) above = static_cast<double>(num_above), equal_mass = static_cast<double>(num_equal);
        const bool goes_up = num_above > 0 && before + above >= target;
        if (!goes_up && (before + above + equal_mass >= target || num_above + num_equal == n))
            return {pivot, before + above, num_equal};
        if (!goes_up) before += above + equal_mass;
        int64_t kept = 0;
        for (int64_t i = 0; i < n; i += 16) { // what is written is not past what was read
            const uint32_t there = n - i < 16 ? (1u << (n - i)) - 1 : 0xffff;
            const Vec x = load(values + i);
            const Flags goes = flags_of(bits_of(goes_up ? greater(x, border) : greater(border, x)) & there);
            if (weights != nullptr) store_flagged(weights + kept, goes, load(weights + i));
            kept += store_flagged(values + kept, goes, x);
        }
        n = kept;
    }
}

// function(first id of 16, bits of those for which test(x) holds) over blocks whose maximum is wanted; it returns
// whether to go on.
template <Number N, class Wanted, class Test, class F>
inline void each_match(const Logits& row, const float* maxima, Wanted&& wanted, Test&& test, F&& function) {
    for (int64_t block = 0; block * logit_block < row.size; ++block) {
        if (!wanted(maxima[block])) continue;
        const int64_t end = lower(row.size, (block + 1) * logit_block);
        for (int64_t i = block * logit_block; i < end; i += 16) {
            uint32_t bits = bits_of(test(logits_at<N>(row, i)));
            if (end - i < 16) bits &= (1u << (end - i)) - 1;
            if (bits != 0 && !function(i, bits)) return;
        }
    }
}

template <Number N> struct FindNth {
    static void run(const Logits& row, const float* maxima, float value, int64_t n, int64_t* found) {
        const Vec wanted = set(value);
        *found = -1;
        each_match<N>(
            row, maxima, [&](float most) { return most >= value; }, [&](Vec x) { return equal(x, wanted); },
            [&](int64_t i, uint32_t bits) {
                const int count = __builtin_popcount(bits);
                if (count < n) {
                    n -= count;
                    return true;
                }
                for (; n > 1; --n) bits &= bits - 1;
                *found = i + __builtin_ctz(bits);
                return false;
            });
    }
};

template <Number N> struct GatherIds {
    static void run(const Logits& row, const float* maxima, float threshold, int32_t* ids, int64_t* found) {
        const Vec low = set(threshold);
        int64_t n = 0;
        each_match<N>(
            row, maxima, [&](float most) { return most >= threshold; }, [&](Vec x) { return at_least(x, low); },
            [&](int64_t i, uint32_t bits) {
                for (; bits != 0; bits &= bits - 1) ids[n++] = static_cast<int32_t>(i + __builtin_ctz(bits));
                return true;
            });
        *found = n;
    }
};

template <Number N> struct CountGreater {
    static void run(const Logits& row, const float* maxima, float value, int64_t* count) {
        const Vec border = set(value);
        int64_t n = 0;
        each_match<N>(
            row, maxima, [&](float most) { return !(most <= value); }, [&](Vec x) { return greater(x, border); },
            [&](int64_t, uint32_t bits) {
                n += __builtin_popcount(bits);
                return true;
            });
        *count = n;
    }
};

// Logits that were read and are kept, to the last bit.
template <Number N>
inline void put_back(void* p, int64_t i, Vec x, int64_t count) {
    if (N != Number::bf16) return put<N>(p, i, x, count);
    uint16_t* to = static_cast<uint16_t*>(p) + i;
    if (count >= 16) return store_bf16(to, x);
    uint16_t numbers[16];
    store_bf16(numbers, x);
    std::memcpy(to, numbers, static_cast<size_t>(count) * 2);
}

template <Number N> struct Truncate {
    static void run(const Logits& row, Border border, void* out) {
        each_vector(row.size, [&](int64_t i, int64_t count) {
            const Vec x = get<N>(row.data, i, count);
            put_back<N>(out, i, select(inside<N>(x, i, border), x, set(-infinity)), count);
        });
    }
};

template <Number N> struct MaskLogits {
    static void run(void* logits, int64_t size, const uint32_t* bits) {
        for (int64_t word = 0; word * 32 < size; ++word) {
            const uint32_t kept = bits[word];
            if (kept == 0xffffffff) continue;
            for (int64_t i = 32 * word; i < lower(size, 32 * word + 32); i += 16) {
                const int64_t count = lower(16, size - i);
                const uint32_t here = kept >> (i % 32) & 0xffff;
                if (here == 0) put_back<N>(logits, i, set(-infinity), count);
                else put_back<N>(logits, i, select(flags_of(here), get<N>(logits, i, count), set(-infinity)), count);
            }
        }
    }
};

template <Number N> struct Penalise {
    static void run(const Logits& row, const uint8_t* in_prompt, const int32_t* counts, float repetition,
                    float frequency, float presence, void* out) {
        std::memcpy(out, row.data, static_cast<size_t>(row.size * bytes_of<N>));
        for (int64_t first = 0; first < row.size; first += 32) {
            const int64_t end = lower(row.size, first + 32);
            if (end - first == 32) { // few were seen
                uint64_t seen[4], any = 0;
                std::memcpy(seen, in_prompt + first, 32);
                any = seen[0] | seen[1] | seen[2] | seen[3];
                uint32_t counted = 0;
                for (int64_t i = first; i < end; ++i) counted |= static_cast<uint32_t>(counts[i]);
                if (any == 0 && counted == 0) continue;
            }
            for (int64_t i = first; i < end; ++i) {
                if (in_prompt[i] == 0 && counts[i] <= 0) continue;
                float x = load_number(row.data, N, i);
                x = x > 0 ? x / repetition : x * repetition;
                x -= frequency * static_cast<float>(counts[i]);
                if (counts[i] > 0) x -= presence;
                store_number(out, N, i, x);
            }
        }
    }
};

void summarise(const Logits& row, int64_t begin, int64_t end, float inverse, float* maxima, float* masses) {
    by_number<Summarise>(row.type, row, begin, end, inverse, maxima, masses);
}
int64_t gather(const Logits& row, const float* maxima, float threshold, float* values) {
    int64_t found = 0;
    by_number<Gather>(row.type, row, maxima, threshold, values, &found);
    return found;
}
void weigh(const float* values, int64_t n, float greatest, float inverse, float* weights) {
    each_vector(n, [&](int64_t i, int64_t count) {
        const Vec x = get<Number::f32>(values, i, count);
        put<Number::f32>(weights, i, exp_of(mul(sub(x, set(greatest)), set(inverse))), count);
    });
}
float weigh_block(const Logits& row, int64_t block, float greatest, float inverse, Border border, float* weights) {
    float sum = 0;
    by_number<WeighBlock>(row.type, row, block, greatest, inverse, border, weights, &sum);
    return sum;
}
int64_t find(const Logits& row, int64_t block, float value) {
    int64_t found = 0;
    by_number<Find>(row.type, row, block, value, &found);
    return found;
}
int64_t find_nth(const Logits& row, const float* maxima, float value, int64_t n) {
    int64_t found = 0;
    by_number<FindNth>(row.type, row, maxima, value, n, &found);
    return found;
}
int64_t gather_ids(const Logits& row, const float* maxima, float threshold, int32_t* ids) {
    int64_t found = 0;
    by_number<GatherIds>(row.type, row, maxima, threshold, ids, &found);
    return found;
}
int64_t count_greater(const Logits& row, const float* maxima, float value) {
    int64_t count = 0;
    by_number<CountGreater>(row.type, row, maxima, value, &count);
    return count;
}
void truncate(const Logits& row, Border border, void* out) { by_number<Truncate>(row.type, row, border, out); }
void mask(void* logits, Number type, int64_t size, const uint32_t* bits) {
    by_number<MaskLogits>(type, logits, size, bits);
}
void penalise(const Logits& row, const uint8_t* in_prompt, const int32_t* counts, float repetition, float frequency,
              float presence, void* out) {
    by_number<Penalise>(row.type, row, in_prompt, counts, repetition, frequency, presence, out);
}

} // namespace
} // namespace octavo
