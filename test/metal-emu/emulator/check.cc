// Checks of every memory access: within a bound range, written before it is read, ordered with the accesses of others.
// The compiler's instrumentation (-fsanitize=thread, whose own runtime is not linked) calls __tsan_read4 and the like.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>

#include "state.h"

namespace emu {

std::string place_of(const void* pc) {
  static std::map<const void*, std::string> known;
  if (auto found = known.find(pc); found != known.end()) return found->second;
  Dl_info info{};
  char line[512] = "?";
  if (dladdr(pc, &info)) {
    const size_t offset = size_t(static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase)) - 1;
    char hex[32];
    std::snprintf(hex, sizeof hex, "0x%zx", offset);
    if (FILE* pipe = popen(("addr2line -s -e '" + std::string(info.dli_fname) + "' " + hex + " 2>&1").c_str(), "r")) {
      if (std::fgets(line, sizeof line, pipe)) line[std::strcspn(line, "\n (")] = 0;
      pclose(pipe);
    }
  }
  return known[pc] = line;
}
// The compiler may have made two calls of one: what counts is the line.
bool same_place(const void* a, const void* b) { return a == b || place_of(a) == place_of(b); }

void report(const char* kind, const std::string& text, const std::string& key) {
  if (!machine.reported.insert(kind + key).second || machine.reports.size() >= 8) return;
  machine.reports.push_back(std::string("[") + kind + "] " + machine.request->kernel->name + ": " + text);
}

namespace {

std::string who_name(uint16_t who) {
  if (who == kMany) return "several simdgroups";
  if (who & kLanes) return "several lanes of simdgroup " + std::to_string(who & 31);
  if (who & kMatrix) return "simdgroup " + std::to_string(who & 31) + " (matrix)";
  return "thread " + std::to_string(who);
}
int simdgroup_of(uint16_t who) {
  if (who == kMany) return -1;
  return who & (kLanes | kMatrix) ? who & 31 : who / kLaneCount;
}

struct Access {
  Space space;
  uint16_t me, at;  // at: the simdgroup's epoch

  // Why an access recorded as (epoch, who, at) is not ordered with this one; nullptr: it is.
  const char* conflict(uint32_t epoch, uint16_t who, uint16_t then) const {
    const Machine& m = machine;
    if (epoch < m.dispatch_start[space]) return nullptr;
    if (epoch < m.group_start[space]) return space == DEVICE ? "another threadgroup" : nullptr;
    if (epoch != m.epoch[space]) return nullptr;  // a threadgroup barrier lies between
    if (who == me && !(me & kMatrix)) return nullptr;
    if (simdgroup_of(who) == simdgroup_of(me) && then < at) return nullptr;  // a simdgroup barrier does
    return "the same barrier interval";
  }
};

void check_cell(Cell& cell, const Access& a, bool write, const Range& range, size_t offset, const void* site) {
  const uint32_t epoch = machine.epoch[a.space];
  const auto race = [&](const char* what, const char* other, uint16_t who, const char* where, const char* key) {
    report("race",
           std::string(what) + " of " + range.name + "+" + std::to_string(offset) + " at " + place_of(site) + " by " +
               who_name(a.me) + " after a " + other + " by " + who_name(who) + " in " + where,
           place_of(site) + key);
  };
  if (const char* where = a.conflict(cell.written, cell.writer, cell.writer_at))
    race(write ? "write" : "read", "write", cell.writer, where, write ? "ww" : "wr");
  if (write) {
    if (a.space == DEVICE && cell.first_read >= machine.dispatch_start[a.space] &&
        cell.first_read < machine.group_start[a.space])
      race("write", "read", cell.reader, "another threadgroup", "xr");
    else if (const char* where = a.conflict(cell.read, cell.reader, cell.reader_at))
      race("write", "read", cell.reader, where, "rw");
    cell.written = epoch;
    cell.writer = a.me;
    cell.writer_at = a.at;
    return;
  }
  const int mine = simdgroup_of(a.me);
  if (cell.read == epoch && cell.reader != a.me)
    cell.reader = simdgroup_of(cell.reader) == mine ? uint16_t(kLanes | mine) : kMany;
  else
    cell.reader = a.me;
  if (cell.first_read < machine.dispatch_start[a.space]) cell.first_read = epoch;
  cell.read = epoch;
  cell.reader_at = a.at;
}

const Range* range_of(const char* p, size_t bytes, bool write) {
  const auto fits = [&](const Range& r) { return p >= r.begin && p + bytes <= r.end && (r.writable || !write); };
  std::vector<Range>& ranges = machine.ranges;
  if (machine.last_range < ranges.size() && fits(ranges[machine.last_range])) return &ranges[machine.last_range];
  for (size_t k = 0; k < ranges.size(); k++)
    if (fits(ranges[k])) {
      machine.last_range = k;
      return &ranges[k];
    }
  return nullptr;
}

// The bound range that the address is closest to, for the message.
std::string nearest(const char* p) {
  const Range* best = nullptr;
  size_t distance = size_t(1) << 20;
  for (const Range& r : machine.ranges) {
    const size_t d = p < r.begin ? size_t(r.begin - p) : p >= r.end ? size_t(p - r.end) + 1 : 0;
    if (d < distance) best = &r, distance = d;
  }
  if (!best) return "no bound memory";
  const long bytes = long(best->end - best->begin);
  return best->name + "+" + std::to_string(p - best->begin) + " (" + std::to_string(bytes) + " bytes" +
         (best->writable ? ")" : ", an input)");
}

}  // namespace

