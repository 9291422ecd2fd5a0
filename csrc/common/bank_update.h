// Writes to a bank: its initial value, and the update by the rows of a batch.
#pragma once
#include "philox.h"
#include "record.h"

namespace wcf {

// The op: bank row index[b] <- normalise(momentum * row + (1 - momentum) * rows[b]). If two anchors have one index, the
// last anchor wins.
#define WCF_BANK_UPDATE(NEEDED, OPTIONAL, EACH, PART)                                    \
  NEEDED(void*, bank) /* [N, D] of bank_dtype */                                         \
  NEEDED(int32_t, bank_dtype)                                                            \
  NEEDED(int64_t, num_data)  /* N */                                                     \
  NEEDED(int64_t, dim)       /* D */                                                     \
  NEEDED(const void*, index) /* [B] int32 or int64 */                                    \
  NEEDED(int32_t, index_bytes)                                                           \
  NEEDED(int64_t, batch)    /* B */                                                      \
  NEEDED(const void*, rows) /* [B, D] of rows_dtype */                                   \
  NEEDED(int32_t, rows_dtype)                                                            \
  NEEDED(double, momentum)                                                               \
  NEEDED(double, min_norm) /* the divisor of a new row is its norm, but at least this */ \
  PART(Place, place)                                                                     \
  PART(Status, flags)
WCF_RECORD(BankUpdate, WCF_BANK_UPDATE)

// The op: out [n, D], rows first_row .. first_row + n - 1 of the initial bank, uniform(-s, s), s = 1/sqrt(D/3). Each
// value is a pure function of (seed, bank id, row, d), so any shard of a bank equals its slice of the whole.
#define WCF_BANK_INIT(NEEDED, OPTIONAL, EACH, PART) \
  NEEDED(void*, out)                                \
  NEEDED(int32_t, dtype)                            \
  NEEDED(int64_t, num_rows) /* n */                 \
  NEEDED(int64_t, dim)      /* D */                 \
  NEEDED(uint64_t, seed)                            \
  NEEDED(int64_t, bank_id)                          \
  NEEDED(int64_t, first_row)                        \
  PART(Place, place)
WCF_RECORD(BankInit, WCF_BANK_INIT)

// Four neighbours d = 4*quad .. 4*quad+3 of a row. 2u-1 is exact in fp32, so each value is rounded once.
struct InitialQuad {
  float v[4];
};

WCF_HD InitialQuad initial_quad(uint64_t seed, int64_t bank_id, int64_t row, int64_t quad, float scale) {
  const Words q = philox(static_cast<uint32_t>(quad), static_cast<uint32_t>(row), static_cast<uint32_t>(bank_id),
                         0xFFFFFFFFu, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  InitialQuad out;
  for (int i = 0; i < 4; ++i) {
    const float u = static_cast<float>(q.v[i] >> 8) * 0x1p-24f;
    out.v[i] = scale * (2.0f * u - 1.0f);
  }
  return out;
}

}  // namespace wcf
