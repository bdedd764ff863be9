// The runtime: ids, views, calls that fail half way, recordings, hostile packets, several runtimes at once.
#include "runtime.h"

#include <cmath>
#include <cstring>
#include <set>

#include "check.h"
#include "run_op.h"

namespace {

using namespace tc;

// A runtime with the CPU open.
struct Machine {
  explicit Machine(bool check = false) : runtime(check) {}
  Runtime runtime;
  int32_t device = runtime.open_device("cpu", 2);

  OpenDevice& open() { return runtime.device(device); }
  int32_t make(DType dtype, std::initializer_list<int32_t> dims) {
    return runtime.create(device, dtype, int32_t(dims.size()), dims.begin());
  }
  int32_t numbers(std::initializer_list<int32_t> dims, float first, float step = 0) {
    const int32_t id = make(DType::f32, dims);
    const View v = runtime.tensor(id).view;
    finish();
    for (int64_t k = 0; k < v.size(); k++) v.f32()[k] = first + step * float(k);
    return id;
  }
  void finish() {
    if (auto failure = open().stream->finish()) throw Error("ERR_DATA", failure->message);
  }
  float at(int32_t id, int64_t k) {
    finish();
    return runtime.tensor(id).view.f32()[k];
  }
  int32_t call(Op op, std::initializer_list<int32_t> in, std::initializer_list<int32_t> out = {0},
               std::initializer_list<Scalar> scalars = {}) {
    Packet packet{};
    packet.op = int32_t(op);
    std::copy(in.begin(), in.end(), packet.in);
    std::fill_n(packet.out, kMaxOutputs, -1);
    std::copy(out.begin(), out.end(), packet.out);
    std::copy(scalars.begin(), scalars.end(), packet.scalar);
    int32_t made[kMaxOutputs] = {};
    runtime.call(packet, made);
    return made[0];
  }
  size_t live() { return open().arena->live(); }
};

using test::scalar;

}  // namespace

TEST(runtime_ids_are_never_reused_at_once) {
  Machine m;
  std::set<int32_t> seen;
  for (int k = 0; k < 20000; k++) {
    const int32_t id = m.make(DType::u8, {});
    CHECK(id > 0 && seen.insert(id).second);
    m.runtime.free(id);
    m.runtime.free(id);
    CHECK_ERROR(m.runtime.tensor(id), "ERR_FREED", "freed");
  }
  CHECK(m.runtime.live_tensors() == 0 && m.live() == 0);
  CHECK_ERROR(m.runtime.tensor(1 << 20), "ERR_FREED", "freed");  // slot 0: what TypeScript gives freed tensors
  for (const int32_t id : {0, -1, INT32_MIN, INT32_MAX, 0xfffff})
    CHECK_ERROR(m.runtime.tensor(id), "ERR_ARGUMENT", "no tensor has the id");
}

TEST(runtime_holds_a_million_tensors_and_says_so) {
  Machine m;
  std::vector<int32_t> ids;
  CHECK_ERROR(for (;;) ids.push_back(m.make(DType::f32, {0})), "ERR_MEMORY", "more than a million live tensors");
  CHECK(ids.size() == (1 << 20) - 1 && m.runtime.live_tensors() == ids.size());
  const int32_t dims[1] = {0};
  CHECK_ERROR(m.runtime.view(ids[0], 0, 1, dims), "ERR_MEMORY", "a million");
  CHECK_ERROR(m.call(Op::add, {ids[0], ids[1]}), "ERR_MEMORY", "[add] more than a million");
  m.runtime.free(ids.back());
  ids.back() = m.make(DType::f32, {0});
  for (const int32_t id : ids) m.runtime.free(id);
  CHECK(m.runtime.live_tensors() == 0 && m.open().arena->largest(1).empty());
}

TEST(runtime_views_share_and_stay_inside) {
  Machine m;
  const int32_t x = m.numbers({4, 3}, 0, 1);
  const int32_t two[2] = {2, 2}, none[1] = {0}, big[4] = {INT32_MAX, INT32_MAX, INT32_MAX, 0};
  const int32_t v = m.runtime.view(x, 5, 2, two);
  m.runtime.free(x);
  CHECK(m.at(v, 3) == 8 && m.live() == 48);
  for (const int64_t offset : {int64_t(1), int64_t(-1), INT64_MAX, INT64_MAX - 3, INT64_MIN})
    CHECK_ERROR(m.runtime.view(v, offset, 2, two), "ERR_SHAPE", "[view] offset");
  CHECK_ERROR(m.runtime.view(v, 0, 4, big), "ERR_SHAPE", "2^53");
  CHECK_ERROR(m.runtime.view(v, 0, 5, big), "ERR_SHAPE", "0 to 4 dimensions");
  CHECK_ERROR(m.runtime.view(x, 0, 1, none), "ERR_FREED", "freed");
  m.runtime.free(m.runtime.view(v, 4, 1, none));
  m.runtime.free(v);
  CHECK(m.live() == 0);
}

