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
constexpr int64_t least_keys = 128;     // of a part, and what its number of keys is a multiple of
constexpr int64_t least_cost = 20000;   // cycles of a piece: below, handing it to a thread costs as much
constexpr int64_t pieces_a_thread = 4;

struct Task {
    Piece piece;
    int64_t cost;
    int64_t parts;   // which of these it is one of, or -1
    int64_t partial; // where its part is, in numbers
};

struct Parts { // tasks that differ in their keys only
    int64_t first, count, stride;
};

struct Plan {
    std::vector<Task> tasks;
    std::vector<int64_t> order;
    std::vector<Parts> parts;
    int64_t num_partial; // numbers of all parts together
};

struct Row {
    int64_t token, queries, first, length; // queries: tokens
    const int32_t* table;
};

class Planner {
  public:
    Planner(const Attention& a, const AttentionKernels& kernel, Plan& plan) : a_(a), plan_(plan), threads_(num_threads()) {
        const bool is_short = a.q_type == Number::bf16 && a.cache_type == Number::bf16;
        most_streamed_ = a.head_dim % 32 ? 0 : is_short ? kernel.most_streamed_short : kernel.most_streamed;
        // Roughly in cycles, for one key of one head; the divisions between threads are the same if all are wrong alike.
        stream_cost_ = a.head_dim / 8 + a.group() * a.head_dim / 16;
        tile_cost_ = kernel.has_short_tiles && is_short ? a.head_dim / 8 + 5 : a.head_dim + 10;
    }

    void fill() {
        plan_.tasks.clear(), plan_.order.clear(), plan_.parts.clear();
        plan_.num_partial = 0;
        int64_t total = 0;
        for (int64_t r = 0; r < a_.rows; ++r) total += cost(row(r));
        target_ = threads_ == 1 ? INT64_MAX : std::max(least_cost, total / (threads_ * pieces_a_thread));
        for (int64_t r = 0; r < a_.rows; ++r) add(row(r));
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
        return {begin, end - begin, length - (end - begin), length, a_.table + r * a_.table_stride};
    }

    bool is_streamed(const Row& row) const { return row.queries == 1 && a_.group() <= most_streamed_; }

    int64_t first_key(int64_t position) const { return a_.window > 0 ? std::max<int64_t>(0, position - a_.window + 1) : 0; }

    int64_t cost(const Row& row) const {
        if (row.queries == 0) return 0;
        if (is_streamed(row)) return a_.key_heads * stream_cost_ * (row.length - first_key(row.length - 1)) + 500;
        const int64_t tiles = (row.queries * a_.group() + 15) / 16;
        const int64_t keys = row.length - row.queries / 2 - first_key(row.length - row.queries / 2); // on average
        return a_.key_heads * tiles * (tile_cost_ * std::max<int64_t>(keys, 0) + 500);
    }

    void add(const Row& row) {
        if (row.queries == 0) return;
        if (is_streamed(row)) {
            divide(row, 0, a_.key_heads, 0, a_.group(), a_.key_heads * stream_cost_);
            return;
        }
        const int64_t queries = row.queries * a_.group(), tiles = (queries + 15) / 16;
        const int64_t wanted = target_ == INT64_MAX ? 1 : cost(row) / target_ + 1; // pieces
        int64_t together = std::min(tiles, most_tiles);
        while (together > 2 && a_.key_heads * ((tiles + together - 1) / together) < wanted) together = (together + 1) / 2;
        // few tiles: several heads are one piece
        int64_t heads = 1;
        if (tiles <= together) heads = std::max<int64_t>(1, a_.key_heads / std::min(wanted, a_.key_heads));
        for (int64_t head = 0; head < a_.key_heads; head += heads) {
            const int64_t here = std::min(heads, a_.key_heads - head);
            for (int64_t tile = 0; tile < tiles; tile += together) {
                const int64_t query = 16 * tile, count = std::min(16 * together, queries - query);
                divide(row, head, here, query, count, here * ((count + 15) / 16) * tile_cost_);
            }
        }
    }

    // A piece, or several that share its keys.
    void divide(const Row& row, int64_t head, int64_t heads, int64_t query, int64_t queries, int64_t key_cost) {
        const int64_t last = row.first + (query + queries - 1) / a_.group();
        const int64_t begin = first_key(row.first + query / a_.group()), end = std::max(begin, last + 1);
        int64_t count = 1;
        if (target_ != INT64_MAX && (end - begin) * key_cost > target_ + target_ / 2)
            count = std::min((end - begin) * key_cost / target_ + 1, (end - begin) / least_keys);
        count = std::max<int64_t>(count, 1);
        const int64_t keys = ((end - begin + count - 1) / count + least_keys - 1) / least_keys * least_keys;
        if (count > 1) count = (end - begin + keys - 1) / keys;
        Piece piece{row.table, row.token, row.first, head, heads, query, queries, begin, end, true, is_streamed(row), nullptr};
        const int64_t stride = (piece.num_partial() * (a_.head_dim + 2) + 15) / 16 * 16;
        const int64_t parts = count > 1 ? static_cast<int64_t>(plan_.parts.size()) : -1;
        if (count > 1) plan_.parts.push_back({static_cast<int64_t>(plan_.tasks.size()), count, stride});
        for (int64_t part = 0; part < count; ++part) {
            if (count > 1) {
                piece.key = begin + part * keys, piece.key_end = std::min(end, begin + (part + 1) * keys);
                piece.is_first = part == 0;
            }
            plan_.order.push_back(static_cast<int64_t>(plan_.tasks.size()));
            plan_.tasks.push_back({piece, (piece.key_end - piece.key) * key_cost, parts, plan_.num_partial});
            if (count > 1) plan_.num_partial += stride;
        }
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
    if (!plan.parts.empty()) {
        float* partial = static_cast<float*>(scratch(0, static_cast<size_t>(plan.num_partial) * sizeof(float)));
        for (Task& task : plan.tasks)
            if (task.parts >= 0) task.piece.partial = partial + task.partial;
        left.reset(new std::atomic<int64_t>[plan.parts.size()]);
        for (size_t i = 0; i < plan.parts.size(); ++i) left[i] = plan.parts[i].count;
    }
    const Task* tasks = plan.tasks.data(); // the plan is the caller's: another thread has one of its own
    int64_t* order = plan.order.data();
    const int64_t num_tasks = static_cast<int64_t>(plan.tasks.size());
    if (num_threads() > 1) // the longest first, so that threads end together
        std::sort(order, order + num_tasks, [&](int64_t i, int64_t j) {
            return tasks[i].cost != tasks[j].cost ? tasks[i].cost > tasks[j].cost : i < j;
        });
    const Parts* parts = plan.parts.data();
    parallel_for(num_tasks, 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            const Task& task = tasks[order[i]];
            (task.piece.is_streamed ? kernel.stream : kernel.tiles)(a, task.piece);
            if (task.parts < 0 || left[static_cast<size_t>(task.parts)].fetch_sub(1, std::memory_order_acq_rel) > 1) continue;
            const Parts& all = parts[task.parts];
            kernel.merge(a, tasks[all.first].piece, all.count, all.stride);
        }
    });
}

} // namespace octavo
