// The layout of bank rows over the lanes of a warp, and the scores of 32 rows (bank_gather.cu).
#pragma once
#include <type_traits>

#include "bank_gather.h"
#include "mma.h"

namespace wcf {

constexpr int ROW_REGISTERS = 32;  // raw row data in flight, per lane
constexpr int TERMS = 3;           // of bf16 add up to an fp32 number of an anchor

struct alignas(16) Pack {
  uint32_t v[4];
};

// Data that all warps use throughout, in shared memory, because the registers hold the gradients.
struct Split {
  NegativeReader reader;
  int64_t anchor;  // b
  int64_t number;
  int64_t first;  // step through the negatives
  int count;      // of steps; 0 or less: nothing to do
  float scale;    // u = score * scale - offset
  float offset[MAX_DIRECTIONS];
};

template <class Bank, int DIM>
struct Layout {
  // Scores on the tensor cores: where the registers suffice for gradients that 4 lanes share, not 8.
  static constexpr bool TENSOR = std::is_same<Bank, Bf16>::value && DIM <= 128;
  static constexpr int LANES = TENSOR ? 4 : 8;                  // per row
  static constexpr int GROUPS = WARP / LANES;                   // rows per load
  static constexpr int ITEMS = sizeof(Pack) / sizeof(Bank);     // per load
  static constexpr int PACKS = DIM / (LANES * ITEMS);           // loads per lane and row
  static constexpr int SURE_PACKS = DIM == 64 ? 0 : PACKS / 2;  // loads that lie within every D of this layout
  static constexpr int ELEMENTS = DIM / LANES;                  // per lane and row
  static constexpr int ROWS = ROW_REGISTERS / (4 * PACKS) < LANES ? ROW_REGISTERS / (4 * PACKS) : LANES;
  static constexpr int COLUMNS = 2 * TERMS + 1;       // of an anchor on the tensor cores: its terms twice, and a 0
  static constexpr int COLUMN_STRIDE = DIM / 2 + 16;  // four columns are read at once, from different memory banks
  static constexpr size_t ANCHOR_BYTES = TENSOR ? COLUMNS * COLUMN_STRIDE * sizeof(Bf16) : DIM * sizeof(float);
  static constexpr size_t ANCHOR_AT = (sizeof(Split) + 15) / 16 * 16;           // [2] anchors
  static constexpr size_t GRAD_AT = ANCHOR_AT + MAX_DIRECTIONS * ANCHOR_BYTES;  // float [WARPS][2][DIM]
  static constexpr size_t TALLY_AT = GRAD_AT + GATHER_WARPS * MAX_DIRECTIONS * DIM * sizeof(float);
  static constexpr size_t LANE_TALLY_AT = TALLY_AT + GATHER_WARPS * MAX_DIRECTIONS * sizeof(Tally<float>);
  static constexpr size_t QUEUE_AT = LANE_TALLY_AT + GATHER_THREADS * MAX_DIRECTIONS * sizeof(Tally<float>);
  static constexpr size_t QUEUE_BYTES = GATHER_WARPS * 2 * WARP * sizeof(uint32_t);  // uint32_t [WARPS][64], if PART
};

// Stores number d of an anchor in the layout that score_tile reads from shared memory. On the tensor cores the first
// and third of the four pairs of numbers in a load belong to columns 0 to 2, the others to columns 3 to 5
// (score_packs).
template <class Bank, int DIM>
__device__ __forceinline__ void put_anchor(unsigned char* anchor, int d, float value) {
  using L = Layout<Bank, DIM>;
  if constexpr (L::TENSOR) {
    const int pair = d % L::ITEMS / 2, at = d / L::ITEMS * 4 + pair / 2 * 2 + d % 2;
    Bf16* const to = reinterpret_cast<Bf16*>(anchor) + at;
    WCF_UNROLL
    for (int t = 0; t < TERMS; ++t) {  // truncated, not rounded: 8 bits each, 24 in three
      const uint32_t bits = float_bits(value) & 0xFFFF0000u;
      to[(t + pair % 2 * TERMS) * L::COLUMN_STRIDE] = Bf16{static_cast<uint16_t>(bits >> 16)};
      value -= bits_float(bits);
    }
    to[2 * TERMS * L::COLUMN_STRIDE] = Bf16{0};
  } else {
    reinterpret_cast<float*>(anchor)[d] = value;
  }
}

__device__ __forceinline__ float item(const Pack& p, int i, float) { return bits_float(p.v[i]); }
template <class Half>
__device__ __forceinline__ float item(const Pack& p, int i, Half) {
  return load(Half{static_cast<uint16_t>(p.v[i / 2] >> (16 * (i & 1)))});
}

// Sums of N values over the LANES lanes of a row. Lane l gets the sum of v[l * N / LANES]. Each step halves the number
// of values per lane while a lane has several, so 4 values take 4 shuffles, not 12.
template <int LANES, int N>
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

// This lane's part of the scores of its rows. On the tensor cores row g of a product has the first and third pair of
// numbers of every load, row g + 8 the others. So in mma_bf16's layout of c, c[0] and c[1] are valid in columns 0 to 2,
// c[2] and c[3] in columns 3 to 5.
template <class Bank, int DIM>
__device__ __forceinline__ void score_packs(const unsigned char* anchor,
                                            const Pack (&pack)[Layout<Bank, DIM>::ROWS][Layout<Bank, DIM>::PACKS],
                                            float (&dot)[Layout<Bank, DIM>::ROWS]) {
  using L = Layout<Bank, DIM>;
  const int lane = threadIdx.x % WARP, place = lane % L::LANES, group = lane / L::LANES;
  if constexpr (L::TENSOR) {
    struct alignas(8) Two {
      uint32_t v[2];
    };
    const int column = group < 2 * TERMS ? group : 2 * TERMS;
    const Two* const from =
        reinterpret_cast<const Two*>(reinterpret_cast<const Bf16*>(anchor) + column * L::COLUMN_STRIDE) + place;
    float c[L::ROWS][4] = {};
    WCF_UNROLL
    for (int j = 0; j < L::PACKS; ++j) {
      const Two b = from[j * L::LANES];
      WCF_UNROLL
      for (int u = 0; u < L::ROWS; ++u) {
        const Pack& r = pack[u][j];
        mma_bf16(c[u], r.v[0], r.v[1], r.v[2], r.v[3], b.v[0], b.v[1]);
      }
    }
    WCF_UNROLL
    for (int u = 0; u < L::ROWS; ++u) {
      const float lower = place == 0 ? c[u][1] : c[u][3];  // columns 1; 3 and 5
      const float upper = place < 2 ? c[u][0] : c[u][2];   // columns 0 and 2; 4
      dot[u] = place < 3 ? upper + lower : 0.0f;
    }
  } else {
    const float* const x = reinterpret_cast<const float*>(anchor);
    WCF_UNROLL
    for (int j = 0; j < L::PACKS; ++j) {
      WCF_UNROLL
      for (int i = 0; i < L::ITEMS; i += 4) {
        const Pack four = *reinterpret_cast<const Pack*>(&x[(j * L::LANES + place) * L::ITEMS + i]);
        WCF_UNROLL
        for (int e = 0; e < 4; ++e) {
          WCF_UNROLL
          for (int u = 0; u < L::ROWS; ++u) dot[u] += bits_float(four.v[e]) * item(pack[u][j], i + e, Bank{});
        }
      }
    }
  }
}

// The lane's term of a log-sum-exp; returns the factor of its row. The sums of all lanes are relative to one largest
// exponent. A larger one, which comes seldom, rescales them.
template <int ELEMENTS>
__device__ __forceinline__ float add_softmax(bool live, float score, float scale, Tally<float>* tally,
                                             float (&grad)[ELEMENTS]) {
  const float exponent = live ? score * scale : LOWEST_EXPONENT;
  if (__any_sync(FULL_WARP, exponent > tally->beside)) {
    const float top = warp_max(exponent > tally->beside ? exponent : tally->beside);
    const float kept = exponential(tally->beside - top);
    *tally = Tally<float>{top, tally->sum * kept};
    WCF_UNROLL
    for (int e = 0; e < ELEMENTS; ++e) grad[e] *= kept;
  }
  return add_exponential(live, exponent, tally);
}

// Scores the 32 rows that the lanes hold against one anchor (put_anchor); those not in `live` get weight 0.
template <GatherSum SUM, class Bank, int DIM>
__device__ __forceinline__ void score_tile(const BankScore& a, const void* bank, int64_t stride,
                                           const unsigned char* anchor, float scale, float offset, uint32_t row,
                                           unsigned live, Tally<float>* tally,
                                           float (&grad)[Layout<Bank, DIM>::ELEMENTS]) {
  using L = Layout<Bank, DIM>;
  const int lane = threadIdx.x % WARP, place = lane % L::LANES, group = lane / L::LANES;
  // Past the end of D a lane repeats an earlier load, or reads the row's first piece.
  const int dim = static_cast<int>(a.dim), start = L::SURE_PACKS > 0 || place * L::ITEMS < dim ? place : 0;
  const Bank* const column = static_cast<const Bank*>(bank) + start * L::ITEMS;
  int at[L::PACKS] = {};
  WCF_UNROLL
  for (int j = 1; j < L::PACKS; ++j) {
    const bool within = j < L::SURE_PACKS || (j * L::LANES + place) * L::ITEMS < dim;
    at[j] = within ? j * L::LANES * L::ITEMS : 0;
  }
  WCF_ROLLED
  for (int first = 0; first < WARP; first += L::GROUPS * L::ROWS) {
    Pack pack[L::ROWS][L::PACKS];
    WCF_UNROLL
    for (int u = 0; u < L::ROWS; ++u) {
      const int64_t r = __shfl_sync(FULL_WARP, row, first + group * L::ROWS + u);
      const Bank* const from = column + r * stride;
      WCF_UNROLL
      for (int j = 0; j < L::PACKS; ++j) pack[u][j] = *reinterpret_cast<const Pack*>(from + at[j]);
    }
    float dot[L::ROWS] = {};
    score_packs<Bank, DIM>(anchor, pack, dot);
    const float score = sum_over_row<L::LANES>(dot, lane);
    const int mine = first + group * L::ROWS + place * L::ROWS / L::LANES;  // the draw whose score this lane holds
    const bool counts = (live >> mine & 1u) != 0;
    float slope = 0.0f;
    if constexpr (SUM == SUM_SOFTMAX) {
      slope = add_softmax(counts, score, scale, tally, grad);
    } else if (counts) {
      slope = add_score(a, SUM, score, scale, offset, tally);
    }
    if (!a.partial_grad) continue;
    WCF_UNROLL
    for (int u = 0; u < L::ROWS; ++u) {
      const float factor = __shfl_sync(FULL_WARP, slope, group * L::LANES + u * (L::LANES / L::ROWS));
      WCF_UNROLL
      for (int j = 0; j < L::PACKS; ++j) {
        WCF_UNROLL
        for (int i = 0; i < L::ITEMS; ++i) grad[j * L::ITEMS + i] += factor * item(pack[u][j], i, Bank{});
      }
    }
  }
}

}  // namespace wcf
