// Attention over the paged cache: what the driver (attention.cpp) and the kernels of each instruction set share.
//
// Queries are packed: query head n reads key head n / group, so key head h has `group` queries of each token, and those
// of a row's tokens are counted through, token by token: packed query p is head h * group + p % group of the row's token
// p / group. Weights are powers of 2: exp(score) = 2^(score * log2(e)).
#pragma once

#include <cstdint>

#include "numbers.h"

namespace octavo {

// One call's constants. Strides are in numbers; the last dimension of tensors is contiguous.
struct Attention {
    const void* q; // [tokens, heads, head_dim]
    Number q_type;
    int64_t q_token, q_head; // strides
    const void* cache; // [blocks, 2, block_size, key_heads, head_dim]; of i8 a head's scale follows it
    Number cache_type;
    int64_t block, kv, slot, head; // strides
    const int32_t* table;          // [rows, table_width]
    int64_t table_stride, table_width;
    const int32_t *query_start, *seq_lens; // [rows + 1], [rows]
    int64_t rows, tokens, heads, key_heads, head_dim, block_size;
    float scale;      // above 0
    int64_t window;   // 0 is none
    float soft_cap;   // 0 is none
    const void* sinks; // [heads], may be null
    Number sink_type;
    void* out; // contiguous [tokens, heads, head_dim] of q's type

    int64_t group() const { return heads / key_heads; }
};

// What queries have after some of the keys they see: float32 [heads][queries][head_dim] sums of weighted values, then
// [heads][queries] the maxima that weights are relative to, then as many sums of weights.
struct Partial {
    float* data;            // null: none
    int64_t head, heads;    // key heads
    int64_t query, queries; // packed queries of each

    int64_t count() const { return heads * queries; }
    int64_t index(int64_t of_head, int64_t of_query) const { return (of_head - head) * queries + of_query - query; }
};

// What one thread computes at a time: some packed queries of one row, over some of the keys they see. Or of several rows,
// one token each, over keys that all of them have in the same blocks.
struct Piece {
    const int32_t* table; // the row's
    int64_t token;        // the row's first token among q
    const int32_t* tokens; // of several rows: the token of each; else null
    int64_t first;        // its position; below 0 where a row has more queries than tokens, which then see nothing
    int64_t head, heads;  // key heads
    int64_t query, queries; // packed queries of each of them; a multiple of 16 first
    int64_t key, key_end; // positions; those beyond what a query sees are left out for it
    bool is_first;        // of the pieces of these queries: sinks count here
    bool is_streamed;     // all queries of one token, which `stream` computes
    Partial partial; // where its result goes if there are more keys than these
    Partial before;  // what its queries have already: a streamed piece only
};

struct AttentionKernels {
    // Each key and value is read once for the queries of one token, `queries` of which there are few; head_dim is a
    // multiple of 32. Of the piece that this thread streams next, if one is known, the first keys are asked for.
    void (*stream)(const Attention&, const Piece&, const Piece* upcoming);
    // Tiles of 16 queries, any number.
    void (*tiles)(const Attention&, const Piece&);
    // Joins `parts` of a piece, `stride` numbers apart from its `partial` on, into out.
    void (*merge)(const Attention&, const Piece&, int64_t parts, int64_t stride);
    int64_t most_streamed;       // queries of a key head up to which `stream` is quicker
    int64_t most_streamed_short; // where queries are bf16 and the cache bf16 or i8
    bool has_short_tiles;        // that multiply bf16, for the same
};

extern const AttentionKernels generic_attention, avx2_attention, avx512_attention, amx_attention;

// About how many operations it is.
int64_t work_of(const Attention&);
// Throws std::out_of_range where starts or lengths do not fit q and the table.
void attend(const Attention&);

} // namespace octavo
