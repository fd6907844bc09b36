#include "threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>

#if defined(__linux__)
#include <cstring>
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#endif

namespace octavo {
namespace {

constexpr auto spin_time = std::chrono::microseconds(80); // longer than Python takes between two kernels

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A range in as many parts as there are threads, up to a number: a thread works on its own part first, so that rows stay
// in its cache from one job to the next, and then helps with the others'.
struct Job {
    static constexpr int64_t most_parts = 16; // setting one up costs what it costs to take a line from its owner
    struct alignas(64) Part {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };

    void start(int64_t threads, int64_t number, int64_t piece, RangeFunction f, void* with) {
        function = f, context = with, n = number, grain = piece;
        count = threads < most_parts ? threads : most_parts;
        const int64_t pieces = (n + grain - 1) / grain;
        for (int64_t p = 0; p < count; ++p) {
            const int64_t end = pieces * (p + 1) / count * grain;
            parts[p].end = end < n ? end : n;
            parts[p].next.store(pieces * p / count * grain, std::memory_order_relaxed);
        }
    }

    void take_part(int64_t thread) {
        for (int64_t p = 0; p < count; ++p) {
            Part& part = parts[(thread + p) % count];
            const int64_t end = part.end;
            if (part.next.load(std::memory_order_relaxed) >= end) continue;
            for (;;) {
                const int64_t begin = part.next.fetch_add(grain, std::memory_order_relaxed);
                if (begin >= end) break;
                function(context, begin, begin + grain < end ? begin + grain : end);
            }
        }
    }

    RangeFunction function = nullptr;
    void* context = nullptr;
    int64_t n = 0, grain = 1, count = 0;
    Part parts[most_parts];
};

void pin(std::thread& thread, int cpu) {
    if (cpu < 0) return;
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(thread.native_handle(), sizeof set, &set); // where it fails the thread just floats
#else
    (void)thread, (void)cpu;
#endif
}

// A job is open while the caller works on it. A worker that comes late finds it closed and is not waited for, so one
// that sleeps costs nothing.
//   state: bit 0 open | bits 1 to 15 workers inside | bits 16 and up the job's number
class OwnThreads {
  public:
    explicit OwnThreads(const std::vector<int>& cpus) {
        for (size_t i = 1; i < cpus.size(); ++i) {
            threads_.emplace_back([this, i] { work(static_cast<int64_t>(i)); });
            pin(threads_.back(), cpus[i]);
        }
    }

    ~OwnThreads() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    void run(int64_t n, int64_t grain, RangeFunction function, void* context) {
        job_.start(static_cast<int64_t>(threads_.size()) + 1, n, grain, function, context);
        const uint64_t number = (state_.load(std::memory_order_relaxed) >> 16) + 1;
        state_.store(number << 16 | 1); // sequentially consistent, as is reading sleepers_: one side sees the other
        if (sleepers_.load() > 0) {
            std::lock_guard<std::mutex> lock(mutex_);
            wake_.notify_all();
        }
        job_.take_part(0);
        state_.fetch_and(~uint64_t{1}, std::memory_order_acq_rel);
        for (int spins = 0; state_.load(std::memory_order_acquire) & 0xfffe; ++spins) {
            pause();
            if (spins > 10000) std::this_thread::yield(); // the other lost its core to another program
        }
    }

  private:
    void work(int64_t thread) {
        uint64_t seen = 0;
        for (;;) {
            const uint64_t number = wait_for_job(seen);
            if (number == 0) return;
            seen = number;
            if (!enter(number)) continue;
            job_.take_part(thread);
            state_.fetch_sub(2, std::memory_order_release);
        }
    }

    bool enter(uint64_t number) {
        uint64_t state = state_.load(std::memory_order_acquire);
        while (state >> 16 == number && (state & 1))
            if (state_.compare_exchange_weak(state, state + 2, std::memory_order_acquire)) return true;
        return false;
    }

