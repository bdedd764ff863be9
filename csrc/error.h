// The one exception type of the native code; addon.cc turns it into a TrainCoreError of the same code.
#pragma once
#include <exception>
#include <string>
#include <utility>

namespace tc {

class Error : public std::exception {
 public:
  // code: one of lib/errors.ts's, e.g. "ERR_SHAPE"
  Error(const char* code, std::string message) : code_(code), message_(std::move(message)) {}
  const char* code() const noexcept { return code_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  const char* code_;
  std::string message_;
};

}  // namespace tc
