// The negatives of one anchor, one after another, for each source: draws computed on the spot, the rows of an index
// tensor, or every row of the anchor's pool. Where the banks are a part of the N rows, only the rows that they hold.
#pragma once
#include "../common/negatives.h"
#include "launch.h"

namespace wcf {

// Lives in shared memory, one per block. Rows are counted in 32 bits: N < 2^32.
struct NegativeReader {
  Drawer drawer;
  int64_t own;    // the anchor's own row
  int64_t count;  // number of negatives: K, or P for the whole pool
  int32_t kind;   // NegativeSource, or NEGATIVES_INVALID
  int32_t flags;  // the caller's, 0 at first
};
constexpr int32_t NEGATIVES_INVALID = -1;

// Called by all threads of the block (at least five). NEGATIVES_INVALID: own row out of [0, N), or an empty pool.
__device__ __forceinline__ void reader_open(const NegativeSpec& a, int64_t b, NegativeReader* reader) {
  if (threadIdx.x == 0) {
    reader->own = index_at(a.draws.index, a.draws.index_bytes, b);
    reader->flags = 0;
    reader->count = a.draws.num_draws;
    reader->drawer.mode = MODE_INVALID;
    if (a.negatives == NEGATIVES_GIVEN) {
      reader->kind = reader->own >= 0 && reader->own < a.draws.num_data ? NEGATIVES_GIVEN : NEGATIVES_INVALID;
    } else {
      drawer_open(a.draws, b, &reader->drawer);
      reader->kind = reader->drawer.mode == MODE_INVALID ? NEGATIVES_INVALID : a.negatives;
      if (reader->kind == NEGATIVES_POOL) reader->count = reader->drawer.pool.size;
    }
  }
  __syncthreads();
  if (reader->kind == NEGATIVES_DRAWN && static_cast<int>(threadIdx.x) < drawer_key_count(reader->drawer)) {
    drawer_keys(&reader->drawer, threadIdx.x);
  }
  __syncthreads();
}

// Negative k of anchor b, k in [0, count). A given row out of [0, N) sets *bad and is replaced by the anchor's own row,
// which is safe to read. The caller discards that result.
__device__ __forceinline__ uint32_t reader_row(const NegativeSpec& a, const NegativeReader& reader, int64_t b,
                                               int64_t k, bool* bad) {
  if (reader.kind == NEGATIVES_DRAWN) return static_cast<uint32_t>(draw_row(reader.drawer, k));
  if (reader.kind == NEGATIVES_POOL) return static_cast<uint32_t>(pool_row(reader.drawer.pool, k));
  const int64_t row = index_at(a.given, a.given_bytes, b * a.given_stride + k);
  if (row >= 0 && row < a.draws.num_data) return static_cast<uint32_t>(row);
  *bad = true;
  return static_cast<uint32_t>(reader.own);
}

// The number of steps that read the negatives of a part of the bank. For a whole pool a step is a row of the part,
// looked up in the pool. Else a step is a negative, and most negatives may lie in other parts.
__device__ __forceinline__ int64_t reader_steps(const NegativeSpec& a, const NegativeReader& reader) {
  return is_part(a) && reader.kind == NEGATIVES_POOL ? a.num_rows : reader.count;
}

// True if step k gives a row that the part holds, row *local of the part. *bad is that of reader_row.
__device__ __forceinline__ bool reader_local(const NegativeSpec& a, const NegativeReader& reader, int64_t b, int64_t k,
                                             uint32_t* local, bool* bad) {
  if (reader.kind == NEGATIVES_POOL) {
    *local = static_cast<uint32_t>(k);
    return pool_position(reader.drawer.pool, a.first_row + k) >= 0;
  }
  *local = reader_row(a, reader, b, k, bad) - static_cast<uint32_t>(a.first_row);  // below the first it wraps round
  return *local < static_cast<uint64_t>(a.num_rows);
}

}  // namespace wcf
