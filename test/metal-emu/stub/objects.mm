// Devices, buffers, libraries and pipelines.
#include "objects.h"

#include <cstring>
#include <new>

namespace stub {
State& state() {
  static State* state = new State;  // objects may outlive static destructors
  return *state;
}
}  // namespace stub

void stub_misuse(const std::string& text) { stub::state().misuse.push_back(text); }

NSError* stub_error(const std::string& text) {
  NSDictionary* info = [NSDictionary dictionaryWithObject:[NSString stringWithUTF8String:text.c_str()]
                                                   forKey:NSLocalizedDescriptionKey];
  return [NSError errorWithDomain:@"stub" code:1 userInfo:info];
}

@implementation StubObject
- (id)init {
  self = [super init];
  std::lock_guard<std::mutex> lock(stub::state().mutex);
  stub::state().live++;
  return self;
}
- (void)dealloc {
  {
    std::lock_guard<std::mutex> lock(stub::state().mutex);
    stub::state().live--;
  }
  [super dealloc];
}
@end

@implementation MTLCompileOptions
- (void)setFastMathEnabled:(BOOL)enabled {
  if (enabled) stub_misuse("the kernels want fast math off");
}
@end

typedef std::vector<StubConstant> Constants;

@implementation MTLFunctionConstantValues
- (id)init {
  self = [super init];
  values = new Constants;
  return self;
}
- (void)dealloc {
  delete static_cast<Constants*>(values);
  [super dealloc];
}
- (void)setConstantValue:(const void*)value type:(MTLDataType)type atIndex:(NSUInteger)index {
  const size_t size = type == MTLDataTypeBool ? 1 : 4;
  uint32_t bits = 0;
  std::memcpy(&bits, value, size);
  static_cast<Constants*>(values)->push_back({int(index), bits, size});
}
@end

@implementation StubBuffer
- (void)dealloc {
  delete memory;
  [super dealloc];
}
- (void*)contents {
  return memory->data;
}
- (NSUInteger)length {
  return memory->bytes;
}
@end

@implementation StubFunction
- (id)init {
  self = [super init];
  constants = new std::vector<emu::Constant>;
  return self;
}
- (void)dealloc {
  delete constants;
  [super dealloc];
}
- (NSUInteger)maxTotalThreadsPerThreadgroup {
  return NSUInteger(kernel->max_threads);
}
- (NSUInteger)threadExecutionWidth {
  return NSUInteger(stub::state().lanes);
}
@end

// "norm", of a text with #line 1 "norm.metal"
static std::string file_of(const std::string& source) {
  const size_t at = source.rfind("\n#line 1 \""), from = at + 10;
  return at == std::string::npos ? "" : source.substr(from, source.find(".metal\"", from) - from);
}

@implementation StubLibrary
- (void)dealloc {
  delete source;
  [super dealloc];
}
- (NSArray*)functionNames {
  NSMutableArray* names = [NSMutableArray array];
  for (const emu::Kernel* kernel : emu::kernels_of(file_of(*source)))
    [names addObject:[NSString stringWithUTF8String:kernel->name]];
  return names;
}
- (id<MTLFunction>)newFunctionWithName:(NSString*)name
                        constantValues:(MTLFunctionConstantValues*)values
                                 error:(NSError**)error {
  const std::string text = [name UTF8String];
  const emu::Kernel* kernel = emu::find_kernel(file_of(*source), text);
  if (!kernel) {
    *error = stub_error("no function " + text);
    return nil;
  }
  StubFunction* function = [[StubFunction alloc] init];
  function->kernel = kernel;
  for (const StubConstant& c : *static_cast<Constants*>(values->values)) {
    for (const emu::FunctionConstant& declared : kernel->constants)
      if (declared.id == c.id && declared.size != c.size) stub_misuse(text + ": wrong type of a function constant");
    function->constants->push_back({c.id, c.bits});
  }
  return function;
}
@end

@implementation StubDevice
- (NSString*)name {
  return @"Stand-in";
}
- (NSUInteger)recommendedMaxWorkingSetSize {
  return NSUInteger(1) << 30;
}
- (NSUInteger)maxBufferLength {
  return NSUInteger(1) << 29;
}
- (BOOL)supportsFamily:(MTLGPUFamily)family {
  return int(family) <= stub::state().family;
}
- (id<MTLLibrary>)newLibraryWithSource:(NSString*)source options:(MTLCompileOptions*)options error:(NSError**)error {
  if (!options) stub_misuse("a library without options is compiled with fast math");
  if (const std::string& message = stub::state().compiler_message; !message.empty()) {
    *error = stub_error(message);
    return nil;
  }
  StubLibrary* library = [[StubLibrary alloc] init];
  library->source = new std::string([source UTF8String]);
  return library;
}
- (id<MTLComputePipelineState>)newComputePipelineStateWithFunction:(id<MTLFunction>)function error:(NSError**)error {
  StubFunction* from = (StubFunction*)function;
  StubFunction* pipeline = [[StubFunction alloc] init];
  pipeline->kernel = from->kernel;
  *pipeline->constants = *from->constants;
  return pipeline;
}
- (id<MTLCommandQueue>)newCommandQueue {
  return stub::state().no_queue ? nil : [[StubQueue alloc] init];
}
- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options {
  if (length == 0 || length > [self maxBufferLength]) stub_misuse("a buffer of " + std::to_string(length) + " bytes");
  StubBuffer* buffer = [[StubBuffer alloc] init];
  try {
    buffer->memory = new emu::Buffer(length);
  } catch (const std::bad_alloc&) {
    [buffer release];
    return nil;
  }
  buffer->memory->wrote(0, length);  // the host writes through contents, which nobody sees
  return buffer;
}
@end

id<MTLDevice> MTLCreateSystemDefaultDevice(void) {
  const stub::State& s = stub::state();
  return s.no_device || s.no_default_device ? nil : [[StubDevice alloc] init];
}
NSArray* MTLCopyAllDevices(void) {
  if (stub::state().no_device) return [[NSArray alloc] init];
  StubDevice* device = [[[StubDevice alloc] init] autorelease];
  return [[NSArray alloc] initWithObjects:device, nil];
}
