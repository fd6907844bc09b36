// A step's tensors from the row table, and the table's advance.
#pragma once

#include <cstdint>
#include <vector>

namespace octavo {

// int32 or int64.
struct Integers {
    void* data;
    bool is_long;
    int64_t get(int64_t i) const {
        return is_long ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
    }
    void set(int64_t i, int64_t value) const {
        if (is_long) static_cast<int64_t*>(data)[i] = value;
        else static_cast<int32_t*>(data)[i] = static_cast<int32_t>(value);
    }
};

struct Group {
    const int32_t* table; // of all rows
    int64_t table_stride, table_width;
    int64_t* slots;
    int32_t* gathered;
    int64_t gathered_stride, gathered_width;
};

struct BatchCall {
    Integers rows, counts;
    int64_t num_rows, num_tokens; // of the step, padding included
    const int32_t* tokens;
    int64_t tokens_stride, tokens_width, table_rows;
    int64_t* computed;
    std::vector<Group> groups;
    int64_t block_size;
    Integers input_ids;
    int64_t* positions;
    int64_t* row_of_token;
    int32_t* query_start;
    int32_t* seq_lens;
};

// Throws std::out_of_range, before anything is written, for what lies outside of a table.
void build_batch(const BatchCall&);

struct AppendCall {
    Integers rows, ids;
    int64_t num_rows;
    int32_t* tokens;
    int64_t tokens_stride, tokens_width, table_rows;
    int64_t* length;
};

void append_sampled(const AppendCall&);

} // namespace octavo
