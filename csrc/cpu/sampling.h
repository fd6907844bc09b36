// From logits to tokens. Rows are looked at as blocks of logits: one pass takes the maximum of each block and the sum
// of its weights, and what follows reads few blocks again. No row is sorted.
#pragma once

#include <cstdint>

#include "numbers.h"

namespace octavo {

struct LogitRows {
    const void* data;
    Number type;
    int64_t rows, size, stride;
};

struct Choices { // columns, one for each row
    const float* temperature;
    const int64_t* top_k;
    const float* top_p;
    const float* min_p;
    const int64_t* seeds;
    const int64_t* positions;
};

void choose_tokens(const LogitRows&, const Choices&, int64_t* ids, float* greatest);
void find_maxima(const LogitRows&, int64_t* ids, void* greatest); // of the logits' type
void sample(const LogitRows&, const double* uniform, int64_t* ids);
// Into dense rows of the same type.
void mask_truncated(const LogitRows&, const int64_t* top_k, const float* top_p, const float* min_p, void* out);

double uniform_of(int64_t seed, int64_t position);

// [rows][1 + num_top]; throws std::out_of_range for an id outside the vocabulary.
void gather_logprobs(const LogitRows&, const int64_t* token_ids, int64_t num_top, int64_t* ids, float* logprobs,
                     int64_t* ranks);
void log_mass(const LogitRows&, float* out);
void token_ranks(const LogitRows&, const int64_t* token_ids, int64_t columns, int64_t* ranks);

// In place; throws std::out_of_range for a row that is not there.
void apply_bitmask(const LogitRows&, const int64_t* rows, int64_t num_rows, const uint32_t* bits, int64_t words);

struct Penalties {
    const uint8_t* in_prompt; // [slots][size]
    const int32_t* counts;    // [slots][size]
    int64_t prompt_stride, counts_stride, num_slots;
    const int64_t* slots; // of rows; null: as the rows are
    const float* repetition;
    const float* frequency;
    const float* presence;
};

void apply_penalties(const LogitRows&, const Penalties&, void* out);

} // namespace octavo
