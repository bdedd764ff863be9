// The pool of threads: every task once, exceptions, rounds that follow each other closely, more threads than cores.
#include "cpu/pool.h"

#include <memory>
#include <set>

#include "check.h"
#include "error.h"

namespace {

using tc::cpu::Pool;

void check_rounds(int threads, int rounds) {
  Pool pool(threads);
  CHECK(pool.threads() == threads);
  for (int round = 0; round < rounds; round++) {
    const int64_t count = round % 7 * 5;
    std::unique_ptr<std::atomic<int>[]> ran(new std::atomic<int>[size_t(count) + 1]());
    pool.run(count, [&](int64_t k) { ran[size_t(k)]++; });
    for (int64_t k = 0; k < count; k++) CHECK(ran[size_t(k)] == 1);
    CHECK(ran[size_t(count)] == 0);
  }
}

}  // namespace

TEST(pool_runs_every_task_once) {
  for (const int threads : {1, 2, 3, 16}) check_rounds(threads, 400);
}

TEST(pool_blocks_cover_the_range) {
  Pool pool(2);
  for (const int64_t n : {0, 1, 7, 8, 9, 1000})
    for (const int64_t grain : {1, 8, 5000}) {
      std::atomic<int64_t> total{0}, blocks{0};
      pool.run_blocks(n, grain, [&](int64_t begin, int64_t end) {
        if (begin % grain == 0 && end > begin && end - begin <= grain && end <= n) total += end - begin;
        blocks++;
      });
      CHECK(total == n && blocks == (n + grain - 1) / grain);
    }
}

TEST(pool_passes_on_the_exception_of_a_task_and_goes_on) {
  for (const int threads : {1, 2, 16}) {
    Pool pool(threads);
    for (int64_t bad = 0; bad < 40; bad += 13) {
      CHECK_ERROR(pool.run(40,
                           [&](int64_t k) {
                             if (k == bad) throw tc::Error("ERR_DATA", "task " + std::to_string(k));
                           }),
                  "ERR_DATA", "task " + std::to_string(bad));
      std::atomic<int> ran{0};
      pool.run(40, [&](int64_t) { ran++; });
      CHECK(ran == 40);
    }
  }
}

TEST(pool_sleeps_and_wakes) {
  Pool pool(3);
  for (int round = 0; round < 3; round++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::set<int64_t> seen;
    std::mutex mutex;
    pool.run(3, [&](int64_t k) {
      std::this_thread::sleep_for(std::chrono::milliseconds(3));  // longer than anyone spins
      std::lock_guard<std::mutex> lock(mutex);
      seen.insert(k);
    });
    CHECK(seen.size() == 3);
  }
}
