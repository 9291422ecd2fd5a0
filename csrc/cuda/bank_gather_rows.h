// The gather plan for banks of 16- and 32-bit floats whose rows are whole pieces of 16 bytes on 16-byte boundaries, D
// up to 256.
//
// Traffic: one row of D * sizeof(Bank) bytes per draw and direction, read once from L2 or HBM, and nothing else. The 32
// lanes of a warp compute 32 draws at a time, for both directions, and the gradient's axpy uses the row while it is in
// registers. (64, 16384, 50k) in bf16, both directions: 537 MB, 90 us at an L2 rate of 6 TB/s. `python -m bench counts`
// counts the instructions.
//
// Layout: 8 lanes per row with 16-byte loads, so a load reads 128 contiguous bytes of each of 4 rows per warp. Each
// lane group has ROWS rows in flight: 64 KB per SM at D = 128 with two blocks, where bandwidth times latency is 6 KB
// (L2) or 26 KB (HBM). Registers are the limit: 2 D / 8 for the gradients, 32 for rows. Warps are independent until the
// end of a split: the loop has no block barrier. D is rounded up to 64, 128 or 256. Lanes past its end read the row's
// first 16 bytes again and multiply them by 0.
//
// The tensor cores score rows of bf16 up to D = 128 from the registers of the loads. A load of 4 lanes per row is the
// first factor of a product; half of its numbers form row g and half row g + 8. The anchor is the second factor: for
// either half three bf16 columns whose sum is exact. The gradient's sums run over rows, which are in different lanes,
// so they are fp32 multiply-adds.
//
// PART, for banks that hold some of the N rows: each warp makes the same draws, queues the held ones in their order,
// and scores 32 of them at a time. So rows are read and multiplied for held draws only. The code for whole banks has no
// queue.
#pragma once
#include "bank_gather_tile.h"

