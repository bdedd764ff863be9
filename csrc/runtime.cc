#include "runtime.h"

#include <algorithm>
#include <cstring>

#include "backends.h"

namespace tc {

namespace {
// id = generation (11 bits) above slot (20 bits). Slots are reused first in, first out and late, so that a stale id is
// noticed.
constexpr int32_t kSlotBits = 20, kSlotMask = (1 << kSlotBits) - 1, kGenerationMask = (1 << 11) - 1;
constexpr size_t kMinFreeSlots = 4096;

void check_dims(int32_t rank, const int32_t* dims) {
  if (rank < 0 || rank > kMaxRank)
    throw Error("ERR_SHAPE",
                "a tensor has 0 to " + std::to_string(kMaxRank) + " dimensions; got " + std::to_string(rank));
  double size = 1;
  for (int k = 0; k < rank; k++) {
    if (dims[k] < 0)
      throw Error("ERR_SHAPE", "a dimension must be >= 0 and below 2^31; got " + std::to_string(dims[k]));
    size *= dims[k] ? dims[k] : 1;  // products of some dims must not overflow either
  }
  if (size > 9e15) throw Error("ERR_SHAPE", "a tensor must have fewer than 2^53 elements");
}

View make_view(void* data, DType dtype, int32_t rank, const int32_t* dims) {
  View v;
  v.data = data;
  v.dtype = dtype;
  v.rank = rank;
  for (int k = 0; k < rank; k++) v.dim[k] = dims[k];
  return v;
}

Packet make_packet(int32_t op, int32_t in, int64_t a, int32_t rank, const int32_t* dims) {
  Packet packet{};
  packet.op = op;
  packet.in[0] = in;
  packet.scalar[0].i = int32_t(a);
  packet.scalar[1].i = int32_t(a >> 32);
  packet.scalar[2].i = rank;
  for (int k = 0; k < rank; k++) packet.scalar[3 + k].i = dims[k];
  return packet;
}

const char* packet_name(const Packet& packet) {
  return packet.op == Recording::kView     ? "view"
         : packet.op == Recording::kCreate ? "create"
                                           : op_info(Op(packet.op)).name;
}

// The first part of two packets of one op that differs.
std::string difference(const Packet& a, const Packet& b) {
  for (int k = 0; k < kMaxInputs; k++)
    if (a.in[k] != b.in[k]) return "another input " + std::to_string(k);
  for (int k = 0; k < kMaxOutputs; k++)
    if (a.out[k] != b.out[k]) return "another output " + std::to_string(k);
  for (int k = 0; k < kMaxScalars; k++)
    if (a.scalar[k].i != b.scalar[k].i) return "another scalar " + std::to_string(k);
  return "other reserved words";
}

// What all ops but conversions have in common: one 16-bit type in a call, and one that the backend computes in.
void check_precision(const Args& x, const Backend& backend) {
  if (x.op == Op::cast || x.op == Op::fill) return;
  const View *bf16 = nullptr, *f16 = nullptr;
  const auto note = [&](const View& v) {
    if (v.dtype == DType::bf16) bf16 = &v;
    if (v.dtype == DType::f16) f16 = &v;
  };
  for (const View& v : x.in) note(v);
  for (const View& v : x.out) note(v);
  if (f16 && !backend.has_f16)
    fail(x, "ERR_UNSUPPORTED",
         std::string("the ") + backend.name + " backend computes in f32 and bf16; got " + describe(*f16) +
             "; help: cast to f32 or bf16");
  if (f16 && bf16)
    fail(x, "ERR_DTYPE",
         "one call takes bf16 or f16, not both; got " + describe(*bf16) + " and " + describe(*f16) +
             "; help: cast one of them");
}

}  // namespace

Runtime::~Runtime() {
  // Streams first: nothing runs any more. Then arenas free all memory, devices last.
  for (auto& d : devices_) d->stream.reset();
  for (auto& d : devices_) d->arena.reset();
}

int32_t Runtime::open_device(const std::string& given, int threads) {
  const std::string name = given == "cuda" ? "cuda:0" : given;
  if (auto found = by_name_.find(name); found != by_name_.end()) {
    if (threads > 0 && threads != devices_[found->second]->device->threads())
      throw Error("ERR_ARGUMENT", name + " is open with " + std::to_string(devices_[found->second]->device->threads()) +
                                      " threads; got " + std::to_string(threads) +
                                      "; help: set the threads before the first tensor");
    return found->second;
  }
  if (threads < 0 || threads > 1024)
    throw Error("ERR_ARGUMENT", "threads must be from 1 to 1024, or 0 for the default; got " + std::to_string(threads));
  int index = 0;
  const Backend& backend = find_backend(name, index);
  auto open = std::make_unique<OpenDevice>();
  open->backend = &backend;
  open->device = backend.open(index, threads);
  open->arena = std::make_unique<Arena>(*open->device, check_ ? kGuard : 0);
  open->stream = std::make_unique<Stream>(*open->device, check_);
  open->arena->wait_before_trim([stream = open->stream.get()] { stream->wait(); });
  devices_.push_back(std::move(open));
  return by_name_[name] = int32_t(devices_.size()) - 1;
}

OpenDevice& Runtime::device(int32_t index) {
  if (index < 0 || size_t(index) >= devices_.size())
    throw Error("ERR_ARGUMENT", "no open device has the index " + std::to_string(index));
  return *devices_[index];
}

// Takes over one reference of the storage.
int32_t Runtime::add(Storage* storage, const View& view, int32_t device) {
  int32_t slot;
  if (free_slots_.size() > kMinFreeSlots || tensors_.size() > size_t(kSlotMask)) {
    if (free_slots_.empty()) {
      devices_[device]->arena->release(storage);
      throw Error("ERR_MEMORY", "more than a million live tensors; help: free them, or work inside scope()");
    }
    slot = free_slots_.front();
    free_slots_.pop_front();
  } else {
    slot = int32_t(tensors_.size());
    tensors_.emplace_back();
  }
  TensorEntry& entry = tensors_[slot];
  entry.storage = storage;
  entry.view = view;
  entry.device = device;
  live_++;
  return (entry.generation << kSlotBits) | slot;
}

int32_t Runtime::create(int32_t index, DType dtype, int32_t rank, const int32_t* dims) {
  check_dims(rank, dims);
  if (dtype < DType::f32 || dtype >= DType::count)
    throw Error("ERR_DTYPE", "unknown dtype " + std::to_string(int(dtype)));
  OpenDevice& open = device(index);
  const Recording* captured = recording_ ? recording_.get() : verifying_;
  if (captured && index != captured->device) throw Error("ERR_CAPTURE", "a captured step must stay on one device");
  const Packet packet = make_packet(Recording::kCreate, 0, int32_t(dtype), rank, dims);
  if (verifying_) {
    match(packet, "create");
    return stand_in();
  }
  View v = make_view(nullptr, dtype, rank, dims);
  Storage* storage = open.arena->allocate(v.bytes());
  v.data = storage->data;
  if (check_ && !recording_) {
    open.stream->push_guard({static_cast<char*>(v.data), v.bytes(), true});
    storage->guarded = true;
  }
  const int32_t made = add(storage, v, index);
  if (recording_) {
    recording_->packets.push_back(packet);
    recording_->name(made);
    recording_->made.push_back(v);
  }
  return made;
}

int32_t Runtime::view(int32_t id, int64_t offset, int32_t rank, const int32_t* dims) {
  check_dims(rank, dims);
  const TensorEntry entry = tensor(id);
  View v = make_view(nullptr, entry.view.dtype, rank, dims);
  if (offset < 0 || v.size() > entry.view.size() || offset > entry.view.size() - v.size())
    throw Error("ERR_SHAPE", "[view] offset " + std::to_string(offset) + " and " + describe(v) + " must lie within " +
                                 describe(entry.view));
  v.data = static_cast<char*>(entry.view.data) + size_t(offset) * dtype_size(v.dtype);
  const Packet packet = make_packet(Recording::kView, id, offset, rank, dims);
  if (verifying_) match(packet, "view");
  device(entry.device).arena->retain(entry.storage);
  const int32_t made = add(entry.storage, v, entry.device);
  if (recording_) {
    recording_->packets.push_back(relative(packet, *recording_));
    recording_->name(made);
  } else if (verifying_) {
    verifying_->name(made);
    verifying_->stand_ins.push_back(made);
  }
  return made;
}

const TensorEntry& Runtime::tensor(int32_t id) const {
  const int32_t slot = id & kSlotMask, generation = id >> kSlotBits;
  if (id <= 0 || size_t(slot) >= tensors_.size())
    throw Error("ERR_ARGUMENT", "no tensor has the id " + std::to_string(id));
  const TensorEntry& entry = tensors_[slot];
  if (!entry.storage || entry.generation != generation)
    throw Error("ERR_FREED",
                "the tensor was freed (by free(), or at the end of the scope() that made it); help: keep() it");
  return entry;
}

void Runtime::free(int32_t id) {
  const int32_t slot = id & kSlotMask, generation = id >> kSlotBits;
  if (id <= 0 || size_t(slot) >= tensors_.size()) return;
  TensorEntry& entry = tensors_[slot];
  if (!entry.storage || entry.generation != generation) return;
  devices_[entry.device]->arena->release(entry.storage);
  entry.storage = nullptr;
  entry.generation = (entry.generation + 1) & kGenerationMask;
  free_slots_.push_back(slot);
  live_--;
}

// Fills args.in and existing outputs from the packet's ids; returns the device.
int32_t Runtime::resolve(const Packet& packet, Args& args, Storage** storages) {
  const OpInfo& info = op_info(args.op);
  int32_t device = -1;
  auto take = [&](int32_t id, View& view, Storage*& storage, const char* what, int k) {
    const TensorEntry* entry;
    try {
      entry = &tensor(id);
    } catch (const Error& e) {
      throw Error(e.code(), std::string("[") + info.name + "] " + what + " " + std::to_string(k) + ": " + e.what());
    }
    if (device >= 0 && device != entry->device)
      throw Error("ERR_DEVICE", std::string("[") + info.name + "] all tensors must be on one device; got " +
                                    devices_[device]->device->name() + " and " +
                                    devices_[entry->device]->device->name());
    device = entry->device;
    view = entry->view;
    storage = entry->storage;
  };
  for (int k = 0; k < kMaxInputs; k++) {
    if (packet.in[k] == 0) {
      if (k < info.input_count && !info.input_optional[k])
        args.require(false, "input " + std::to_string(k) + " must be given; got none");
      continue;
    }
    if (k >= info.input_count) args.require(false, "takes " + std::to_string(info.input_count) + " inputs; got more");
    take(packet.in[k], args.in[k], storages[k], "input", k);
  }
  for (int k = 0; k < kMaxOutputs; k++) {
    args.want[k] = k < info.output_count ? packet.out[k] : -1;
    if (args.want[k] > 0) take(packet.out[k], args.out[k], storages[kMaxInputs + k], "output", k);
    if (k >= info.output_count) continue;
    if (args.want[k] == 0 && info.output_kind[k] == '!')
      args.require(false, "output " + std::to_string(k) + " is written in place and must be given; got none");
    if (args.want[k] < 0 && !info.output_optional[k])
      args.require(false, "output " + std::to_string(k) + " can't be left out");
  }
  if (device < 0) args.require(false, "at least one tensor must be given");
  return device;
}

// Gives fresh outputs and the workspace their memory.
void Runtime::make_outputs(const Packet& packet, Args& args, int32_t device, int32_t outputs[kMaxOutputs],
                           Storage** storages) {
  OpenDevice& open = *devices_[device];
  std::fill_n(outputs, kMaxOutputs, 0);
  for (int k = 0; k < kMaxOutputs; k++) {
    outputs[k] = args.want[k] > 0 ? packet.out[k] : 0;
    if (args.want[k] != 0) continue;
    Storage* storage = open.arena->allocate(args.out[k].bytes());
    args.out[k].data = storage->data;
    storages[kMaxInputs + k] = storage;
    outputs[k] = add(storage, args.out[k], device);
  }
  const WorkspaceSize size = open.backend->workspaces[packet.op];
  if (!size) return;
  args.workspace.rank = 1;
  args.workspace.dtype = DType::u8;
  args.workspace.dim[0] = int64_t(size(args));
  if (args.workspace.dim[0] == 0) return;
  storages[kMaxInputs + kMaxOutputs] = open.arena->allocate(args.workspace.bytes());
  args.workspace.data = storages[kMaxInputs + kMaxOutputs]->data;
}

// Under TRAIN_CORE_CHECK: what to look at around the tensors of a launch. A tensor that a recording makes without an op has
// no guards: nothing would set them again in a replay.
std::shared_ptr<const std::vector<Guarded>> Runtime::guarded(const Args& args, Storage** storages) const {
  if (!check_) return nullptr;
  auto all = std::make_shared<std::vector<Guarded>>();
  for (int k = 0; k < kMaxInputs + kMaxOutputs + 1; k++) {
    Storage* s = storages[k];
    if (!s) continue;
    const bool fresh = k == kMaxInputs + kMaxOutputs || (k >= kMaxInputs && args.want[k - kMaxInputs] == 0);
    s->guarded |= fresh;
    if (s->guarded) all->push_back({static_cast<char*>(s->data), s->bytes, fresh});
  }
  return all;
}

// After an error: what make_outputs() has made is nobody's.
void Runtime::drop_outputs(const Packet& packet, const int32_t* outputs) {
  for (int k = 0; k < kMaxOutputs; k++)
    if (packet.out[k] == 0 && outputs[k]) free(outputs[k]);
}

void Runtime::call(const Packet& packet, int32_t outputs[kMaxOutputs]) {
  if (packet.op < 0 || packet.op >= kOpCount)
    throw Error("ERR_ARGUMENT", "no op has the number " + std::to_string(packet.op));
  if (verifying_) return verify(packet, outputs);
  Launch launch;
  Args& args = launch.args;
  args.op = Op(packet.op);
  std::memcpy(args.scalar, packet.scalar, sizeof args.scalar);
  Storage* storages[kMaxInputs + kMaxOutputs + 1] = {};
  const int32_t device = resolve(packet, args, storages);
  OpenDevice& open = *devices_[device];
  args.device = open.device.get();
  if (recording_ && device != recording_->device) throw Error("ERR_CAPTURE", "a captured step must stay on one device");
  launch.kernel = open.backend->kernels[packet.op];
  if (!launch.kernel)
    fail(args, "ERR_UNSUPPORTED", std::string("the ") + open.backend->name + " backend has no kernel for it");
  shape_rule(args.op)(args);
  check_precision(args, *open.backend);
  try {
    make_outputs(packet, args, device, outputs, storages);
  } catch (const Error& e) {
    drop_outputs(packet, outputs);
    fail(args, e.code(), e.what());
  }
  launch.guarded = guarded(args, storages);
  if (recording_) record(packet, outputs, storages);
  if (recording_) recording_->replay.launches.push_back(launch);
  open.stream->push_launch(launch);
  if (Storage* workspace = storages[kMaxInputs + kMaxOutputs]) open.arena->release(workspace);
  if (!check_) return;
  if (auto failure = open.stream->finish()) {
    drop_outputs(packet, outputs);
    throw Error(failure->code == "ERR_DATA" ? "ERR_DATA" : "ERR_DEVICE", failure->message);
  }
}

// ---- recordings

void Runtime::begin_recording(int32_t index) {
  if (capturing()) throw Error("ERR_CAPTURE", "a step is being captured already");
  Arena& arena = *device(index).arena;
  recording_ = std::make_unique<Recording>();
  recording_->device = index;
  recording_->pool = arena.begin_pool();
}

void Runtime::record(const Packet& packet, const int32_t* outputs, Storage** storages) {
  Arena& arena = *devices_[recording_->device]->arena;
  recording_->packets.push_back(relative(packet, *recording_));
  for (int k = 0; k < kMaxInputs + kMaxOutputs + 1; k++)
    if (Storage* s = storages[k]; s && s->pool != recording_->pool) {
      arena.retain(s);
      recording_->retained.push_back(s);
    }
  for (int k = 0; k < kMaxOutputs; k++) {
    if (packet.out[k] != 0 || outputs[k] == 0) continue;
    recording_->name(outputs[k]);
    recording_->made.push_back(tensor(outputs[k]).view);
  }
}

int32_t Runtime::end_recording() {
  if (!recording_) throw Error("ERR_CAPTURE", "no step is being recorded");
  devices_[recording_->device]->arena->end_pool(recording_->pool);
  recording_->local.clear();
  const int32_t handle = next_recording_++;
  recordings_[handle] = std::move(recording_);
  return handle;
}

Packet Runtime::relative(const Packet& packet, const Recording& recording) const {
  Packet p = packet;
  auto rename = [&](int32_t& id) {
    if (id <= 0) return;
    if (auto found = recording.local.find(id); found != recording.local.end()) id = found->second;
  };
  for (int32_t& id : p.in) rename(id);
  for (int32_t& id : p.out) rename(id);
  return p;
}

void Runtime::begin_verify(int32_t handle) {
  if (capturing()) throw Error("ERR_CAPTURE", "a step is being captured already");
  auto found = recordings_.find(handle);
  if (found == recordings_.end()) throw Error("ERR_CAPTURE", "no recording has the handle " + std::to_string(handle));
  verifying_ = found->second.get();
  verifying_->next_packet = verifying_->next_made = 0;
}

// Compares a packet with the recorded one at this place.
void Runtime::match(const Packet& packet, const char* name) {
  Recording& r = *verifying_;
  const Packet got = relative(packet, r);
  const Packet* wanted = r.next_packet < r.packets.size() ? &r.packets[r.next_packet] : nullptr;
  if (!wanted || std::memcmp(&got, wanted, sizeof got) != 0) {
    std::string then = wanted ? packet_name(*wanted) : "the end of the step";
    if (wanted && wanted->op == got.op) then += " with " + difference(got, *wanted);
    const std::string text = std::string("[") + name + "] call " + std::to_string(r.next_packet) +
                             " of the captured step differs from the first time (then: " + then +
                             "); help: pass what changes between steps as a tensor, never as a number or a new tensor";
    if (r.difference.empty()) r.difference = text;
    throw Error("ERR_CAPTURE", text);
  }
  r.next_packet++;
}

// What a verifying pass makes instead of a tensor: of the recorded shape, without memory, since nothing runs. It ends
// with the pass.
int32_t Runtime::stand_in() {
  Recording& r = *verifying_;
  Storage* storage = devices_[r.device]->arena->allocate(0);
  const int32_t id = add(storage, r.made[r.next_made++], r.device);
  r.name(id);
  r.stand_ins.push_back(id);
  return id;
}

void Runtime::verify(const Packet& packet, int32_t outputs[kMaxOutputs]) {
  const OpInfo& info = op_info(Op(packet.op));
  match(packet, info.name);
  for (int k = 0; k < kMaxOutputs; k++) {
    outputs[k] = packet.out[k] > 0 ? packet.out[k] : 0;
    if (packet.out[k] == 0 && k < info.output_count) outputs[k] = stand_in();
  }
}

void Runtime::leave_verify() {
  if (!verifying_) return;
  Recording& r = *verifying_;
  verifying_ = nullptr;
  for (const int32_t id : r.stand_ins) free(id);
  r.stand_ins.clear();
  r.local.clear();
  r.difference.clear();
}

void Runtime::end_verify() {
  if (!verifying_) throw Error("ERR_CAPTURE", "no step is being verified");
  const size_t got = verifying_->next_packet, wanted = verifying_->packets.size();
  const std::string difference = verifying_->difference;  // the step may have caught the error
  leave_verify();
  if (!difference.empty()) throw Error("ERR_CAPTURE", difference);
  if (got != wanted)
    throw Error("ERR_CAPTURE", "the captured step had " + std::to_string(wanted) + " calls the first time; got " +
                                   std::to_string(got));
}

void Runtime::abandon() {
  leave_verify();
  if (!recording_) return;
  drop_recording(*recording_);
  recording_.reset();
}

void Runtime::drop_recording(Recording& r) {
  Arena& arena = *devices_[r.device]->arena;
  for (Storage* s : r.retained) arena.release(s);
  arena.destroy_pool(r.pool);
}

size_t Runtime::replay(int32_t handle) {
  auto found = recordings_.find(handle);
  if (found == recordings_.end()) throw Error("ERR_CAPTURE", "no recording has the handle " + std::to_string(handle));
  if (capturing()) throw Error("ERR_CAPTURE", "a step can't be replayed inside a captured one");
  Job job;
  job.replay = &found->second->replay;
  devices_[found->second->device]->stream->push(std::move(job));
  return found->second->replay.launches.size();
}

void Runtime::free_recording(int32_t handle) {
  auto found = recordings_.find(handle);
  if (found == recordings_.end()) return;
  if (found->second.get() == verifying_) throw Error("ERR_CAPTURE", "a step can't be freed while it is verified");
  std::shared_ptr<Recording> r(found->second.release());
  recordings_.erase(found);
  drop_recording(*r);
  // Queued replays read the launches: it ends behind them, on their thread. A failure stays for the next read.
  Stream& stream = *devices_[r->device]->stream;
  Job job;
  job.task = [r = std::move(r)] {};
  stream.push(std::move(job));
}

}  // namespace tc
