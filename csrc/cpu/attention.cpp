#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "linear.h" // scratch
#include "threads.h"

namespace octavo {
namespace {

const AttentionKernels& kernels() {
    switch (active()) {
#if defined(OCTAVO_AMX)
    case Isa::amx: return amx_attention;
#endif
#if defined(OCTAVO_AVX512)
    case Isa::avx512: return avx512_attention;
#endif
#if defined(OCTAVO_AVX2)
    case Isa::avx2: return avx2_attention;
#endif
    default: return generic_attention;
    }
}

constexpr int64_t most_tiles = 16;       // of a piece: keys are put in order once for all of them
constexpr int64_t least_keys = 64;     // of a part, and what its number of keys is a multiple of
constexpr int64_t least_cost = 5000;    // cycles of a piece: below, handing it to a thread costs as much
constexpr int64_t pieces_a_thread = 4;

struct Task {
    Piece piece;
    int64_t cost;
    int64_t parts;           // which of these it is one of, or -1
    int64_t partial, before; // where those are, in numbers, or -1
};

struct Parts { // tasks that differ in their keys only
    int64_t first, count, stride;
};

struct Row {
    int64_t token, queries, first, length; // queries: tokens
    const int32_t* table;
    int64_t shared; // keys that are computed for a group of rows
    Partial before; // what comes of them, without the address,
    int64_t place;  // but where it is, in numbers
};

// Rows of one token whose first keys lie in the same blocks: these are computed for all of them at once, in tiles, and
// each row goes on from there.
struct Group {
    size_t begin, end; // of the plan's members
    int64_t keys;
};

struct Plan {
    std::vector<Task> tasks;
    int64_t num_shared; // the first of them, whose results the others read
    std::vector<int64_t> order;
    std::vector<Parts> parts;
    int64_t num_partial;         // numbers of all partial results together
    std::vector<int32_t> tokens; // of rows that share keys, group by group
    std::vector<Row> rows;
    std::vector<size_t> members; // rows that may share keys, those with the same first block side by side
    std::vector<Group> groups;

    void clear() {
        tasks.clear(), order.clear(), parts.clear(), tokens.clear(), rows.clear(), members.clear(), groups.clear();
        num_shared = num_partial = 0;
    }
};

class Planner {
  public:
    Planner(const Attention& a, const AttentionKernels& kernel, Plan& plan) : a_(a), plan_(plan), threads_(num_threads()) {
        const bool is_short = a.q_type == Number::bf16 && (a.cache_type == Number::bf16 || a.cache_type == Number::i8);
        most_streamed_ = a.head_dim % 32 ? 0 : is_short ? kernel.most_streamed_short : kernel.most_streamed;
        // Roughly in cycles, for one key of one head; the divisions between threads are the same if all are wrong alike.
        stream_cost_ = a.head_dim / 8 + a.group() * a.head_dim / 16;
        tile_cost_ = kernel.has_short_tiles && is_short ? a.head_dim / 8 + 5 : a.head_dim + 10;
    }

    void fill() {
        plan_.clear();
        for (int64_t r = 0; r < a_.rows; ++r) plan_.rows.push_back(row(r));
        find_groups();
        int64_t total = 0;
        for (const Row& row : plan_.rows) total += cost(row);
        for (const Group& group : plan_.groups) total += cost(group);
        target_ = threads_ == 1 ? INT64_MAX : std::max(least_cost, total / (threads_ * pieces_a_thread));
        for (const Group& group : plan_.groups) add(group);
        plan_.num_shared = static_cast<int64_t>(plan_.tasks.size());
        for (const Row& row : plan_.rows) add(row);
    }

