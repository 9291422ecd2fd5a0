#include "simd.h"

#include <atomic>
#include <cstring>
#include <initializer_list>

namespace wcf {
namespace {

constexpr const char* NAMES[] = {"portable", "avx2", "avx512"};

bool has(Simd set) {
#if WCF_HAS_AVX2_BUILD
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  return set == Simd::portable || (avx2 && (set == Simd::avx2 || avx512));
#else
  return set == Simd::portable;
#endif
}

std::atomic<Simd>& chosen() {
  static std::atomic<Simd> value{has(Simd::avx512) ? Simd::avx512 : has(Simd::avx2) ? Simd::avx2 : Simd::portable};
  return value;
}

}  // namespace

Simd simd() { return chosen().load(std::memory_order_relaxed); }

const char* simd_name() { return NAMES[static_cast<int>(simd())]; }

bool set_simd(const char* name) {
  for (const Simd set : {Simd::portable, Simd::avx2, Simd::avx512}) {
    if (std::strcmp(name, NAMES[static_cast<int>(set)]) == 0 && has(set)) {
      chosen() = set;
      return true;
    }
  }
  return false;
}

}  // namespace wcf
