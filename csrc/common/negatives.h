// Which rows are scored for each anchor, and which of them the banks hold.
#pragma once
#include "draw.h"

namespace wcf {

#define WCF_NEGATIVE_SOURCES(CODE)                        \
  CODE(NEGATIVES_DRAWN, "drawn") /* K draws */            \
  CODE(NEGATIVES_GIVEN, "given") /* K rows of a tensor */ \
  CODE(NEGATIVES_POOL, "pool")   /* every row of the pool, once */
WCF_CODES(NegativeSource, WCF_NEGATIVE_SOURCES)

// NEGATIVES_POOL: draws.num_draws is 1, because an anchor is valid when its pool holds a row at all.
#define WCF_NEGATIVE_SPEC(NEEDED, OPTIONAL, EACH, PART)                                                 \
  PART(DrawSpec, draws)                                                                                 \
  NEEDED(int32_t, negatives)   /* NegativeSource */                                                     \
  OPTIONAL(const void*, given) /* [B, K] int32 or int64 rows (NEGATIVES_GIVEN) */                       \
  OPTIONAL(int32_t, given_bytes)                                                                        \
  OPTIONAL(int64_t, given_stride) /* numbers from one anchor's rows to the next */                      \
  NEEDED(int64_t, first_row)      /* the banks hold rows [first_row, first_row + num_rows) of the N: */ \
  NEEDED(int64_t, num_rows)       /* all, or one part */
WCF_RECORD(NegativeSpec, WCF_NEGATIVE_SPEC)

// Whether the banks are a part of the N rows.
WCF_HD bool is_part(const NegativeSpec& a) { return a.num_rows < a.draws.num_data; }

// The number within the banks of one of the N rows: in [0, num_rows) iff they hold it.
WCF_HD int64_t local_row(const NegativeSpec& a, int64_t row) { return row - a.first_row; }
WCF_HD bool holds(const NegativeSpec& a, int64_t row) { return row >= a.first_row && row < a.first_row + a.num_rows; }

#define WCF_MEMBERSHIP_KINDS(CODE)      \
  CODE(MEMBERSHIP_MASK, "mask")         \
  CODE(MEMBERSHIP_COUNT_16, "count_16") \
  CODE(MEMBERSHIP_COUNT_32, "count_32")
WCF_CODES(MembershipKind, WCF_MEMBERSHIP_KINDS)

// The op: which rows of [first_row, first_row + num_rows) each anchor draws, or how often. All of `out` is written.
// With r counted from first_row and n = num_rows,
//   mask      bit r & 31 of word r >> 5; words = ceil(n / 32)
//   count_16  16-bit counts, two in a word; words = ceil(n / 2), K <= 32767
//   count_32  32-bit counts; words >= n
#define WCF_MEMBERSHIP(NEEDED, OPTIONAL, EACH, PART) \
  PART(NegativeSpec, rows)                           \
  NEEDED(int32_t, kind)  /* MembershipKind */        \
  NEEDED(int64_t, words) /* per anchor */            \
  NEEDED(uint32_t*, out) /* [B, words] */            \
  PART(Place, place)                                 \
  PART(Status, flags)
WCF_RECORD(Membership, WCF_MEMBERSHIP)

}  // namespace wcf
