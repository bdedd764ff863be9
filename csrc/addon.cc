// Node-API: some twenty functions, none of them an op. The only file that knows JavaScript exists.
//
// A worker may be terminated while jobs are under way. From then on every call that would run JavaScript fails,
// throwing included, so an exception that node-addon-api raises for a failed call would leave a C callback and abort
// the process. Hence: plain Node-API calls, whose failures only make the function return; and the streams are stopped
// in a cleanup hook that was registered after the thread-safe function was made, so that it runs before that function
// goes away.
#include <napi.h>

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backends.h"
#include "cpu/target.h"
#include "runtime.h"

namespace tc {
namespace {

constexpr int kBlockWords = 64;  // a packet, then 8 reply words for each of 4 outputs: id, dtype, rank, dims, device

struct PendingRead {
  napi_deferred deferred;
  std::vector<char> data;
  std::unique_ptr<Failure> failure;
};

// One per environment (the main thread, each worker).
struct Context {
  std::unique_ptr<Runtime> runtime;
  int32_t* block = nullptr;
  napi_ref block_ref = nullptr, error_class = nullptr;
  napi_threadsafe_function settle = nullptr;
  std::mutex mutex;
  std::vector<std::shared_ptr<PendingRead>> finished;  // guarded by mutex
  bool posted = false;                                 // guarded by mutex
  size_t pending = 0;                                  // JS thread only
};

napi_value make_error(napi_env env, Context& context, const char* code, const std::string& text) {
  napi_value arguments[2] = {}, error_class = nullptr, error = nullptr;
  napi_create_string_utf8(env, code, NAPI_AUTO_LENGTH, &arguments[0]);
  napi_create_string_utf8(env, text.c_str(), text.size(), &arguments[1]);
  if (context.error_class) napi_get_reference_value(env, context.error_class, &error_class);
  if (error_class && napi_new_instance(env, error_class, 2, arguments, &error) == napi_ok) return error;
  napi_create_error(env, arguments[0], arguments[1], &error);
  return error;
}

Context* context_of(napi_env env) {
  void* data = nullptr;
  napi_get_instance_data(env, &data);
  return static_cast<Context*>(data);
}

// Every exported function: arguments in, exceptions kept inside.
constexpr size_t kMaxArguments = 4;
using Function = napi_value (*)(napi_env, Context&, napi_value*, size_t);
template <Function F>
napi_value guarded(napi_env env, napi_callback_info info) {
  Context* context = context_of(env);
  if (!context || !context->runtime) return nullptr;  // the environment is going away
  napi_value arguments[kMaxArguments] = {};
  size_t count = kMaxArguments;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr) != napi_ok) return nullptr;
  try {
    return F(env, *context, arguments, count);
  } catch (const Error& e) {
    napi_throw(env, make_error(env, *context, e.code(), e.what()));
  } catch (const std::bad_alloc&) {
    napi_throw(env, make_error(env, *context, "ERR_MEMORY", "the host is out of memory"));
  } catch (const std::exception& e) {
    napi_throw(env, make_error(env, *context, "ERR_DEVICE", e.what()));
  }
  return nullptr;
}

int32_t to_int(napi_env env, napi_value value, const char* what) {
  int32_t x = 0;
  double exact = 0;
  if (!value || napi_get_value_double(env, value, &exact) != napi_ok ||
      napi_get_value_int32(env, value, &x) != napi_ok || double(x) != exact)
    throw Error("ERR_ARGUMENT", std::string(what) + " must be a 32-bit integer");
  return x;
}
std::string to_text(napi_env env, napi_value value, const char* what) {
  size_t length = 0;
  if (!value || napi_get_value_string_utf8(env, value, nullptr, 0, &length) != napi_ok)
    throw Error("ERR_ARGUMENT", std::string(what) + " must be a string");
  std::string text(length + 1, 0);
  napi_get_value_string_utf8(env, value, text.data(), text.size(), &length);
  text.resize(length);
  return text;
}
napi_value number(napi_env env, double x) {
  napi_value value = nullptr;
  napi_create_double(env, x, &value);
  return value;
}
napi_value text(napi_env env, const std::string& s) {
  napi_value value = nullptr;
  napi_create_string_utf8(env, s.c_str(), s.size(), &value);
  return value;
}
void set(napi_env env, napi_value object, const char* key, napi_value value) {
  napi_set_named_property(env, object, key, value);
}

