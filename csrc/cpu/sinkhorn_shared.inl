// Many problems with one cost matrix: products of the kernel K with the scalings of a block of problems. Included once
// per instruction set.
//
// Scalings lie in panels of TILE_COLUMNS problems, [panel][row][problem], so that a product's tile of TILE_ROWS rows
// and one panel is written where the next product reads it, and mass / sum happens in its registers. K is packed twice,
// by rows and by columns, as panels [panel][k][TILE_ROWS]. A block of K, SHARED_TILES panels of KBLOCK steps, stays in
// L2 while the panels of scalings go by, and KBLOCK rows of one of these stay in L1: K comes from memory once.
constexpr int64_t SHARED_TILES = 8;

// Safe range of a row's or column's sum. K is between 2^-100 (fp64: 2^-866) and 1, so what underflow takes from a sum
// is below 2^-36 of the least one (count * 2^-122), and products of two scalings do not overflow.
template <class T>
struct SharedRange;
template <>
struct SharedRange<float> {
  static constexpr float least = 0x1p-90f, most = 0x1p90f, normal = 0x1p-126f;
};
template <>
struct SharedRange<double> {
  static constexpr double least = 0x1p-900, most = 0x1p900, normal = 0x1p-1022;
};

// K_ij = exp(shift_i - s C_ij) of rows [first, last), a multiple of TILE_ROWS apart, into both packings; or, if
// `weighted`, C_ij times what is packed by rows. scratch [TILE_ROWS, m + WIDTH].
template <class T>
void shared_pack(const T* cost, int64_t n, int64_t m, T s, const T* shift, int64_t first, int64_t last, bool weighted,
                 T* by_rows, T* by_columns, T* scratch) {
  const int64_t ld = round_up(m, WIDTH<T>);
  for (int64_t i0 = first; i0 < last; i0 += TILE_ROWS) {
    if (weighted) {
      T* const to = by_rows + i0 * m;
      const T* rows[TILE_ROWS];
      for (int64_t r = 0; r < TILE_ROWS; ++r) rows[r] = cost + (i0 + r < n ? i0 + r : n - 1) * m;
      for (int64_t j = 0; j < m; ++j) {
        WCF_UNROLL
        for (int r = 0; r < TILE_ROWS; ++r) to[j * TILE_ROWS + r] *= rows[r][j];
      }
      continue;
    }
    for (int64_t r = 0; r < TILE_ROWS; ++r) {
      T* const e = scratch + r * ld;
      if (i0 + r >= n) {
        for (int64_t j = 0; j < ld; ++j) e[j] = 0;
        continue;
      }
      const T* const row = cost + (i0 + r) * m;
      for (int64_t j = 0; j < m; j += WIDTH<T>) {
        const Vec<T> c = j + WIDTH<T> <= m ? load_vec<T>(row + j) : load_part<T>(row + j, static_cast<int>(m - j));
        store_vec(e + j, exp_vec<T>(fma(splat(-s), c, splat(shift[i0 + r]))));
      }
    }
    T* const to = by_rows + i0 * m;
    for (int64_t j = 0; j < m; ++j) {
      WCF_UNROLL
      for (int r = 0; r < TILE_ROWS; ++r) to[j * TILE_ROWS + r] = scratch[r * ld + j];
    }
    const int64_t rows = n - i0 < TILE_ROWS ? n - i0 : TILE_ROWS, whole = m / TILE_ROWS;
    for (int64_t p = 0; p < whole; ++p) {
      T* const panel = by_columns + (p * n + i0) * TILE_ROWS;
      for (int64_t r = 0; r < rows; ++r) {
        __builtin_memcpy(panel + r * TILE_ROWS, scratch + r * ld + p * TILE_ROWS, TILE_ROWS * sizeof(T));
      }
    }
    if (whole * TILE_ROWS == m) continue;
    for (int64_t r = 0; r < rows; ++r) {
      T* const to_row = by_columns + (whole * n + i0 + r) * TILE_ROWS;
      for (int64_t j = 0; j < TILE_ROWS; ++j) {
        const int64_t column = whole * TILE_ROWS + j;
        to_row[j] = column < m ? scratch[r * ld + column] : T(0);
      }
    }
  }
}

// What a half step does with the sums of one row: scaling = mass / sum (or mass * sum^-damp), and where it is kept.
// `simple`: plain division, no problem is frozen, nothing is extrapolated.
template <class T>
WCF_HD void shared_scale(const SharedStep<T>& step, bool simple, int64_t at, const Vec<T>* sum, const Vec<T>* frozen,
                         IntVec<T>* safe) {
  using Range = SharedRange<T>;
  WCF_UNROLL
  for (int v = 0; v < 2; ++v) {
    const int64_t k = at + v * WIDTH<T>;
    const Vec<T> mass = load_vec<T>(step.mass + k);
    Vec<T> scaling =
        simple || step.damp == 1 ? mass / sum[v] : mass * exp_vec<T>(splat(-step.damp) * log_vec<T>(sum[v]));
    scaling = scaling >= Range::normal ? scaling : Vec<T>{};
    IntVec<T> fine = (sum[v] >= Range::least) & (sum[v] <= Range::most);
    if (simple) {
      safe[v] &= fine;
      store_vec(step.scaling + k, scaling);
      if (step.sums) store_vec(step.sums + k, sum[v]);
      continue;
    }
    const IntVec<T> keep = frozen[v] != Vec<T>{};
    const Vec<T> old = load_vec<T>(step.scaling + k);
    if (step.extended) {
      const Vec<T> ahead = mass > Vec<T>{} ? scaling * (scaling / old) : Vec<T>{};
      fine &= (ahead <= Range::most) & ((ahead >= Range::least) | (mass < Range::least));
      store_vec(step.extended + k, ahead);
    }
    safe[v] &= fine | keep;
    store_vec(step.scaling + k, keep ? old : scaling);
    if (step.sums) store_vec(step.sums + k, keep ? load_vec<T>(step.sums + k) : sum[v]);
  }
}

