#include "batch.h"

#include <cstring>
#include <stdexcept>

namespace octavo {
namespace {

int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }

void check(const BatchCall& c) {
    int64_t total = 0;
    for (int64_t place = 0; place < c.num_rows; ++place) {
        const int64_t count = c.counts.get(place);
        if (count <= 0) continue;
        total += count;
        const int64_t row = c.rows.get(place);
        if (row < 0 || row >= c.table_rows) throw std::out_of_range("row of a table that has fewer");
        if (c.computed[row] < 0 || c.computed[row] + count > c.tokens_width)
            throw std::out_of_range("token of a row that has fewer");
    }
    if (total > c.num_tokens) throw std::out_of_range("more tokens than the step has room for");
}

} // namespace

void build_batch(const BatchCall& c) {
    check(c);
    int64_t token = 0;
    for (int64_t place = 0; place < c.num_rows; ++place) {
        c.query_start[place] = static_cast<int32_t>(token);
        const int64_t count = c.counts.get(place);
        if (count <= 0) {
            c.seq_lens[place] = 0;
            for (const Group& group : c.groups)
                if (group.gathered_width > 0) group.gathered[place * group.gathered_stride] = 0;
            continue;
        }
        const int64_t row = c.rows.get(place), first = c.computed[row], length = first + count;
        c.computed[row] = length;
        c.seq_lens[place] = static_cast<int32_t>(length);
        const int32_t* ids = c.tokens + row * c.tokens_stride;
        for (int64_t i = 0; i < count; ++i) {
            c.input_ids.set(token + i, ids[first + i]);
            c.positions[token + i] = first + i;
            c.row_of_token[token + i] = place;
        }
        for (const Group& group : c.groups) {
            const int32_t* table = group.table + row * group.table_stride;
            int64_t column = first / c.block_size, offset = first % c.block_size;
            for (int64_t i = 0; i < count; ++i) {
                const int64_t block = table[lower(column, group.table_width - 1)];
                group.slots[token + i] = block * c.block_size + offset;
                if (++offset == c.block_size) offset = 0, ++column;
            }
            const int64_t blocks = lower((length + c.block_size - 1) / c.block_size,
                                         lower(group.gathered_width, group.table_width));
            if (blocks > 0)
                std::memcpy(group.gathered + place * group.gathered_stride, table, static_cast<size_t>(blocks) * 4);
        }
        token += count;
    }
    c.query_start[c.num_rows] = static_cast<int32_t>(token);
    for (; token < c.num_tokens; ++token) {
        c.input_ids.set(token, 0);
        c.positions[token] = 0;
        c.row_of_token[token] = c.num_rows;
        for (const Group& group : c.groups) group.slots[token] = -1;
    }
}

void append_sampled(const AppendCall& c) {
    for (int64_t i = 0; i < c.num_rows; ++i) {
        const int64_t row = c.rows.get(i);
        if (row < 0) continue;
        if (row >= c.table_rows || c.length[row] < 0 || c.length[row] >= c.tokens_width)
            throw std::out_of_range("token past the end of a row");
        c.tokens[row * c.tokens_stride + c.length[row]++] = static_cast<int32_t>(c.ids.get(i));
    }
}

} // namespace octavo
