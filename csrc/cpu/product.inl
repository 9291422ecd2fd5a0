// Blocked matrix products for the cost and the gradient: OUT = base + sign * sum_k A_ik B_kj, or with (A_ik - B_kj)^2
// in place of the product. Included once per instruction set.
//
// B is packed once into panels of TILE_COLUMNS columns, with k the slowest index inside a panel, KBLOCK steps of k at a
// time: one panel (16 KB) stays in L1 while the rows of A stream past it. A is packed per block of ABLOCK rows into
// panels of TILE_ROWS (at most 96 KB, in L2), unless there are too few columns to repay it. The order of additions
// depends on the shapes only.

constexpr int TILE_ROWS = WCF_AVX512 ? 8 : 6;  // 8 x 2 accumulators of 32 registers, 6 x 2 of 16
template <class T>
constexpr int TILE_COLUMNS = 2 * WIDTH<T>;
constexpr int64_t KBLOCK = WCF_AVX512 ? 128 : 256;
constexpr int64_t FEW_COLUMNS = 256;

WCF_HD int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Panels first .. last-1 of the packed B [k, width]. Element (p, j) is b[p * step + j * stride] - centre[j]; a null
// centre is 0, and with a centre the stride is 1. Columns valid .. width-1 repeat the last one, so padding holds finite
// numbers.
template <class T>
void pack_b(const T* b, int64_t step, int64_t stride, const T* centre, int64_t valid, int64_t width, int64_t k,
            int64_t first, int64_t last, T* packed) {
  constexpr int COLUMNS = TILE_COLUMNS<T>;
  for (int64_t k0 = 0; k0 < k; k0 += KBLOCK) {
    const int64_t depth = k - k0 < KBLOCK ? k - k0 : KBLOCK;
    for (int64_t p = first; p < last; ++p) {
      T* const to = packed + k0 * width + p * COLUMNS * depth;
      const int64_t j0 = p * COLUMNS;
      const T* const from = b + k0 * step + j0 * stride;
      if (j0 + COLUMNS > valid) {
        for (int j = 0; j < COLUMNS; ++j) {
          const int64_t column = j0 + j < valid ? j : valid - 1 - j0;
          const T off = centre ? centre[j0 + column] : T(0);
          for (int64_t i = 0; i < depth; ++i) to[i * COLUMNS + j] = from[i * step + column * stride] - off;
        }
      } else if (stride == 1) {
        for (int64_t i = 0; i < depth; ++i) {
          for (int j = 0; j < COLUMNS; j += WIDTH<T>) {
            const Vec<T> off = centre ? load_vec<T>(centre + j0 + j) : Vec<T>{};
            store_vec(to + i * COLUMNS + j, load_vec<T>(from + i * step + j) - off);
          }
        }
      } else {
        for (int64_t i = 0; i < depth; ++i) {
          WCF_UNROLL
          for (int j = 0; j < COLUMNS; ++j) to[i * COLUMNS + j] = from[i * step + j * stride];
        }
      }
    }
  }
}

// Rows [rows] of A, `depth` steps of k, into panels of TILE_ROWS, `panel_step` numbers from panel to panel. Rows past
// the end are 0.
template <class T>
WCF_HD void pack_a(const T* a, int64_t stride, int64_t step, int64_t rows, int64_t depth, int64_t panel_step,
                   T* packed) {
  const int64_t whole = rows / TILE_ROWS;
  if (stride == 1) {  // A is stored by columns: along each, one piece per panel
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t p = 0; p < whole; ++p) {
        __builtin_memcpy(packed + p * panel_step + k * TILE_ROWS, a + k * step + p * TILE_ROWS, TILE_ROWS * sizeof(T));
      }
    }
  } else {
    for (int64_t p = 0; p < whole; ++p) {
      const T* const from = a + p * TILE_ROWS * stride;
      T* const to = packed + p * panel_step;
      for (int64_t k = 0; k < depth; ++k) {
        WCF_UNROLL
        for (int i = 0; i < TILE_ROWS; ++i) to[k * TILE_ROWS + i] = from[i * stride + k * step];
      }
    }
  }
  for (int64_t k = 0; k < depth && whole * TILE_ROWS < rows; ++k) {
    for (int64_t i = 0; i < TILE_ROWS; ++i) {
      const int64_t row = whole * TILE_ROWS + i;
      packed[whole * panel_step + k * TILE_ROWS + i] = row < rows ? a[row * stride + k * step] : T(0);
    }
  }
}

// The rows of A that a tile multiplies, as pack_a leaves them.
template <class T>
struct PackedRows {
  const T* panel;
  WCF_HD T operator()(int i, int64_t k) const { return panel[k * TILE_ROWS + i]; }
};

// The rows of A in the caller's memory, one after the other; rows past the end repeat the last.
template <class T>
struct PlainRows {
  const T* row[TILE_ROWS];
  WCF_HD PlainRows(const T* a, int64_t stride, int64_t rows) {
    for (int64_t i = 0; i < TILE_ROWS; ++i) row[i] = a + (i < rows ? i : rows - 1) * stride;
  }
  WCF_HD T operator()(int i, int64_t k) const { return row[i][k]; }
};