  private:
    Row row(int64_t r) const {
        const int64_t begin = a_.query_start[r], end = a_.query_start[r + 1], length = a_.seq_lens[r];
        if (begin < 0 || begin > end || end > a_.tokens)
            throw std::out_of_range("row " + std::to_string(r) + " has tokens " + std::to_string(begin) + " to " +
                                    std::to_string(end) + " of " + std::to_string(a_.tokens));
        if (begin < end && length > a_.table_width * a_.block_size)
            throw std::out_of_range("row " + std::to_string(r) + " has " + std::to_string(length) +
                                    " tokens, and blocks for " + std::to_string(a_.table_width * a_.block_size));
        return {begin, end - begin, length - (end - begin), length, a_.table + r * a_.table_stride, 0, {}, -1};
    }

    bool is_streamed(const Row& row) const { return row.queries == 1 && a_.group() <= most_streamed_; }

    int64_t first_key(int64_t position) const { return a_.window > 0 ? std::max<int64_t>(0, position - a_.window + 1) : 0; }

    // By their first block; rows of a group share as many as all of them do.
    void find_groups() {
        if (a_.window > 0) return;
        std::vector<Row>& rows = plan_.rows;
        std::vector<size_t>& members = plan_.members;
        for (size_t r = 0; r < rows.size(); ++r)
            if (is_streamed(rows[r]) && rows[r].length > least_keys) members.push_back(r);
        std::sort(members.begin(), members.end(), [&](size_t i, size_t j) {
            const int32_t first = rows[i].table[0], second = rows[j].table[0];
            return first != second ? first < second : i < j;
        });
        for (size_t begin = 0, end; begin < members.size(); begin = end) {
            const Row& leader = rows[members[begin]];
            int64_t blocks = (leader.length - 1) / a_.block_size; // its own token's key is its own
            for (end = begin + 1; end < members.size(); ++end) {
                const Row& row = rows[members[end]];
                if (row.table[0] != leader.table[0]) break;
                const int64_t most = std::min(blocks, (row.length - 1) / a_.block_size);
                for (blocks = 1; blocks < most && row.table[blocks] == leader.table[blocks];) ++blocks;
                blocks = std::min(blocks, most);
            }
            const Group group{begin, end, blocks * a_.block_size};
            const int64_t apart = static_cast<int64_t>(end - begin) * a_.key_heads * stream_cost_ * group.keys;
            if (end - begin < 2 || group.keys < least_keys || cost(group) + least_cost > apart) continue;
            plan_.groups.push_back(group);
            const int64_t queries = static_cast<int64_t>(end - begin) * a_.group();
            for (size_t i = begin; i < end; ++i) {
                Row& row = rows[members[i]];
                row.shared = group.keys, row.place = plan_.num_partial;
                row.before = {nullptr, 0, a_.key_heads, -static_cast<int64_t>(i - begin) * a_.group(), queries};
            }
            plan_.num_partial += numbers(row_of(group).before);
        }
    }

    const Row& row_of(const Group& group) const { return plan_.rows[plan_.members[group.begin]]; }

    int64_t numbers(const Partial& partial) const { return (partial.count() * (a_.head_dim + 2) + 15) / 16 * 16; }

    int64_t tiles_cost(int64_t tiles, int64_t keys) const {
        return a_.key_heads * tiles * (tile_cost_ * std::max<int64_t>(keys, 0) + 500);
    }

    int64_t cost(const Group& group) const {
        return tiles_cost((static_cast<int64_t>(group.end - group.begin) * a_.group() + 15) / 16, group.keys);
    }

    int64_t cost(const Row& row) const {
        if (row.queries == 0) return 0;
        if (is_streamed(row))
            return a_.key_heads * stream_cost_ * (row.length - std::max(row.shared, first_key(row.length - 1))) + 500;
        const int64_t keys = row.length - row.queries / 2 - first_key(row.length - row.queries / 2); // on average
        return tiles_cost((row.queries * a_.group() + 15) / 16, keys);
    }

