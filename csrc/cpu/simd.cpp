#include "simd.h"

#include <atomic>
#include <cstring>

namespace wcf {
namespace {

bool has_avx2() {
#if WCF_HAS_AVX2_BUILD
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("bmi2");
#else
  return false;
#endif
}

std::atomic<Simd>& chosen() {
  static std::atomic<Simd> value{has_avx2() ? Simd::avx2 : Simd::portable};
  return value;
}

}  // namespace

Simd simd() { return chosen().load(std::memory_order_relaxed); }

const char* simd_name() { return simd() == Simd::avx2 ? "avx2" : "portable"; }

bool set_simd(const char* name) {
  if (std::strcmp(name, "portable") == 0) {
    chosen() = Simd::portable;
    return true;
  }
  if (std::strcmp(name, "avx2") == 0 && has_avx2()) {
    chosen() = Simd::avx2;
    return true;
  }
  return false;
}

}  // namespace wcf
