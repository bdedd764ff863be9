// The stream: order, failures, a full queue, waiting, the end with work under way.
#include "stream.h"

#include <chrono>
#include <cmath>

#include "check.h"
#include "fake_device.h"

namespace {

using namespace tc;
using test::FakeDevice;

std::atomic<int> ran{0};
void count_kernel(const Args& x) { CHECK(ran++ == x.i(0)); }
void fail_kernel(const Args& x) { fail(x, "ERR_DATA", "number " + std::to_string(x.i(0))); }
void odd_kernel(const Args&) { throw std::runtime_error("something else"); }
void sleep_kernel(const Args& x) { std::this_thread::sleep_for(std::chrono::milliseconds(x.i(0))); }

Launch launch(Kernel kernel, int32_t number = 0) {
  Launch l;
  l.kernel = kernel;
  l.args.op = Op::add;
  l.args.scalar[0].i = number;
  return l;
}
Job task(std::function<void()> body) {
  Job job;
  job.task = std::move(body);
  return job;
}

}  // namespace

TEST(stream_runs_in_order_and_fills_its_ring_many_times) {
  FakeDevice device;
  Stream stream(device, false);
  ran = 0;
  stream.push_launch(launch(sleep_kernel, 20));  // so that the ring gets full
  for (int k = 0; k < 20000; k++) stream.push_launch(launch(count_kernel, k));
  CHECK(!stream.finish());
  CHECK(ran == 20000 && stream.jobs() == 20002);
}

