#include "pool.h"

#include <string>
#include <system_error>
#include <utility>

#include "../error.h"
#if defined(__linux__)
#include <sched.h>
#endif

namespace tc::cpu {

namespace {
constexpr int kSpins = 4000;  // some 50 µs: kernels follow each other closely within a step

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}
template <class Condition>
bool spin_until(int spins, Condition condition) {
  for (int k = 0; k < spins; k++) {
    if (condition()) return true;
    pause();
  }
  return condition();
}
}  // namespace

int available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n ? int(n) : 1;
}

Pool::Pool(int threads) : spins_(threads <= available_cores() ? kSpins : 0) {
  try {
    for (int k = 1; k < threads; k++) workers_.emplace_back([this] { work(); });
  } catch (const std::system_error& error) {
    stop();
    throw Error("ERR_DEVICE", "cpu: " + std::to_string(threads) + " threads can't be started: " + error.what());
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    round_++;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
  workers_.clear();
}

void Pool::run_erased(int64_t count, void (*task)(void*, int64_t), void* context) {
  if (count <= 0) return;
  if (workers_.empty() || count == 1) {
    for (int64_t k = 0; k < count; k++) task(context, k);
    return;
  }
  task_ = task;
  context_ = context;
  count_ = count;
  failure_ = nullptr;
  next_ = 0;
  busy_ = int(workers_.size());
  {
    std::lock_guard<std::mutex> lock(mutex_);  // a worker that is about to sleep looks at the round under it
    round_++;
  }
  wake_.notify_all();
  take_tasks();
  // Every worker passes through every round: only then may the next round change what they read.
  const auto all_done = [this] { return busy_.load(std::memory_order_acquire) == 0; };
  if (!spin_until(spins_, all_done)) {
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, all_done);
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Pool::take_tasks() {
  for (;;) {
    const int64_t k = next_.fetch_add(1, std::memory_order_relaxed);
    if (k >= count_) return;
    try {
      task_(context_, k);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      next_ = count_;
    }
  }
}

void Pool::work() {
  for (uint64_t seen = 0;; seen++) {
    const auto started = [&] { return round_.load(std::memory_order_acquire) != seen; };
    if (!spin_until(spins_, started)) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, started);
    }
    if (stop_) return;
    take_tasks();
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) > 1) continue;
    { std::lock_guard<std::mutex> lock(mutex_); }  // the caller may be about to sleep
    done_.notify_one();
  }
}

}  // namespace tc::cpu
