// The parts of a block of draws that do not depend on the instruction set (simd_kernels.h).
#pragma once
#include "../common/draw.h"

namespace wcf {

constexpr int DRAW_BLOCK = 512;  // draws worked on at a time: 2 KB of values, in L1

inline void drawer_open_with_keys(const DrawSpec& args, int64_t b, Drawer* d) {
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

}  // namespace wcf
