// The negatives of one anchor, one after another, whatever defines them: draws that are made on the spot, the rows of
// an index tensor, or every row of the anchor's pool. Where the banks are a part of the N rows, those that it holds.
#pragma once
#include "../common/draw.h"
#include "launch.h"

namespace wcf {

struct WalkArgs {
  DrawArgs draw;
  const void* given;  // [B, K] int32 or int64 rows, or null
  int32_t given_bytes;
  int64_t given_stride;         // from one anchor's rows to the next
  int32_t whole_pool;           // every pool row once, and nothing drawn
  int64_t first_row, num_rows;  // what the banks hold of the N rows: [first_row, first_row + num_rows)

  __host__ __device__ bool part() const { return num_rows < draw.num_data; }
};

enum WalkKind : int32_t { WALK_INVALID, WALK_GIVEN, WALK_POOL, WALK_DRAW };

// Lives in shared memory, one per block. Rows are counted in 32 bits: N < 2^32.
struct Walk {
  Drawer drawer;
  int64_t own;    // the anchor's own row
  int64_t count;  // how many negatives: K, or P for the whole pool
  int32_t kind;
  int32_t flags;  // the caller's, 0 at first
};

// By all threads of the block (at least five). WALK_INVALID: own row out of [0, N), or nothing to draw from.
__device__ __forceinline__ void walk_open(const WalkArgs& a, int64_t b, Walk* w) {
  if (threadIdx.x == 0) {
    w->own = index_at(a.draw.index, a.draw.index_bytes, b);
    w->flags = 0;
    w->count = a.draw.num_draws;
    w->drawer.mode = MODE_INVALID;
    if (a.given) {
      w->kind = w->own >= 0 && w->own < a.draw.num_data ? WALK_GIVEN : WALK_INVALID;
    } else {
      drawer_open(a.draw, b, &w->drawer);
      w->kind = w->drawer.mode == MODE_INVALID ? WALK_INVALID : a.whole_pool ? WALK_POOL : WALK_DRAW;
      if (w->kind == WALK_POOL) w->count = w->drawer.pool.size;
    }
  }
  __syncthreads();
  if (w->kind == WALK_DRAW && static_cast<int>(threadIdx.x) < drawer_key_count(w->drawer)) {
    drawer_keys(&w->drawer, threadIdx.x);
  }
  __syncthreads();
}

// Negative k of anchor b, k in [0, count). A given row out of [0, N) sets *bad and is replaced by the anchor's own row,
// which may be read: the caller throws the result away.
__device__ __forceinline__ uint32_t walk_row(const WalkArgs& a, const Walk& w, int64_t b, int64_t k, bool* bad) {
  if (w.kind == WALK_DRAW) return static_cast<uint32_t>(draw_row(w.drawer, k));
  if (w.kind == WALK_POOL) return static_cast<uint32_t>(pool_row(w.drawer.pool, k));
  const int64_t row = index_at(a.given, a.given_bytes, b * a.given_stride + k);
  if (row >= 0 && row < a.draw.num_data) return static_cast<uint32_t>(row);
  *bad = true;
  return static_cast<uint32_t>(w.own);
}

// The same for a part of the bank, in [0, walk_steps) steps. A whole pool is walked by the rows that the part holds,
// for each of which the pool is asked; else the steps are the negatives, and most of them may lie elsewhere.
__device__ __forceinline__ int64_t walk_steps(const WalkArgs& a, const Walk& w) {
  return a.part() && w.kind == WALK_POOL ? a.num_rows : w.count;
}

// True where step k meets a row that the part holds: number *local of it. *bad as for walk_row.
__device__ __forceinline__ bool walk_local(const WalkArgs& a, const Walk& w, int64_t b, int64_t k, uint32_t* local,
                                           bool* bad) {
  if (w.kind == WALK_POOL) {
    *local = static_cast<uint32_t>(k);
    return pool_position(w.drawer.pool, a.first_row + k) >= 0;
  }
  *local = walk_row(a, w, b, k, bad) - static_cast<uint32_t>(a.first_row);  // below the first it wraps round
  return *local < static_cast<uint64_t>(a.num_rows);
}

// WalkArgs from the integers of an entry point.
inline WalkArgs walk_args(uintptr_t index, int index_bytes, int64_t num_anchors, int64_t num_draws, int64_t num_data,
                          int64_t anchor_offset, int source, int replacement, uintptr_t state, uintptr_t label,
                          uintptr_t order, uintptr_t rank, uintptr_t class_start, uintptr_t threshold, uintptr_t alias,
                          uintptr_t given, int given_bytes, int64_t given_stride, int whole_pool, int64_t first_row,
                          int64_t num_rows) {
  WalkArgs a{};
  a.draw.index = reinterpret_cast<const void*>(index);
  a.draw.index_bytes = index_bytes;
  a.draw.source = source;
  a.draw.replacement = replacement;
  a.draw.num_anchors = num_anchors;
  a.draw.num_draws = whole_pool ? 1 : num_draws;  // an anchor is valid when its pool holds a row at all
  a.draw.num_data = num_data;
  a.draw.anchor_offset = anchor_offset;
  a.draw.state = reinterpret_cast<const int64_t*>(state);
  a.draw.label = reinterpret_cast<const int32_t*>(label);
  a.draw.order = reinterpret_cast<const int32_t*>(order);
  a.draw.rank = reinterpret_cast<const int32_t*>(rank);
  a.draw.class_start = reinterpret_cast<const int32_t*>(class_start);
  a.draw.threshold = reinterpret_cast<const uint64_t*>(threshold);
  a.draw.alias = reinterpret_cast<const int32_t*>(alias);
  a.given = reinterpret_cast<const void*>(given);
  a.given_bytes = given_bytes;
  a.given_stride = given_stride;
  a.whole_pool = whole_pool;
  a.first_row = first_row;
  a.num_rows = num_rows;
  return a;
}

}  // namespace wcf
