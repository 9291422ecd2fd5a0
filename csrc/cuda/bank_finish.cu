// The end of a gather call: splits added up in ascending order, the positive's term, the constants. And the entry.
#include "cuda.h"
#include "gather.h"

namespace wcf {
namespace {

constexpr int FINISH_THREADS = 128;

// One block per anchor and direction. Reads splits * (D + 1) partial sums and one bank row, writes D + 1 values.
// For SCORE_LOG_Z the anchor's log-sum-exp replaces its first partial sum. grid = (B, S).
template <class Bank, class Real>
__global__ void __launch_bounds__(FINISH_THREADS) gather_finish_kernel(GatherArgs a) {
  if (nothing_to_do<Real>(a)) return;
  Real* const part = shared_ptr<Real>(0);  // [warps]
  const DrawArgs& draw = a.walk.draw;
  const int s = blockIdx.y;
  const int64_t b = blockIdx.x, at = s * draw.num_anchors + b, own = index_at(draw.index, draw.index_bytes, b);
  const bool invalid = own < 0 || own >= draw.num_data;  // its partial sums are NaN
  const uint64_t local = static_cast<uint64_t>(own - a.walk.first_row);
  const bool held = local < static_cast<uint64_t>(a.walk.num_rows);  // else its term is another part's
  const int64_t count = invalid || !a.walk.whole_pool ? 1 : anchor_pool(draw, own).size;
  const int64_t row = held ? static_cast<int64_t>(local) : 0;
  const Bank* const positive = static_cast<const Bank*>(a.bank[s]) + row * a.bank_stride[s];
  const Real* const anchor = static_cast<const Real*>(a.anchors) + at * a.dim;
  Real dot = 0;
  for (int64_t d = threadIdx.x; d < a.dim && held && a.score != SCORE_MEAN; d += FINISH_THREADS) {
    dot += anchor[d] * static_cast<Real>(load(positive[d]));
  }
  dot = warp_sum(dot);
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = dot;
  __syncthreads();
  dot = part[0];
  for (int w = 1; w < FINISH_THREADS / WARP; ++w) dot += part[w];

  const double charged = charged_of(a, count), weight = weight_of(a, count);
  const double num_data = static_cast<double>(draw.num_data);
  Real* const partial = static_cast<Real*>(a.partial) + at * a.splits;
  Real scale = static_cast<Real>(a.score == SCORE_MEAN ? weight / charged : weight), own_slope = 0;  // own: positive's
  Real value = 0;
  if (a.score == SCORE_LOG_Z) {
    if (threadIdx.x != 0) return;
    Tally<Real> total = tally_empty<Real>(a.score);
    if (held) total = Tally<Real>{static_cast<Real>(dot / a.temperature), Real(1)};
    for (int64_t i = 0; i < a.splits; ++i) {  // an empty split is -inf
      total = tally_join(total, Tally<Real>{static_cast<Real>(partial[i] + log(weight)), Real(1)});
    }
    partial[0] = tally_value(a.score, total);
    return;
  }
  if (threadIdx.x == 0) {
    for (int64_t i = 0; i < a.splits; ++i) value += partial[i];
    value *= scale;
  }
  if (a.score == SCORE_NCE) scale = static_cast<Real>(weight / a.temperature);
  if (a.score == SCORE_NCE && held) {
    const double offset = nce_offset(charged, num_data, static_cast<const Real*>(a.log_z)[s]);
    const Term<Real> term = softplus(static_cast<Real>(offset - dot / a.temperature));
    value += term.value + static_cast<Real>(nce_constant(charged, num_data));
    own_slope = static_cast<Real>(-term.slope / a.temperature);
  }
  if (threadIdx.x == 0) static_cast<Real*>(a.value)[at] = value;
  if (!a.grad) return;
  const Real* const grads = static_cast<const Real*>(a.partial_grad) + at * a.splits * a.dim;
  for (int64_t d = threadIdx.x; d < a.dim; d += FINISH_THREADS) {
    Real sum = 0;
    for (int64_t i = 0; i < a.splits; ++i) sum += grads[i * a.dim + d];
    if (a.score == SCORE_NCE && held) {
      sum = scale * sum + own_slope * static_cast<Real>(load(positive[d]));
    } else {
      sum *= scale;
    }
    static_cast<Real*>(a.grad)[at * a.dim + d] = sum;
  }
}

// log Z of the batch: the log-sum-exp over all anchors, less the log of how many scores it is over, plus log N; what is
// known already stays. One block per direction; an anchor that was flagged makes it NaN.
template <class Real>
__global__ void __launch_bounds__(GATHER_THREADS) log_z_kernel(GatherArgs a) {
  Tally<Real>* const tally = shared_ptr<Tally<Real>>(0);                         // [warps]
  double* const count = shared_ptr<double>(GATHER_WARPS * sizeof(Tally<Real>));  // [warps]
  const DrawArgs& draw = a.walk.draw;
  const int s = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const Real known = a.log_z ? static_cast<const Real*>(a.log_z)[s] : nan_of<Real>();
  Real* const value = static_cast<Real*>(a.value) + s;
  if (known == known) {
    if (threadIdx.x == 0) *value = known;
    return;
  }
  Tally<Real> total = tally_empty<Real>(SCORE_LOG_Z);
  double scores = 0;
  for (int64_t b = threadIdx.x; b < draw.num_anchors; b += GATHER_THREADS) {
    const Real lse = static_cast<const Real*>(a.partial)[(s * draw.num_anchors + b) * a.splits];
    total = tally_join(total, Tally<Real>{lse, Real(1)});
    const int64_t index = index_at(draw.index, draw.index_bytes, b);
    const bool valid = index >= 0 && index < draw.num_data;
    scores += 1 + charged_of(a, a.charged < 0 && valid ? anchor_pool(draw, index).size : 0);
  }
  total = tally_warp(total);
  scores = warp_sum(scores);
  if (lane == 0) {
    tally[warp] = total;
    count[warp] = scores;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < GATHER_WARPS; ++w) {
    total = tally_join(total, tally[w]);
    scores += count[w];
  }
  const double mean = log(static_cast<double>(draw.num_data) / scores);
  *value = static_cast<Real>(tally_value(SCORE_LOG_Z, total) + mean);
}

template <class Bank, class Real>
cudaError_t launch_finish(const GatherArgs& a, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(a.walk.draw.num_anchors), static_cast<unsigned>(a.directions));
  const size_t bytes = FINISH_THREADS / WARP * sizeof(Real);
  const cudaError_t error =
      launch(gather_finish_kernel<Bank, Real>, grid, dim3(FINISH_THREADS), bytes, stream, false, a);
  if (error != cudaSuccess || a.score != SCORE_LOG_Z || !a.value) return error;
  const size_t tallies = GATHER_WARPS * (sizeof(Tally<Real>) + sizeof(double));
  return launch(log_z_kernel<Real>, dim3(static_cast<unsigned>(a.directions)), dim3(GATHER_THREADS), tallies, stream,
                false, a);
}

}  // namespace

