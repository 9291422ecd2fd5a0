// The end of a gather call of InfoNCE or the sigmoid loss: joins the splits. The positive's term comes later
// (wcord_fast/ops/bank/critics.py), so no bank is read.
#include "cuda.h"
#include "bank_finish.h"

namespace wcf {
namespace {

// One block per anchor and direction. InfoNCE: the log-sum-exp of the splits' and the mean of their gradients by their
// portions of it; else weighted sums. Without a negative in this part: -inf and zeros. grid = (B, S).
template <class Real>
__global__ void __launch_bounds__(FINISH_THREADS) critic_finish_kernel(BankScore a) {
  Real* const whole = shared_ptr<Real>(0);     // [1], the joined value
  Real* const sums = shared_ptr<Real>(16);     // [FINISH_THREADS]
  Real* const factor = sums + FINISH_THREADS;  // [splits], of the splits' gradients
  const GatherSum kind = sum_of(a.op);
  const DrawSpec& draw = a.rows.draws;
  const int s = blockIdx.y, lane = threadIdx.x % WARP;
  const int64_t b = blockIdx.x, at = s * draw.num_anchors + b, own = index_at(draw.index, draw.index_bytes, b);
  const bool invalid = own < 0 || own >= draw.num_data;  // its partial sums are NaN
  const double weight = weight_of(a, invalid || a.rows.negatives != NEGATIVES_POOL ? 1 : anchor_pool(draw, own).size);
  const Real* const partial = static_cast<const Real*>(a.partial) + at * a.splits;
  if (threadIdx.x < WARP) {
    Tally<Real> total = tally_empty<Real>(kind);
    for (int64_t i = lane; i < a.splits; i += WARP) {
      const Tally<Real> split =
          kind == SUM_SOFTMAX ? Tally<Real>{partial[i], Real(1)} : Tally<Real>{partial[i + slopes_at(a)], partial[i]};
      total = tally_join(kind, total, split);
    }
    total = tally_warp(kind, total);
    if (lane == 0) {
      Real* const value = static_cast<Real*>(a.value) + at;
      whole[0] = tally_value(kind, total);
      if (kind == SUM_SOFTMAX) {
        *value = whole[0] + static_cast<Real>(log(weight));
      } else {
        *value = static_cast<Real>(weight) * whole[0];
        value[a.directions * draw.num_anchors] = static_cast<Real>(weight) * total.beside;
      }
    }
  }
  if (!a.grad) return;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < a.splits; i += FINISH_THREADS) {
    const bool empty = partial[i] < static_cast<Real>(LOWEST_EXPONENT);
    factor[i] = kind != SUM_SOFTMAX ? static_cast<Real>(weight) : empty ? Real(0) : real_exp(partial[i] - whole[0]);
  }
  __syncthreads();
  const Real* const grads = static_cast<const Real*>(a.partial_grad) + at * a.splits * a.dim;
  const int columns = finish_columns(a.dim), column = threadIdx.x % columns;
  for (int64_t first = 0; first < a.dim; first += columns) {  // more than once only with one thread a column
    const int64_t d = first + column;
    const Real sum = sum_splits(grads, a.splits, a.dim, d, columns, sums, [&](int64_t i) { return factor[i]; });
    if (static_cast<int>(threadIdx.x) < columns && d < a.dim) static_cast<Real*>(a.grad)[at * a.dim + d] = sum;
  }
}

template <class Real>
cudaError_t launch_critic_finish(const BankScore& a) {
  const dim3 grid(static_cast<unsigned>(a.rows.draws.num_anchors), static_cast<unsigned>(a.directions));
  const size_t bytes = 16 + (FINISH_THREADS + static_cast<size_t>(a.splits)) * sizeof(Real);
  return launch(critic_finish_kernel<Real>, grid, dim3(FINISH_THREADS), bytes, stream_of(a.place), false, a);
}

}  // namespace

cudaError_t critic_finish(const BankScore& a) {
  return a.wide ? launch_critic_finish<double>(a) : launch_critic_finish<float>(a);
}

}  // namespace wcf
