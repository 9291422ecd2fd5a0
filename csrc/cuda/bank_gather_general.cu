// The gather plan for rows that bank_gather.cu does not support: any D, fp64, rows off 16-byte boundaries.
//
// A block processes its split in tiles of 256 draws: one draw per thread, then one warp per row for the scores, then
// one thread per column for the gradient, down the tile's rows. So each row is read twice, the second time from L1 or
// L2, in coalesced pieces of one element per lane, with several times the instructions of the other kernel. The
// gradient is in the split's own row of scratch, one update per tile and column, so on-chip memory does not limit D.
// Where the banks are a part of the N rows, a tile has the held ones of 256 draws, in their order. For whole banks that
// costs one comparison of two arguments per tile.
#include "cuda.h"
#include "bank_gather.h"

namespace wcf {
namespace {

constexpr int TILE = GATHER_THREADS;

template <class Real>
struct GeneralShared {
  NegativeReader reader;
  uint32_t rows[TILE];
  int32_t held[GATHER_WARPS];  // rows of the tile from each warp's draws
  Real slope[TILE];
  Real slice[TILE];
  Real top[GATHER_WARPS];
  Tally<Real> tally[GATHER_WARPS];
};

// Writes the held rows among negatives k .. k + n - 1 of anchor b to sh->rows and returns their number.
template <class Real>
__device__ __forceinline__ int read_rows(const NegativeSpec& a, GeneralShared<Real>* sh, int64_t b, int64_t k, int n,
                                         bool* bad) {
  const int t = threadIdx.x, lane = t % WARP, warp = t / WARP;
  if (!is_part(a)) {
    if (t < n) sh->rows[t] = reader_row(a, sh->reader, b, k + t, bad);
    return n;
  }
  uint32_t local = 0;
  const bool held = t < n && reader_local(a, sh->reader, b, k + t, &local, bad);
  const unsigned holders = __ballot_sync(FULL_WARP, held);
  if (lane == 0) sh->held[warp] = __popc(holders);
  __syncthreads();
  int before = 0, all = 0;
  for (int w = 0; w < GATHER_WARPS; ++w) {
    if (w == warp) before = all;
    all += sh->held[w];
  }
  if (held) sh->rows[before + __popc(holders & ((1u << lane) - 1))] = local;
  return all;
}

// The score of this thread's draw, one warp per row. 0 for threads from n, the tile's draws, on.
template <class Bank, class Real>
__device__ __forceinline__ Real tile_score(const GeneralShared<Real>* sh, const Bank* bank, int64_t stride, int n,
                                           int64_t dim, const Real* anchor) {
  const int lane = threadIdx.x % WARP, base = threadIdx.x - lane;
  Real score = 0;
  for (int j = 0; j < WARP && base + j < n; ++j) {
    const Bank* const row = bank + sh->rows[base + j] * stride;
    Real dot = 0;
    for (int64_t d = lane; d < dim; d += WARP) dot += anchor[d] * static_cast<Real>(load(row[d]));
    dot = warp_sum(dot);
    if (lane == j) score = dot;
  }
  return score;
}

// Makes the sums of a log-sum-exp relative to the largest exponent of the tile and of those before. Returns the factor
// of all earlier terms; a thread's own sum has it already.
template <class Real>
__device__ __forceinline__ Real raise_top(GeneralShared<Real>* sh, Real exponent, Tally<Real>* tally) {
  const Real highest = warp_max(exponent);
  if (threadIdx.x % WARP == 0) sh->top[threadIdx.x / WARP] = highest;
  __syncthreads();
  const Real before = tally->beside;
  for (int w = 0; w < GATHER_WARPS; ++w) tally->beside = sh->top[w] > tally->beside ? sh->top[w] : tally->beside;
  const Real kept = exponential(before - tally->beside);
  tally->sum *= kept;
  return kept;
}

// grad [D], which is this block's own, becomes kept * grad + sum_j slope[j] * row[j]. Where rows are narrow, several
// threads per column divide the draws between them, and their sums are added in order.
template <class Bank, class Real>
__device__ __forceinline__ void add_rows(GeneralShared<Real>* sh, const Bank* bank, int64_t stride, int n, int64_t dim,
                                         Real kept, Real* grad) {
  int columns = 1;
  while (columns < TILE && columns < dim) columns *= 2;
  const int slices = TILE / columns, column = threadIdx.x % columns, slice = threadIdx.x / columns;
  for (int64_t first = 0; first < dim; first += columns) {  // several turns only with a single slice
    const int64_t d = first + column;
    Real sum = 0;
    if (d < dim) {
      for (int j = slice; j < n; j += slices) {
        sum += sh->slope[j] * static_cast<Real>(load(bank[sh->rows[j] * stride + d]));
      }
    }
    if (slices > 1) {
      sh->slice[threadIdx.x] = sum;
      __syncthreads();
      for (int q = 1; slice == 0 && q < slices; ++q) sum += sh->slice[q * columns + column];
    }
    if (slice == 0 && d < dim) grad[d] = kept * grad[d] + sum;
  }
}

// grid = B * splits.
template <class Bank, class Real>
__global__ void __launch_bounds__(GATHER_THREADS, 3) gather_general_kernel(BankScore a, NceCharge known) {
  if (nothing_to_do<Real>(a)) return;
  GeneralShared<Real>* const sh = shared_ptr<GeneralShared<Real>>(0);
  const int64_t b = blockIdx.x / a.splits, split = blockIdx.x % a.splits, num_anchors = a.rows.draws.num_anchors;
  reader_open(a.rows, b, &sh->reader);
  if (sh->reader.kind == NEGATIVES_INVALID) {
    if (threadIdx.x == 0) report(FLAG_INDEX, a.flags);
    poison_split<Real>(a, b, split);
    return;
  }
  const int t = threadIdx.x, lane = t % WARP, warp = t / WARP;
  const int64_t first = split * a.chunk;
  const int64_t steps = reader_steps(a.rows, sh->reader), last = first + a.chunk < steps ? first + a.chunk : steps;
  const GatherSum kind = sum_of(a.op);
  const Real scale = scale_of<Real>(a);
  const auto slot = [&](int s) { return (s * num_anchors + b) * a.splits + split; };
  const auto anchor_of = [&](int s) { return static_cast<const Real*>(a.anchors) + (s * num_anchors + b) * a.dim; };
  const auto grad_of = [&](int s) { return static_cast<Real*>(a.partial_grad) + slot(s) * a.dim; };
  Real offset[MAX_DIRECTIONS] = {};
  Tally<Real> tally[MAX_DIRECTIONS] = {tally_empty<Real>(kind), tally_empty<Real>(kind)};
  WCF_UNROLL
  for (int s = 0; s < MAX_DIRECTIONS; ++s) {
    if (s >= a.directions) continue;
    offset[s] = offset_of<Real>(a, known, sh->reader.count, s);
    for (int64_t d = t; d < a.dim; d += GATHER_THREADS) {
      if (!finite(anchor_of(s)[d])) atomicOr(&sh->reader.flags, FLAG_ANCHOR << s);
    }
    for (int64_t d = t; a.partial_grad && d < a.dim; d += GATHER_THREADS) grad_of(s)[d] = 0;
  }

  for (int64_t start = first; start < last; start += TILE) {
    __syncthreads();  // the previous tile is finished
    bool bad = false;
    const int most = last - start < TILE ? static_cast<int>(last - start) : TILE;
    const int n = read_rows(a.rows, sh, b, start, most, &bad);
    if (bad) atomicOr(&sh->reader.flags, FLAG_INDEX);
    WCF_UNROLL
    for (int s = 0; s < MAX_DIRECTIONS; ++s) {
      if (s >= a.directions) continue;
      const Bank* const bank = static_cast<const Bank*>(a.bank[s]);
      __syncthreads();
      const Real score = tile_score(sh, bank, a.bank_stride[s], n, a.dim, anchor_of(s));
      Real kept = 1;
      if (kind == SUM_SOFTMAX) {
        const Real exponent = t < n ? score * scale : static_cast<Real>(LOWEST_EXPONENT);
        kept = raise_top(sh, exponent, &tally[s]);
        sh->slope[t] = add_exponential(t < n, exponent, &tally[s]);
      } else if (t < n) {
        sh->slope[t] = add_score(a, kind, score, scale, offset[s], &tally[s]);
      }
      __syncthreads();
      if (a.partial_grad) add_rows(sh, bank, a.bank_stride[s], n, a.dim, kept, grad_of(s));
    }
  }

  for (int s = 0; s < a.directions; ++s) {
    const Tally<Real> total = tally_warp(kind, s == 0 ? tally[0] : tally[1]);
    __syncthreads();
    if (lane == 0) sh->tally[warp] = total;
    __syncthreads();
    Tally<Real> sum = sh->tally[0];
    for (int w = 1; w < GATHER_WARPS; ++w) sum = tally_join(kind, sum, sh->tally[w]);
    const bool bad = flagged(sh->reader.flags, s), divides = kind == SUM_SOFTMAX && sum.sum != 0;
    for (int64_t d = t; (bad || divides) && a.partial_grad && d < a.dim; d += GATHER_THREADS) {
      grad_of(s)[d] = bad ? nan_of<Real>() : grad_of(s)[d] / sum.sum;
    }
    if (t != 0) continue;
    Real* const to = static_cast<Real*>(a.partial) + slot(s);
    to[0] = bad ? nan_of<Real>() : tally_value(kind, sum);
    if (kind == SUM_SLOPES) to[slopes_at(a)] = bad ? nan_of<Real>() : sum.beside;
  }
  if (t == 0) report(sh->reader.flags, a.flags);
}

template <class Bank, class Real>
cudaError_t launch_general(const BankScore& a) {
  const dim3 grid(static_cast<unsigned>(a.rows.draws.num_anchors * a.splits));
  return launch(gather_general_kernel<Bank, Real>, grid, dim3(GATHER_THREADS), sizeof(GeneralShared<Real>),
                stream_of(a.place), false, a, nce_charge(a));
}

}  // namespace

cudaError_t gather_general(const BankScore& a) {
  return with_types(a, [&](auto bank, auto real) { return launch_general<decltype(bank), decltype(real)>(a); });
}

}  // namespace wcf