TEST(runtime_frees_what_a_failed_call_has_made) {
  Machine m;
  const int32_t x = m.numbers({64, 64}, 1);
  const int32_t w = m.numbers({64}, 1);
  const size_t tensors = m.runtime.live_tensors(), live = m.live();
  const auto norm = [&] { return m.call(Op::layernorm_forward, {x, w, w}, {0, 0, 0, -1}, {scalar(1e-5f)}); };
  m.open().arena->set_limit(m.open().arena->reserved() + 16384 + 256 + 64);  // out and mean fit, rstd does not
  CHECK_ERROR(norm(), "ERR_MEMORY", "[layernorm_forward] cpu: out of memory: need");
  CHECK(m.runtime.live_tensors() == tensors && m.live() == live);
  m.open().arena->set_limit(size_t(1) << 30);
  m.runtime.free(norm());
  CHECK_ERROR(m.call(Op::add, {x, w}), "ERR_SHAPE", "[add]");
  CHECK_ERROR(m.call(Op::add, {x}), "ERR_ARGUMENT", "[add] input 1 must be given");
  CHECK_ERROR(m.call(Op::add, {x, x, x}), "ERR_ARGUMENT", "[add] takes 2 inputs");
  CHECK_ERROR(m.call(Op::add, {x, x}, {-1}), "ERR_ARGUMENT", "[add] output 0 can't be left out");
  CHECK_ERROR(m.call(Op(kOpCount), {x}), "ERR_ARGUMENT", "no op has the number");
  CHECK(m.runtime.live_tensors() == tensors + 2);  // mean and rstd
}

TEST(runtime_takes_memory_back_from_running_kernels_only_when_they_are_done) {
  Machine m;
  m.open().arena->set_limit(size_t(24) << 20);
  for (int round = 0; round < 3; round++) {
    int32_t x = m.numbers({512, 512}, 1.0f / 512);
    for (int k = 0; k < 6; k++) {
      const int32_t y = m.call(Op::matmul, {x, x}, {0}, {scalar(0), scalar(0), scalar(0), scalar(-1), scalar(0)});
      m.runtime.free(x);
      x = y;
    }
    m.runtime.free(m.make(DType::u8, {20 << 20}));  // empties the cache
    CHECK(m.at(x, 512 * 512 - 1) == 1.0f / 512);
    m.runtime.free(x);
  }
}

TEST(runtime_looks_around_tensors_when_told_to) {
  Machine m(true);
  const int32_t x = m.numbers({37}, 1, 1), y = m.call(Op::add, {x, x});
  m.call(Op::add, {x, y});
  for (const int32_t id : {x, y})
    for (const int64_t at : {-1, -16, 37, 37 + 15}) {
      float& outside = m.runtime.tensor(id).view.f32()[at];
      const float before = outside;
      CHECK(std::isnan(before));
      outside = 0;
      const auto call = [&] { m.call(Op::scale, {id}, {0}, {scalar(2)}); };
      if (at < 0)
        CHECK_ERROR(call(), "ERR_DEVICE", "[scale] wrote before a tensor");
      else
        CHECK_ERROR(call(), "ERR_DEVICE", "[scale] wrote beyond a tensor");
      outside = before;
    }
  m.call(Op::scale, {y}, {0}, {scalar(2)});
}

void record_verify_and_replay(bool check);
TEST(runtime_records_verifies_and_replays) { record_verify_and_replay(false); }
TEST(runtime_replays_and_looks_at_each_op_when_told_to) { record_verify_and_replay(true); }

