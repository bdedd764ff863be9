// Command buffers: what is encoded runs as late as Metal allows (when somebody waits), or at commit. Every rule of Metal's that a
// command buffer or an encoder breaks is a misuse.
#include <algorithm>
#include <array>
#include <deque>
#include <memory>

#include "objects.h"

struct Slot {
  StubBuffer* buffer = nil;
  size_t offset = 0;
  const std::vector<char>* bytes = nullptr;
};
struct Encoding {
  StubFunction* pipeline = nil;
  std::array<Slot, 31> slots;
  std::array<size_t, 4> threadgroup{};
};
struct Commands {
  std::deque<emu::Request> requests;
  std::deque<std::vector<char>> bytes;
  std::vector<StubObject*> used;  // retained until it has run
  MTLCommandBufferStatus status = MTLCommandBufferStatusNotEnqueued;
  bool encoding = false, encoded = false;
  std::string problem;
};

@interface StubCommand : StubObject <MTLCommandBuffer> {
 @public
  Commands* c;
  StubQueue* queue;
}
- (void)run;
- (void)forget;  // what it retained
@end

@interface StubEncoder : StubObject <MTLComputeCommandEncoder> {
 @public
  StubCommand* command;
  Encoding* e;
  bool ended;
}
@end

@implementation StubEncoder
- (void)dealloc {
  if (!ended) stub_misuse("an encoder goes that was not ended");
  [command release];
  delete e;
  [super dealloc];
}
- (void)use:(StubObject*)object {
  if (ended) stub_misuse("an encoder is used after its end");
  [object retain];
  command->c->used.push_back(object);
}
- (void)setComputePipelineState:(id<MTLComputePipelineState>)state {
  [self use:(StubObject*)state];
  e->pipeline = (StubFunction*)state;
}
- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset atIndex:(NSUInteger)index {
  [self use:(StubObject*)buffer];
  if (index > 30) return stub_misuse("a buffer's index above 30");
  if (offset > [buffer length]) stub_misuse("an offset beyond its buffer");
  e->slots[index] = {(StubBuffer*)buffer, offset, nullptr};
}
- (void)setBytes:(const void*)bytes length:(NSUInteger)length atIndex:(NSUInteger)index {
  [self use:nil];
  if (length == 0 || length > 4096) stub_misuse("setBytes takes 1 to 4096 bytes; got " + std::to_string(length));
  const char* from = static_cast<const char*>(bytes);
  command->c->bytes.emplace_back(from, from + length);
  e->slots[index] = {nil, 0, &command->c->bytes.back()};
}
- (void)setThreadgroupMemoryLength:(NSUInteger)length atIndex:(NSUInteger)index {
  [self use:nil];
  e->threadgroup[index] = length;
}
- (void)dispatchThreadgroups:(MTLSize)groups threadsPerThreadgroup:(MTLSize)threads {
  [self use:nil];
  if (!e->pipeline) return stub_misuse("a dispatch without a pipeline");
  emu::Request r{};
  r.kernel = e->pipeline->kernel;
  r.constants = *e->pipeline->constants;
  // The emulator takes the parameters after the buffers, which is where they are.
  size_t buffers = 0, lengths = 0;
  for (const emu::Arg& a : r.kernel->args) {
    if (a.kind == emu::BUFFER) buffers = std::max(buffers, size_t(a.index));
    if (a.kind == emu::THREADGROUP) lengths = std::max(lengths, size_t(a.index) + 1);
  }
  for (size_t k = 0; k < buffers; k++) {
    const Slot& s = e->slots[k];
    if (!s.buffer) return stub_misuse(std::string(r.kernel->name) + ": buffer " + std::to_string(k) + " is not set");
    r.buffers.push_back({s.buffer->memory, s.offset, s.buffer->memory->bytes - s.offset, true});
  }
  const std::vector<char>* params = e->slots[buffers].bytes;
  if (!params) return stub_misuse(std::string(r.kernel->name) + ": its parameters are not the last argument");
  r.params = params->data();
  r.params_bytes = params->size();
  r.threadgroup_bytes.assign(e->threadgroup.begin(), e->threadgroup.begin() + long(lengths));
  r.groups = {uint32_t(groups.width), uint32_t(groups.height), uint32_t(groups.depth)};
  r.threads = {uint32_t(threads.width), uint32_t(threads.height), uint32_t(threads.depth)};
  command->c->requests.push_back(std::move(r));
}
- (void)endEncoding {
  [self use:nil];
  ended = true;
  command->c->encoding = false;
  command->c->encoded = true;
}
@end

@implementation StubCommand
- (id)init {
  self = [super init];
  c = new Commands;
  return self;
}
- (void)dealloc {
  [self forget];
  [queue release];
  delete c;
  [super dealloc];
}
- (void)forget {
  for (StubObject* object : c->used) [object release];
  c->used.clear();
}
- (id<MTLComputeCommandEncoder>)computeCommandEncoder {
  if (c->encoding || c->status != MTLCommandBufferStatusNotEnqueued) stub_misuse("a second encoder, or one too late");
  c->encoding = true;
  StubEncoder* encoder = [[[StubEncoder alloc] init] autorelease];
  encoder->command = [self retain];
  encoder->e = new Encoding;
  return encoder;
}
- (void)commit {
  if (c->encoding || !c->encoded) stub_misuse("a commit before endEncoding");
  if (c->status != MTLCommandBufferStatusNotEnqueued) stub_misuse("a second commit");
  c->status = MTLCommandBufferStatusCommitted;
  stub::state().commands++;
  queue->pending->push_back([self retain]);
  if (stub::state().at_commit) [self waitUntilCompleted];
}
- (void)run {
  std::string& problem = c->problem;
  for (const emu::Request& r : c->requests) {
    if (!problem.empty()) break;  // as a GPU, which leaves the rest
    if (r.kernel->name == stub::state().failing_kernel) problem = "Caused GPU Timeout Error";
    std::lock_guard<std::mutex> lock(stub::state().mutex);
    stub::state().dispatches++;
    if (problem.empty())
      for (const std::string& text : emu::dispatch(r)) problem += (problem.empty() ? "" : "\n") + text;
  }
  c->status = problem.empty() ? MTLCommandBufferStatusCompleted : MTLCommandBufferStatusError;
  [self forget];
}
- (void)waitUntilCompleted {
  if (c->status == MTLCommandBufferStatusNotEnqueued) return stub_misuse("a wait before the commit");
  while (c->status == MTLCommandBufferStatusCommitted) {
    StubCommand* first = queue->pending->front();
    queue->pending->pop_front();
    [first run];
    [first release];
  }
}
- (MTLCommandBufferStatus)status {
  return c->status;
}
- (NSError*)error {
  return c->problem.empty() ? nil : stub_error(c->problem);
}
@end

@implementation StubQueue
- (id)init {
  self = [super init];
  pending = new std::deque<StubCommand*>;
  return self;
}
- (void)dealloc {
  if (!pending->empty()) stub_misuse("a queue goes before its command buffers");
  delete pending;
  [super dealloc];
}
- (id<MTLCommandBuffer>)commandBuffer {
  if (stub::state().no_commands) return nil;
  StubCommand* command = [[[StubCommand alloc] init] autorelease];
  command->queue = [self retain];
  return command;
}
@end
