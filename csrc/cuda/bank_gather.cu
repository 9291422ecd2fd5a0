// The gather plan for banks of 16- and 32-bit floats with D = 64, 128 or 256 and rows on 16-byte boundaries.
//
// What moves: per draw and direction one row of D * sizeof(Bank) bytes, read once from L2 or HBM, and nothing else: the
// draws are computed, 32 at a time by the 32 lanes of a warp, and used for both directions; the gradient's axpy uses
// the row while it is in registers. (64, 16384, 50k) in bf16, both directions: 537 MB, 90 us at an L2 rate of 6 TB/s.
// What is issued, counted in the machine code for sm_90, bf16, D = 128: 24 warp instructions per draw and direction,
// of which half multiply and a third unpack, and 170 per 32 draws made: 57 M, or 61 us if the 132 SMs of an H200 issued
// all they can. So neither is far from the other; a bank in fp32 moves twice the bytes with fewer instructions.
//
// Layout: 8 lanes per row, each with 16-byte loads, 128 contiguous bytes per load and row; so 4 rows per warp and load,
// and ROWS rows of each lane group in flight: 64 KB per SM at D = 128 with two blocks on it, against the 6 KB (L2) and
// 26 KB (HBM) that bandwidth times latency asks for. Registers are the limit: 2 D / 8 for the gradients, 32 for rows.
// Warps are independent until the end of a split: the loop has no block barrier.
//
// PART, for banks that hold some of the N rows: each warp makes the same draws, keeps what is held in a queue of its
// own, in their order, and scores 32 of them at a time; so rows are read and multiplied for the held draws alone. For
// whole banks the queue is not in the machine code.
#include "cuda.h"
#include "bank_gather.h"

