// The one file of train-core that calls Metal; Objective-C++ without ARC. Pools are RAII: @autoreleasepool is not drained
// when a C++ exception leaves it, and node's threads have no outer pool.
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

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
};

namespace {

typedef id<MTLLibrary> Library;
typedef id<MTLCommandBuffer> Command;

struct Pool {
  NSAutoreleasePool* pool = [[NSAutoreleasePool alloc] init];
  ~Pool() { [pool drain]; }
};

void say(char* to, const char* what, NSError* error) {
  std::snprintf(to, kErrorText, "%s%s%s", what, error ? ": " : "",
                error ? [[error localizedDescription] UTF8String] : "");
}

class MetalRuntime : public Runtime {
 public:
  explicit MetalRuntime(id<MTLDevice> device) : device_(device), queue_([device newCommandQueue]) {
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
    if (!state) return say(error, "no pipeline", problem), nullptr;
    pipelines_.push_back(std::make_unique<Pipeline>(Pipeline{state}));
    return pipelines_.back().get();
  }
  uint32_t max_threads(const Pipeline* pipeline) const override {
    return uint32_t([pipeline->state maxTotalThreadsPerThreadgroup]);
  }

  void dispatch(const Dispatch& d) override {
    Pool pool;
    if (!command_) {
      command_ = [[queue_ commandBuffer] retain];
      encoder_ = [[command_ computeCommandEncoder] retain];
    }
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
    if (!command_) return;
    Pool pool;
    [encoder_ endEncoding];
    [encoder_ release];
    encoder_ = nil;
    [command_ commit];
    committed_.push_back(command_);
    command_ = nil;
  }

  bool wait(char* error) override {
    commit();
    Pool pool;
    bool good = true;
    for (Command command : committed_) {
      [command waitUntilCompleted];
      if (good && [command status] == MTLCommandBufferStatusError) {
        say(error, "the GPU stopped a command buffer", [command error]);
        good = false;
      }
      [command release];
    }
    committed_.clear();
    return good;
  }

 private:
  // Compiled at first use; nil and the compiler's message where it can't be.
  Library library_of(const char* file, char* error) {
    Library& library = libraries_[file];
    if (library) return library;
    for (int k = 0; k < kSourceCount; k++) {
      if (std::strcmp(kSources[k].file, file) != 0) continue;
      MTLCompileOptions* options = [[[MTLCompileOptions alloc] init] autorelease];
      [options setFastMathEnabled:NO];
      NSError* problem = nil;
      library = [device_ newLibraryWithSource:[NSString stringWithUTF8String:kSources[k].text]
                                      options:options
                                        error:&problem];
      if (!library) say(error, ("does not compile on " + description_).c_str(), problem);
      return library;
    }
    say(error, "no such file", nil);
    return nil;
  }

  id<MTLDevice> device_;
  id<MTLCommandQueue> queue_;
  id<MTLBuffer> nothing_;  // stands for arguments that are absent
  std::string description_;
  std::map<std::string, Library> libraries_;
  std::vector<std::unique_ptr<Pipeline>> pipelines_;
  Command command_ = nil;
  id<MTLComputeCommandEncoder> encoder_ = nil;
  std::vector<Command> committed_;
};

}  // namespace

Runtime* open_system_runtime(char* reason) {
  Pool pool;
  id<MTLDevice> device = MTLCreateSystemDefaultDevice();
  if (!device) return say(reason, "this Mac has no Metal device; help: use --device cpu", nil), nullptr;
  return new MetalRuntime(device);
}

}  // namespace tc::metal
