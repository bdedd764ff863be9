// The arena: sizes, accounting, reuse, pools of recordings, the end of memory.
#include "arena.h"

#include <map>

#include "check.h"
#include "fake_device.h"
#include "run_op.h"

namespace {

using namespace tc;
using test::FakeDevice;

}  // namespace

TEST(arena_counts_what_is_live) {
  FakeDevice device;
  {
    Arena arena(device);
    Storage* a = arena.allocate(1000);
    Storage* b = arena.allocate(0);
    CHECK(a->data && b->data && a->data != b->data && arena.live() == 1000 && a->capacity >= 1000);
    arena.retain(a);
    arena.release(a);
    CHECK(arena.live() == 1000);
    Storage* c = arena.allocate(50);
    CHECK(arena.live() == 1050 && arena.peak() == 1050 && arena.largest_ever() == 1000);
    arena.release(a);
    CHECK(arena.live() == 50 && arena.peak() == 1050);
    CHECK(arena.largest(5) == (std::vector<size_t>{50, 0}) && arena.largest(1) == std::vector<size_t>{50});
    arena.reset_peak();
    CHECK(arena.peak() == 50 && arena.largest_ever() == 0);
    CHECK(device.held == arena.reserved());
    arena.release(b);
    arena.release(c);
    CHECK(arena.live() == 0 && arena.reserved() == device.held);
  }
  CHECK(device.held == 0);
}

TEST(arena_hands_out_at_most_an_eighth_more_and_finds_its_blocks_again) {
  FakeDevice device(size_t(1) << 60);
  Arena arena(device);
  for (size_t bytes = 1; bytes < (size_t(1) << 20); bytes = bytes * 9 / 7 + 1) {
    Storage* s = arena.allocate(bytes);
    CHECK(s->capacity >= bytes && s->capacity % 64 == 0 && s->capacity <= bytes + std::max<size_t>(bytes / 8, 64));
    void* data = s->data;
    const size_t reserved = arena.reserved();
    arena.release(s);
    Storage* again = arena.allocate(bytes);
    CHECK(again->data == data && arena.reserved() == reserved);
    arena.release(again);
  }
}

TEST(arena_loses_little_of_large_blocks_and_lends_one_that_is_little_larger) {
  FakeDevice device;
  Arena arena(device);
  const auto mebibytes = [](size_t count) { return count << 20; };
  Storage* s = arena.allocate(mebibytes(100) + 1);
  CHECK(s->capacity == mebibytes(101));
  void* data = s->data;
  arena.release(s);
  Storage* less = arena.allocate(mebibytes(90));
  CHECK(less->data == data && less->capacity == mebibytes(101) && arena.live() == mebibytes(90));
  arena.release(less);
  Storage* much_less = arena.allocate(mebibytes(80));
  CHECK(much_less->data != data && much_less->capacity == mebibytes(80));
  Storage* same = arena.allocate(mebibytes(101));
  CHECK(same->data == data);
  arena.release(much_less);
  arena.release(same);
  CHECK(arena.reserved() == mebibytes(181) && device.held == mebibytes(181));
}

TEST(arena_gives_cached_blocks_back_before_it_fails_and_waits_first) {
  FakeDevice device(10000);
  Arena arena(device);
  int waits = 0;
  arena.wait_before_trim([&] { waits++; });
  Storage* a = arena.allocate(6000);
  arena.release(a);
  CHECK(arena.reserved() > 5000 && waits == 0);
  Storage* b = arena.allocate(8000);
  CHECK(waits == 1 && arena.reserved() <= 10000);
  CHECK_ERROR(arena.allocate(3000), "ERR_MEMORY", "fake: out of memory: need 0.0 MiB, have 0.0 MiB of 0.0 MiB");
  CHECK(arena.live() == 8000);
  arena.release(b);
  Storage* c = arena.allocate(9000);
  device.refuse = true;
  CHECK_ERROR(arena.allocate(100), "ERR_MEMORY", "largest: 0.0 MiB");
  device.refuse = false;
  arena.release(c);
  CHECK_ERROR(arena.allocate(size_t(1) << 56), "ERR_MEMORY", "largest: none");
  arena.release(arena.allocate(100));
  CHECK(arena.live() == 0);
}

