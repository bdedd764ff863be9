#include "stream.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "cpu/bf16.h"

namespace tc {

namespace {
// TRAIN_CORE_CHECK: the first NaN of an output, or -1
int64_t first_nan(Device& device, const View& v) {
  if (v.dtype != DType::f32 && v.dtype != DType::bf16) return -1;
  std::vector<char> host(v.bytes());
  device.download(host.data(), v.data, host.size());
  for (int64_t k = 0; k < v.size(); k++) {
    const float x = v.dtype == DType::f32 ? reinterpret_cast<float*>(host.data())[k]
                                          : cpu::to_float(reinterpret_cast<cpu::bf16*>(host.data())[k]);
    if (std::isnan(x)) return k;
  }
  return -1;
}
}  // namespace

Stream::Stream(Device& device, bool check) : device_(device), check_(check), ring_(kSlots) {
  thread_ = std::thread([this] { loop(); });
}

Stream::~Stream() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

Job& Stream::slot() {
  const uint64_t tail = tail_.load(std::memory_order_relaxed);
  if (tail - head_.load(std::memory_order_acquire) == kSlots) {
    std::unique_lock<std::mutex> lock(mutex_);
    waiting_ = true;
    drained_.wait(lock, [&] { return tail - head_.load() < kSlots / 2; });
    waiting_ = false;
  }
  return ring_[tail % kSlots];
}

void Stream::publish() {
  tail_.store(tail_.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
  pushed_++;
  if (sleeping_.load(std::memory_order_seq_cst)) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_one();
  }
}

void Stream::push_launch(const Launch& launch) {
  slot().launch = launch;
  publish();
}

void Stream::push(Job job) {
  slot() = std::move(job);
  publish();
}

std::unique_ptr<Failure> Stream::finish() {
  std::unique_ptr<Failure> result;
  bool done = false;
  Job job;
  job.fence = [&](std::unique_ptr<Failure> failure) {
    std::lock_guard<std::mutex> lock(mutex_);
    result = std::move(failure);
    done = true;
    drained_.notify_all();
  };
  push(std::move(job));
  std::unique_lock<std::mutex> lock(mutex_);
  drained_.wait(lock, [&] { return done; });
  return result;
}

void Stream::wait() {
  bool done = false;
  Job job;
  job.task = [&] {
    struct Done {  // also when the device fails
      Stream& stream;
      bool& done;
      ~Done() {
        std::lock_guard<std::mutex> lock(stream.mutex_);
        done = true;
        stream.drained_.notify_all();
      }
    } at_end{*this, done};
    device_.finish();
  };
  push(std::move(job));
  std::unique_lock<std::mutex> lock(mutex_);
  drained_.wait(lock, [&] { return done; });
}

void Stream::loop() {
  while (!stop_) {
    const uint64_t head = head_.load(std::memory_order_relaxed);
    for (int spin = 0; spin < 2000 && tail_.load(std::memory_order_acquire) == head && !stop_; spin++) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    if (tail_.load(std::memory_order_acquire) == head) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleeping_.store(true, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return stop_ || tail_.load(std::memory_order_seq_cst) != head; });
      sleeping_ = false;
      if (stop_) return;
    }
    Job& job = ring_[head % kSlots];
    run(job);
    job.launch.kernel = nullptr;
    job.replay = nullptr;
    job.task = nullptr;
    job.fence = nullptr;
    head_.store(head + 1, std::memory_order_seq_cst);
    if (waiting_.load(std::memory_order_seq_cst)) {
      std::lock_guard<std::mutex> lock(mutex_);
      drained_.notify_all();
    }
  }
}

void Stream::run(Job& job) {
  try {
    if (!failure_) {
      if (job.launch.kernel) run_launch(job.launch);
      if (job.replay) run_replay(*job.replay);
    }
    if (job.task) job.task();
    if (job.fence) device_.finish();
  } catch (const Error& e) {
    if (!failure_) failure_ = std::make_unique<Failure>(Failure{e.code(), e.what()});
  } catch (const std::exception& e) {
    if (!failure_)
      failure_ = std::make_unique<Failure>(Failure{"ERR_DEVICE", std::string(device_.name()) + ": " + e.what()});
  }
  if (job.fence) job.fence(std::move(failure_));
}

void Stream::time_kernels(bool on) {
  Job job;
  job.task = [this, on] { times_ = on ? std::make_unique<std::vector<KernelTime>>() : nullptr; };
  push(std::move(job));
}

std::unique_ptr<Failure> Stream::take_times(std::vector<KernelTime>& times) {
  Job job;
  job.task = [this, &times] {
    if (times_) times.swap(*times_);
  };
  push(std::move(job));
  return finish();
}

void Stream::run_timed(const Launch& launch) {
  const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch(); };
  const auto begin = now();
  launch.kernel(launch.args);
  device_.finish();
  times_->push_back({launch.args, std::chrono::nanoseconds(begin).count(), std::chrono::nanoseconds(now()).count()});
}

// One by one where each kernel is looked at: a graph hides them.
void Stream::run_replay(Replay& replay) {
  if (!times_ && !check_) {
    if (!replay.seen) replay.graph = device_.make_graph(replay.launches);
    replay.seen = true;
    if (replay.graph) return replay.graph->launch();
  }
  for (const Launch& launch : replay.launches) run_launch(launch);
}

void Stream::push_guard(const Guarded& block) {
  Job job;
  job.task = [this, block] { set_guards(block); };
  push(std::move(job));
}

// All ones: a NaN in every float type, so that a kernel that reads beyond its tensor is found by what it writes.
void Stream::set_guards(const Guarded& block) {
  static const std::vector<char> ones(kGuard, char(0xff));
  device_.upload(block.data - kGuard, ones.data(), kGuard);
  device_.upload(block.data + block.bytes, ones.data(), kGuard);
}

void Stream::check_guards(const Launch& launch) {
  if (!launch.guarded) return;
  for (const Guarded& block : *launch.guarded)
    for (const bool before : {true, false}) {
      char guard[kGuard];
      device_.download(guard, before ? block.data - kGuard : block.data + block.bytes, kGuard);
      if (std::all_of(guard, guard + kGuard, [](char byte) { return byte == char(0xff); })) continue;
      fail(launch.args, "ERR_DEVICE",
           std::string("wrote ") + (before ? "before" : "beyond") + " a tensor or workspace of " +
               std::to_string(block.bytes) + " bytes; please report it with the shapes");
    }
}

void Stream::run_launch(const Launch& launch) {
  if (check_ && launch.guarded)
    for (const Guarded& block : *launch.guarded)
      if (block.fresh) set_guards(block);
  if (times_)
    run_timed(launch);
  else
    launch.kernel(launch.args);
  if (!check_) return;
  check_guards(launch);
  const OpInfo& info = op_info(launch.args.op);
  for (int k = 0; k < info.output_count; k++) {
    const View& out = launch.args.out[k];
    if (!out.data) continue;
    const int64_t at = first_nan(device_, out);
    if (at >= 0)
      fail(launch.args, "ERR_DATA",
           "output " + std::to_string(k) + " " + describe(out) + " is NaN at element " + std::to_string(at));
  }
}

}  // namespace tc
