// The one file of train-core that calls Metal; Objective-C++ without ARC. Pools are RAII: @autoreleasepool is not drained
// when a C++ exception leaves it, and node's threads have no outer pool.
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime.h"
#include "sources.h"

namespace tc::metal {

struct Buffer {
  id<MTLBuffer> buffer;
};
struct Pipeline {
  id<MTLComputePipelineState> state;
  std::string kernel;
};

namespace {

constexpr NSUInteger kLanes = 32;  // of a simdgroup, as all kernels assume; Apple's GPUs have no other

typedef id<MTLLibrary> Library;

struct Pool {
  NSAutoreleasePool* pool = [[NSAutoreleasePool alloc] init];
  ~Pool() { [pool drain]; }
};

// What is said of an error fits into kErrorText: where it is longer, it begins with the compiler's first error.
void say(char* to, const std::string& what, NSError* error) {
  std::string why = error ? [[error localizedDescription] UTF8String] : "";
  if (const size_t at = why.find("error:"); at != std::string::npos && what.size() + why.size() >= kErrorText)
    why = why.substr(why.rfind('\n', at) + 1);
  std::snprintf(to, kErrorText, "%s%s%s", what.c_str(), error ? ": " : "", why.c_str());
}

// A command buffer on its way, with what it runs.
struct Command {
  id<MTLCommandBuffer> buffer = nil;
  std::vector<const Pipeline*> pipelines;

  std::string kernels() const {
    constexpr size_t kNamed = 8;
    std::vector<std::string> names;
    for (const Pipeline* p : pipelines)
      if (std::find(names.begin(), names.end(), p->kernel) == names.end()) names.push_back(p->kernel);
    std::string text;
    for (size_t k = 0; k < names.size() && k < kNamed; k++) text += (k ? ", " : "") + names[k];
    return names.size() > kNamed ? text + ", ..." : text;
  }
};

class MetalRuntime : public Runtime {
 public:
  // Takes over one reference to each.
  MetalRuntime(id<MTLDevice> device, id<MTLCommandQueue> queue) : device_(device), queue_(queue) {
    Pool pool;
    nothing_ = [device_ newBufferWithLength:64 options:MTLResourceStorageModeShared];
    description_ = std::string([[device_ name] UTF8String]) + ", macOS " +
                   [[[NSProcessInfo processInfo] operatingSystemVersionString] UTF8String];
  }
  ~MetalRuntime() override {
    Pool pool;
    char error[kErrorText];
    wait(error);
    for (auto& pipeline : pipelines_) [pipeline->state release];
    for (auto& [file, library] : libraries_) [library release];
    [nothing_ release];
    [queue_ release];
    [device_ release];
  }

  const char* description() const override { return description_.c_str(); }
  size_t memory() const override { return size_t([device_ recommendedMaxWorkingSetSize]); }
  bool has_simdgroup_matrix() const override { return [device_ supportsFamily:MTLGPUFamilyApple7]; }

  Buffer* allocate(size_t bytes, void** contents) override {
    Pool pool;
    if (bytes > size_t([device_ maxBufferLength])) return nullptr;
    id<MTLBuffer> buffer = [device_ newBufferWithLength:bytes options:MTLResourceStorageModeShared];
    if (!buffer) return nullptr;
    *contents = [buffer contents];
    return new Buffer{buffer};
  }
  // Commands that are under way keep what they use.
  void release(Buffer* buffer) override {
    [buffer->buffer release];
    delete buffer;
  }

  Pipeline* pipeline(const char* file, const char* kernel, const Constant* constants, int count, char* error) override {
    Pool pool;
    Library library = library_of(file, error);
    if (!library) return nullptr;
    MTLFunctionConstantValues* values = [[[MTLFunctionConstantValues alloc] init] autorelease];
    for (int k = 0; k < count; k++) {
      const bool flag = constants[k].value != 0;
      const void* value = constants[k].is_bool ? static_cast<const void*>(&flag) : &constants[k].value;
      [values setConstantValue:value
                          type:constants[k].is_bool ? MTLDataTypeBool : MTLDataTypeUInt
                       atIndex:NSUInteger(constants[k].id)];
    }
    NSError* problem = nil;
    id<MTLFunction> function = [library newFunctionWithName:[NSString stringWithUTF8String:kernel]
                                             constantValues:values
                                                      error:&problem];
    if (!function) return say(error, "no such kernel", problem), nullptr;
    id<MTLComputePipelineState> state = [device_ newComputePipelineStateWithFunction:function error:&problem];
    [function release];
    if (!state) return say(error, "no pipeline on " + description_, problem), nullptr;
    pipelines_.push_back(std::make_unique<Pipeline>(Pipeline{state, kernel}));
    if (const NSUInteger lanes = [state threadExecutionWidth]; lanes != kLanes)
      return say(error, "a simdgroup of this GPU has " + std::to_string(lanes) + " threads, not 32", nil), nullptr;
    return pipelines_.back().get();
  }
  uint32_t max_threads(const Pipeline* pipeline) const override {
    return uint32_t([pipeline->state maxTotalThreadsPerThreadgroup]);
  }

