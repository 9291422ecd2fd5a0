// The initial value of a bank: uniform(-s, s), s = 1/sqrt(D/3), as a pure function of (seed, bank id, row, d), so that
// any shard of a bank equals its slice of the whole.
#pragma once
#include "philox.h"

namespace wcf {

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
