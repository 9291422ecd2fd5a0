// Which rows are the negatives of which anchor: draw(k), k = 0 .. K-1, as a pure function of
// (seed, step, anchor number, K, pool). The same definition on every backend, to the bit.
#pragma once
#include "permutation.h"
#include "pool.h"
#include "record.h"

namespace wcf {

#define WCF_SOURCES(CODE)     \
  CODE(SOURCE_NONE, "none")   \
  CODE(SOURCE_SELF, "self")   \
  CODE(SOURCE_CLASS, "class") \
  CODE(SOURCE_WEIGHTED, "weighted")
WCF_CODES(Source, WCF_SOURCES)

#define WCF_REPLACEMENTS(CODE) \
  CODE(REPLACEMENT_NO, "no")   \
  CODE(REPLACEMENT_YES, "yes") \
  CODE(REPLACEMENT_AUTO, "auto")
WCF_CODES(Replacement, WCF_REPLACEMENTS)

enum Mode : int32_t { MODE_INVALID, MODE_PERMUTED, MODE_REPLACED, MODE_WEIGHTED };

// Everything that defines a batch of draws. B anchors draw K rows each of N. A table is null where the source has none.
#define WCF_DRAW_SPEC(NEEDED, OPTIONAL, EACH, PART)                             \
  NEEDED(const void*, index) /* [B] int32 or int64: the anchor's own row */     \
  NEEDED(int32_t, index_bytes)                                                  \
  NEEDED(int32_t, source)               /* Source */                            \
  NEEDED(int32_t, replacement)          /* Replacement */                       \
  NEEDED(int64_t, num_anchors)          /* B */                                 \
  NEEDED(int64_t, num_draws)            /* K */                                 \
  NEEDED(int64_t, num_data)             /* N */                                 \
  NEEDED(int64_t, anchor_offset)        /* global number of the first anchor */ \
  OPTIONAL(const int64_t*, state)       /* [2] seed (uint64 bits), step */      \
  OPTIONAL(const int32_t*, label)       /* [N] */                               \
  OPTIONAL(const int32_t*, order)       /* [N] */                               \
  OPTIONAL(const int32_t*, rank)        /* [N] */                               \
  OPTIONAL(const int32_t*, class_start) /* [C+1] */                             \
  OPTIONAL(const uint64_t*, threshold)  /* [N] */                               \
  OPTIONAL(const int32_t*, alias)       /* [N] */
WCF_RECORD(DrawSpec, WCF_DRAW_SPEC)

// The op: out [B, K] int64, column k is draw(k).
#define WCF_DRAW(NEEDED, OPTIONAL, EACH, PART) \
  PART(DrawSpec, draws)                        \
  NEEDED(int64_t*, out)                        \
  PART(Place, place)                           \
  PART(Status, flags)
WCF_RECORD(Draw, WCF_DRAW)

// One anchor's draws, ready to be evaluated for any k.
struct Drawer {
  Stream stream;
  Pool pool;
  int32_t mode;
  const uint64_t* threshold;
  const int32_t* alias;
  Permutation permutation;  // MODE_PERMUTED only
};

WCF_HD Pool anchor_pool(const DrawSpec& a, int64_t index) {
  if (a.source == SOURCE_SELF) return pool_self(a.num_data, index);
  if (a.source == SOURCE_CLASS) return pool_class(a.num_data, a.label[index], a.class_start, a.order, a.rank);
  return pool_none(a.num_data);
}

// Fills all of `d` but the permutation's keys: call drawer_keys for j in [0, drawer_key_count) before drawing.
// MODE_INVALID (nothing may be drawn): index out of [0, N), an empty pool, P > 2^31, K > P without replacement.
WCF_HD void drawer_open(const DrawSpec& a, int64_t b, Drawer* d) {
  d->mode = MODE_INVALID;
  const int64_t index = index_at(a.index, a.index_bytes, b);
  if (index < 0 || index >= a.num_data) return;
  d->stream = Stream{static_cast<uint64_t>(a.state[0]), static_cast<uint64_t>(a.state[1]),
                     static_cast<uint32_t>(a.anchor_offset + b)};
  d->pool = anchor_pool(a, index);
  d->threshold = a.threshold;
  d->alias = a.alias;
  if (d->pool.size < 1 || d->pool.size > MAX_POOL) return;
  if (a.source == SOURCE_WEIGHTED) {
    d->mode = MODE_WEIGHTED;
  } else if (a.replacement == REPLACEMENT_YES || (a.replacement == REPLACEMENT_AUTO && a.num_draws > d->pool.size)) {
    d->mode = MODE_REPLACED;
  } else if (a.num_draws <= d->pool.size) {
    d->mode = MODE_PERMUTED;
    permutation_shape(&d->permutation, static_cast<uint32_t>(d->pool.size));
  }
}

WCF_HD int drawer_key_count(const Drawer& d) { return d.mode == MODE_PERMUTED ? d.permutation.rounds / 2 : 0; }

WCF_HD void drawer_keys(Drawer* d, int j) { permutation_keys(&d->permutation, d->stream, j); }

// The row that the alias table gives for the word (high << 32) | low: the word's column, or that column's other row.
WCF_HD uint32_t weighted_row(const Drawer& d, uint32_t high, uint32_t low) {
  const uint32_t size = static_cast<uint32_t>(d.pool.size);
  const uint32_t column = mulhi64(high, low, size);
  const uint64_t fraction = (static_cast<uint64_t>(high) << 32 | low) * size;
  return fraction < d.threshold[column] ? column : static_cast<uint32_t>(d.alias[column]);
}

// Draw k of a valid drawer, a row in [0, N). With replacement one Philox call serves draws 2i and 2i+1, two words each.
WCF_HD int64_t draw_row(const Drawer& d, int64_t k) {
  if (d.mode == MODE_PERMUTED) return pool_row(d.pool, permute(d.permutation, static_cast<uint32_t>(k)));
  const Words q = stream_words(d.stream, static_cast<uint32_t>(k >> 1));
  const uint32_t low = k & 1 ? q.v[2] : q.v[0], high = k & 1 ? q.v[3] : q.v[1];
  if (d.mode == MODE_WEIGHTED) return weighted_row(d, high, low);
  return pool_row(d.pool, mulhi64(high, low, static_cast<uint32_t>(d.pool.size)));
}

}  // namespace wcf
