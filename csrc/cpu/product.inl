// Blocked matrix products for the cost and the gradient: OUT = base + sign * sum_k A_ik B_kj, or with (A_ik - B_kj)^2 in
// place of the product. Included once per instruction set and REAL, by sinkhorn_kernels.h only.
//
// B is packed once into panels of TILE_COLUMNS columns, k running slowest inside a panel, KBLOCK steps of k at a time:
// one panel (16 KB) stays in L1 while the rows of A go by. A is packed per block of ABLOCK rows into panels of
// TILE_ROWS (at most 96 KB, in L2). The order of additions depends on the shapes only.

#if WCF_VECTOR_BYTES == 64
constexpr int TILE_ROWS = 8;  // 8 x 2 accumulators of 32 registers; AVX2 and SSE: 6 x 2 of 16
#else
constexpr int TILE_ROWS = 6;
#endif
constexpr int TILE_COLUMNS = 2 * LANES;
constexpr int64_t KBLOCK = WCF_VECTOR_BYTES == 64 ? 128 : 256;

WCF_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Panels first .. last-1 of the packed B [k, width]; element (p, j) is b[p * step + j * stride] - centre[j] (a null
// centre is 0; a centre goes with stride 1); columns valid .. width-1 repeat the last, so that padding holds ordinary numbers.
static void pack_b(const REAL* b, int64_t step, int64_t stride, const REAL* centre, int64_t valid, int64_t width,
                   int64_t k, int64_t first, int64_t last, REAL* packed) {
  for (int64_t k0 = 0; k0 < k; k0 += KBLOCK) {
    const int64_t depth = k - k0 < KBLOCK ? k - k0 : KBLOCK;
    for (int64_t p = first; p < last; ++p) {
      REAL* const to = packed + k0 * width + p * TILE_COLUMNS * depth;
      const int64_t j0 = p * TILE_COLUMNS;
      const REAL* const from = b + k0 * step + j0 * stride;
      if (j0 + TILE_COLUMNS > valid) {
        for (int j = 0; j < TILE_COLUMNS; ++j) {
          const int64_t column = j0 + j < valid ? j : valid - 1 - j0;
          const REAL off = centre ? centre[j0 + column] : REAL(0);
          for (int64_t i = 0; i < depth; ++i) to[i * TILE_COLUMNS + j] = from[i * step + column * stride] - off;
        }
      } else if (stride == 1) {
        for (int64_t i = 0; i < depth; ++i) {
          for (int j = 0; j < TILE_COLUMNS; j += LANES) {
            const Vec off = centre ? load_vec(centre + j0 + j) : Vec{};
            store_vec(to + i * TILE_COLUMNS + j, load_vec(from + i * step + j) - off);
          }
        }
      } else {
        for (int64_t i = 0; i < depth; ++i) {
          WCF_UNROLL
          for (int j = 0; j < TILE_COLUMNS; ++j) to[i * TILE_COLUMNS + j] = from[i * step + j * stride];
        }
      }
    }
  }
}

// Rows [rows] of A, `depth` steps of k, into panels of TILE_ROWS, `apart` apart; rows past the end are 0.
WCF_INLINE void pack_a(const REAL* a, int64_t stride, int64_t step, int64_t rows, int64_t depth, int64_t apart,
                       REAL* packed) {
  const int64_t whole = rows / TILE_ROWS;
  if (stride == 1) {  // A is stored by columns: along each, one piece per panel
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t p = 0; p < whole; ++p) {
        __builtin_memcpy(packed + p * apart + k * TILE_ROWS, a + k * step + p * TILE_ROWS, TILE_ROWS * sizeof(REAL));
      }
    }
  } else {
    for (int64_t p = 0; p < whole; ++p) {
      const REAL* const from = a + p * TILE_ROWS * stride;
      REAL* const to = packed + p * apart;
      for (int64_t k = 0; k < depth; ++k) {
        WCF_UNROLL
        for (int i = 0; i < TILE_ROWS; ++i) to[k * TILE_ROWS + i] = from[i * stride + k * step];
      }
    }
  }
  for (int64_t k = 0; k < depth && whole * TILE_ROWS < rows; ++k) {
    for (int64_t i = 0; i < TILE_ROWS; ++i) {
      const int64_t row = whole * TILE_ROWS + i;
      packed[whole * apart + k * TILE_ROWS + i] = row < rows ? a[row * stride + k * step] : REAL(0);
    }
  }
}