void record_verify_and_replay(bool check) {
  Machine m(check);
  Runtime& r = m.runtime;
  const int32_t x = m.numbers({100}, 1, 1);
  const size_t live = m.live();
  const int32_t dims[1] = {50};
  int32_t result = 0;
  const auto step = [&](float by) {
    const int32_t sum = m.call(Op::add, {x, x});
    const int32_t part = r.view(sum, 50, 1, dims);
    const int32_t made = r.create(m.device, DType::f32, 1, dims);
    m.call(Op::fill, {0}, {made}, {scalar(by)});
    result = m.call(Op::add, {part, made});
    for (const int32_t id : {sum, part, made}) r.free(id);
  };
  r.begin_recording(m.device);
  step(3);
  const int32_t recorded = result;
  const int32_t handle = r.end_recording();
  CHECK(m.at(recorded, 0) == 2 * 51 + 3);
  const size_t held = m.live();
  r.begin_verify(handle);
  step(3);
  const int32_t stand_in = result;
  r.end_verify();
  CHECK_ERROR(r.tensor(stand_in), "ERR_FREED", "freed");
  for (int k = 0; k < 5; k++) {
    m.finish();
    r.tensor(x).view.f32()[50] = float(k);
    CHECK(r.replay(handle) == 3);
    CHECK(m.at(recorded, 0) == float(2 * k + 3) && m.live() == held);
  }
  r.begin_verify(handle);
  CHECK_ERROR(step(4), "ERR_CAPTURE",
              "[fill] call 3 of the captured step differs from the first time (then: fill with");
  r.abandon();
  CHECK(m.live() == held);
  r.begin_verify(handle);
  m.call(Op::add, {x, x});
  CHECK_ERROR(r.end_verify(), "ERR_CAPTURE", "had 5 calls the first time; got 1");
  CHECK(m.live() == held);
  r.replay(handle);
  r.free(recorded);
  r.free_recording(handle);
  r.free_recording(handle);
  CHECK_ERROR(r.replay(handle), "ERR_CAPTURE", "no recording");
  CHECK(m.live() == live && r.live_tensors() == 1);
}

TEST(runtime_refuses_recordings_out_of_turn) {
  Machine m;
  Runtime& r = m.runtime;
  CHECK_ERROR(r.begin_recording(7), "ERR_ARGUMENT", "index 7");
  CHECK(!r.capturing());
  CHECK_ERROR(r.end_recording(), "ERR_CAPTURE", "no step is being recorded");
  CHECK_ERROR(r.end_verify(), "ERR_CAPTURE", "no step is being verified");
  CHECK_ERROR(r.begin_verify(1), "ERR_CAPTURE", "no recording");
  r.begin_recording(m.device);
  CHECK_ERROR(r.begin_recording(m.device), "ERR_CAPTURE", "captured already");
  const int32_t x = m.numbers({10}, 1);
  m.call(Op::add, {x, x});
  r.abandon();
  r.abandon();
  r.begin_recording(m.device);
  const int32_t handle = r.end_recording();
  r.begin_verify(handle);
  CHECK_ERROR(r.free_recording(handle), "ERR_CAPTURE", "while it is verified");
  CHECK_ERROR(r.replay(handle), "ERR_CAPTURE", "inside a captured one");
  r.end_verify();
  CHECK(r.replay(handle) == 0);
}

TEST(runtime_ends_with_everything_under_way) {
  for (int round = 0; round < 5; round++) {
    Machine m;
    const int32_t x = m.numbers({200, 200}, 1);
    m.runtime.begin_recording(m.device);
    const auto product = [&] {
      return m.call(Op::matmul, {x, x}, {0}, {scalar(0), scalar(0), scalar(0), scalar(-1), scalar(0)});
    };
    m.runtime.free(product());
    const int32_t handle = m.runtime.end_recording();
    for (int k = 0; k < 20; k++) m.runtime.replay(handle);
    if (round % 2) m.runtime.free_recording(handle);
    m.runtime.begin_recording(m.device);
    product();
  }
}

