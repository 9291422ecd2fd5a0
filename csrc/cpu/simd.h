// Which instruction set the CPU code uses, chosen at run time.
//
// Hot code lives in .inl files that are included twice, in namespace `portable` and, between WCF_AVX2_BEGIN and
// WCF_AVX2_END, in namespace `avx2`; WCF_AVX2 tells the file which of the two it is. No file is compiled with -mavx2
// as a whole, so no shared inline function can end up holding instructions that an older CPU lacks.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#define WCF_HAS_AVX2_BUILD 1
#if defined(__clang__)
#define WCF_AVX2_BEGIN \
  _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c,bmi2\"))), apply_to = function)")
#define WCF_AVX2_END _Pragma("clang attribute pop")
#else
#define WCF_AVX2_BEGIN _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c,bmi2\")")
#define WCF_AVX2_END _Pragma("GCC pop_options")
#endif
#else
#define WCF_HAS_AVX2_BUILD 0
#endif

namespace wcf {

enum class Simd { portable, avx2 };

// The set in use: the best this CPU has, unless set_simd chose another.
Simd simd();
const char* simd_name();

// Use "portable" or "avx2" from now on (tests compare the two); false if this CPU or build lacks it.
bool set_simd(const char* name);

}  // namespace wcf