namespace wcf {
namespace {

// Collects up to 32 held rows from a warp's steps through the negatives: 32 steps at a time, from `step` on,
// GATHER_THREADS apart.
struct HeldRows {
  uint32_t* queue;  // [64], this warp's
  int queued;       // equal in all lanes, like the fields below
  int step;         // counted from the split's first
};

// Returns lane l's row and sets the bits of the lanes with a row in *live, 0 at the end. Lanes without one repeat a
// row.
__device__ __forceinline__ uint32_t held_rows(const NegativeSpec& a, Split* split, HeldRows* h, unsigned* live) {
  const int lane = threadIdx.x % WARP;
  for (; h->queued < WARP && h->step < split->count; h->step += GATHER_THREADS) {
    uint32_t local = 0;
    const int k = h->step + lane;
    bool bad = false;
    const bool held = k < split->count && reader_local(a, split->reader, split->anchor, split->first + k, &local, &bad);
    if (bad) atomicOr(&split->reader.flags, FLAG_INDEX);
    const unsigned who = __ballot_sync(FULL_WARP, held);
    if (held) h->queue[h->queued + __popc(who & ((1u << lane) - 1))] = local;
    h->queued += __popc(who);
  }
  __syncwarp();
  const int taken = h->queued < WARP ? h->queued : WARP, left = h->queued - taken;
  *live = taken == WARP ? FULL_WARP : (1u << taken) - 1;
  const uint32_t row = taken == 0 ? 0 : h->queue[lane < taken ? lane : taken - 1];
  const uint32_t later = lane < left ? h->queue[WARP + lane] : 0;
  __syncwarp();
  if (lane < left) h->queue[lane] = later;
  h->queued = left;
  return row;
}

// Called by one thread: fills all fields but the reader.
__device__ __forceinline__ void open_split(const BankScore& a, const NceCharge& known, int64_t b, int64_t number,
                                           int64_t steps, Split* split) {
  split->anchor = b;
  split->number = number;
  split->first = number * a.chunk;
  split->count = static_cast<int>(split->first + a.chunk < steps ? a.chunk : steps - split->first);
  split->scale = scale_of<float>(a);
  for (int s = 0; s < MAX_DIRECTIONS; ++s) {
    split->offset[s] = s < a.directions ? offset_of<float>(a, known, split->reader.count, s) : 0.0f;
  }
}

// grid = B * splits.
template <class Bank, int DIM, bool PART, GatherSum SUM>
__global__ void __launch_bounds__(GATHER_THREADS, DIM <= 128 ? 2 : 1) gather_rows_kernel(BankScore a, NceCharge known) {
  using L = Layout<Bank, DIM>;
  if (nothing_to_do<float>(a)) return;
  Split* const split = shared_ptr<Split>(0);
  NegativeReader* const reader = &split->reader;
  unsigned char* const anchor = shared_ptr<unsigned char>(L::ANCHOR_AT);
  const int64_t num_anchors = a.rows.draws.num_anchors;
  {
    const int64_t b = blockIdx.x / a.splits, number = blockIdx.x % a.splits;
    reader_open(a.rows, b, reader);
    if (reader->kind == NEGATIVES_INVALID) {
      if (threadIdx.x == 0) report(FLAG_INDEX, a.flags);
      poison_split<float>(a, b, number);
      return;
    }
    if (threadIdx.x == 0) open_split(a, known, b, number, PART ? reader_steps(a.rows, *reader) : reader->count, split);
    for (int i = threadIdx.x; i < a.directions * DIM; i += GATHER_THREADS) {
      const int s = i / DIM, d = i % DIM;
      const float value = d < a.dim ? static_cast<const float*>(a.anchors)[(s * num_anchors + b) * a.dim + d] : 0.0f;
      put_anchor<Bank, DIM>(anchor + s * L::ANCHOR_BYTES, d, value);
      if (!finite(value)) atomicOr(&reader->flags, FLAG_ANCHOR << s);
    }
  }
  __syncthreads();

  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  float grad[MAX_DIRECTIONS][L::ELEMENTS] = {};
  Tally<float>* const tally = shared_ptr<Tally<float>>(L::LANE_TALLY_AT) + threadIdx.x;  // [2], GATHER_THREADS apart
  for (int s = 0; s < MAX_DIRECTIONS; ++s) tally[s * GATHER_THREADS] = tally_empty<float>(SUM);
  const auto score = [&](uint32_t row, unsigned live) {
    WCF_UNROLL
    for (int s = 0; s < MAX_DIRECTIONS; ++s) {
      if (s < a.directions) {
        score_tile<SUM, Bank, DIM>(a, a.bank[s], a.bank_stride[s], anchor + s * L::ANCHOR_BYTES, split->scale,
                                   split->offset[s], row, live, &tally[s * GATHER_THREADS], grad[s]);
      }
    }
  };
  if constexpr (PART) {
    HeldRows held{shared_ptr<uint32_t>(L::QUEUE_AT) + warp * 2 * WARP, 0, warp * WARP};
    unsigned live;
    do {
      const uint32_t row = held_rows(a.rows, split, &held, &live);
      if (live != 0) score(row, live);
    } while (held.queued > 0 || held.step < split->count);
  } else {
    // The tail of the last tile repeats the last draw, with weight 0.
    for (int k = threadIdx.x; k - lane < split->count; k += GATHER_THREADS) {
      bool bad = false;
      const int64_t step = split->first + (k < split->count ? k : split->count - 1);
      const uint32_t row = reader_row(a.rows, *reader, split->anchor, step, &bad);
      if (bad) atomicOr(&reader->flags, FLAG_INDEX);
      const unsigned live = __ballot_sync(FULL_WARP, k < split->count);
      __syncwarp();  // makes the compiler read shared memory anew, so registers hold none of it
      score(row, live);
    }
  }

  // Sums over the row groups of each warp, then over the warps, always in one order.
  float* const grads = shared_ptr<float>(L::GRAD_AT);
  Tally<float>* const tallies = shared_ptr<Tally<float>>(L::TALLY_AT);
  WCF_UNROLL
  for (int s = 0; s < MAX_DIRECTIONS; ++s) {
    if (s >= a.directions) continue;
    const bool copy = lane % (L::LANES / L::ROWS) != 0;  // of another lane's terms
    const Tally<float> total = tally_warp(SUM, copy ? tally_empty<float>(SUM) : tally[s * GATHER_THREADS]);
    if (lane == 0) tallies[warp * MAX_DIRECTIONS + s] = total;
    if (!a.partial_grad) continue;
    WCF_UNROLL
    for (int e = 0; e < L::ELEMENTS; ++e) {
      float sum = grad[s][e];
      WCF_UNROLL
      for (int step = L::LANES; step < WARP; step *= 2) sum += __shfl_xor_sync(FULL_WARP, sum, step);
      const int d = (e / L::ITEMS * L::LANES + lane % L::LANES) * L::ITEMS + e % L::ITEMS;
      if (lane < L::LANES) grads[(warp * MAX_DIRECTIONS + s) * DIM + d] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) report(reader->flags, a.flags);
  const auto total_of = [&](int s) {
    Tally<float> total = tallies[s];
    for (int w = 1; w < GATHER_WARPS; ++w) total = tally_join(SUM, total, tallies[w * MAX_DIRECTIONS + s]);
    return total;
  };
  for (int i = threadIdx.x; a.partial_grad && i < a.directions * DIM; i += GATHER_THREADS) {
    const int s = i / DIM, d = i % DIM;
    if (d >= a.dim) continue;
    float sum = 0;
    if constexpr (SUM == SUM_SOFTMAX) {  // each warp's gradient is relative to its own largest exponent
      const Tally<float> total = total_of(s);
      const float inverse = total.sum == 0 ? 0.0f : 1.0f / total.sum;  // 0: no negative in this part
      for (int w = 0; w < GATHER_WARPS; ++w) {
        const float factor = real_exp(tallies[w * MAX_DIRECTIONS + s].beside - total.beside);
        sum += factor * inverse * grads[w * MAX_DIRECTIONS * DIM + i];
      }
    } else {
      for (int w = 0; w < GATHER_WARPS; ++w) sum += grads[w * MAX_DIRECTIONS * DIM + i];
    }
    const int64_t at = (s * num_anchors + split->anchor) * a.splits + split->number;
    static_cast<float*>(a.partial_grad)[at * a.dim + d] = flagged(reader->flags, s) ? nan_of<float>() : sum;
  }
  const int s = threadIdx.x;
  if (s < a.directions) {
    const Tally<float> total = total_of(s);
    const bool bad = flagged(reader->flags, s);
    float* const to = static_cast<float*>(a.partial) + (s * num_anchors + split->anchor) * a.splits + split->number;
    to[0] = bad ? nan_of<float>() : tally_value(SUM, total);
    if (SUM == SUM_SLOPES) to[slopes_at(a)] = bad ? nan_of<float>() : total.beside;
  }
}

template <GatherSum SUM, class Bank, int DIM>
cudaError_t launch_rows(const BankScore& a) {
  using L = Layout<Bank, DIM>;
  const bool part = is_part(a.rows);
  const auto kernel = part ? gather_rows_kernel<Bank, DIM, true, SUM> : gather_rows_kernel<Bank, DIM, false, SUM>;
  const dim3 grid(static_cast<unsigned>(a.rows.draws.num_anchors * a.splits));
  return launch(kernel, grid, dim3(GATHER_THREADS), L::QUEUE_AT + (part ? L::QUEUE_BYTES : 0), stream_of(a.place),
                false, a, nce_charge(a));
}

template <GatherSum SUM, class Bank>
bool launch_dim(const BankScore& a, cudaError_t* error) {
  for (int s = 0; s < a.directions; ++s) {
    const auto address = reinterpret_cast<uintptr_t>(a.bank[s]);
    if (address % sizeof(Pack) != 0 || a.bank_stride[s] * sizeof(Bank) % sizeof(Pack) != 0) return false;
  }
  if (a.dim * sizeof(Bank) % sizeof(Pack) != 0 || a.dim > 256 || a.chunk > INT32_MAX - GATHER_THREADS) return false;
  *error = a.dim <= 64    ? launch_rows<SUM, Bank, 64>(a)
           : a.dim <= 128 ? launch_rows<SUM, Bank, 128>(a)
                          : launch_rows<SUM, Bank, 256>(a);
  return true;
}

template <GatherSum SUM>
bool launch_bank(const BankScore& a, cudaError_t* error) {
  switch (a.bank_dtype[0]) {
    case DTYPE_F32:
      return launch_dim<SUM, float>(a, error);
    case DTYPE_BF16:
      return launch_dim<SUM, Bf16>(a, error);
    case DTYPE_F16:
      return launch_dim<SUM, F16>(a, error);
    default:
      return false;
  }
}

}  // namespace
}  // namespace wcf
