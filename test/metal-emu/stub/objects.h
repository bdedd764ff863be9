// The stand-in's objects, over the emulator.
#pragma once
#import "Metal/Metal.h"

#include <deque>
#include <string>
#include <vector>

#include "../emulator/dispatch.h"
#include "stub.h"

struct StubConstant {
  int id;
  uint32_t bits;
  size_t size;
};

@interface StubBuffer : StubObject <MTLBuffer> {
 @public
  emu::Buffer* memory;
}
@end

// A function and its pipeline alike.
@interface StubFunction : StubObject <MTLFunction, MTLComputePipelineState> {
 @public
  const emu::Kernel* kernel;
  std::vector<emu::Constant>* constants;
}
@end

@interface StubLibrary : StubObject <MTLLibrary> {
 @public
  std::string* source;
}
@end

@class StubCommand;
@interface StubQueue : StubObject <MTLCommandQueue> {
 @public
  std::deque<StubCommand*>* pending;  // committed and not run yet; retained, as Metal does
}
@end

@interface StubDevice : StubObject <MTLDevice>
@end

NSError* stub_error(const std::string& text);
void stub_misuse(const std::string& text);
