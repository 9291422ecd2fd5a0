// The terms of CRD's NCE in the form that cannot overflow; derived in wcord_fast/ops/bank/README.md.
//
// With u = s / tau - offset the loss of one anchor is softplus(-u_0) + sum_k softplus(u_k) + constant, and its gradient
// in the score s_k is sigmoid(u_k) / tau.
#pragma once
#include <cmath>

#include "defines.h"

namespace wcf {

WCF_HD float real_exp(float x) { return expf(x); }
WCF_HD double real_exp(double x) { return exp(x); }
WCF_HD float real_log(float x) { return logf(x); }
WCF_HD double real_log(double x) { return log(x); }
WCF_HD float real_log1p(float x) { return log1pf(x); }
WCF_HD double real_log1p(double x) { return log1p(x); }

template <class Real>
struct Term {
  Real value;
  Real slope;
};

// softplus(u) = log(1 + exp(u)) and its derivative sigmoid(u), at full precision for any u; NaN for NaN.
template <class Real>
WCF_HD Term<Real> softplus(Real u) {
  const Real e = real_exp(u < 0 ? u : -u);  // exp(-|u|)
  return Term<Real>{(u > 0 ? u : Real(0)) + real_log1p(e), (u < 0 ? e : Real(1)) / (Real(1) + e)};
}

// charged: K_b, the charge; c = K_b / N. eps: the constant in CRD's probability. nce_log_c is log(c + eps).
WCF_HD double nce_log_c(double charged, double num_data, double eps) { return log(charged / num_data + eps); }
WCF_HD double nce_offset(double charged, double num_data, double log_z, double eps) {
  return nce_log_c(charged, num_data, eps) + log_z;
}
WCF_HD double nce_constant(double charged, double num_data, double eps) {
  return charged * log1p(eps * num_data / charged);
}

}  // namespace wcf
