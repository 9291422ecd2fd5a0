// Storage types of a bank and their exact or round-to-nearest-even conversions, without any vendor header.
#pragma once
#include <cstring>

#include "defines.h"
#include "record.h"

namespace wcf {

// The names are those of torch's dtypes.
#define WCF_DTYPES(CODE)       \
  CODE(DTYPE_F32, "float32")   \
  CODE(DTYPE_BF16, "bfloat16") \
  CODE(DTYPE_F16, "float16")   \
  CODE(DTYPE_F64, "float64")
WCF_CODES(Dtype, WCF_DTYPES)

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

// The type of the arithmetic: fp64 for fp64, fp32 for every narrower type.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

WCF_HD uint32_t float_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

WCF_HD float bits_float(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

WCF_HD float load(float x) { return x; }
WCF_HD double load(double x) { return x; }
WCF_HD float load(Bf16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }
WCF_HD float load(F16 x) {
#if defined(__CUDA_ARCH__)
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = x.bits & 0x7FFFu;
  uint32_t wide;
  if (rest >= 0x7C00u) {
    wide = 0x7F800000u | ((rest & 0x3FFu) << 13);  // inf, NaN
  } else if (rest >= 0x400u) {
    wide = (rest << 13) + (112u << 23);  // normal: rebias the exponent from 15 to 127
  } else {
    wide = float_bits(static_cast<float>(rest) * 0x1p-24f);  // subnormal: a multiple of 2^-24
  }
  return bits_float(sign | wide);
#endif
}

WCF_HD void store(float* to, float x) { *to = x; }
WCF_HD void store(double* to, double x) { *to = x; }
WCF_HD void store(Bf16* to, float x) {
  const uint32_t u = float_bits(x);
  const bool nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
  to->bits = static_cast<uint16_t>(nan ? (u >> 16) | 0x40u : (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}
WCF_HD void store(F16* to, float x) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
#else
  const uint32_t u = float_bits(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t rest = u & 0x7FFFFFFFu;
  uint32_t narrow;
  if (rest > 0x7F800000u) {
    narrow = 0x7E00u;  // NaN
  } else if (rest >= 0x477FF000u) {
    narrow = 0x7C00u;  // 65520 and above round to inf
  } else if (rest >= 0x38800000u) {
    narrow = (rest + 0xFFFu + ((rest >> 13) & 1u) - (112u << 23)) >> 13;
  } else {
    narrow = float_bits(bits_float(rest) + 0.5f) - 0x3F000000u;  // the sum rounds to a multiple of 2^-24
  }
  to->bits = static_cast<uint16_t>(sign | narrow);
#endif
}

// Exponent all ones: inf or NaN. Written on the bits, so no compiler option can remove it.
WCF_HD bool finite(float x) { return (float_bits(x) & 0x7F800000u) != 0x7F800000u; }
WCF_HD bool finite(double x) {
  uint64_t u;
  memcpy(&u, &x, sizeof u);
  return (u & 0x7FF0000000000000u) != 0x7FF0000000000000u;
}

template <class Real>
WCF_HD Real nan_of() {
  return static_cast<Real>(bits_float(0x7FC00000u));
}

WCF_HD int64_t dtype_bytes(int32_t dtype) { return dtype == DTYPE_F64 ? 8 : dtype == DTYPE_F32 ? 4 : 2; }

// Calls f(T{}) with the storage type of a dtype code; returns false for an unknown code.
template <class F>
bool with_dtype(int32_t dtype, F f) {
  switch (dtype) {
    case DTYPE_F32:
      f(float{});
      return true;
    case DTYPE_BF16:
      f(Bf16{});
      return true;
    case DTYPE_F16:
      f(F16{});
      return true;
    case DTYPE_F64:
      f(double{});
      return true;
    default:
      return false;
  }
}

}  // namespace wcf