    // The number of a job after `seen`; 0 to stop.
    uint64_t wait_for_job(uint64_t seen) {
        const auto until = std::chrono::steady_clock::now() + spin_time;
        do {
            for (int i = 0; i < 32; ++i) {
                const uint64_t number = state_.load(std::memory_order_relaxed) >> 16;
                if (number != seen) return number;
                pause();
            }
        } while (std::chrono::steady_clock::now() < until);
        std::unique_lock<std::mutex> lock(mutex_);
        ++sleepers_;
        wake_.wait(lock, [&] { return stop_ || state_.load() >> 16 != seen; });
        --sleepers_;
        return stop_ ? 0 : state_.load() >> 16;
    }

    Job job_;
    alignas(64) std::atomic<uint64_t> state_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    bool stop_ = false; // under mutex_
    std::vector<std::thread> threads_;
};

// void GOMP_parallel(function, data, number of threads, flags): GNU's runtime has it, and LLVM's and Intel's too.
using OpenMpParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

OpenMpParallel find_openmp() {
#if defined(__linux__)
    // Python loads libraries out of sight of one another, so those that are there are looked through by name.
    void* found = nullptr;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* result) {
            const char* path = info->dlpi_name;
            const char* file = path == nullptr ? nullptr : std::strrchr(path, '/');
            file = file == nullptr ? path : file + 1;
            if (file == nullptr || (std::strncmp(file, "libgomp", 7) && std::strncmp(file, "libiomp5", 8) &&
                                    std::strncmp(file, "libomp", 6)))
                return 0;
            void* library = dlopen(path, RTLD_NOLOAD | RTLD_LAZY);
            if (library == nullptr) return 0;
            void* symbol = dlsym(library, "GOMP_parallel");
            dlclose(library); // it stays: others hold it
            *static_cast<void**>(result) = symbol;
            return symbol != nullptr ? 1 : 0;
        },
        &found);
    return reinterpret_cast<OpenMpParallel>(found);
#else
    return nullptr;
#endif
}

struct Pool {
    int size = 1;
    std::unique_ptr<OwnThreads> own;
    OpenMpParallel openmp = nullptr;
};

Pool* pool = nullptr; // never destroyed: at exit its threads may not be joined any more
std::atomic<bool> busy{false};

#if defined(__linux__)
void after_fork() { // the child has none of the threads
    pool = nullptr;
    busy = false;
}
#endif

} // namespace

void start_threads(const std::vector<int>& cpus, const std::string& kind) {
    if (cpus.empty() || cpus.size() > 1024) throw std::invalid_argument("a pool has 1 to 1024 threads");
    auto made = std::make_unique<Pool>();
    made->size = static_cast<int>(cpus.size());
    if (kind == "openmp") {
        made->openmp = find_openmp();
        if (made->openmp == nullptr) throw std::invalid_argument("no OpenMP runtime is loaded in this process");
    } else if (kind == "own") {
        if (cpus.size() > 1) made->own = std::make_unique<OwnThreads>(cpus);
    } else {
        throw std::invalid_argument("threads are own or openmp, not " + kind);
    }
#if defined(__linux__)
    static const int registered = pthread_atfork(nullptr, nullptr, after_fork);
    (void)registered;
#endif
    while (busy.exchange(true)) std::this_thread::yield();
    Pool* old = pool;
    pool = made.release();
    busy = false;
    delete old;
}

int num_threads() { return pool == nullptr ? 1 : pool->size; }

std::string threads_kind() { return pool != nullptr && pool->openmp != nullptr ? "openmp" : "own"; }

void run_ranges(int64_t n, int64_t grain, RangeFunction function, void* context) {
    if (n <= 0) return;
    if (n <= grain || pool == nullptr || pool->size == 1 || busy.exchange(true, std::memory_order_acquire)) {
        function(context, 0, n);
        return;
    }
    if (pool->openmp != nullptr) {
        struct Shared {
            Job job;
            std::atomic<int64_t> entered{0};
        } shared;
        shared.job.start(pool->size, n, grain, function, context);
        pool->openmp(
            [](void* data) {
                Shared& all = *static_cast<Shared*>(data);
                all.job.take_part(all.entered.fetch_add(1, std::memory_order_relaxed));
            },
            &shared, static_cast<unsigned>(pool->size), 0);
    } else {
        pool->own->run(n, grain, function, context);
    }
    busy.store(false, std::memory_order_release);
}

} // namespace octavo
