// A product on the tensor cores.
#pragma once
#include "../common/dtype.h"
#include "launch.h"

namespace wcf {

// c += a b by the whole warp: a [16, 16] and b [16, 8] of bf16, c of fp32. With g = lane / 4 and p = 2 (lane % 4) a
// lane holds, two numbers to a register and the lower column or row in the lower half,
//   a[0], a[1]  rows g and g + 8, columns p and p + 1;  a[2], a[3]  the same rows, columns p + 8 and p + 9
//   b[0]  column g, rows p and p + 1;                   b[1]        column g, rows p + 8 and p + 9
//   c[0], c[1]  row g, columns p and p + 1;             c[2], c[3]  row g + 8
__device__ __forceinline__ void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
#if defined(__CUDACC__)
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  const int lane = threadIdx.x % WARP, row = lane / 4, column = 2 * (lane % 4);
  const auto half = [](uint32_t two, int i) { return bits_float(i == 0 ? two << 16 : two & 0xFFFF0000u); };
  for (int k = 0; k < 8; k += 2) {  // the lanes of a group of four hold these columns of a and rows of b, and those + 8
    const uint32_t a[4] = {__shfl_sync(FULL_WARP, a0, row * 4 + k / 2), __shfl_sync(FULL_WARP, a1, row * 4 + k / 2),
                           __shfl_sync(FULL_WARP, a2, row * 4 + k / 2), __shfl_sync(FULL_WARP, a3, row * 4 + k / 2)};
    for (int n = 0; n < 2; ++n) {
      const uint32_t b[2] = {__shfl_sync(FULL_WARP, b0, (column + n) * 4 + k / 2),
                             __shfl_sync(FULL_WARP, b1, (column + n) * 4 + k / 2)};
      for (int i = 0; i < 2; ++i) {
        c[n] += half(a[0], i) * half(b[0], i) + half(a[2], i) * half(b[1], i);
        c[2 + n] += half(a[1], i) * half(b[0], i) + half(a[3], i) * half(b[1], i);
      }
    }
  }
#endif
}

}  // namespace wcf