// ---- devices

napi_value open_device(napi_env env, Context& c, napi_value* a, size_t) {
  return number(env, c.runtime->open_device(to_text(env, a[0], "the device's name"), to_int(env, a[1], "threads")));
}

napi_value backends(napi_env env, Context&, napi_value*, size_t) {
  napi_value list = nullptr;
  napi_create_array(env, &list);
  uint32_t at = 0;
  for (const BackendStatus& status : backend_statuses()) {
    napi_value object = nullptr, available = nullptr;
    napi_create_object(env, &object);
    napi_get_boolean(env, status.available, &available);
    set(env, object, "name", text(env, status.name));
    set(env, object, "available", available);
    set(env, object, "reason", text(env, status.reason));
    std::string missing;
    for (int op = 0; op < kOpCount; op++)
      if (!backend_has(status.name, Op(op))) missing += std::string(missing.empty() ? "" : " ") + op_info(Op(op)).name;
    set(env, object, "missing", text(env, missing));
    set(env, object, "precisions", text(env, backend_precisions(status.name)));
    napi_set_element(env, list, at++, object);
  }
  return list;
}

napi_value variants(napi_env env, const Device& device) {
  napi_value list = nullptr;
  napi_create_array(env, &list);
  uint32_t at = 0;
  for (const Variant& v : device.variants()) {
    napi_value object = nullptr;
    napi_create_object(env, &object);
    set(env, object, "family", text(env, v.family));
    set(env, object, "plainBecause", text(env, v.plain_because));
    napi_set_element(env, list, at++, object);
  }
  return list;
}

napi_value device_info(napi_env env, Context& c, napi_value* a, size_t) {
  OpenDevice& open = c.runtime->device(to_int(env, a[0], "the device's index"));
  napi_value object = nullptr, largest = nullptr;
  napi_create_object(env, &object);
  set(env, object, "name", text(env, open.device->name()));
  set(env, object, "description", text(env, open.device->describe()));
  set(env, object, "isa", text(env, cpu::target_name(cpu::target())));
  set(env, object, "isas", text(env, cpu::available_targets()));
  set(env, object, "threads", number(env, open.device->threads()));
  set(env, object, "live", number(env, double(open.arena->live())));
  set(env, object, "peak", number(env, double(open.arena->peak())));
  set(env, object, "reserved", number(env, double(open.arena->reserved())));
  set(env, object, "limit", number(env, double(open.arena->limit())));
  set(env, object, "tensors", number(env, double(c.runtime->live_tensors())));
  set(env, object, "jobs", number(env, double(open.stream->jobs())));
  napi_create_array(env, &largest);
  uint32_t at = 0;
  for (size_t bytes : open.arena->largest(8)) napi_set_element(env, largest, at++, number(env, double(bytes)));
  set(env, object, "largest", largest);
  set(env, object, "largestEver", number(env, double(open.arena->largest_ever())));
  set(env, object, "variants", variants(env, *open.device));
  return object;
}

napi_value use_plain(napi_env env, Context& c, napi_value* a, size_t) {
  OpenDevice& open = c.runtime->device(to_int(env, a[0], "the device's index"));
  if (auto failure = open.stream->finish())
    return napi_throw(env, make_error(env, c, failure->code.c_str(), failure->message)), nullptr;
  open.device->use_plain(to_text(env, a[1], "the family"), to_text(env, a[2], "the reason"));
  return nullptr;
}

napi_value texts(napi_env env, const std::vector<std::string>& list) {
  napi_value array = nullptr;
  napi_create_array(env, &array);
  uint32_t at = 0;
  for (const std::string& each : list) napi_set_element(env, array, at++, text(env, each));
  return array;
}