TEST(stream_wakes_after_sleeping) {
  FakeDevice device;
  Stream stream(device, false);
  ran = 0;
  for (int k = 0; k < 30; k++) {
    if (k % 3 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    stream.push_launch(launch(count_kernel, k));
    if (k % 5 == 0) {
      stream.wait();
      CHECK(ran == k + 1);
    }
  }
  CHECK(!stream.finish());
}

TEST(stream_keeps_the_first_failure_until_a_fence_takes_it) {
  FakeDevice device;
  Stream stream(device, false);
  bool wrote = false;
  ran = 0;
  stream.push_launch(launch(fail_kernel, 1));
  stream.push_launch(launch(fail_kernel, 2));
  stream.push_launch(launch(count_kernel, 0));
  stream.push(task([&] { wrote = true; }));
  stream.wait();  // leaves it
  CHECK(wrote && ran == 0);
  auto failure = stream.finish();
  CHECK(failure && failure->code == "ERR_DATA" && failure->message == "[add] number 1");
  CHECK(!stream.finish());
  stream.push_launch(launch(count_kernel, 0));
  CHECK(!stream.finish() && ran == 1);
  stream.push_launch(launch(odd_kernel));
  failure = stream.finish();
  CHECK(failure && failure->code == "ERR_DEVICE" && failure->message == "fake: something else");
  stream.push(task([] { throw Error("ERR_MEMORY", "a task"); }));
  failure = stream.finish();
  CHECK(failure && failure->code == "ERR_MEMORY");
}

TEST(stream_reports_a_device_that_fails_when_it_is_waited_for) {
  FakeDevice device;
  device.fail_finish = true;
  Stream stream(device, false);
  stream.wait();
  auto failure = stream.finish();
  CHECK(failure && failure->message == "the device is lost");
}

TEST(stream_replays_a_list_and_stops_it_at_a_failure) {
  FakeDevice device;
  Stream stream(device, false);
  Replay good, bad;
  good.launches = {launch(count_kernel, 0), launch(count_kernel, 1), launch(count_kernel, 2)};
  bad.launches = {launch(count_kernel, 0), launch(fail_kernel, 7), launch(count_kernel, 1)};
  for (int round = 0; round < 50; round++) {
    ran = 0;
    Job job;
    job.replay = round % 2 ? &bad : &good;
    stream.push(std::move(job));
    const auto failure = stream.finish();
    CHECK(round % 2 ? failure && ran == 1 : !failure && ran == 3);
  }
}

TEST(stream_asks_once_for_a_graph_and_looks_at_kernels_without) {
  for (const bool makes_graphs : {false, true}) {
    FakeDevice device;
    device.makes_graphs = makes_graphs;
    Stream stream(device, false);
    Replay replay;
    replay.launches = {launch(count_kernel, 0), launch(count_kernel, 1)};
    for (int round = 0; round < 6; round++) {
      ran = 0;
      if (round == 2) stream.time_kernels(true);
      if (round == 4) stream.time_kernels(false);
      Job job;
      job.replay = &replay;
      stream.push(std::move(job));
      CHECK(!stream.finish() && ran == 2);
    }
    CHECK(device.graphs == 1 && device.graph_launches == (makes_graphs ? 4 : 0));
  }
}

TEST(stream_fences_are_called_in_order_on_its_thread) {
  FakeDevice device;
  Stream stream(device, false);
  std::vector<int> order;  // the stream's thread only, until finish()
  const auto here = std::this_thread::get_id();
  for (int k = 0; k < 5000; k++) {
    if (k == 100) stream.push_launch(launch(fail_kernel));
    Job job;
    job.fence = [&order, k, here](std::unique_ptr<Failure> failure) {
      if ((failure != nullptr) == (k == 100) && std::this_thread::get_id() != here) order.push_back(k);
    };
    stream.push(std::move(job));
  }
  CHECK(!stream.finish() && order.size() == 5000);
  for (int k = 0; k < 5000; k++) CHECK(order[size_t(k)] == k);
}

TEST(stream_ends_with_work_under_way_and_drops_what_is_queued) {
  for (int round = 0; round < 20; round++) {
    FakeDevice device;
    auto held = std::make_shared<int>(1);
    {
      Stream stream(device, false);
      stream.push_launch(launch(sleep_kernel, round % 4));
      for (int k = 0; k < 100; k++) stream.push(task([held] { (*held)++; }));
      if (round % 3 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    CHECK(held.use_count() == 1);
  }
}

TEST(stream_times_kernels_when_asked) {
  FakeDevice device;
  Stream stream(device, false);
  std::vector<KernelTime> times;
  stream.push_launch(launch(sleep_kernel, 1));
  stream.time_kernels(true);
  for (int k = 0; k < 3; k++) stream.push_launch(launch(sleep_kernel, 2));
  CHECK(!stream.take_times(times) && times.size() == 3);
  for (const KernelTime& time : times) CHECK(time.end - time.begin >= 2000000);
  stream.time_kernels(false);
  stream.push_launch(launch(sleep_kernel, 1));
  times.clear();
  CHECK(!stream.take_times(times) && times.empty());
}

TEST(stream_checks_outputs_for_nan_when_told_to) {
  FakeDevice device;
  Stream stream(device, true);
  float data[3] = {1, 2, 3};
  Launch l = launch([](const Args& x) { x.out[0].f32()[1] = x.f(1); });
  l.args.out[0].data = data;
  l.args.out[0].rank = 1;
  l.args.out[0].dim[0] = 3;
  l.args.scalar[1].f = 5;
  stream.push_launch(l);
  CHECK(!stream.finish());
  l.args.scalar[1].f = NAN;
  stream.push_launch(l);
  const auto failure = stream.finish();
  CHECK(failure && failure->code == "ERR_DATA" && failure->message == "[add] output 0 [3] f32 is NaN at element 1");
}

TEST(stream_looks_around_tensors_when_told_to) {
  FakeDevice device;
  Stream stream(device, true);
  std::vector<float> data(64);
  Launch l = launch([](const Args& x) { x.out[0].f32()[x.scalar[1].i] = 1; });
  l.args.out[0].data = &data[20];
  l.args.out[0].rank = 1;
  l.args.out[0].dim[0] = 5;
  l.guarded = std::make_shared<std::vector<Guarded>>(1, Guarded{reinterpret_cast<char*>(&data[20]), 20, true});
  const auto failure_at = [&](int32_t k) {
    l.args.scalar[1].i = k;
    stream.push_launch(l);
    const auto failure = stream.finish();
    return failure ? failure->message : "none";
  };
  for (const int32_t k : {0, 4}) CHECK(failure_at(k) == "none");
  for (const int32_t k : {-16, -1}) CHECK(failure_at(k).find("[add] wrote before a tensor or workspace of 20") == 0);
  for (const int32_t k : {5, 20}) CHECK(failure_at(k).find("[add] wrote beyond a tensor or workspace of 20") == 0);
}
