// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): 128 random bits as a pure
// function of a 128-bit counter and a 64-bit key, so any draw can be made anywhere, in any order.
#pragma once
#include "defines.h"

namespace wcf {

constexpr int PHILOX_ROUNDS = 10;
constexpr uint32_t PHILOX_MUL_0 = 0xD2511F53u, PHILOX_MUL_1 = 0xCD9E8D57u;
constexpr uint32_t PHILOX_KEY_0 = 0x9E3779B9u, PHILOX_KEY_1 = 0xBB67AE85u;

struct Words {
  uint32_t v[4];
};

WCF_HD Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  WCF_UNROLL
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(PHILOX_MUL_0) * c0;
    const uint64_t p1 = static_cast<uint64_t>(PHILOX_MUL_1) * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += PHILOX_KEY_0;
    k1 += PHILOX_KEY_1;
  }
  return Words{{c0, c1, c2, c3}};
}

// The random stream of one anchor in one step: q(c0) = philox(counter = (c0, anchor, step), key = seed).
struct Stream {
  uint64_t seed;
  uint64_t step;
  uint32_t anchor;
};

WCF_HD Words stream_words(const Stream& s, uint32_t c0) {
  return philox(c0, s.anchor, static_cast<uint32_t>(s.step), static_cast<uint32_t>(s.step >> 32),
                static_cast<uint32_t>(s.seed), static_cast<uint32_t>(s.seed >> 32));
}

}  // namespace wcf
