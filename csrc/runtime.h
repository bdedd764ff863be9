// One JavaScript environment's tensors, devices and recordings: what a packet's ids mean. Knows nothing of Node-API.
// All members are called on the JS thread.
#pragma once
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "arena.h"
#include "device.h"
#include "op.h"
#include "stream.h"

namespace tc {

// An open device: memory, then the stream that uses it (destroyed first).
struct OpenDevice {
  std::unique_ptr<Device> device;
  const Backend* backend;
  std::unique_ptr<Arena> arena;
  std::unique_ptr<Stream> stream;
};

struct TensorEntry {
  Storage* storage = nullptr;  // nullptr: the slot is free
  View view;
  int32_t device = 0;
  int32_t generation = 0;
};

// A recorded step. Packets are kept with ids made relative: the k-th tensor or view made inside is kLocal - k, others
// keep their id. Making a view or an unset tensor is a packet too, of the op number kView or kCreate, that launches
// nothing.
struct Recording {
  static constexpr int32_t kLocal = -1000, kView = kOpCount, kCreate = kOpCount + 1;
  int32_t device = 0;
  Pool* pool = nullptr;
  std::vector<Packet> packets;
  Replay replay;
  std::vector<Storage*> retained;              // everything the launches touch: no address changes while it lives
  std::vector<View> made;                      // outputs of the ops and unset tensors, in order
  std::unordered_map<int32_t, int32_t> local;  // id -> kLocal - k, in the pass under way
  size_t next_packet = 0, next_made = 0;       // where a verifying pass stands
  std::vector<int32_t> stand_ins;              // what the verifying pass has made
  std::string difference;                      // the first one it found

  void name(int32_t id) { local.emplace(id, kLocal - int32_t(local.size())); }
};

class Runtime {
 public:
  explicit Runtime(bool check) : check_(check) {}
  ~Runtime();

  int32_t open_device(const std::string& name, int threads);
  OpenDevice& device(int32_t index);
  const std::vector<std::unique_ptr<OpenDevice>>& devices() const { return devices_; }

  int32_t create(int32_t device, DType dtype, int32_t rank, const int32_t* dims);  // not initialised; returns the id
  int32_t view(int32_t id, int64_t offset, int32_t rank, const int32_t* dims);     // offset in elements; shares memory
  void free(int32_t id);                                                           // of a freed id: nothing
  const TensorEntry& tensor(int32_t id) const;                                     // throws ERR_FREED
  size_t live_tensors() const { return live_; }

  // Runs the packet: shape rule, outputs, queue. outputs[k] is the id of output k, or 0.
  void call(const Packet& packet, int32_t outputs[kMaxOutputs]);

  void begin_recording(int32_t device);
  int32_t end_recording();               // returns the recording's handle
  void begin_verify(int32_t recording);  // calls are compared with the recording and not run
  void end_verify();                     // throws ERR_CAPTURE when calls are missing
  void abandon();                        // leaves recording or verifying after an error
  size_t replay(int32_t recording);      // returns the number of ops
  void free_recording(int32_t recording);
  bool capturing() const { return recording_ || verifying_; }

 private:
  int32_t add(Storage* storage, const View& view, int32_t device);
  int32_t resolve(const Packet& packet, Args& args, Storage** storages);
  void make_outputs(const Packet& packet, Args& args, int32_t device, int32_t outputs[kMaxOutputs], Storage** storages);
  void drop_outputs(const Packet& packet, const int32_t* outputs);
  std::shared_ptr<const std::vector<Guarded>> guarded(const Args& args, Storage** storages) const;
  void record(const Packet& packet, const int32_t* outputs, Storage** storages);
  void verify(const Packet& packet, int32_t outputs[kMaxOutputs]);
  void match(const Packet& packet, const char* name);
  int32_t stand_in();
  void leave_verify();
  Packet relative(const Packet& packet, const Recording& recording) const;
  void drop_recording(Recording& recording);

  const bool check_;
  std::vector<std::unique_ptr<OpenDevice>> devices_;
  std::unordered_map<std::string, int32_t> by_name_;
  std::vector<TensorEntry> tensors_{1};  // id 0 means: none
  std::deque<int32_t> free_slots_;
  size_t live_ = 0;
  std::unordered_map<int32_t, std::unique_ptr<Recording>> recordings_;
  std::unique_ptr<Recording> recording_;
  Recording* verifying_ = nullptr;
  int32_t next_recording_ = 1;
};

}  // namespace tc