// One tile. a [depth, TILE_ROWS], b [depth, TILE_COLUMNS]. `add`: on top of what `out` holds.
WCF_INLINE void tile(const REAL* a, const REAL* b, int64_t depth, bool square, bool add, REAL base, REAL sign, REAL* out,
                     int64_t ldo, int64_t rows, int64_t columns) {
  Vec acc[TILE_ROWS][2];
  WCF_UNROLL
  for (int i = 0; i < TILE_ROWS; ++i) acc[i][0] = acc[i][1] = Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    const Vec b0 = load_vec(b + k * TILE_COLUMNS), b1 = load_vec(b + k * TILE_COLUMNS + LANES);
    WCF_UNROLL
    for (int i = 0; i < TILE_ROWS; ++i) {
      const Vec x = splat(a[k * TILE_ROWS + i]);
      if (square) {
        const Vec d0 = x - b0, d1 = x - b1;
        acc[i][0] = fma_vec(d0, d0, acc[i][0]);
        acc[i][1] = fma_vec(d1, d1, acc[i][1]);
      } else {
        acc[i][0] = fma_vec(x, b0, acc[i][0]);
        acc[i][1] = fma_vec(x, b1, acc[i][1]);
      }
    }
  }
  const bool whole = rows >= TILE_ROWS && columns >= TILE_COLUMNS;
  REAL edge[TILE_ROWS * TILE_COLUMNS];
  if (!whole && add) {
    for (int64_t i = 0; i < TILE_ROWS; ++i) {
      for (int64_t j = 0; j < TILE_COLUMNS; ++j) {
        edge[i * TILE_COLUMNS + j] = i < rows && j < columns ? out[i * ldo + j] : REAL(0);
      }
    }
  }
  REAL* const to = whole ? out : edge;
  const int64_t ld = whole ? ldo : TILE_COLUMNS;
  const Vec base_vec = splat(base), sign_vec = splat(sign);
  WCF_UNROLL
  for (int i = 0; i < TILE_ROWS; ++i) {
    WCF_UNROLL
    for (int v = 0; v < 2; ++v) {
      REAL* const at = to + i * ld + v * LANES;
      const Vec sum = add ? load_vec(at) + acc[i][v] : acc[i][v];
      store_vec(at, fma_vec(sign_vec, sum, base_vec));
    }
  }
  if (!whole) {
    for (int64_t i = 0; i < TILE_ROWS && i < rows; ++i) {
      for (int64_t j = 0; j < TILE_COLUMNS && j < columns; ++j) out[i * ldo + j] = edge[i * TILE_COLUMNS + j];
    }
  }
}

// out [rows, columns], row length ldo. A's element (i, k) is a[i * stride + k * step]; `packed` is pack_b's, its width
// `columns` rounded up to whole panels; `scratch` holds PACK.
static void product(const REAL* a, int64_t stride, int64_t step, const REAL* packed, int64_t rows, int64_t columns,
                    int64_t k, bool square, REAL base, REAL sign, REAL* out, int64_t ldo, REAL* scratch) {
  const int64_t width = round_up(columns, TILE_COLUMNS);
  for (int64_t i0 = 0; i0 < rows; i0 += ABLOCK) {
    const int64_t block = rows - i0 < ABLOCK ? rows - i0 : ABLOCK;
    for (int64_t k0 = 0; k0 < k; k0 += KBLOCK) {
      const int64_t depth = k - k0 < KBLOCK ? k - k0 : KBLOCK;
      const bool last = k0 + depth == k;
      const int64_t apart = depth * TILE_ROWS + LANES;  // not a multiple of 4 KB
      pack_a(a + i0 * stride + k0 * step, stride, step, block, depth, apart, scratch);
      for (int64_t j = 0; j < width; j += TILE_COLUMNS) {
        const REAL* const panel = packed + k0 * width + j * depth;
        for (int64_t i = 0; i < block; i += TILE_ROWS) {
          REAL* const to = out + (i0 + i) * ldo + j;
          const REAL* const ap = scratch + i / TILE_ROWS * apart;
          const REAL shift = last ? base : REAL(0), factor = last ? sign : REAL(1);
          if (square) {
            tile(ap, panel, depth, true, k0 > 0, shift, factor, to, ldo, block - i, columns - j);
          } else {
            tile(ap, panel, depth, false, k0 > 0, shift, factor, to, ldo, block - i, columns - j);
          }
        }
      }
    }
  }
}
