// Shared by the kernels of the bank's gather plan: the critic term, and sums over lanes and warps.
//
// A call is two launches. `gather_rows_kernel` or `gather_general_kernel`, one block per anchor and split of its K
// negatives, writes the split's sum of terms and of weighted rows; `gather_finish_kernel`, one block per anchor and
// direction, adds the splits up in a fixed order and then the positive. For log Z `log_z_kernel` follows. InfoNCE and
// the sigmoid loss end in `critic_finish_kernel`, which adds no positive. No float is ever added atomically, so results
// do not depend on scheduling.
#pragma once
#include "../common/bank_score.h"
#include "../common/dtype.h"
#include "negatives.h"
#include "softplus.h"

namespace wcf {

constexpr int GATHER_WARPS = GATHER_THREADS / WARP;

// Bits of NegativeReader::flags: the reason why an anchor's results are invalid.
constexpr int32_t FLAG_ANCHOR = 1;                   // << direction
constexpr int32_t FLAG_INDEX = 1 << MAX_DIRECTIONS;  // of all directions

__device__ __forceinline__ bool flagged(int32_t flags, int s) { return (flags & (FLAG_INDEX | FLAG_ANCHOR << s)) != 0; }

__device__ __forceinline__ void report(int32_t flags, const Status& to) {
  if (flags & FLAG_INDEX) raise(to, to.index_bit);
  if (flags & (FLAG_INDEX - 1)) raise(to, to.anchor_bit);
}

// True if the call estimates log Z and every direction has an estimate already: the launches then return at once.
template <class Real>
__device__ __forceinline__ bool nothing_to_do(const BankScore& a) {
  if (a.op != BANK_LOG_Z || !a.log_z) return false;
  const Real* const known = static_cast<const Real*>(a.log_z);
  for (int s = 0; s < a.directions; ++s) {
    if (known[s] != known[s]) return false;
  }
  return true;
}

// K_b, the charge of anchor b, and the weight of each scored negative.
__device__ __forceinline__ double charged_of(const BankScore& a, int64_t count) {
  return static_cast<double>(a.charged < 0 ? count : a.charged);
}
__device__ __forceinline__ double weight_of(const BankScore& a, int64_t count) {
  return a.rows.negatives == NEGATIVES_POOL && a.charged >= 0
             ? static_cast<double>(a.charged) / static_cast<double>(count)
             : 1.0;
}

// NCE's constants, which depend on the charge, in fp64. The host computes them unless each anchor is charged for its
// own pool, because fp64 logarithms are slow on consumer cards.
struct NceCharge {
  double log_c;
  double constant;
};
inline NceCharge nce_charge(const BankScore& a) {
  if (a.charged < 0) return NceCharge{0.0, 0.0};
  const double charged = static_cast<double>(a.charged), num_data = static_cast<double>(a.rows.draws.num_data);
  return NceCharge{nce_log_c(charged, num_data, a.nce_eps), nce_constant(charged, num_data, a.nce_eps)};
}
__device__ __forceinline__ NceCharge nce_charge_of(const BankScore& a, const NceCharge& known, int64_t count) {
  if (a.charged >= 0) return known;
  const double charged = static_cast<double>(count), num_data = static_cast<double>(a.rows.draws.num_data);
  return NceCharge{nce_log_c(charged, num_data, a.nce_eps), nce_constant(charged, num_data, a.nce_eps)};
}

// What the terms of the negatives add up to. A template argument of the fast kernel, so that an op pays for its own
// sums only.
enum GatherSum {
  SUM_TERMS,    // NCE, mean score
  SUM_SLOPES,   // sigmoid: terms and their slopes
  SUM_SOFTMAX,  // InfoNCE, log Z: a log-sum-exp
};
WCF_HD GatherSum sum_of(int32_t op) {
  return op == BANK_LOG_Z || op == BANK_INFONCE ? SUM_SOFTMAX : op == BANK_SIGMOID ? SUM_SLOPES : SUM_TERMS;
}

// A running sum. `beside` is the largest exponent, to which the sum of exponentials is relative (SUM_SOFTMAX: the value
// is sum * exp(beside)), the sum of the slopes (SUM_SLOPES), or 0.
template <class Real>
struct Tally {
  Real beside;
  Real sum;
};

// The lowest finite number stands for an exponent of -inf, so that no difference of two exponents is NaN.
constexpr float LOWEST_EXPONENT = -3.4e38f;

template <class Real>
__device__ __forceinline__ Tally<Real> tally_empty(GatherSum kind) {
  return Tally<Real>{kind == SUM_SOFTMAX ? static_cast<Real>(LOWEST_EXPONENT) : Real(0), Real(0)};
}

template <class Real>
__device__ __forceinline__ Tally<Real> tally_join(GatherSum kind, Tally<Real> a, Tally<Real> b) {
  if (kind != SUM_SOFTMAX) return Tally<Real>{a.beside + b.beside, a.sum + b.sum};
  const Real top = a.beside < b.beside ? b.beside : a.beside;
  return Tally<Real>{top, a.sum * real_exp(a.beside - top) + b.sum * real_exp(b.beside - top)};
}

// The sum over the warp, in lane 0, always in one order.
template <class Real>
__device__ __forceinline__ Tally<Real> tally_warp(GatherSum kind, Tally<Real> t) {
  for (int step = WARP / 2; step > 0; step /= 2) {
    const Tally<Real> other{__shfl_xor_sync(FULL_WARP, t.beside, step), __shfl_xor_sync(FULL_WARP, t.sum, step)};
    t = tally_join(kind, t, other);
  }
  return t;
}

template <class Real>
__device__ __forceinline__ Real tally_value(GatherSum kind, Tally<Real> t) {
  return kind == SUM_SOFTMAX ? t.beside + real_log(t.sum) : t.sum;
}

// The exponent of a negative that is not scored is the lowest, and its term 0.
template <class Real>
__device__ __forceinline__ Real add_exponential(bool scored, Real exponent, Tally<Real>* tally) {
  const Real term = scored ? exponential(exponent - tally->beside) : Real(0);
  tally->sum += term;
  return term;
}

// u = score * scale - offset.
template <class Real>
__device__ __forceinline__ Real scale_of(const BankScore& a) {
  return a.op == BANK_SIGMOID ? static_cast<const Real*>(a.scalars)[0] : static_cast<Real>(1.0 / a.temperature);
}
template <class Real>
__device__ __forceinline__ Real offset_of(const BankScore& a, const NceCharge& known, int64_t count, int s) {
  if (a.op == BANK_SIGMOID) return -static_cast<const Real*>(a.scalars)[1];
  if (a.op != BANK_NCE) return Real(0);
  const double log_z = static_cast<double>(static_cast<const Real*>(a.log_z)[s]);
  return static_cast<Real>(nce_charge_of(a, known, count).log_c + log_z);
}

// Adds the term of one scored negative; returns the factor of its row in the gradient (1 / tau comes at the end).
template <class Real>
__device__ __forceinline__ Real add_score(const BankScore& a, GatherSum kind, Real s, Real scale, Real offset,
                                          Tally<Real>* tally) {
  if (kind == SUM_SLOPES || a.op == BANK_NCE) {
    const Term<Real> term = score_term(s * scale - offset);
    tally->sum += term.value;
    if (kind == SUM_SLOPES) tally->beside += term.slope;
    return term.slope;
  }
  tally->sum += s;
  return Real(1);
}

// The sums of the slopes, behind those of the terms (SUM_SLOPES): numbers from one to the other.
__device__ __forceinline__ int64_t slopes_at(const BankScore& a) {
  return a.directions * a.rows.draws.num_anchors * a.splits;
}

// A split of an anchor without valid negatives: NaN for all directions, nothing read.
template <class Real>
__device__ __forceinline__ void poison_split(const BankScore& a, int64_t b, int64_t split) {
  for (int s = 0; s < a.directions; ++s) {
    const int64_t at = (s * a.rows.draws.num_anchors + b) * a.splits + split;
    if (threadIdx.x == 0) static_cast<Real*>(a.partial)[at] = nan_of<Real>();
    if (threadIdx.x == 0 && a.op == BANK_SIGMOID) static_cast<Real*>(a.partial)[at + slopes_at(a)] = nan_of<Real>();
    if (!a.partial_grad) continue;
    for (int64_t d = threadIdx.x; d < a.dim; d += blockDim.x) {
      static_cast<Real*>(a.partial_grad)[at * a.dim + d] = nan_of<Real>();
    }
  }
}

// The launchers, each in its own file. The first three, one for each GatherSum, return false if their kernel does not
// support these rows.
bool gather_rows_terms(const BankScore& a, cudaError_t* error);
bool gather_rows_slopes(const BankScore& a, cudaError_t* error);
bool gather_rows_softmax(const BankScore& a, cudaError_t* error);
cudaError_t gather_general(const BankScore& a);
cudaError_t gather_finish(const BankScore& a);
cudaError_t critic_finish(const BankScore& a);

// launch_for<Bank, Real>(a) for the bank's dtype and the type of the arithmetic.
template <class LaunchFor>
cudaError_t with_types(const BankScore& a, LaunchFor launch_for) {
  cudaError_t error = cudaErrorInvalidValue;  // an unknown dtype
  with_dtype(a.bank_dtype[0], [&](auto bank) {
    if (a.wide) {
      error = launch_for(bank, double{});
    } else if constexpr (sizeof(bank) < sizeof(double)) {
      error = launch_for(bank, float{});
    }
  });
  return error;
}

}  // namespace wcf
