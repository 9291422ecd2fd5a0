#include "simd.h"

#include <atomic>
#include <cstring>

namespace wcf {
namespace {

constexpr const char* NAMES[] = {"portable", "avx2", "avx512"};

Simd best() {
#if WCF_HAS_AVX2_BUILD
  // Every CPU with AVX2 has F16C, too, whose name older compilers refuse here.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx2) return avx512 ? Simd::avx512 : Simd::avx2;
#endif
  return Simd::portable;
}

std::atomic<Simd>& chosen() {
  static std::atomic<Simd> value{best()};
  return value;
}

}  // namespace

Simd simd() { return chosen().load(std::memory_order_relaxed); }

const char* simd_name() { return NAMES[static_cast<int>(simd())]; }

bool set_simd(const char* name) {
  for (int i = 0; i <= static_cast<int>(best()); ++i) {
    if (std::strcmp(name, NAMES[i]) == 0) {
      chosen() = static_cast<Simd>(i);
      return true;
    }
  }
  return false;
}

}  // namespace wcf