// One tile: a(i, k) is an element of A, b is [depth, TILE_COLUMNS]. `add`: adds to `out`.
template <class T, class Rows>
WCF_HD void tile(const Rows& a, const T* b, int64_t depth, bool square, bool add, T base, T sign, T* out, int64_t ldo,
                 int64_t rows, int64_t columns) {
  constexpr int COLUMNS = TILE_COLUMNS<T>;
  Vec<T> acc[TILE_ROWS][2];
  WCF_UNROLL
  for (int i = 0; i < TILE_ROWS; ++i) acc[i][0] = acc[i][1] = Vec<T>{};
  for (int64_t k = 0; k < depth; ++k) {
    const Vec<T> b0 = load_vec<T>(b + k * COLUMNS), b1 = load_vec<T>(b + k * COLUMNS + WIDTH<T>);
    WCF_UNROLL
    for (int i = 0; i < TILE_ROWS; ++i) {
      const Vec<T> x = splat(a(i, k));
      if (square) {
        const Vec<T> d0 = x - b0, d1 = x - b1;
        acc[i][0] = fma(d0, d0, acc[i][0]);
        acc[i][1] = fma(d1, d1, acc[i][1]);
      } else {
        acc[i][0] = fma(x, b0, acc[i][0]);
        acc[i][1] = fma(x, b1, acc[i][1]);
      }
    }
  }
  const bool whole = rows >= TILE_ROWS && columns >= COLUMNS;
  T edge[TILE_ROWS * COLUMNS];
  if (!whole && add) {
    for (int64_t i = 0; i < TILE_ROWS; ++i) {
      for (int64_t j = 0; j < COLUMNS; ++j) {
        edge[i * COLUMNS + j] = i < rows && j < columns ? out[i * ldo + j] : T(0);
      }
    }
  }
  T* const to = whole ? out : edge;
  const int64_t ld = whole ? ldo : COLUMNS;
  const Vec<T> base_vec = splat(base), sign_vec = splat(sign);
  WCF_UNROLL
  for (int i = 0; i < TILE_ROWS; ++i) {
    WCF_UNROLL
    for (int v = 0; v < 2; ++v) {
      T* const at = to + i * ld + v * WIDTH<T>;
      const Vec<T> sum = add ? load_vec<T>(at) + acc[i][v] : acc[i][v];
      store_vec(at, fma(sign_vec, sum, base_vec));
    }
  }
  if (!whole) {
    for (int64_t i = 0; i < TILE_ROWS && i < rows; ++i) {
      for (int64_t j = 0; j < COLUMNS && j < columns; ++j) out[i * ldo + j] = edge[i * COLUMNS + j];
    }
  }
}

// out [rows, columns], row length ldo. A's element (i, k) is a[i * stride + k * step]; `packed` is pack_b's, its width
// `columns` rounded up to whole panels; `scratch` holds PACK.
template <class T>
void product(const T* a, int64_t stride, int64_t step, const T* packed, int64_t rows, int64_t columns, int64_t k,
             bool square, T base, T sign, T* out, int64_t ldo, T* scratch) {
  constexpr int COLUMNS = TILE_COLUMNS<T>;
  const int64_t width = round_up(columns, COLUMNS);
  const bool plain = step == 1 && columns <= FEW_COLUMNS;
  for (int64_t i0 = 0; i0 < rows; i0 += ABLOCK) {
    const int64_t block = rows - i0 < ABLOCK ? rows - i0 : ABLOCK;
    for (int64_t k0 = 0; k0 < k; k0 += KBLOCK) {
      const int64_t depth = k - k0 < KBLOCK ? k - k0 : KBLOCK;
      const bool last = k0 + depth == k;
      const int64_t panel_step = depth * TILE_ROWS + WIDTH<T>;  // not a multiple of 4 KB
      const T* const from = a + i0 * stride + k0 * step;
      if (!plain) pack_a(from, stride, step, block, depth, panel_step, scratch);
      for (int64_t j = 0; j < width; j += COLUMNS) {
        const T* const panel = packed + k0 * width + j * depth;
        for (int64_t i = 0; i < block; i += TILE_ROWS) {
          T* const to = out + (i0 + i) * ldo + j;
          const T shift = last ? base : T(0), factor = last ? sign : T(1);
          const auto multiply = [&](const auto& own, bool squares) {
            tile<T>(own, panel, depth, squares, k0 > 0, shift, factor, to, ldo, block - i, columns - j);
          };
          const auto by_kind = [&](const auto& own) { square ? multiply(own, true) : multiply(own, false); };
          if (plain) {
            by_kind(PlainRows<T>(from + i * stride, stride, block - i));
          } else {
            by_kind(PackedRows<T>{scratch + i / TILE_ROWS * panel_step});
          }
        }
      }
    }
  }
}
