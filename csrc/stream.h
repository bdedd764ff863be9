// One in-order stream of jobs and the thread that runs them. The JS thread only queues; it waits when the queue is
// full, or in finish().
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "device.h"

namespace tc {

struct Failure {
  std::string code, message;
};

// The launches of a recorded step, and what the device made of them at the first replay. Used by the stream's thread
// once it is queued.
struct Replay {
  std::vector<Launch> launches;
  std::unique_ptr<Graph> graph;
  bool seen = false;
};

// A kernel that ran while its stream was timed, in ns of the steady clock.
struct KernelTime {
  Args args;
  int64_t begin, end;
};

struct Job {
  Launch launch;               // runs when its kernel is set
  Replay* replay = nullptr;    // runs when set; the recording outlives the job (its owner waits for the stream)
  std::function<void()> task;  // anything else, e.g. an upload; runs when set
  std::function<void(std::unique_ptr<Failure>)>
      fence;  // called after all before it, with the failure that sticks, which it clears
};

class Stream {
 public:
  Stream(Device& device, bool check);
  ~Stream();  // drops what is queued, waits for the running job

  void push_launch(const Launch& launch);
  void push(Job job);
  void push_guard(const Guarded& block);  // sets its guards
  std::unique_ptr<Failure> finish();  // waits for all that was queued; returns and clears the failure that sticks
  void wait();                        // as finish(), and leaves the failure where it is
  // While on, the time of each kernel is kept; an asynchronous device is waited for after each. Off costs a branch.
  void time_kernels(bool on);
  std::unique_ptr<Failure> take_times(std::vector<KernelTime>& times);  // as finish(), with the times since then
  uint64_t jobs() const { return pushed_; }

 private:
  void loop();
  void run(Job& job);
  void run_launch(const Launch& launch);
  void run_replay(Replay& replay);
  void run_timed(const Launch& launch);
  void set_guards(const Guarded& block);
  void check_guards(const Launch& launch);
  Job& slot();
  void publish();

  static constexpr size_t kSlots = 2048;
  Device& device_;
  const bool check_;  // TRAIN_CORE_CHECK: NaN scan and a look at the guards after each op, and the caller waits for it
  std::vector<Job> ring_;
  std::atomic<uint64_t> head_{0}, tail_{0};  // next to run, next to write
  uint64_t pushed_ = 0;
  std::atomic<bool> sleeping_{false}, stop_{false}, waiting_{false};
  std::mutex mutex_;
  std::condition_variable wake_, drained_;
  std::unique_ptr<Failure> failure_;                // stream thread only
  std::unique_ptr<std::vector<KernelTime>> times_;  // stream thread only; nullptr: not timed
  std::thread thread_;
};

}  // namespace tc
