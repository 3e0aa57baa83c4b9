// A fixed pool of threads which run one function together and meet at barriers.
//
// Waiting spins briefly and then yields the core, so that a core taken away by the system costs its share and no more.
// Work is claimed from counters, never dealt out beforehand: a slow thread takes less, and results do not depend on it.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace phial {

constexpr int MAX_THREADS = 255;

class ThreadPool {
  public:
    explicit ThreadPool(int n_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return (int)workers_.size() + 1; }

    // Runs body(thread index) on `n` threads (at most size()), the caller being thread 0. Not reentrant.
    void run(int n, const std::function<void(int)>& body);

    // All threads of the current run() meet here.
    void barrier();

  private:
    void work(int index);

    std::vector<std::thread> workers_;
    const std::function<void(int)>* body_ = nullptr;
    std::atomic<uint32_t> generation_{0};  // run number << 8 | threads taking part: one word, so they cannot disagree
    std::atomic<int> running_{0};          // workers still in the current run
    std::atomic<bool> stop_{false};
    int active_ = 1;
    std::atomic<int> arrived_{0};
    std::atomic<uint32_t> phase_{0};
};

}  // namespace phial
