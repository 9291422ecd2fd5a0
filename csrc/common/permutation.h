// A keyed permutation pi of [0, P): the sample without replacement of size K is { pi(0), ..., pi(K-1) }.
//
// On w = bit_length(P-1) bits a round is x = (x * odd + add) mod 2^w; x ^= x >> h, with h = (w+1)/2, so that the
// shift is its own inverse. All rounds are repeated while x >= P ("cycle walking"), which keeps the map a bijection.
// Every round inverts at the same cost, so "is row r in the sample?" is the O(1) test pi^-1(r) < K.
//
// Forward rounds hold x in the top w bits of a word. There the modulus costs nothing, and the exclusive or itself
// clears the bits that the shift moves below x: three instructions a round.
#pragma once
#include "philox.h"

namespace wcf {

// The round counts are part of the definition of the draws: every backend has these three numbers. With fewer rounds
// the margins and pairs are measurably not uniform.
constexpr int PERMUTATION_SMALL_BITS = 8;
constexpr int PERMUTATION_ROUNDS_SMALL = 10;  // w <= PERMUTATION_SMALL_BITS
constexpr int PERMUTATION_ROUNDS_LARGE = 6;

constexpr int PERMUTATION_MAX_ROUNDS =
    PERMUTATION_ROUNDS_SMALL > PERMUTATION_ROUNDS_LARGE ? PERMUTATION_ROUNDS_SMALL : PERMUTATION_ROUNDS_LARGE;
static_assert(PERMUTATION_ROUNDS_LARGE <= PERMUTATION_ROUNDS_SMALL, "permute unrolls the rounds that all sizes take");
constexpr int64_t MAX_POOL = int64_t{1} << 31;
static_assert(PERMUTATION_ROUNDS_SMALL % 2 == 0 && PERMUTATION_ROUNDS_LARGE % 2 == 0, "one Philox call keys two");

struct Permutation {
  uint32_t size;  // P, 1 .. 2^31
  uint32_t mask;  // 2^w - 1
  int32_t shift;  // h
  int32_t rounds;
  int32_t below;  // 32 - w, the bits below a number at the top of a word
  uint32_t odd[PERMUTATION_MAX_ROUNDS];
  uint32_t add[PERMUTATION_MAX_ROUNDS];
  uint32_t top_add[PERMUTATION_MAX_ROUNDS];  // add, at the top of a word
  uint32_t inverse[PERMUTATION_MAX_ROUNDS];  // odd * inverse = 1 mod 2^32
};

// Everything but the keys. P = 1 has no rounds: it is the identity.
WCF_HD void permutation_shape(Permutation* p, uint32_t size) {
  const int bits = bit_length(size - 1);
  p->size = size;
  p->mask = bits == 0 ? 0u : 0xFFFFFFFFu >> (32 - bits);
  p->shift = (bits + 1) / 2;
  p->below = 32 - bits;
  p->rounds = bits == 0 ? 0 : bits <= PERMUTATION_SMALL_BITS ? PERMUTATION_ROUNDS_SMALL : PERMUTATION_ROUNDS_LARGE;
}

// The keys of rounds 2j and 2j+1, for j in [0, rounds / 2): independent of one another, so threads may share them out.
WCF_HD void permutation_keys(Permutation* p, const Stream& stream, int j) {
  const Words q = stream_words(stream, 0xFFFFFFFFu - static_cast<uint32_t>(j));
  for (int i = 0; i < 2; ++i) {
    const uint32_t odd = q.v[2 * i] | 1u;
    uint32_t inverse = odd;                                     // right to 3 bits
    for (int n = 0; n < 4; ++n) inverse *= 2u - odd * inverse;  // 6, 12, 24, 48
    p->odd[2 * j + i] = odd;
    p->add[2 * j + i] = q.v[2 * i + 1];
    p->top_add[2 * j + i] = q.v[2 * i + 1] << p->below;
    p->inverse[2 * j + i] = inverse;
  }
}

// Round r of a number at the top of a word.
WCF_HD uint32_t permutation_round(const Permutation& p, uint32_t x, int r) {
  x = x * p.odd[r] + p.top_add[r];
  return x ^ ((x >> p.shift) & ~(0xFFFFFFFFu >> (32 - p.below)));
}

// The first ROUNDS rounds of a number at the top of a word.
template <int ROUNDS>
WCF_HD uint32_t permutation_pass(const Permutation& p, uint32_t x) {
  WCF_UNROLL
  for (int r = 0; r < ROUNDS; ++r) x = permutation_round(p, x, r);
  return x;
}

WCF_HD uint32_t permute(const Permutation& p, uint32_t x) {
  if (p.rounds == 0) return x;
  do {
    uint32_t top = permutation_pass<PERMUTATION_ROUNDS_LARGE>(p, x << p.below);
    WCF_ROLLED
    for (int r = PERMUTATION_ROUNDS_LARGE; r < p.rounds; ++r) top = permutation_round(p, top, r);
    x = top >> p.below;
  } while (x >= p.size);
  return x;
}

WCF_HD uint32_t permute_inverse(const Permutation& p, uint32_t x) {
  do {
    for (int r = p.rounds - 1; r >= 0; --r) {
      x ^= x >> p.shift;
      x = ((x - p.add[r]) * p.inverse[r]) & p.mask;
    }
  } while (x >= p.size);
  return x;
}

}  // namespace wcf
