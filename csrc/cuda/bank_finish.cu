// The end of a gather call: adds the splits up, then the positive's term and the constants. Also the entry point.
#include "cuda.h"
#include "bank_finish.h"

namespace wcf {
namespace {

// One block per anchor and direction. Reads splits * (D + 1) partial sums and one bank row, writes D + 1 values.
// For BANK_LOG_Z the anchor's log-sum-exp replaces its first partial sum. grid = (B, S).
template <class Bank, class Real>
__global__ void __launch_bounds__(FINISH_THREADS) gather_finish_kernel(BankScore a, NceCharge known) {
  if (nothing_to_do<Real>(a)) return;
  Real* const part = shared_ptr<Real>(0);  // [FINISH_WARPS]
  const int lane = threadIdx.x % WARP;
  const DrawSpec& draw = a.rows.draws;
  const int s = blockIdx.y;
  const int64_t b = blockIdx.x, at = s * draw.num_anchors + b, own = index_at(draw.index, draw.index_bytes, b);
  const bool invalid = own < 0 || own >= draw.num_data;  // its partial sums are NaN
  const uint64_t local = static_cast<uint64_t>(own - a.rows.first_row);
  const bool held = local < static_cast<uint64_t>(a.rows.num_rows);  // else another part adds its term
  const int64_t count = invalid || a.rows.negatives != NEGATIVES_POOL ? 1 : anchor_pool(draw, own).size;
  const int64_t row = held ? static_cast<int64_t>(local) : 0;
  const Bank* const positive = static_cast<const Bank*>(a.bank[s]) + row * a.bank_stride[s];
  const Real* const anchor = static_cast<const Real*>(a.anchors) + at * a.dim;
  Real dot = 0;
  for (int64_t d = threadIdx.x; d < a.dim && held && a.op != BANK_MEAN_SCORE; d += FINISH_THREADS) {
    dot += anchor[d] * static_cast<Real>(load(positive[d]));
  }
  dot = warp_sum(dot);
  if (lane == 0) part[threadIdx.x / WARP] = dot;
  __syncthreads();
  dot = part[0];
  for (int w = 1; w < FINISH_WARPS; ++w) dot += part[w];

  const double charged = charged_of(a, count), weight = weight_of(a, count);
  Real* const partial = static_cast<Real*>(a.partial) + at * a.splits;
  Real scale = static_cast<Real>(a.op == BANK_MEAN_SCORE ? weight / charged : weight),
       own_slope = 0;  // own: of the positive
  Real value = 0;
  if (a.op == BANK_LOG_Z) {
    if (threadIdx.x >= WARP) return;
    Tally<Real> total = tally_empty<Real>(SUM_SOFTMAX);
    if (held && lane == 0) total = Tally<Real>{static_cast<Real>(dot / a.temperature), Real(1)};
    for (int64_t i = lane; i < a.splits; i += WARP) {  // an empty split is -inf
      total = tally_join(SUM_SOFTMAX, total, Tally<Real>{static_cast<Real>(partial[i] + log(weight)), Real(1)});
    }
    total = tally_warp(SUM_SOFTMAX, total);
    if (lane == 0) partial[0] = tally_value(SUM_SOFTMAX, total);
    return;
  }
  if (threadIdx.x < WARP) {
    for (int64_t i = lane; i < a.splits; i += WARP) value += partial[i];
    value = warp_sum(value) * scale;
  }
  if (a.op == BANK_NCE) scale = static_cast<Real>(weight / a.temperature);
  if (a.op == BANK_NCE && held) {
    const NceCharge charge = nce_charge_of(a, known, count);
    const double offset = charge.log_c + static_cast<double>(static_cast<const Real*>(a.log_z)[s]);
    const Term<Real> term = softplus(static_cast<Real>(offset - dot / a.temperature));
    value += term.value + static_cast<Real>(charge.constant);
    own_slope = static_cast<Real>(-term.slope / a.temperature);
  }
  if (threadIdx.x == 0) static_cast<Real*>(a.value)[at] = value;
  if (!a.grad) return;
  const Real* const grads = static_cast<const Real*>(a.partial_grad) + at * a.splits * a.dim;
  const int columns = finish_columns(a.dim);
  const int column = threadIdx.x % columns;
  for (int64_t first = 0; first < a.dim; first += columns) {  // more than once only with one thread a column
    const int64_t d = first + column;
    Real sum = sum_splits(grads, a.splits, a.dim, d, columns, part + FINISH_WARPS, [](int64_t) { return Real(1); });
    if (static_cast<int>(threadIdx.x) >= columns || d >= a.dim) continue;
    if (a.op == BANK_NCE && held) {
      sum = scale * sum + own_slope * static_cast<Real>(load(positive[d]));
    } else {
      sum *= scale;
    }
    static_cast<Real*>(a.grad)[at * a.dim + d] = sum;
  }
}

// log Z of the batch: the log-sum-exp over all anchors, minus the log of the number of scores, plus log N. An estimate
// that is set already stays. One block per direction. A flagged anchor makes log Z NaN.
template <class Real>
__global__ void __launch_bounds__(GATHER_THREADS) log_z_kernel(BankScore a) {
  Tally<Real>* const tally = shared_ptr<Tally<Real>>(0);                         // [warps]
  double* const count = shared_ptr<double>(GATHER_WARPS * sizeof(Tally<Real>));  // [warps]
  const DrawSpec& draw = a.rows.draws;
  const int s = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const Real known = a.log_z ? static_cast<const Real*>(a.log_z)[s] : nan_of<Real>();
  Real* const value = static_cast<Real*>(a.value) + s;
  if (known == known) {
    if (threadIdx.x == 0) *value = known;
    return;
  }
  Tally<Real> total = tally_empty<Real>(SUM_SOFTMAX);
  double scores = 0;
  for (int64_t b = threadIdx.x; b < draw.num_anchors; b += GATHER_THREADS) {
    const Real lse = static_cast<const Real*>(a.partial)[(s * draw.num_anchors + b) * a.splits];
    total = tally_join(SUM_SOFTMAX, total, Tally<Real>{lse, Real(1)});
    const int64_t index = index_at(draw.index, draw.index_bytes, b);
    const bool valid = index >= 0 && index < draw.num_data;
    scores += 1 + charged_of(a, a.charged < 0 && valid ? anchor_pool(draw, index).size : 0);
  }
  total = tally_warp(SUM_SOFTMAX, total);
  scores = warp_sum(scores);
  if (lane == 0) {
    tally[warp] = total;
    count[warp] = scores;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < GATHER_WARPS; ++w) {
    total = tally_join(SUM_SOFTMAX, total, tally[w]);
    scores += count[w];
  }
  const double mean = log(static_cast<double>(draw.num_data) / scores);
  *value = static_cast<Real>(tally_value(SUM_SOFTMAX, total) + mean);
}

template <class Bank, class Real>
cudaError_t launch_finish(const BankScore& a) {
  const cudaStream_t stream = stream_of(a.place);
  const dim3 grid(static_cast<unsigned>(a.rows.draws.num_anchors), static_cast<unsigned>(a.directions));
  const size_t bytes = (FINISH_WARPS + FINISH_THREADS) * sizeof(Real);
  const cudaError_t error =
      launch(gather_finish_kernel<Bank, Real>, grid, dim3(FINISH_THREADS), bytes, stream, false, a, nce_charge(a));
  if (error != cudaSuccess || a.op != BANK_LOG_Z || !a.value) return error;
  const size_t tallies = GATHER_WARPS * (sizeof(Tally<Real>) + sizeof(double));
  return launch(log_z_kernel<Real>, dim3(static_cast<unsigned>(a.directions)), dim3(GATHER_THREADS), tallies, stream,
                false, a);
}

}  // namespace

cudaError_t gather_finish(const BankScore& a) {
  return with_types(a, [&](auto bank, auto real) { return launch_finish<decltype(bank), decltype(real)>(a); });
}

}  // namespace wcf

int wcf_cuda_bank_score(const wcf::BankScore* record) {
  using namespace wcf;
  const BankScore& a = *record;
  const bool one_dtype = a.directions < 2 || a.bank_dtype[1] == a.bank_dtype[0];
  if (!a.flags.status || a.plan != PLAN_GATHER || a.directions > MAX_DIRECTIONS || !one_dtype ||
      (a.op == BANK_SIGMOID && !a.scalars)) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  const DeviceGuard guard(a.place.device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  if (a.rows.draws.num_anchors * a.splits > INT32_MAX) return static_cast<int>(cudaErrorInvalidConfiguration);
  cudaError_t error = cudaSuccess;
  const GatherSum kind = sum_of(a.op);
  const auto rows = kind == SUM_SOFTMAX  ? gather_rows_softmax
                    : kind == SUM_SLOPES ? gather_rows_slopes
                                         : gather_rows_terms;
  if (a.wide || !rows(a, &error)) error = gather_general(a);
  const bool critic = a.op == BANK_INFONCE || a.op == BANK_SIGMOID;
  if (error == cudaSuccess) error = critic ? critic_finish(a) : gather_finish(a);
  return error_code(error);
}