// What a device says of itself: compiling its kernels, and probing its hardware.
napi_value examine(napi_env env, Context& c, napi_value* a, size_t) {
  OpenDevice& open = c.runtime->device(to_int(env, a[0], "the device's index"));
  Compiled compiled;
  std::vector<std::string> probed;
  Job job;
  job.task = [&compiled, &probed, device = open.device.get()] {
    compiled = device->compile_all();
    probed = device->probe();
  };
  open.stream->push(std::move(job));
  if (auto failure = open.stream->finish()) probed.push_back(failure->message);
  napi_value object = nullptr;
  napi_create_object(env, &object);
  set(env, object, "kernels", number(env, compiled.kernels));
  set(env, object, "problems", texts(env, compiled.problems));
  set(env, object, "hardware", texts(env, probed));
  return object;
}

napi_value reset_peak(napi_env env, Context& c, napi_value* a, size_t) {
  c.runtime->device(to_int(env, a[0], "the device's index")).arena->reset_peak();
  return nullptr;
}

napi_value time_kernels(napi_env env, Context& c, napi_value* a, size_t) {
  c.runtime->device(to_int(env, a[0], "the device's index")).stream->time_kernels(to_int(env, a[1], "on") != 0);
  return nullptr;
}

napi_value describe_view(napi_env env, const View& v, bool present) {
  napi_value object = nullptr, shape = nullptr;
  if (!present) return napi_get_null(env, &object), object;
  napi_create_object(env, &object);
  napi_create_array(env, &shape);
  for (int32_t d = 0; d < v.rank; d++) napi_set_element(env, shape, uint32_t(d), number(env, double(v.dim[d])));
  set(env, object, "dtype", text(env, dtype_name(v.dtype)));
  set(env, object, "shape", shape);
  return object;
}

// What each timed kernel was given, and when it ran. Scalars are raw words.
napi_value kernel_times(napi_env env, Context& c, napi_value* a, size_t) {
  std::vector<KernelTime> times;
  const int32_t index = to_int(env, a[0], "the device's index");
  if (auto failure = c.runtime->device(index).stream->take_times(times))
    return napi_throw(env, make_error(env, c, failure->code.c_str(), failure->message)), nullptr;
  napi_value list = nullptr;
  napi_create_array(env, &list);
  for (size_t k = 0; k < times.size(); k++) {
    const auto& [x, begin, end] = times[k];
    const OpInfo& info = op_info(x.op);
    napi_value object = nullptr, inputs = nullptr, outputs = nullptr, fresh = nullptr, scalars = nullptr;
    napi_create_object(env, &object);
    for (napi_value* array : {&inputs, &outputs, &fresh, &scalars}) napi_create_array(env, array);
    for (int n = 0; n < info.input_count; n++)
      napi_set_element(env, inputs, uint32_t(n), describe_view(env, x.in[n], x.has(n)));
    for (int n = 0; n < info.output_count; n++) {
      napi_value made = nullptr;
      napi_get_boolean(env, x.want[n] == 0, &made);
      napi_set_element(env, outputs, uint32_t(n), describe_view(env, x.out[n], x.wants(n)));
      napi_set_element(env, fresh, uint32_t(n), made);
    }
    for (int n = 0; n < info.scalar_count; n++) napi_set_element(env, scalars, uint32_t(n), number(env, x.i(n)));
    set(env, object, "op", text(env, info.name));
    set(env, object, "begin", number(env, double(begin) * 1e-6));
    set(env, object, "end", number(env, double(end) * 1e-6));
    set(env, object, "inputs", inputs);
    set(env, object, "outputs", outputs);
    set(env, object, "fresh", fresh);
    set(env, object, "scalars", scalars);
    set(env, object, "workspace", number(env, double(x.workspace.data ? x.workspace.bytes() : 0)));
    napi_set_element(env, list, uint32_t(k), object);
  }
  return list;
}

// ---- tensors: words of the block in, id out

napi_value create(napi_env env, Context& c, napi_value*, size_t) {
  const int32_t* w = c.block;  // device, dtype, rank, dims
  return number(env, c.runtime->create(w[0], DType(w[1]), w[2], w + 3));
}

napi_value view(napi_env env, Context& c, napi_value* a, size_t) {
  const int32_t* w = c.block;  // id, rank, dims; the offset is an argument, since it may pass 2^31
  int64_t offset = -1;
  if (napi_get_value_int64(env, a[0], &offset) != napi_ok)
    throw Error("ERR_ARGUMENT", "[view] offset must be a number");
  return number(env, c.runtime->view(w[0], offset, w[1], w + 2));
}