TEST(arena_pools_keep_their_blocks_for_the_replay) {
  FakeDevice device;
  Arena arena(device);
  Storage* before = arena.allocate(640);
  void* cached = before->data;
  arena.release(before);
  Pool* pool = arena.begin_pool();
  Storage* a = arena.allocate(640);  // an old block joins the pool
  CHECK(a->data == cached && a->pool == pool);
  arena.release(a);
  Storage* b = arena.allocate(640);
  Storage* result = arena.allocate(100);
  CHECK(b->data == cached);
  arena.release(b);
  arena.end_pool(pool);
  CHECK(arena.live() == 100 + 640);  // the result's bytes, and the block that a replay needs
  Storage* other = arena.allocate(640);
  CHECK(other->data != cached && !other->pool && arena.live() == 100 + 640 + 640);
  arena.release(other);
  arena.release(result);
  CHECK(arena.live() == 640 + 128);  // held by capacity now
  arena.destroy_pool(pool);
  CHECK(arena.live() == 0);
  Storage* after = arena.allocate(640);
  arena.release(after);
  CHECK(arena.reserved() == device.held);
}

TEST(arena_pools_may_end_before_their_tensors) {
  FakeDevice device;
  Arena arena(device);
  Pool* first = arena.begin_pool();
  Storage* a = arena.allocate(300);
  arena.end_pool(first);
  Pool* second = arena.begin_pool();
  Storage* b = arena.allocate(300);
  arena.destroy_pool(second);  // abandoned: not ended
  Storage* c = arena.allocate(64);
  CHECK(!c->pool && !b->pool && a->pool == first && arena.live() == 664);
  arena.destroy_pool(first);
  for (Storage* s : {a, b, c}) arena.release(s);
  CHECK(arena.live() == 0);
}

TEST(arena_random_sequences_balance) {
  FakeDevice device(1 << 20);
  {
    Arena arena(device);
    test::Numbers numbers(5);
    std::vector<Storage*> held;
    std::vector<Pool*> pools;
    bool open = false;
    size_t bytes = 0;
    std::map<void*, size_t> used;
    const auto drop = [&](size_t at) {
      Storage* s = held[at];
      held[at] = held.back();
      held.pop_back();
      if (s->refs == 1) {
        bytes -= s->bytes;
        used.erase(s->data);
      }
      arena.release(s);
    };
    for (int round = 0; round < 20000; round++) {
      const uint32_t action = numbers.below(20);
      if (action < 9) {
        const size_t size = numbers.below(8) ? numbers.below(3000) : numbers.below(400000);
        try {
          Storage* s = arena.allocate(size);
          CHECK(used.emplace(s->data, size).second);  // nobody else has this block
          std::memset(s->data, round, s->capacity);
          bytes += size;
          held.push_back(s);
        } catch (const Error& e) {
          CHECK(!std::strcmp(e.code(), "ERR_MEMORY"));
          while (held.size() > 3) drop(0);
        }
      } else if (action < 17 && !held.empty()) {
        drop(numbers.below(uint32_t(held.size())));
      } else if (action == 17 && !held.empty()) {
        Storage* s = held[numbers.below(uint32_t(held.size()))];
        arena.retain(s);
        held.push_back(s);
      } else if (action == 18 && pools.size() < 4) {
        if (open)
          arena.end_pool(pools.back());
        else
          pools.push_back(arena.begin_pool());
        open = !open;
      } else if (action == 19 && !pools.empty()) {
        const size_t at = numbers.below(uint32_t(pools.size()));
        if (at + 1 == pools.size()) open = false;
        arena.destroy_pool(pools[at]);
        pools.erase(pools.begin() + long(at));
      }
      CHECK(arena.live() >= bytes && arena.reserved() == device.held && arena.peak() >= arena.live());
      if (pools.empty()) CHECK(arena.live() == bytes);
    }
    while (!held.empty()) drop(0);
    for (Pool* pool : pools) arena.destroy_pool(pool);
    CHECK(arena.live() == 0);
  }
  CHECK(device.held == 0);
}