TEST(runtime_survives_hostile_packets) {
  Machine m;
  test::Numbers random(11);
  m.open().arena->set_limit(size_t(4) << 20);
  std::vector<int32_t> ids;
  const auto fresh = [&] {
    static const int32_t kDims[] = {0, 1, 2, 3, 4, 8, 16, 16, 16, 48};
    int32_t dims[4];
    for (int32_t& d : dims) d = kDims[random.below(10)];
    const auto dtype = DType(random.below(10) < 6 ? 0 : random.below(6));
    const int32_t id = m.runtime.create(m.device, dtype, int32_t(random.below(4)), dims);
    const View v = m.runtime.tensor(id).view;
    m.open().stream->finish();
    for (size_t k = 0; k < v.bytes(); k += 4) {
      const int32_t word =
          random.below(3) ? int32_t(random.below(12)) : int32_t(random.below(1 << 24)) << random.below(9);
      const float real = random.next();
      std::memcpy(v.as<char>() + k, dtype == DType::f32 ? static_cast<const void*>(&real) : &word,
                  std::min<size_t>(4, v.bytes() - k));
    }
    ids.push_back(id);
  };
  for (int k = 0; k < 60; k++) fresh();
  int done = 0, refused = 0;
  const auto attempt = [&](auto&& body) {
    try {
      body();
      done++;
    } catch (const Error& e) {
      CHECK(!std::strncmp(e.code(), "ERR_", 4));
      refused++;
    }
  };
  static const int32_t kWords[] = {0,     1,         2,         3,          -1,         8,         255,
                                   65536, INT32_MAX, INT32_MIN, 0x3f800000, 0x7f800000, 0x7fc00000};
  const auto any_id = [&] {
    return random.below(12) ? ids[random.below(uint32_t(ids.size()))] : int32_t(random.below(1 << 24));
  };
  std::vector<int32_t> handles;
  for (int k = 0; k < 60000; k++) {
    Packet packet{};
    packet.op = random.below(50) ? int32_t(random.below(kOpCount)) : kWords[random.below(13)];
    const bool known = packet.op >= 0 && packet.op < kOpCount;
    const OpInfo& info = op_info(known ? Op(packet.op) : Op::add);
    for (int n = 0; n < kMaxInputs; n++)
      packet.in[n] = n < info.input_count && (!info.input_optional[n] || random.below(3) == 0) ? any_id() : 0;
    for (int n = 0; n < kMaxOutputs; n++)
      packet.out[n] = info.output_kind[n] == '!' || random.below(8) == 0 ? any_id()
                      : info.output_optional[n] && random.below(2)       ? -1
                                                                         : 0;
    for (Scalar& s : packet.scalar)
      if (random.below(2))
        s.i = kWords[random.below(13)];
      else
        s.f = random.next();
    attempt([&] {
      int32_t made[kMaxOutputs] = {};
      m.runtime.call(packet, made);
      for (int n = 0; n < kMaxOutputs; n++)
        if (packet.out[n] == 0 && made[n]) ids.push_back(made[n]);
    });
    while (ids.size() > 90) {
      const size_t at = random.below(uint32_t(ids.size()));
      m.runtime.free(ids[at]);
      ids[at] = ids.back();
      ids.pop_back();
    }
    if (k % 50 == 0) attempt(fresh);
    if (k % 40 == 0) {
      const int32_t dims[4] = {int32_t(random.below(9)), 2, 1, 3};
      attempt([&] { ids.push_back(m.runtime.view(any_id(), random.below(40), int32_t(random.below(5)), dims)); });
    }
    if (k % 60 == 0) attempt([&] { m.runtime.begin_recording(m.device); });
    if (k % 60 == 7) attempt([&] { handles.push_back(m.runtime.end_recording()); });
    if (k % 60 == 20 && !handles.empty())
      attempt([&] { m.runtime.begin_verify(handles[random.below(uint32_t(handles.size()))]); });
    if (k % 60 == 30) m.runtime.abandon();
    if (k % 20 == 11 && !handles.empty())
      attempt([&] { m.runtime.replay(handles[random.below(uint32_t(handles.size()))]); });
    if (handles.size() > 5) {
      attempt([&] { m.runtime.free_recording(handles.front()); });
      handles.erase(handles.begin());
    }
  }
  m.runtime.abandon();
  CHECK(done > 5000 && refused > 5000);
  for (const int32_t id : ids) m.runtime.free(id);
  for (const int32_t handle : handles) m.runtime.free_recording(handle);
  m.open().stream->finish();
  CHECK(m.runtime.live_tensors() == 0 && m.live() == 0);
  const int32_t x = m.numbers({32, 32}, 1);
  const int32_t y = m.call(Op::matmul, {x, x}, {0}, {scalar(0), scalar(0), scalar(0), scalar(-1), scalar(0)});
  CHECK(m.at(y, 1023) == 32);
}

TEST(runtimes_of_several_threads_do_not_meet) {
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (int t = 1; t <= 3; t++)
    threads.emplace_back([t, &right] {
      Machine m;
      const int32_t x = m.numbers({64, 64}, float(t));
      int32_t y = x;
      for (int k = 0; k < 200; k++) {
        const int32_t next = m.call(Op::add, {y, x});
        if (y != x) m.runtime.free(y);
        y = next;
      }
      if (m.at(y, 4095) == float(201 * t)) right++;
    });
  for (auto& thread : threads) thread.join();
  CHECK(right == 3);
}
