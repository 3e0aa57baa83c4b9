#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace phial {
namespace {

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

// A pause is some 10-40 ns. Threads of a step reach a barrier microseconds apart unless the system took a core away;
// between two tokens, sampling and Python take about 100 us.
constexpr int BARRIER_SPINS = 1000, YIELDS = 50, IDLE_SPINS = 5000;

template <class T> void wait_while(const std::atomic<T>& value, T old, int spins) {
    for (int i = 0; i < spins; i++) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause();
    }
    for (int i = 0; i < YIELDS; i++) {
        if (value.load(std::memory_order_acquire) != old) return;
        std::this_thread::yield();
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) {
    if (n_threads > MAX_THREADS) n_threads = MAX_THREADS;
    for (int i = 1; i < n_threads; i++) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
    stop_ = true;
    generation_.fetch_add(1u << 8, std::memory_order_release);
    generation_.notify_all();
    for (auto& t : workers_) t.join();
}

void ThreadPool::run(int n, const std::function<void(int)>& body) {
    active_ = n < size() ? n : size();
    body_ = &body;
    if (active_ > 1) {
        running_.store(active_ - 1, std::memory_order_relaxed);
        const uint32_t count = generation_.load(std::memory_order_relaxed) >> 8;
        generation_.store((count + 1) << 8 | (uint32_t)active_, std::memory_order_release);
        generation_.notify_all();
    }
    body(0);
    for (int left; (left = running_.load(std::memory_order_acquire)) != 0;) wait_while(running_, left, BARRIER_SPINS);
}

void ThreadPool::work(int index) {
    uint32_t seen = 0;
    for (;;) {
        wait_while(generation_, seen, IDLE_SPINS);
        seen = generation_.load(std::memory_order_acquire);
        if (stop_) return;
        if (index >= (int)(seen & 255)) continue;
        (*body_)(index);
        if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
    }
}

void ThreadPool::barrier() {
    if (active_ == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == active_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
    } else {
        wait_while(phase_, phase, BARRIER_SPINS);
    }
}

}  // namespace phial