void check_access(const void* address, size_t bytes, bool write, uint16_t who, const void* site) {
  const char* p = static_cast<const char*>(address);
  const Range* range = range_of(p, bytes, write);
  if (!range) {
    report(
        "out-of-bounds",
        std::string(write ? "write" : "read") + " of " + nearest(p) + " at " + place_of(site) + " by " + who_name(who),
        place_of(site));
    abort_dispatch();
  }
  Buffer* buffer = range->buffer;
  if (!buffer) return;
  const Access access{range->space, who, machine.groups[machine.current->simdgroup].epoch[range->space]};
  const size_t first = size_t(p - buffer->data) / 2, last = (size_t(p - buffer->data) + bytes - 1) / 2;
  // Of an access of four bytes the first cell speaks for both: nobody else touches one half of it.
  const size_t step = bytes == 4 ? 2 : 1;
  for (size_t k = first; k <= last; k += step) {
    const size_t offset = size_t(p - range->begin);
    if (!write && !buffer->initialised[k])
      report("uninitialised-read",
             range->name + "+" + std::to_string(offset) + " at " + place_of(site) + " by " + who_name(who),
             place_of(site));
    if (bytes > 1) check_cell(buffer->cells[k], access, write, *range, offset, site);  // two bytes share a cell
  }
  if (write) std::memset(buffer->initialised + first, 1, last - first + 1);
}

void tile_access(const void* p, size_t bytes, bool write, const void* site) {
  check_access(p, bytes, write, uint16_t(kMatrix | machine.current->simdgroup), site);
}

namespace {

// The library's own data: constants of kernels.
struct Image {
  const char *begin = nullptr, *end = nullptr;
  Image() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* self) {
          Image* image = static_cast<Image*>(self);
          const char *low = nullptr, *high = nullptr;
          for (int k = 0; k < info->dlpi_phnum; k++) {
            if (info->dlpi_phdr[k].p_type != PT_LOAD) continue;
            const char* at = reinterpret_cast<const char*>(info->dlpi_addr + info->dlpi_phdr[k].p_vaddr);
            if (!low) low = at;
            high = at + info->dlpi_phdr[k].p_memsz;
          }
          const char* here = reinterpret_cast<const char*>(&machine);
          if (here < low || here >= high) return 0;
          image->begin = low;
          image->end = high;
          return 1;
        },
        this);
  }
};
const Image image;

inline void instrumented(void* address, size_t bytes, bool write, const void* site) {
  char* p = static_cast<char*>(address);
  if (size_t(p - machine.stacks) < kStack * kMaxThreads || !machine.current) return;
  if (p >= image.begin && p < image.end && !write) return;
  check_access(p, bytes, write, machine.current->thread, site);
}

}  // namespace
}  // namespace emu

#define SITE __builtin_return_address(0)
#define HIDDEN __attribute__((visibility("hidden")))
extern "C" {
HIDDEN void __tsan_init() {}
HIDDEN void __tsan_func_entry(void*) {}
HIDDEN void __tsan_func_exit() {}
#define ACCESS(n)                                                                         \
  HIDDEN void __tsan_read##n(void* p) { emu::instrumented(p, n, false, SITE); }           \
  HIDDEN void __tsan_write##n(void* p) { emu::instrumented(p, n, true, SITE); }           \
  HIDDEN void __tsan_unaligned_read##n(void* p) { emu::instrumented(p, n, false, SITE); } \
  HIDDEN void __tsan_unaligned_write##n(void* p) { emu::instrumented(p, n, true, SITE); } \
  HIDDEN void __tsan_read_write##n(void* p) {                                             \
    emu::instrumented(p, n, false, SITE);                                                 \
    emu::instrumented(p, n, true, SITE);                                                  \
  }                                                                                       \
  HIDDEN void __tsan_unaligned_read_write##n(void* p) { __tsan_read_write##n(p); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16) HIDDEN void __tsan_read_range(void* p, size_t n) {
  emu::instrumented(p, n, false, SITE);
}
HIDDEN void __tsan_write_range(void* p, size_t n) { emu::instrumented(p, n, true, SITE); }
HIDDEN void* __tsan_memcpy(void* to, const void* from, size_t n) {
  if (n) emu::instrumented(const_cast<void*>(from), n, false, SITE), emu::instrumented(to, n, true, SITE);
  return std::memcpy(to, from, n);
}
HIDDEN void* __tsan_memmove(void* to, const void* from, size_t n) {
  if (n) emu::instrumented(const_cast<void*>(from), n, false, SITE), emu::instrumented(to, n, true, SITE);
  return std::memmove(to, from, n);
}
HIDDEN void* __tsan_memset(void* to, int value, size_t n) {
  if (n) emu::instrumented(to, n, true, SITE);
  return std::memset(to, value, n);
}
}
