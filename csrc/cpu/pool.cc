#include "pool.h"

namespace tc::cpu {

namespace {
constexpr int kSpins = 4000;  // about 20 µs: kernels follow each other closely within a step
void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}
}  // namespace

Pool::Pool(int threads) {
  for (int k = 1; k < threads; k++) workers_.emplace_back([this] { work(); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    round_++;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::run_erased(int64_t count, void (*task)(void*, int64_t), void* context) {
  if (count <= 0) return;
  if (workers_.empty() || count == 1) {
    for (int64_t k = 0; k < count; k++) task(context, k);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    task_ = task;
    context_ = context;
    count_ = count;
    next_ = 0;
    failure_ = nullptr;
    busy_ = int(workers_.size());
    round_++;
  }
  wake_.notify_all();
  take_tasks();
  // Every worker passes through every round: only then may the next round change what they read.
  for (int spin = 0; busy_.load(std::memory_order_acquire) > 0; spin++) spin < kSpins ? pause() : std::this_thread::yield();
  if (failure_) std::rethrow_exception(failure_);
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
  for (uint64_t seen = 0;;) {
    for (int spin = 0; spin < kSpins && round_.load(std::memory_order_acquire) == seen; spin++) pause();
    if (round_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return round_.load() != seen; });
    }
    seen++;
    {
      std::lock_guard<std::mutex> lock(mutex_);  // sees all that the round's start wrote
      if (stop_) return;
    }
    take_tasks();
    busy_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace tc::cpu
