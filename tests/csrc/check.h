// A count of failed expectations, and what went wrong.
#pragma once

#include <cmath>
#include <cstdio>

namespace bll::test {

inline int failures = 0;
inline int expectations = 0;

inline void expect(bool good, const char* what) {
  ++expectations;
  if (good) return;
  ++failures;
  if (failures < 40) std::printf("FAILED: %s\n", what);
}

inline void expect_near(double got, double want, double tolerance, const char* what) {
  ++expectations;
  if (std::fabs(got - want) <= tolerance || got == want) return;
  ++failures;
  if (failures < 40) {
    std::printf("FAILED: %s: got %.17g, expected %.17g (tolerance %.3g)\n", what, got, want,
                tolerance);
  }
}

// Exit code of a test program: 0 only if something was checked and nothing failed.
inline int finish(const char* name) {
  std::printf("%s: %d expectations, %d failed\n", name, expectations, failures);
  return expectations > 0 && failures == 0 ? 0 : 1;
}

}  // namespace bll::test