    void add(const Group& group) {
        const Row& leader = row_of(group);
        const size_t first = plan_.tokens.size();
        for (size_t i = group.begin; i < group.end; ++i)
            plan_.tokens.push_back(static_cast<int32_t>(plan_.rows[plan_.members[i]].token));
        Piece piece{};
        piece.table = leader.table;
        piece.token = static_cast<int64_t>(first); // where its tokens begin: their address follows when all are there
        piece.first = piece.key_end = group.keys;  // behind all keys, so that every query sees them
        piece.is_first = true, piece.partial = leader.before;
        in_tiles(leader.before.queries, cost(group), [&](int64_t head, int64_t heads, int64_t query, int64_t queries) {
            piece.head = head, piece.heads = heads, piece.query = query, piece.queries = queries;
            push({piece, heads * ((queries + 15) / 16) * tile_cost_ * group.keys, -1, leader.place, -1});
        });
    }

    void add(const Row& row) {
        if (row.queries == 0) return;
        if (is_streamed(row)) {
            divide(row, 0, a_.key_heads, 0, a_.group(), a_.key_heads * stream_cost_);
            return;
        }
        in_tiles(row.queries * a_.group(), cost(row), [&](int64_t head, int64_t heads, int64_t query, int64_t queries) {
            divide(row, head, heads, query, queries, heads * ((queries + 15) / 16) * tile_cost_);
        });
    }

    // Cuts queries of all heads into pieces of tiles.
    template <class F>
    void in_tiles(int64_t queries, int64_t cost, F&& piece) {
        const int64_t tiles = (queries + 15) / 16, wanted = target_ == INT64_MAX ? 1 : cost / target_ + 1; // pieces
        int64_t together = std::min(tiles, most_tiles);
        while (together > 2 && a_.key_heads * ((tiles + together - 1) / together) < wanted) together = (together + 1) / 2;
        // few tiles: several heads are one piece
        int64_t heads = 1;
        if (tiles <= together) heads = std::max<int64_t>(1, a_.key_heads / std::min(wanted, a_.key_heads));
        for (int64_t head = 0; head < a_.key_heads; head += heads)
            for (int64_t tile = 0; tile < tiles; tile += together)
                piece(head, std::min(heads, a_.key_heads - head), 16 * tile,
                      std::min(16 * together, queries - 16 * tile));
    }

    // A piece, or several that share its keys.
    void divide(const Row& row, int64_t head, int64_t heads, int64_t query, int64_t queries, int64_t key_cost) {
        const int64_t last = row.first + (query + queries - 1) / a_.group();
        const int64_t begin = std::max(row.shared, first_key(row.first + query / a_.group()));
        const int64_t end = std::max(begin, last + 1);
        int64_t count = 1;
        if (target_ != INT64_MAX && (end - begin) * key_cost > target_ + target_ / 2)
            count = std::min((end - begin) * key_cost / target_ + 1, (end - begin) / least_keys);
        count = std::max<int64_t>(count, 1);
        const int64_t keys = ((end - begin + count - 1) / count + least_keys - 1) / least_keys * least_keys;
        if (count > 1) count = (end - begin + keys - 1) / keys;
        const bool is_divided = count > 1;
        Piece piece{row.table, row.token, nullptr, row.first, head, heads, query, queries,
                    begin,     end,       true,    is_streamed(row), {}, row.before};
        if (is_divided) piece.partial = {nullptr, head, heads, query, queries};
        const int64_t stride = numbers(piece.partial);
        const int64_t parts = is_divided ? static_cast<int64_t>(plan_.parts.size()) : -1;
        if (is_divided) plan_.parts.push_back({static_cast<int64_t>(plan_.tasks.size()), count, stride});
        for (int64_t part = 0; part < count; ++part) {
            if (is_divided) {
                piece.key = begin + part * keys, piece.key_end = std::min(end, begin + (part + 1) * keys);
                piece.is_first = part == 0;
            }
            push({piece, (piece.key_end - piece.key) * key_cost, parts, is_divided ? plan_.num_partial : -1,
                  part == 0 ? row.place : -1});
            if (is_divided) plan_.num_partial += stride;
        }
    }

    void push(const Task& task) {
        plan_.order.push_back(static_cast<int64_t>(plan_.tasks.size()));
        plan_.tasks.push_back(task);
    }

