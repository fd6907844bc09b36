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

struct Job {
    RangeFunction function = nullptr;
    void* context = nullptr;
    int64_t n = 0, grain = 1;
    alignas(64) std::atomic<int64_t> next{0};

    void take_part() {
        for (;;) {
            const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
            if (begin >= n) return;
            function(context, begin, begin + grain < n ? begin + grain : n);
        }
    }
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
            threads_.emplace_back([this] { work(); });
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
        job_.function = function, job_.context = context, job_.n = n, job_.grain = grain;
        job_.next.store(0, std::memory_order_relaxed);
        const uint64_t number = (state_.load(std::memory_order_relaxed) >> 16) + 1;
        state_.store(number << 16 | 1); // sequentially consistent, as is reading sleepers_: one side sees the other
        if (sleepers_.load() > 0) {
            std::lock_guard<std::mutex> lock(mutex_);
            wake_.notify_all();
        }
        job_.take_part();
        state_.fetch_and(~uint64_t{1}, std::memory_order_acq_rel);
        for (int spins = 0; state_.load(std::memory_order_acquire) & 0xfffe; ++spins) {
            pause();
            if (spins > 10000) std::this_thread::yield(); // the other lost its core to another program
        }
    }

  private:
    void work() {
        uint64_t seen = 0;
        for (;;) {
            const uint64_t number = wait_for_job(seen);
            if (number == 0) return;
            seen = number;
            if (!enter(number)) continue;
            job_.take_part();
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
        Job job;
        job.function = function, job.context = context, job.n = n, job.grain = grain;
        pool->openmp([](void* data) { static_cast<Job*>(data)->take_part(); }, &job,
                     static_cast<unsigned>(pool->size), 0);
    } else {
        pool->own->run(n, grain, function, context);
    }
    busy.store(false, std::memory_order_release);
}

} // namespace octavo
