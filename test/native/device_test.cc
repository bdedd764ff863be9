// The CPU device's memory and settings, and what the op layer says of outputs and of the table.
#include "device.h"

#include <cstdlib>
#include <cstring>

#include "check.h"
#include "cpu/target.h"

namespace {

using namespace tc;

// Sets an environment variable while it lives.
struct Setting {
  const char* name;
  Setting(const char* variable, const char* value) : name(variable) { setenv(variable, value, 1); }
  ~Setting() { unsetenv(name); }
};

Args call(Op op, int32_t want, DType dtype = DType::f32, std::initializer_list<int64_t> dims = {}) {
  Args x;
  x.op = op;
  for (int32_t& w : x.want) w = -1;
  x.want[0] = want;
  x.out[0].dtype = dtype;
  for (const int64_t dim : dims) x.out[0].dim[x.out[0].rank++] = dim;
  return x;
}

}  // namespace

TEST(device_gives_aligned_memory_of_every_size) {
  const auto device = cpu::backend.open(0, 2);
  CHECK(device->threads() == 2 && device->describe().find(", 2 threads, ") != std::string::npos);
  for (const size_t bytes : {size_t(0), size_t(1), size_t(63), size_t(65), (size_t(2) << 20) - 1, size_t(2) << 20,
                             (size_t(2) << 20) + 1, size_t(9) << 20}) {
    void* data = device->allocate(bytes);
    CHECK(data && uintptr_t(data) % (bytes >= size_t(2) << 20 ? size_t(2) << 20 : 64) == 0);
    device->fill_zero(data, bytes);
    if (bytes) {
      static_cast<char*>(data)[bytes - 1] = 7;
      char last = 0;
      device->download(&last, static_cast<char*>(data) + bytes - 1, 1);
      CHECK(last == 7);
    }
    device->release(data, bytes);
  }
  CHECK(device->allocate(size_t(1) << 60) == nullptr);
}

TEST(device_takes_its_memory_limit_and_threads_from_the_environment) {
  constexpr struct {
    const char* text;
    size_t bytes;
  } kLimits[] = {{"5000", 5000}, {"3K", 3072}, {"1.5M", 1572864}, {"2G", size_t(2) << 30}};
  for (const auto& [text, bytes] : kLimits) {
    const Setting limit("TRAIN_CORE_MEMORY_LIMIT", text);
    CHECK(cpu::backend.open(0, 1)->memory_limit() == bytes);
  }
  for (const char* text : {"lots", "5 G", "-1", "0", "5GB", "nan"}) {
    const Setting limit("TRAIN_CORE_MEMORY_LIMIT", text);
    CHECK_ERROR(cpu::backend.open(0, 1), "ERR_CONFIG", "TRAIN_CORE_MEMORY_LIMIT");
  }
  CHECK(cpu::backend.open(0, 1)->memory_limit() > (size_t(64) << 20));
  {
    const Setting threads("TRAIN_CORE_THREADS", "3");
    CHECK(cpu::backend.open(0, 0)->threads() == 3 && cpu::backend.open(0, 1)->threads() == 1);
  }
  for (const char* text : {"0", "many", "2x", "5000"}) {
    const Setting threads("TRAIN_CORE_THREADS", text);
    CHECK_ERROR(cpu::backend.open(0, 0), "ERR_CONFIG", "TRAIN_CORE_THREADS");
  }
  CHECK(cpu::backend.open(0, 1)->describe().find(", 1 thread, ") != std::string::npos);
}

TEST(target_is_available_and_includes_the_lower_ones) {
  using namespace cpu;
  CHECK(isa_available(target()) && target_at_least(Isa::scalar) && target_at_least(target()));
  for (const Isa isa : {Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::amx})
    if (target_at_least(isa)) CHECK(isa_available(isa) && !isa_available(Isa::neon));
}

TEST(outputs_are_sized_when_fresh_and_checked_when_given) {
  Args fresh = call(Op::add, 0);
  fresh.output(0, DType::bf16, {2, 3});
  CHECK(describe(fresh.out[0]) == "[2, 3] bf16" && fresh.out[0].size() == 6 && fresh.out[0].bytes() == 12);
  Args skipped = call(Op::add, -1);
  skipped.output(0, DType::f32, {-5});
  CHECK(skipped.out[0].rank == 0);
  Args given = call(Op::add, 9, DType::f32, {3, 2, 4});
  given.output(0, DType::f32, {6, 4});
  CHECK(describe(given.out[0]) == "[3, 2, 4] f32");
  CHECK_ERROR(given.output(0, DType::f32, {4, 6}), "ERR_SHAPE",
              "[add] output out must be [4, 6] f32; got [3, 2, 4] f32");
  CHECK_ERROR(given.output(0, DType::f32, {5, 4}), "ERR_SHAPE", "[add] output out must be [5, 4] f32");
  CHECK_ERROR(given.output(0, DType::bf16, {6, 4}), "ERR_DTYPE",
              "[add] output out must be [6, 4] bf16; got [3, 2, 4] f32");
  CHECK_ERROR(fresh.output(0, DType::f32, {-1, 2}), "ERR_SHAPE", "[-1, 2]");
  CHECK_ERROR(fresh.output(0, DType::f32, {int64_t(1) << 31}), "ERR_SHAPE", "below 2^31");
  CHECK_ERROR(fresh.output(0, DType::f32, {1 << 27, 1 << 26}), "ERR_SHAPE", "2^53");
  fresh.output(0, DType::f32, {0, 7});
  CHECK(fresh.out[0].size() == 0);
}

TEST(the_op_table_reads_its_own_lines) {
  const OpInfo& adamw = op_info(Op::adamw);
  CHECK(!std::strcmp(adamw.name, "adamw") && adamw.input_count == 3 && adamw.output_count == 4 &&
        adamw.scalar_count == 6);
  CHECK(!adamw.has_workspace && adamw.input_optional[2] && !adamw.input_optional[1]);
  CHECK(adamw.output_kind[0] == '!' && adamw.output_optional[3] && !adamw.output_optional[2]);
  CHECK(op_info(Op::column_sum).output_kind[0] == '+' && op_info(Op::column_sum).has_workspace);
  CHECK(op_info(Op::fill).input_count == 1 && op_info(Op::matmul).output_kind[0] == ' ');
  for (int op = 0; op < kOpCount; op++) {
    const OpInfo& info = op_info(Op(op));
    CHECK(info.output_count >= 1 && (cpu::backend.workspaces[op] != nullptr) == info.has_workspace &&
          cpu::backend.kernels[op]);
  }
  CHECK(!std::strcmp(dtype_name(DType::u16), "u16") && !std::strcmp(dtype_name(DType(77)), "unknown dtype"));
}