    const Attention& a_;
    Plan& plan_;
    int64_t threads_, most_streamed_, stream_cost_, tile_cost_, target_ = 0;
};

} // namespace

int64_t work_of(const Attention& a) {
    int64_t work = 0;
    for (int64_t r = 0; r < a.rows; ++r)
        work += static_cast<int64_t>(a.query_start[r + 1] - a.query_start[r]) * a.seq_lens[r];
    return work * a.heads * a.head_dim * 4;
}

void attend(const Attention& a) {
    static thread_local Plan plan;
    const AttentionKernels& kernel = kernels();
    Planner(a, kernel, plan).fill();

    // Tokens of no row, which padded steps have after the last.
    const int64_t token_bytes = a.heads * a.head_dim * size_of(a.q_type);
    const int64_t begin = a.rows > 0 ? a.query_start[0] : a.tokens, end = a.rows > 0 ? a.query_start[a.rows] : a.tokens;
    char* out = static_cast<char*>(a.out);
    if (begin > 0) std::memset(out, 0, static_cast<size_t>(begin * token_bytes));
    if (end < a.tokens) std::memset(out + end * token_bytes, 0, static_cast<size_t>((a.tokens - end) * token_bytes));

    std::unique_ptr<std::atomic<int64_t>[]> left;
    if (plan.num_partial > 0) {
        float* partial = static_cast<float*>(scratch(0, static_cast<size_t>(plan.num_partial) * sizeof(float)));
        for (Task& task : plan.tasks) {
            if (task.partial >= 0) task.piece.partial.data = partial + task.partial;
            if (task.before >= 0) task.piece.before.data = partial + task.before;
        }
        for (int64_t i = 0; i < plan.num_shared; ++i) {
            Piece& piece = plan.tasks[static_cast<size_t>(i)].piece;
            piece.tokens = plan.tokens.data() + piece.token;
        }
    }
    if (!plan.parts.empty()) {
        left.reset(new std::atomic<int64_t>[plan.parts.size()]);
        for (size_t i = 0; i < plan.parts.size(); ++i) left[i] = plan.parts[i].count;
    }
    const Task* tasks = plan.tasks.data(); // the plan is the caller's: another thread has one of its own
    int64_t* order = plan.order.data();
    const Parts* parts = plan.parts.data();
    const int64_t threads = num_threads();
    const auto run = [&](int64_t begin, int64_t end) {
        if (threads > 1) // the longest first, so that threads end together
            std::sort(order + begin, order + end, [&](int64_t i, int64_t j) {
                return tasks[i].cost != tasks[j].cost ? tasks[i].cost > tasks[j].cost : i < j;
            });
        std::atomic<int64_t> claimed{begin};
        parallel_for(std::min(threads, end - begin), 1, [&](int64_t, int64_t) {
            int64_t i = claimed.fetch_add(1, std::memory_order_relaxed);
            while (i < end) {
                const Task& task = tasks[order[i]];
                // while many are left a thread knows its next one ahead
                const bool is_known = end - claimed.load(std::memory_order_relaxed) > 2 * threads;
                const int64_t next = is_known ? claimed.fetch_add(1, std::memory_order_relaxed) : end;
                if (task.piece.is_streamed) {
                    const Piece* upcoming = next < end ? &tasks[order[next]].piece : nullptr;
                    kernel.stream(a, task.piece, upcoming != nullptr && upcoming->is_streamed ? upcoming : nullptr);
                } else {
                    kernel.tiles(a, task.piece);
                }
                const auto is_last_part = [&] {
                    return left[static_cast<size_t>(task.parts)].fetch_sub(1, std::memory_order_acq_rel) == 1;
                };
                if (task.parts >= 0 && is_last_part()) {
                    const Parts& all = parts[task.parts];
                    kernel.merge(a, tasks[all.first].piece, all.count, all.stride);
                }
                i = is_known ? next : claimed.fetch_add(1, std::memory_order_relaxed);
            }
        });
    };
    run(0, plan.num_shared);
    run(plan.num_shared, static_cast<int64_t>(plan.tasks.size()));
}

} // namespace octavo