cudaError_t gather_finish(const GatherArgs& a, int32_t bank_dtype, bool fp64, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;  // an unknown dtype
  with_dtype(bank_dtype, [&](auto type) {
    using Bank = decltype(type);
    if (fp64) {
      error = launch_finish<Bank, double>(a, stream);
    } else if constexpr (sizeof(Bank) < sizeof(double)) {
      error = launch_finish<Bank, float>(a, stream);
    }
  });
  return error;
}

}  // namespace wcf

int wcf_cuda_bank_gather(int device, uintptr_t stream, uintptr_t index, int index_bytes, int64_t num_anchors,
                         int64_t num_draws, int64_t num_data, int64_t anchor_offset, int source, int replacement,
                         uintptr_t state, uintptr_t label, uintptr_t order, uintptr_t rank, uintptr_t class_start,
                         uintptr_t threshold, uintptr_t alias, uintptr_t given, int given_bytes, int64_t given_stride,
                         int whole_pool, int64_t first_row, int64_t num_rows, int score, int directions,
                         uintptr_t anchors, int fp64, int64_t dim, uintptr_t bank_0, uintptr_t bank_1, int bank_dtype,
                         int64_t bank_stride_0, int64_t bank_stride_1, double temperature, uintptr_t log_z,
                         int64_t splits, int64_t chunk, uintptr_t partial, uintptr_t partial_grad, uintptr_t value,
                         uintptr_t grad, uintptr_t status) {
  using namespace wcf;
  const DeviceGuard guard(device);
  if (guard.error != cudaSuccess) return error_code(guard.error);
  if (num_anchors * splits > INT32_MAX) return static_cast<int>(cudaErrorInvalidConfiguration);
  GatherArgs a{};
  a.walk = walk_args(index, index_bytes, num_anchors, num_draws, num_data, anchor_offset, source, replacement, state,
                     label, order, rank, class_start, threshold, alias, given, given_bytes, given_stride, whole_pool,
                     first_row, num_rows);
  a.score = score;
  a.directions = directions;
  a.dim = dim;
  a.charged = num_draws;
  a.splits = splits;
  a.chunk = chunk;
  a.anchors = reinterpret_cast<const void*>(anchors);
  a.bank[0] = reinterpret_cast<const void*>(bank_0);
  a.bank[1] = reinterpret_cast<const void*>(bank_1);
  a.bank_stride[0] = bank_stride_0;
  a.bank_stride[1] = bank_stride_1;
  a.temperature = temperature;
  a.log_z = reinterpret_cast<const void*>(log_z);
  a.partial = reinterpret_cast<void*>(partial);
  a.partial_grad = reinterpret_cast<void*>(partial_grad);
  a.value = reinterpret_cast<void*>(value);
  a.grad = reinterpret_cast<void*>(grad);
  a.status = reinterpret_cast<int32_t*>(status);
  const cudaStream_t queue = reinterpret_cast<cudaStream_t>(stream);
  cudaError_t error = cudaSuccess;
  if (!gather_rows(a, bank_dtype, fp64 != 0, queue, &error)) error = gather_any(a, bank_dtype, fp64 != 0, queue);
  if (error == cudaSuccess) error = gather_finish(a, bank_dtype, fp64 != 0, queue);
  return error_code(error);
}
