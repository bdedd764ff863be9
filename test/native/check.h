// The native tests' frame: TEST(name) { ... CHECK(condition); } in any .cc file beside main.cc, which runs them all.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

namespace tc::test {

struct Test {
  const char* name;
  void (*body)();
};
std::vector<Test>& all_tests();

struct Registration {
  Registration(const char* name, void (*body)()) { all_tests().push_back({name, body}); }
};

struct Failure : std::runtime_error {
  Failure(const char* file, int line, const char* text)
      : std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + text) {}
};

}  // namespace tc::test

#define TEST(name)                                                    \
  static void test_##name();                                          \
  static const tc::test::Registration add_##name(#name, test_##name); \
  static void test_##name()

// Ends the test when the condition does not hold.
#define CHECK(...)                                                                 \
  do {                                                                             \
    if (!(__VA_ARGS__)) throw tc::test::Failure(__FILE__, __LINE__, #__VA_ARGS__); \
  } while (0)

// Ends the test unless the statement throws tc::Error of this code whose message contains `part`.
#define CHECK_ERROR(statement, wanted_code, part)                                                         \
  do {                                                                                                    \
    std::string seen = "no error";                                                                        \
    try {                                                                                                 \
      statement;                                                                                          \
    } catch (const tc::Error& error) {                                                                    \
      seen = std::string(error.code()) + ": " + error.what();                                             \
    }                                                                                                     \
    if (seen.rfind(wanted_code, 0) != 0 || seen.find(part) == std::string::npos)                          \
      throw tc::test::Failure(                                                                            \
          __FILE__, __LINE__,                                                                             \
          (std::string(#statement) + ": wanted " + wanted_code + ", " + part + "; got " + seen).c_str()); \
  } while (0)
