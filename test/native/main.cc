// Runs the native tests whose name contains the first argument (default: all).
#include <cstdio>
#include <cstring>
#include <exception>

#include "check.h"

namespace tc::test {
std::vector<Test>& all_tests() {
  static std::vector<Test> tests;
  return tests;
}
}  // namespace tc::test

int main(int count, char** arguments) {
  const char* filter = count > 1 ? arguments[1] : "";
  int passed = 0, failed = 0;
  for (const tc::test::Test& test : tc::test::all_tests()) {
    if (!std::strstr(test.name, filter)) continue;
    try {
      test.body();
      passed++;
    } catch (const std::exception& error) {
      failed++;
      std::printf("not ok %s\n  %s\n", test.name, error.what());
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed ? 1 : 0;
}