napi_value free_tensor(napi_env env, Context& c, napi_value* a, size_t) {
  c.runtime->free(to_int(env, a[0], "a tensor's id"));
  return nullptr;
}

// The bytes of a typed array, an ArrayBuffer view or a Buffer.
std::pair<const char*, size_t> bytes_of(napi_env env, napi_value value) {
  bool is_typed = false;
  napi_typedarray_type type;
  size_t length = 0, offset = 0;
  void* data = nullptr;
  napi_value buffer;
  if (!value || napi_is_typedarray(env, value, &is_typed) != napi_ok || !is_typed ||
      napi_get_typedarray_info(env, value, &type, &length, &data, &buffer, &offset) != napi_ok)
    throw Error("ERR_ARGUMENT", "[write] data must be a typed array");
  static const size_t kSizes[] = {1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8};
  if (size_t(type) >= std::size(kSizes))
    throw Error("ERR_ARGUMENT", "[write] data of this type of array can't be taken");
  return {static_cast<const char*>(data), length * kSizes[type]};
}

napi_value write(napi_env env, Context& c, napi_value* a, size_t) {
  const TensorEntry entry = c.runtime->tensor(to_int(env, a[0], "a tensor's id"));
  if (c.runtime->capturing())
    throw Error("ERR_CAPTURE", "[write] a captured step can't write from the host; help: write before the step");
  const auto [data, size] = bytes_of(env, a[1]);
  if (size != entry.view.bytes())
    throw Error("ERR_SHAPE", "[write] " + describe(entry.view) + " takes " + std::to_string(entry.view.bytes()) +
                                 " bytes; got " + std::to_string(size));
  OpenDevice& open = c.runtime->device(entry.device);
  auto staged = std::make_shared<std::vector<char>>(data, data + size);
  Device* device = open.device.get();
  Job job;
  job.task = [device, staged, target = entry.view.data] { device->upload(target, staged->data(), staged->size()); };
  open.stream->push(std::move(job));
  return nullptr;
}

// ---- calls

napi_value call(napi_env, Context& c, napi_value*, size_t) {
  Packet packet;
  std::memcpy(&packet, c.block, sizeof packet);
  int32_t ids[kMaxOutputs] = {};
  c.runtime->call(packet, ids);
  for (int k = 0; k < kMaxOutputs; k++) {
    int32_t* reply = c.block + 32 + 8 * k;
    reply[0] = ids[k];
    if (!ids[k]) continue;
    const TensorEntry& entry = c.runtime->tensor(ids[k]);
    reply[1] = int32_t(entry.view.dtype);
    reply[2] = entry.view.rank;
    for (int d = 0; d < kMaxRank; d++) reply[3 + d] = int32_t(entry.view.dim[d]);
    reply[7] = entry.device;
  }
  return nullptr;
}

// ---- reading and fences

// An ArrayBuffer, or false. V8 aborts the process when a large one can't be had: ask for the memory before.
bool make_buffer(napi_env env, size_t bytes, void** data, napi_value* buffer) {
  if (bytes >= (size_t(1) << 20)) {
    void* trial = std::malloc(bytes);
    if (!trial) return false;
    std::free(trial);
  }
  return napi_create_arraybuffer(env, bytes, data, buffer) == napi_ok;
}

