// Which instruction set the CPU code uses, chosen at run time.
//
// Hot code lives in .inl files that simd_kernels.inl includes, once per set: in namespace `portable` and, on x86-64,
// between WCF_AVX2_BEGIN and WCF_AVX2_END in namespace `avx2` and between WCF_AVX512_BEGIN and WCF_AVX512_END in
// namespace `avx512`. WCF_AVX2 and WCF_AVX512, each 0 or 1, tell the file which one it is. No file is compiled with
// -mavx2 as a whole, so no shared inline function can end up holding instructions that an older CPU lacks.
#pragma once

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"                // vectors pass between functions that are always inlined
#pragma GCC diagnostic ignored "-Wuninitialized"        // GCC 12 warns about its own intrinsics (bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // the same
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#define WCF_HAS_AVX2_BUILD 1
#if defined(__clang__)
#define WCF_AVX2_BEGIN \
  _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c,bmi2\"))), apply_to = function)")
#define WCF_AVX512_BEGIN                                                                                          \
  _Pragma(                                                                                                        \
      "clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2\"))), " \
      "apply_to = function)")
#define WCF_AVX2_END _Pragma("clang attribute pop")
#define WCF_AVX512_END _Pragma("clang attribute pop")
#else
#define WCF_AVX2_BEGIN _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c,bmi2\")")
#define WCF_AVX512_BEGIN \
  _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2\")")
#define WCF_AVX2_END _Pragma("GCC pop_options")
#define WCF_AVX512_END _Pragma("GCC pop_options")
#endif
#else
#define WCF_HAS_AVX2_BUILD 0
#endif

namespace wcf {

enum class Simd { portable, avx2, avx512 };  // each includes the ones before it

// The set in use: the best this CPU has, unless set_simd chose another.
Simd simd();
const char* simd_name();

// Use "portable", "avx2" or "avx512" from now on (tests compare them); false if this CPU or build lacks it.
bool set_simd(const char* name);

}  // namespace wcf
