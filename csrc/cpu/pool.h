// A persistent pool of threads that runs numbered tasks. Which thread runs a task is left open; results must not depend
// on it: partition work by problem size, never by the number of threads, and combine partial sums in task order.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace tc::cpu {

class Pool {
 public:
  // The caller of run() is one of them. Throws Error ERR_DEVICE where they can't be started.
  explicit Pool(int threads);
  ~Pool();
  int threads() const { return int(workers_.size()) + 1; }

  // Runs task(k) for k in [0, count); returns when all are done. The first exception of a task is rethrown. Not
  // re-entrant.
  template <class F>
  void run(int64_t count, F&& task) {
    using Fn = std::remove_reference_t<F>;
    run_erased(
        count, [](void* context, int64_t k) { (*static_cast<Fn*>(context))(k); },
        const_cast<void*>(static_cast<const void*>(&task)));
  }
  // Runs task(begin, end) over [0, n) in blocks of `grain`.
  template <class F>
  void run_blocks(int64_t n, int64_t grain, F&& task) {
    const int64_t blocks = (n + grain - 1) / grain;
    run(blocks, [&](int64_t k) { task(k * grain, k * grain + grain < n ? k * grain + grain : n); });
  }
  void run_erased(int64_t count, void (*task)(void*, int64_t), void* context);

 private:
  void work();
  void take_tasks();
  void stop();
  std::vector<std::thread> workers_;
  int spins_;  // looks at a counter before sleeping; 0 where threads share cores
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> round_{0};  // written last: whoever sees a new round sees its task too
  std::atomic<int64_t> next_{0};
  std::atomic<int> busy_{0};  // workers that have not passed through the round
  int64_t count_ = 0;
  void (*task_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  std::exception_ptr failure_;
  bool stop_ = false;
};

int available_cores();  // that the operating system lets this process use

}  // namespace tc::cpu