void settle_reads(napi_env env, napi_value, void* data, void*) {
  if (!env) return;  // the environment is going away, the context may be gone: nobody is left to hear of it
  auto& c = *static_cast<Context*>(data);
  std::vector<std::shared_ptr<PendingRead>> finished;
  {
    std::lock_guard<std::mutex> lock(c.mutex);
    finished.swap(c.finished);
    c.posted = false;
  }
  for (std::shared_ptr<PendingRead>& finished_read : finished) {
    const auto read = std::move(finished_read);  // its bytes go before the next one's are copied
    c.pending--;
    napi_handle_scope scope;
    if (napi_open_handle_scope(env, &scope) != napi_ok) continue;
    if (read->failure) {
      napi_reject_deferred(env, read->deferred,
                           make_error(env, c, read->failure->code.c_str(), read->failure->message));
    } else {
      void* target = nullptr;
      napi_value buffer = nullptr;
      if (make_buffer(env, read->data.size(), &target, &buffer)) {
        if (!read->data.empty()) std::memcpy(target, read->data.data(), read->data.size());
        napi_resolve_deferred(env, read->deferred, buffer);
      } else {
        const std::string bytes = std::to_string(read->data.size());
        napi_reject_deferred(env, read->deferred,
                             make_error(env, c, "ERR_MEMORY", "[read] JavaScript can't hold " + bytes + " bytes"));
      }
    }
    napi_close_handle_scope(env, scope);
  }
  if (c.pending == 0) napi_unref_threadsafe_function(env, c.settle);
}

void no_capture(Context& c, const char* what) {
  if (c.runtime->capturing())
    throw Error("ERR_CAPTURE",
                std::string("[") + what + "] a captured step can't wait for the device; help: read after the step");
}

// Resolves after all that was queued on the device; with an id, with that tensor's bytes.
napi_value fence(napi_env env, Context& c, OpenDevice& open, const View* view) {
  napi_value promise = nullptr;
  auto read = std::make_shared<PendingRead>();  // owned by the jobs, which the stream may drop
  if (napi_create_promise(env, &read->deferred, &promise) != napi_ok) return nullptr;
  if (c.pending++ == 0) napi_ref_threadsafe_function(env, c.settle);
  Device* device = open.device.get();
  if (view && view->bytes() > 0) {
    Job copy;
    copy.task = [device, read, v = *view] {
      read->data.resize(v.bytes());
      device->download(read->data.data(), v.data, v.bytes());
    };
    open.stream->push(std::move(copy));
  }
  Job job;
  job.fence = [&c, read](std::unique_ptr<Failure> failure) {
    read->failure = std::move(failure);
    bool post;
    {
      std::lock_guard<std::mutex> lock(c.mutex);
      c.finished.push_back(read);
      post = !c.posted;
      c.posted = true;
    }
    if (post) napi_call_threadsafe_function(c.settle, nullptr, napi_tsfn_nonblocking);
  };
  open.stream->push(std::move(job));
  return promise;
}

napi_value read(napi_env env, Context& c, napi_value* a, size_t) {
  no_capture(c, "read");
  const TensorEntry entry = c.runtime->tensor(to_int(env, a[0], "a tensor's id"));
  return fence(env, c, c.runtime->device(entry.device), &entry.view);
}

napi_value sync(napi_env env, Context& c, napi_value* a, size_t) {
  no_capture(c, "sync");
  return fence(env, c, c.runtime->device(to_int(env, a[0], "the device's index")), nullptr);
}

napi_value read_sync(napi_env env, Context& c, napi_value* a, size_t) {
  no_capture(c, "readSync");
  const TensorEntry entry = c.runtime->tensor(to_int(env, a[0], "a tensor's id"));
  OpenDevice& open = c.runtime->device(entry.device);
  void* target = nullptr;
  napi_value buffer = nullptr;
  if (!make_buffer(env, entry.view.bytes(), &target, &buffer))
    throw Error("ERR_MEMORY", "[readSync] JavaScript can't hold " + std::to_string(entry.view.bytes()) + " bytes");
  if (entry.view.bytes() > 0) {
    Job job;
    job.task = [device = open.device.get(), target, v = entry.view] { device->download(target, v.data, v.bytes()); };
    open.stream->push(std::move(job));
  }
  if (auto failure = open.stream->finish()) {
    napi_throw(env, make_error(env, c, failure->code.c_str(), failure->message));
    return nullptr;
  }
  return buffer;
}

// ---- recordings: capture(action, argument)

napi_value capture(napi_env env, Context& c, napi_value* a, size_t) {
  const std::string action = to_text(env, a[0], "the action");
  if (action == "abandon") return c.runtime->abandon(), nullptr;
  if (action == "end") return number(env, c.runtime->end_recording());
  if (action == "end_verify") return c.runtime->end_verify(), nullptr;
  const int32_t argument = to_int(env, a[1], "a device's index or a recording");
  if (action == "begin") return c.runtime->begin_recording(argument), nullptr;
  if (action == "verify") return c.runtime->begin_verify(argument), nullptr;
  if (action == "replay") return number(env, double(c.runtime->replay(argument)));
  if (action == "free") return c.runtime->free_recording(argument), nullptr;
  throw Error("ERR_ARGUMENT", "no such action: " + action);
}