namespace wcf {
namespace {

constexpr int LANES = 8;              // per row
constexpr int GROUPS = WARP / LANES;  // rows per load
constexpr int ROW_REGISTERS = 32;     // raw row data in flight, per lane

struct alignas(16) Pack {
  uint32_t v[4];
};

template <class Bank, int DIM>
struct Layout {
  static constexpr int ITEMS = sizeof(Pack) / sizeof(Bank);  // per load
  static constexpr int PACKS = DIM / (LANES * ITEMS);        // loads per lane and row
  static constexpr int ELEMENTS = DIM / LANES;               // per lane and row
  static constexpr int ROWS = ROW_REGISTERS / (4 * PACKS) < LANES ? ROW_REGISTERS / (4 * PACKS) : LANES;
  static constexpr size_t ANCHOR_AT = (sizeof(NegativeReader) + 15) / 16 * 16;         // float [2][DIM]
  static constexpr size_t GRAD_AT = ANCHOR_AT + MAX_DIRECTIONS * DIM * sizeof(float);  // float [WARPS][2][DIM]
  static constexpr size_t TALLY_AT = GRAD_AT + GATHER_WARPS * MAX_DIRECTIONS * DIM * sizeof(float);
  static constexpr size_t QUEUE_AT = TALLY_AT + GATHER_WARPS * MAX_DIRECTIONS * sizeof(Tally<float>);
  static constexpr size_t QUEUE_BYTES = GATHER_WARPS * 2 * WARP * sizeof(uint32_t);  // uint32_t [WARPS][64], if PART
};

__device__ __forceinline__ float item(const Pack& p, int i, float) { return bits_float(p.v[i]); }
template <class Half>
__device__ __forceinline__ float item(const Pack& p, int i, Half) {
  return load(Half{static_cast<uint16_t>(p.v[i / 2] >> (16 * (i & 1)))});
}

// Sums of N values over the 8 lanes of a row; lane l ends with that of v[l * N / 8]. A step halves the values that a
// lane holds as long as it holds several: 4 values take 4 shuffles, not 12.
template <int N>
__device__ __forceinline__ float sum_over_row(float (&v)[N], int lane) {
  int held = N;
  WCF_UNROLL
  for (int step = LANES / 2; step > 0; step /= 2) {
    if (held == 1) {
      v[0] += __shfl_xor_sync(FULL_WARP, v[0], step);
      continue;
    }
    held /= 2;
    WCF_UNROLL
    for (int i = 0; i < held; ++i) {
      const bool upper = (lane & step) != 0;
      const float kept = upper ? v[i + held] : v[i];
      v[i] = kept + __shfl_xor_sync(FULL_WARP, upper ? v[i] : v[i + held], step);
    }
  }
  return v[0];
}

// Scores the 32 rows that the lanes hold against one anchor x [DIM] (shared); those not in `live` get weight 0.
template <class Bank, int DIM>
__device__ __forceinline__ void score_tile(const BankScore& a, const void* bank, int64_t stride, const float* x,
                                           float inverse_tau, float offset, uint32_t row, unsigned live,
                                           Tally<float>* tally, float (&grad)[Layout<Bank, DIM>::ELEMENTS]) {
  using L = Layout<Bank, DIM>;
  const int lane = threadIdx.x % WARP, place = lane % LANES, group = lane / LANES;
  WCF_ROLLED
  for (int first = 0; first < WARP; first += GROUPS * L::ROWS) {
    Pack pack[L::ROWS][L::PACKS];
    WCF_UNROLL
    for (int u = 0; u < L::ROWS; ++u) {
      const int64_t r = __shfl_sync(FULL_WARP, row, first + group * L::ROWS + u);
      const Pack* const from = reinterpret_cast<const Pack*>(static_cast<const Bank*>(bank) + r * stride) + place;
      WCF_UNROLL
      for (int j = 0; j < L::PACKS; ++j) pack[u][j] = from[j * LANES];
    }
    float dot[L::ROWS] = {};
    WCF_UNROLL
    for (int j = 0; j < L::PACKS; ++j) {
      WCF_UNROLL
      for (int i = 0; i < L::ITEMS; i += 4) {
        const Pack four = *reinterpret_cast<const Pack*>(&x[(j * LANES + place) * L::ITEMS + i]);
        WCF_UNROLL
        for (int e = 0; e < 4; ++e) {
          WCF_UNROLL
          for (int u = 0; u < L::ROWS; ++u) dot[u] += bits_float(four.v[e]) * item(pack[u][j], i + e, Bank{});
        }
      }
    }
    const float score = sum_over_row(dot, lane);
    const int mine = first + group * L::ROWS + place * L::ROWS / LANES;  // the draw whose score this lane holds
    const float slope = (live >> mine & 1u) ? add_score(a.op, score, inverse_tau, offset, tally) : 0.0f;
    if (!a.partial_grad) continue;
    WCF_UNROLL
    for (int u = 0; u < L::ROWS; ++u) {
      const float factor = __shfl_sync(FULL_WARP, slope, group * LANES + u * (LANES / L::ROWS));
      WCF_UNROLL
      for (int j = 0; j < L::PACKS; ++j) {
        WCF_UNROLL
        for (int i = 0; i < L::ITEMS; ++i) grad[j * L::ITEMS + i] += factor * item(pack[u][j], i, Bank{});
      }
    }
  }
}

// Up to 32 rows that a part holds, of a warp's steps through the negatives: 32 steps at a time, from `step` on,
// `stride` apart.
struct HeldRows {
  uint32_t* queue;  // [64], this warp's
  int queued;       // the same in all lanes, as all below
  int64_t step, last;
};

// Lane l's row, and in *live which lanes have one: 0 at the end. Lanes without one repeat a row.
__device__ __forceinline__ uint32_t held_rows(const NegativeSpec& a, const NegativeReader& w, int64_t b, int64_t stride,
                                              HeldRows* h, unsigned* live, bool* bad) {
  const int lane = threadIdx.x % WARP;
  for (; h->queued < WARP && h->step < h->last; h->step += stride) {
    uint32_t local = 0;
    const int64_t k = h->step + lane;
    const bool held = k < h->last && reader_local(a, w, b, k, &local, bad);
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

// grid = B * splits.
template <class Bank, int DIM, bool PART>
__global__ void __launch_bounds__(GATHER_THREADS, DIM <= 128 ? 2 : 1) gather_rows_kernel(BankScore a, NceShare known) {
  using L = Layout<Bank, DIM>;
  if (nothing_to_do<float>(a)) return;
  NegativeReader* const reader = shared_ptr<NegativeReader>(0);
  float* const anchor = shared_ptr<float>(L::ANCHOR_AT);
  const int64_t b = blockIdx.x / a.splits, split = blockIdx.x % a.splits, num_anchors = a.rows.draws.num_anchors;
  reader_open(a.rows, b, reader);
  if (reader->kind == NEGATIVES_INVALID) {
    if (threadIdx.x == 0) report(FLAG_INDEX, a.flags);
    poison_split<float>(a, b, split);
    return;
  }
  for (int i = threadIdx.x; i < a.directions * DIM; i += GATHER_THREADS) {
    const int s = i / DIM;
    const float value = static_cast<const float*>(a.anchors)[(s * num_anchors + b) * DIM + i % DIM];
    anchor[i] = value;
    if (!finite(value)) atomicOr(&reader->flags, FLAG_ANCHOR << s);
  }
  __syncthreads();

  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int64_t first = split * a.chunk;
  const int64_t steps = PART ? reader_steps(a.rows, *reader) : reader->count;
  const int64_t last = first + a.chunk < steps ? first + a.chunk : steps;
  const float inverse_tau = static_cast<float>(1.0 / a.temperature);
  float offset[MAX_DIRECTIONS] = {}, grad[MAX_DIRECTIONS][L::ELEMENTS] = {};
  Tally<float> tally[MAX_DIRECTIONS] = {tally_empty<float>(a.op), tally_empty<float>(a.op)};
  if (a.op == BANK_NCE) {
    const double log_share = nce_share_of(a, known, reader->count).log_share;
    const float* const log_z = static_cast<const float*>(a.log_z);
    WCF_UNROLL
    for (int s = 0; s < MAX_DIRECTIONS; ++s) {
      if (s < a.directions) offset[s] = static_cast<float>(log_share + static_cast<double>(log_z[s]));
    }
  }

  bool bad = false;
  const auto score = [&](uint32_t row, unsigned live) {
    WCF_UNROLL
    for (int s = 0; s < MAX_DIRECTIONS; ++s) {
      if (s < a.directions) {
        score_tile<Bank, DIM>(a, a.bank[s], a.bank_stride[s], anchor + s * DIM, inverse_tau, offset[s], row, live,
                              &tally[s], grad[s]);
      }
    }
  };
  if constexpr (PART) {
    HeldRows held{shared_ptr<uint32_t>(L::QUEUE_AT) + warp * 2 * WARP, 0, first + warp * WARP, last};
    unsigned live;
    do {
      const uint32_t row = held_rows(a.rows, *reader, b, GATHER_THREADS, &held, &live, &bad);
      if (live != 0) score(row, live);
    } while (held.queued > 0 || held.step < last);
  } else {
    // The tail of the last tile repeats the last draw, with weight 0. The next draws are made before the rows are
    // waited for, so that their table look-ups are on the way too.
    const auto draw = [&](int64_t k) { return reader_row(a.rows, *reader, b, k < last ? k : last - 1, &bad); };
    int64_t k = first + threadIdx.x;
    uint32_t row = k - lane < last ? draw(k) : 0;
    for (; k - lane < last; k += GATHER_THREADS) {
      const unsigned live = __ballot_sync(FULL_WARP, k < last);
      const uint32_t next = k - lane + GATHER_THREADS < last ? draw(k + GATHER_THREADS) : 0;
      score(row, live);
      row = next;
    }
  }
  if (bad) atomicOr(&reader->flags, FLAG_INDEX);

  // Over the row groups of each warp, then over the warps, always in the same order.
  float* const grads = shared_ptr<float>(L::GRAD_AT);
  Tally<float>* const tallies = shared_ptr<Tally<float>>(L::TALLY_AT);
  WCF_UNROLL
  for (int s = 0; s < MAX_DIRECTIONS; ++s) {
    if (s >= a.directions) continue;
    if (lane % (LANES / L::ROWS) != 0) tally[s] = tally_empty<float>(a.op);  // copies of another lane's terms
    const Tally<float> total = tally_warp(tally[s]);
    if (lane == 0) tallies[warp * MAX_DIRECTIONS + s] = total;
    if (!a.partial_grad) continue;
    WCF_UNROLL
    for (int e = 0; e < L::ELEMENTS; ++e) {
      float sum = grad[s][e];
      sum += __shfl_xor_sync(FULL_WARP, sum, LANES);
      sum += __shfl_xor_sync(FULL_WARP, sum, 2 * LANES);
      const int d = (e / L::ITEMS * LANES + lane % LANES) * L::ITEMS + e % L::ITEMS;
      if (lane < LANES) grads[(warp * MAX_DIRECTIONS + s) * DIM + d] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) report(reader->flags, a.flags);
  for (int i = threadIdx.x; a.partial_grad && i < a.directions * DIM; i += GATHER_THREADS) {
    const int s = i / DIM;
    float sum = 0;
    for (int w = 0; w < GATHER_WARPS; ++w) sum += grads[w * MAX_DIRECTIONS * DIM + i];
    const int64_t at = (s * num_anchors + b) * a.splits + split;
    static_cast<float*>(a.partial_grad)[at * DIM + i % DIM] = flagged(reader->flags, s) ? nan_of<float>() : sum;
  }
  const int s = threadIdx.x;
  if (s < a.directions) {
    Tally<float> total = tallies[s];
    for (int w = 1; w < GATHER_WARPS; ++w) total = tally_join(total, tallies[w * MAX_DIRECTIONS + s]);
    static_cast<float*>(a.partial)[(s * num_anchors + b) * a.splits + split] =
        flagged(reader->flags, s) ? nan_of<float>() : tally_value(a.op, total);
  }
}

template <class Bank, int DIM>
cudaError_t launch_rows(const BankScore& a) {
  using L = Layout<Bank, DIM>;
  const bool part = is_part(a.rows);
  const auto kernel = part ? gather_rows_kernel<Bank, DIM, true> : gather_rows_kernel<Bank, DIM, false>;
  const dim3 grid(static_cast<unsigned>(a.rows.draws.num_anchors * a.splits));
  return launch(kernel, grid, dim3(GATHER_THREADS), L::QUEUE_AT + (part ? L::QUEUE_BYTES : 0), stream_of(a.place),
                false, a, nce_share(a));
}

template <class Bank>
bool launch_dim(const BankScore& a, cudaError_t* error) {
  for (int s = 0; s < a.directions; ++s) {
    const auto address = reinterpret_cast<uintptr_t>(a.bank[s]);
    if (address % sizeof(Pack) != 0 || a.bank_stride[s] * sizeof(Bank) % sizeof(Pack) != 0) return false;
  }
  switch (a.dim) {
    case 64:
      *error = launch_rows<Bank, 64>(a);
      return true;
    case 128:
      *error = launch_rows<Bank, 128>(a);
      return true;
    case 256:
      *error = launch_rows<Bank, 256>(a);
      return true;
    default:
      return false;
  }
}

}  // namespace

bool gather_rows(const BankScore& a, cudaError_t* error) {
  if (a.wide) return false;
  switch (a.bank_dtype[0]) {
    case DTYPE_F32:
      return launch_dim<float>(a, error);
    case DTYPE_BF16:
      return launch_dim<Bf16>(a, error);
    case DTYPE_F16:
      return launch_dim<F16>(a, error);
    default:
      return false;
  }
}

}  // namespace wcf