// acc [TILE_ROWS, 2] = `depth` steps of a tile, a [depth, TILE_ROWS] and b [depth, TILE_COLUMNS]. Meanwhile `next`, the
// rows of K of the next tile, come closer: the hardware does not foresee the jump to them.
template <class T>
WCF_HD void shared_tile(const T* a, const T* b, int64_t depth, const T* next, Vec<T> (&acc)[TILE_ROWS][2]) {
  WCF_UNROLL
  for (int i = 0; i < TILE_ROWS; ++i) acc[i][0] = acc[i][1] = Vec<T>{};
  for (int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(next + k * TILE_ROWS);
    const Vec<T> b0 = load_vec<T>(b + k * TILE_COLUMNS<T>), b1 = load_vec<T>(b + k * TILE_COLUMNS<T> + WIDTH<T>);
    WCF_UNROLL
    for (int i = 0; i < TILE_ROWS; ++i) {
      const Vec<T> x = splat(a[k * TILE_ROWS + i]);
      acc[i][0] = fma(x, b0, acc[i][0]);
      acc[i][1] = fma(x, b1, acc[i][1]);
    }
  }
}

// Tiles of rows [first, last) and panel q, steps [k0, k0 + depth) of the product.
template <class T>
WCF_HD void shared_panel(const SharedStep<T>& step, int64_t q, int64_t first, int64_t last, int64_t k0, int64_t depth,
                         bool simple, const Vec<T>* frozen, IntVec<T>* safe) {
  constexpr int W = TILE_COLUMNS<T>;
  const bool ends = k0 + depth == step.k;
  for (int64_t i0 = first; i0 < last; i0 += TILE_ROWS) {
    const int64_t rows = last - i0 < TILE_ROWS ? last - i0 : TILE_ROWS, at = (q * step.rows + i0) * W;
    Vec<T> acc[TILE_ROWS][2];
    const T* const own = step.kernel + i0 * step.k + k0 * TILE_ROWS;
    const T* const next = i0 + TILE_ROWS < step.rows ? own + TILE_ROWS * step.k : own;
    shared_tile(own, step.in + (q * step.k + k0) * W, depth, next, acc);
    T* const partial = step.partial ? step.partial + at : nullptr;
    WCF_UNROLL
    for (int i = 0; i < TILE_ROWS; ++i) {
      if (i >= rows) continue;
      if (k0 > 0) {
        acc[i][0] += load_vec<T>(partial + i * W);
        acc[i][1] += load_vec<T>(partial + i * W + WIDTH<T>);
      }
      if (ends && step.mass) {
        shared_scale(step, simple, at + i * W, acc[i], frozen, safe);
      } else {
        T* const to = ends ? step.sums + at + i * W : partial + i * W;
        store_vec(to, acc[i][0]);
        store_vec(to + WIDTH<T>, acc[i][1]);
      }
    }
  }
}

template <class T>
void shared_product(const SharedStep<T>& step) {
  constexpr int W = TILE_COLUMNS<T>;
  for (int64_t k0 = 0; k0 < step.k; k0 += KBLOCK) {
    const int64_t depth = step.k - k0 < KBLOCK ? step.k - k0 : KBLOCK;
    for (int64_t first = 0; first < step.rows; first += SHARED_TILES * TILE_ROWS) {
      const int64_t end = first + SHARED_TILES * TILE_ROWS, last = end < step.rows ? end : step.rows;
      for (int64_t q = 0; q < step.panels; ++q) {
        T* const marks = step.marks + q * 2 * W;  // [frozen, safe] of the panel's problems
        const Vec<T> frozen[2] = {load_vec<T>(marks), load_vec<T>(marks + WIDTH<T>)};
        IntVec<T> safe[2] = {~IntVec<T>{}, ~IntVec<T>{}};
        const bool alive = !any_lane<T>((frozen[0] != Vec<T>{}) | (frozen[1] != Vec<T>{}));
        if (alive && !step.extended && step.damp == 1) {
          shared_panel(step, q, first, last, k0, depth, true, frozen, safe);
        } else {
          shared_panel(step, q, first, last, k0, depth, false, frozen, safe);
        }
        WCF_UNROLL
        for (int v = 0; v < 2; ++v) {
          T* const to = marks + W + v * WIDTH<T>;
          store_vec(to, safe[v] ? load_vec<T>(to) : Vec<T>{});
        }
      }
    }
  }
}

// x = log x, and the logarithm of a number at or below 0 is -infinity.
template <class T>
void shared_log(T* x, int64_t count) {
  const Vec<T> nothing = splat(static_cast<T>(-__builtin_inf()));
  for (int64_t i = 0; i < count; i += WIDTH<T>) {
    const Vec<T> v = load_vec<T>(x + i);
    store_vec(x + i, v > Vec<T>{} ? log_vec<T>(v) : nothing);
  }
}