// bind(TrainCoreError factory): the shared block; errors are made by that class from then on
napi_value bind(napi_env env, Context& c, napi_value* a, size_t count) {
  napi_valuetype type = napi_undefined;
  if (count > 0) napi_typeof(env, a[0], &type);
  if (type != napi_function) throw Error("ERR_ARGUMENT", "bind() takes the error class");
  if (c.error_class) napi_delete_reference(env, c.error_class);
  napi_create_reference(env, a[0], 1, &c.error_class);
  napi_value buffer = nullptr;
  napi_get_reference_value(env, c.block_ref, &buffer);
  return buffer;
}

napi_value op_table(napi_env env) {
  napi_value list = nullptr;
  napi_create_array(env, &list);
  for (int op = 0; op < kOpCount; op++) {
    const OpInfo& info = op_info(Op(op));
    napi_value object = nullptr;
    napi_create_object(env, &object);
    set(env, object, "name", text(env, info.name));
    set(env, object, "inputs", text(env, info.inputs));
    set(env, object, "outputs", text(env, info.outputs));
    set(env, object, "scalars", text(env, info.scalars));
    napi_set_element(env, list, uint32_t(op), object);
  }
  return list;
}

template <Function F>
void define(napi_env env, napi_value exports, const char* name) {
  napi_value function = nullptr;
  napi_create_function(env, name, NAPI_AUTO_LENGTH, guarded<F>, nullptr, &function);
  set(env, exports, name, function);
}

napi_value init(napi_env env, napi_value exports) {
  auto* context = new Context;
  const char* check = std::getenv("TRAIN_CORE_CHECK");
  context->runtime = std::make_unique<Runtime>(check && *check && std::strcmp(check, "0") != 0);
  napi_set_instance_data(
      env, context, [](napi_env, void* data, void*) { delete static_cast<Context*>(data); }, nullptr);
  napi_value name = text(env, "train-core stream");
  const napi_status made = napi_create_threadsafe_function(
      env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, context,
      [](napi_env e, napi_value f, void* c, void* d) { settle_reads(e, f, c, d); }, &context->settle);
  if (made != napi_ok || napi_unref_threadsafe_function(env, context->settle) != napi_ok) {
    context->runtime.reset();  // the environment is going away
    return exports;
  }
  napi_add_env_cleanup_hook(
      env, [](void* data) { static_cast<Context*>(data)->runtime.reset(); }, context);

  napi_value block = nullptr;
  void* data = nullptr;
  if (napi_create_arraybuffer(env, kBlockWords * 4, &data, &block) != napi_ok) return nullptr;  // with an exception
  context->block = static_cast<int32_t*>(data);
  napi_create_reference(env, block, 1, &context->block_ref);

  set(env, exports, "version", text(env, TC_VERSION));
  set(env, exports, "ops", op_table(env));
  define<bind>(env, exports, "bind");
  define<backends>(env, exports, "backends");
  define<open_device>(env, exports, "openDevice");
  define<device_info>(env, exports, "deviceInfo");
  define<use_plain>(env, exports, "usePlain");
  define<examine>(env, exports, "examine");
  define<reset_peak>(env, exports, "resetPeak");
  define<time_kernels>(env, exports, "timeKernels");
  define<kernel_times>(env, exports, "kernelTimes");
  define<create>(env, exports, "create");
  define<view>(env, exports, "view");
  define<free_tensor>(env, exports, "free");
  define<write>(env, exports, "write");
  define<call>(env, exports, "call");
  define<read>(env, exports, "read");
  define<read_sync>(env, exports, "readSync");
  define<sync>(env, exports, "sync");
  define<capture>(env, exports, "capture");
  return exports;
}

}  // namespace
}  // namespace tc

NAPI_MODULE_INIT() { return tc::init(env, exports); }