  const char* files() override {
    names_.clear();
    for (int k = 0; k < kSourceCount; k++) names_ += (k ? " " : "") + std::string(kSources[k].file);
    return names_.c_str();
  }
  const char* kernels(const char* file, char* error) override {
    Pool pool;
    Library library = library_of(file, error);
    if (!library) return nullptr;
    names_ = [[[library functionNames] componentsJoinedByString:@" "] UTF8String];
    return names_.c_str();
  }

  void dispatch(const Dispatch& d) override {
    Pool pool;
    if (!encoder_ && !begin()) return;
    command_.pipelines.push_back(d.pipeline);
    [encoder_ setComputePipelineState:d.pipeline->state];
    for (int k = 0; k < d.buffer_count; k++) {
      const Binding& b = d.buffers[k];
      [encoder_ setBuffer:b.buffer ? b.buffer->buffer : nothing_ offset:b.buffer ? b.offset : 0 atIndex:NSUInteger(k)];
    }
    [encoder_ setBytes:d.params length:d.params_bytes atIndex:NSUInteger(d.buffer_count)];
    for (int k = 0; k < kMaxThreadgroupArguments && d.threadgroup_bytes[k]; k++)
      [encoder_ setThreadgroupMemoryLength:d.threadgroup_bytes[k] atIndex:NSUInteger(k)];
    [encoder_ dispatchThreadgroups:MTLSizeMake(d.groups.x, d.groups.y, d.groups.z)
             threadsPerThreadgroup:MTLSizeMake(d.threads.x, d.threads.y, d.threads.z)];
  }

  void commit() override {
    if (!encoder_) return;
    Pool pool;
    [encoder_ endEncoding];
    [encoder_ release];
    encoder_ = nil;
    [command_.buffer commit];
    committed_.push_back(std::move(command_));
    command_ = {};
  }

  bool wait(char* error) override {
    commit();
    Pool pool;
    std::string what = std::move(problem_);
    problem_.clear();
    NSError* why = nil;
    for (const Command& command : committed_) {
      id<MTLCommandBuffer> buffer = command.buffer;
      [buffer waitUntilCompleted];
      if (what.empty() && [buffer status] == MTLCommandBufferStatusError) {
        what = "the GPU stopped a command buffer of " + command.kernels();
        why = [[[buffer error] retain] autorelease];
      }
      [buffer release];
    }
    committed_.clear();
    if (what.empty()) return true;
    return say(error, what, why), false;
  }

 private:
  // Metal gives nil where it can't, and messages to nil do nothing: without a check, kernels would silently not run.
  bool begin() {
    command_.buffer = [[queue_ commandBuffer] retain];
    encoder_ = [[command_.buffer computeCommandEncoder] retain];
    if (encoder_) return true;
    [command_.buffer release];
    command_ = {};
    problem_ = "Metal gives no command buffer";
    return false;
  }

  // Compiled at first use; nil and the compiler's message where it can't be.
  Library library_of(const char* file, char* error) {
    Library& library = libraries_[file];
    if (library) return library;
    for (int k = 0; k < kSourceCount; k++) {
      if (std::strcmp(kSources[k].file, file) != 0) continue;
      MTLCompileOptions* options = [[[MTLCompileOptions alloc] init] autorelease];
      // Deprecated since macOS 15 for mathMode, which older systems do not have.
      [options setFastMathEnabled:NO];
      NSError* problem = nil;
      library = [device_ newLibraryWithSource:[NSString stringWithUTF8String:kSources[k].text]
                                      options:options
                                        error:&problem];
      if (!library) say(error, "does not compile on " + description_, problem);
      return library;
    }
    say(error, "no such file", nil);
    return nil;
  }

  id<MTLDevice> device_;
  id<MTLCommandQueue> queue_;
  id<MTLBuffer> nothing_;  // stands for arguments that are absent
  std::string description_, names_;
  std::map<std::string, Library> libraries_;
  std::vector<std::unique_ptr<Pipeline>> pipelines_;
  Command command_;
  id<MTLComputeCommandEncoder> encoder_ = nil;  // of command_; nil: nothing is encoded
  std::vector<Command> committed_;
  std::string problem_;  // of encoding; wait() tells it
};

// Without a window server (ssh, CI) the default device can be nil where the list is not empty, and the other way round.
id<MTLDevice> any_device() {
  if (id<MTLDevice> device = MTLCreateSystemDefaultDevice()) return device;
  NSArray* all = [MTLCopyAllDevices() autorelease];
  return [all count] ? [[all objectAtIndex:0] retain] : nil;
}

}  // namespace

Runtime* open_system_runtime(char* reason) {
  Pool pool;
  id<MTLDevice> device = any_device();
  if (!device) return say(reason, "this Mac has no Metal device; help: use --device cpu", nil), nullptr;
  if (id<MTLCommandQueue> queue = [device newCommandQueue]) return new MetalRuntime(device, queue);
  [device release];
  return say(reason, "Metal gives no command queue; help: use --device cpu", nil), nullptr;
}

}  // namespace tc::metal
