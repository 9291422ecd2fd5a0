// draw_block() for each instruction set: wcf::portable::draw_block and, on x86-64, wcf::avx2::draw_block; the choice.
#pragma once
#include "../common/draw.h"
#include "simd.h"

namespace wcf {

constexpr int DRAW_BLOCK = 512;  // draws worked on at a time: 2 KB of values, in L1

inline void drawer_open_with_keys(const DrawArgs& args, int64_t b, Drawer* d) {
  drawer_open(args, b, d);
  for (int j = 0; j < drawer_key_count(*d); ++j) drawer_keys(d, j);
}

// For each 8-bit mask, its set bits' numbers, in order: the lanes that a compaction keeps.
struct CompactLanes {
  uint8_t lane[256][8];
  constexpr CompactLanes() : lane{} {
    for (int mask = 0; mask < 256; ++mask) {
      int n = 0;
      for (int bit = 0; bit < 8; ++bit) {
        if (mask >> bit & 1) lane[mask][n++] = static_cast<uint8_t>(bit);
      }
    }
  }
};
inline constexpr CompactLanes COMPACT_LANES;

#define WCF_AVX2 0
namespace portable {
#include "draw_block.inl"
}
#undef WCF_AVX2

#if WCF_HAS_AVX2_BUILD
#define WCF_AVX2 1
WCF_AVX2_BEGIN
namespace avx2 {
#include "draw_block.inl"
}
WCF_AVX2_END
#undef WCF_AVX2
#endif

// The one for the instruction set in use.
inline auto pick_draw_block() {
#if WCF_HAS_AVX2_BUILD
  if (simd() != Simd::portable) return avx2::draw_block;
#endif
  return portable::draw_block;
}

}  // namespace wcf
