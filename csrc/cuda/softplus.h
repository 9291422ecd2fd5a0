// softplus, its derivative, and exp by the device's approximate units: a third of common/critic.h's instructions.
#pragma once
#include "../common/critic.h"
#include "approximate.h"

namespace wcf {

// The error is some ulp, beside that of u's own rounding. NaN gives NaN. With e = exp(-|u|) in [0, 1] and s = e / (2 +
// e), log(1 + e) = 2 atanh(s) = s (2 + 2/3 s^2 + 2/5 s^4 + ..), whose last terms are fitted for s^2 up to 1/9 (4e-9).
__device__ __forceinline__ Term<float> score_term(float u) {
  const float e = approximate_exp2(fabsf(u) * -1.44269504f);
  const float s = e * approximate_reciprocal(2.0f + e), square = s * s;
  float series = fmaf(square, 0.28178334f, 0.27960603f);
  series = fmaf(square, series, 0.40024910f);
  series = fmaf(square, series, 0.66666315f);
  series = fmaf(square, series, 2.0f);
  return Term<float>{fmaf(s, series, u > 0 ? u : 0.0f), (u < 0 ? e : 1.0f) * approximate_reciprocal(1.0f + e)};
}
__device__ __forceinline__ Term<double> score_term(double u) { return softplus(u); }

// exp(x) for x <= 0; NaN gives NaN. In fp32 the rounding of x * log2 e is an error of 2^-24 |x|.
__device__ __forceinline__ float exponential(float x) { return approximate_exp2(x * 1.44269504f); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

}  // namespace wcf
