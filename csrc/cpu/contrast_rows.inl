// Contrast of a block of anchors with one panel of rows. Included once per instruction set.
//
// A tile of TILE_ROWS x TILE_COLUMNS scores is summed in registers and becomes terms or cells there. Cells lie in
// panels [anchor][TILE_COLUMNS]: so they are the right factor of the product that makes the rows' gradients as they
// are, and TILE_ROWS anchors of a panel are neighbouring lines, from which the other product takes its left factor.

// acc += sum over k of a[k][TILE_ROWS] b[k][TILE_COLUMNS].
template <class T>
WCF_HD void multiply_tile(const T* a, const T* b, int64_t depth, Vec<T> (&acc)[TILE_ROWS][2]) {
  for (int64_t k = 0; k < depth; ++k) {
    const Vec<T> b0 = load_vec<T>(b + k * TILE_COLUMNS<T>), b1 = load_vec<T>(b + k * TILE_COLUMNS<T> + WIDTH<T>);
    WCF_UNROLL
    for (int i = 0; i < TILE_ROWS; ++i) {
      const Vec<T> x = splat(a[k * TILE_ROWS + i]);
      acc[i][0] = fma(x, b0, acc[i][0]);
      acc[i][1] = fma(x, b1, acc[i][1]);
    }
  }
}

// All ones where row `half * W + lane` of the panel is a negative of anchor i.
template <class T>
WCF_HD IntVec<T> is_negative(const ContrastPanel<T>& p, int64_t i, int half) {
  constexpr int W = WIDTH<T>;
  using Id = ContrastId<T>;
  if (i >= p.anchors_left) return IntVec<T>{};
  const IntVec<T> left = lane_numbers<T>() + static_cast<Id>(half * W);
  IntVec<T> ids;
  __builtin_memcpy(&ids, p.row_image + half * W, sizeof ids);
  IntVec<T> keep = (left < static_cast<Id>(p.rows_left)) & (ids != p.image[i]);
  if (p.label) {
    __builtin_memcpy(&ids, p.row_label + half * W, sizeof ids);
    keep &= ids != p.label[i];
  }
  return keep;
}

// take(anchor, first score of it, second score, first and second `is_negative`) for every anchor of the block.
template <bool PLAIN, class T, class Take>
WCF_HD void for_each_anchor(const ContrastPanel<T>& p, Take take) {
  constexpr int W = WIDTH<T>;
  const Vec<T> scale = splat(p.scale), bias = splat(p.bias);
  const IntVec<T> all = IntVec<T>{} == IntVec<T>{};
  T scores[TILE_ROWS * TILE_COLUMNS<T>];
  for (int64_t i = 0; i < p.height; i += TILE_ROWS) {
    Vec<T> acc[TILE_ROWS][2];
    WCF_UNROLL
    for (int r = 0; r < TILE_ROWS; ++r) acc[r][0] = acc[r][1] = Vec<T>{};
    multiply_tile<T>(p.anchors + i * p.dim, p.rows, p.dim, acc);
    WCF_UNROLL
    for (int r = 0; r < TILE_ROWS; ++r) {
      store_vec(scores + 2 * r * W, fma(acc[r][0], scale, bias));
      store_vec(scores + (2 * r + 1) * W, fma(acc[r][1], scale, bias));
    }
    for (int r = 0; r < TILE_ROWS; ++r) {  // not unrolled: what follows is long
      const Vec<T> s0 = load_vec<T>(scores + 2 * r * W), s1 = load_vec<T>(scores + (2 * r + 1) * W);
      if constexpr (PLAIN) {
        take(i + r, s0, s1, all, all);
      } else {
        take(i + r, s0, s1, is_negative(p, i + r, 0), is_negative(p, i + r, 1));
      }
    }
  }
}

template <class T>
WCF_HD Vec<T> only(IntVec<T> keep, Vec<T> x) {
  return same_bits<Vec<T>>(same_bits<IntVec<T>>(x) & keep);
}

template <class T>
WCF_HD void add_to(T* at, Vec<T> x) {
  store_vec(at, load_vec<T>(at) + x);
}

// Sums of term(score) over the anchor's negatives, and over the row's.
template <bool PLAIN, class T, class Term>
WCF_HD void add_terms(const ContrastPanel<T>& p, Term term) {
  constexpr int W = WIDTH<T>;
  Vec<T> of_row[2] = {};
  for_each_anchor<PLAIN>(p, [&](int64_t i, Vec<T> s0, Vec<T> s1, IntVec<T> k0, IntVec<T> k1) {
    const Vec<T> t0 = only<T>(k0, term(s0)), t1 = only<T>(k1, term(s1));
    add_to(p.sum + i * W, t0 + t1);
    of_row[0] += t0;
    of_row[1] += t1;
  });
  if (!p.row_sum) return;
  add_to(p.row_sum, of_row[0]);
  add_to(p.row_sum + W, of_row[1]);
}

template <class T>
void sum_exp(const ContrastPanel<T>& p) {
  const auto term = [](Vec<T> s) { return exp_vec<T>(s); };
  p.plain ? add_terms<true>(p, term) : add_terms<false>(p, term);
}

template <class T>
void sum_softplus(const ContrastPanel<T>& p) {
  const auto term = [](Vec<T> s) {
    const Vec<T> above = max_vec(s, Vec<T>{});
    return above + log1p_nonnegative(exp_nonpositive(s - above - above));  // -|s|
  };
  p.plain ? add_terms<true>(p, term) : add_terms<false>(p, term);
}

// A running log-sum-exp takes in two vectors.
template <class T>
WCF_HD void take_in(T* largest, T* sum, Vec<T> s0, Vec<T> s1) {
  const Vec<T> before = load_vec<T>(largest), most = max_vec(before, max_vec(s0, s1));
  store_vec(sum, fma(load_vec<T>(sum), exp_vec<T>(before - most), exp_vec<T>(s0 - most) + exp_vec<T>(s1 - most)));
  store_vec(largest, most);
}

template <bool PLAIN, class T>
WCF_HD void add_log_terms(const ContrastPanel<T>& p) {
  constexpr int W = WIDTH<T>;
  const Vec<T> lowest = splat(CONTRAST_LOWEST<T>);
  Vec<T> most[2] = {lowest, lowest};
  for_each_anchor<PLAIN>(p, [&](int64_t i, Vec<T> s0, Vec<T> s1, IntVec<T> k0, IntVec<T> k1) {
    s0 = k0 ? s0 : lowest + lowest;  // of no weight even beside `lowest`
    s1 = k1 ? s1 : lowest + lowest;
    take_in<T>(p.largest + i * W, p.sum + i * W, s0, s1);
    store_vec(p.cells + 2 * i * W, s0);
    store_vec(p.cells + (2 * i + 1) * W, s1);
    most[0] = max_vec(most[0], s0);
    most[1] = max_vec(most[1], s1);
  });
  for (int half = 0; p.row_sum && half < 2; ++half) {
    const Vec<T> before = load_vec<T>(p.row_largest + half * W), now = max_vec(before, most[half]);
    Vec<T> sum = load_vec<T>(p.row_sum + half * W) * exp_vec<T>(before - now);
    for (int64_t i = 0; i < p.height; ++i) sum += exp_vec<T>(load_vec<T>(p.cells + (2 * i + half) * W) - now);
    store_vec(p.row_sum + half * W, sum);
    store_vec(p.row_largest + half * W, now);
  }
}

template <class T>
void log_sum_exp(const ContrastPanel<T>& p) {
  p.plain ? add_log_terms<true>(p) : add_log_terms<false>(p);
}

template <class T>
void join_lanes(const T* largest, const T* sum, double* state) {
  const Vec<T> each = load_vec<T>(sum);
  if (!largest) {
    state[1] += static_cast<double>(sum_of<T>(each));
    return;
  }
  const Vec<T> tops = load_vec<T>(largest);
  const T top = most_of<T>(tops);
  merge_log_sums(state, static_cast<double>(top), static_cast<double>(sum_of<T>(each * exp_vec<T>(tops - top))));
}

// cell(anchor, score, half of the panel) for every cell; 0 where the row is no negative.
template <bool PLAIN, class T, class Cell>
WCF_HD void write_cells(const ContrastPanel<T>& p, Cell cell) {
  constexpr int W = WIDTH<T>;
  for_each_anchor<PLAIN>(p, [&](int64_t i, Vec<T> s0, Vec<T> s1, IntVec<T> k0, IntVec<T> k1) {
    store_vec(p.cells + 2 * i * W, only<T>(k0, cell(i, s0, 0)));
    store_vec(p.cells + (2 * i + 1) * W, only<T>(k1, cell(i, s1, 1)));
  });
}

template <class T>
void exp_within_range(const ContrastPanel<T>& p) {
  const Vec<T> of_row[2] = {load_vec<T>(p.row_weight), load_vec<T>(p.row_weight + WIDTH<T>)};
  const auto cell = [&](int64_t i, Vec<T> s, int half) { return exp_vec<T>(s) * (p.weight[i] + of_row[half]); };
  p.plain ? write_cells<true>(p, cell) : write_cells<false>(p, cell);
}

template <class T>
void exp_slopes(const ContrastPanel<T>& p) {
  const auto cell = [&](int64_t i, Vec<T> s, int half) {
    const Vec<T> mine = exp_vec<T>(s - p.total[i]) * p.weight[i];
    if (!p.row_total) return mine;
    const Vec<T> total = load_vec<T>(p.row_total + half * WIDTH<T>);
    return fma(exp_vec<T>(s - total), load_vec<T>(p.row_weight + half * WIDTH<T>), mine);
  };
  p.plain ? write_cells<true>(p, cell) : write_cells<false>(p, cell);
}

template <bool PLAIN, class T>
WCF_HD void write_sigmoids(const ContrastPanel<T>& p) {
  constexpr int W = WIDTH<T>;
  const Vec<T> of_row[2] = {load_vec<T>(p.row_weight), load_vec<T>(p.row_weight + W)};
  Vec<T> total{};
  for_each_anchor<PLAIN>(p, [&](int64_t i, Vec<T> s0, Vec<T> s1, IntVec<T> k0, IntVec<T> k1) {
    const Vec<T> c0 = only<T>(k0, (p.weight[i] + of_row[0]) / (T(1) + exp_vec<T>(-s0)));
    const Vec<T> c1 = only<T>(k1, (p.weight[i] + of_row[1]) / (T(1) + exp_vec<T>(-s1)));
    store_vec(p.cells + 2 * i * W, c0);
    store_vec(p.cells + (2 * i + 1) * W, c1);
    total += c0 + c1;
  });
  add_to(p.slope_sum, total);
}

template <class T>
void sigmoid_slopes(const ContrastPanel<T>& p) {
  p.plain ? write_sigmoids<true>(p) : write_sigmoids<false>(p);
}

template <class T>
WCF_HD void add_tile(const Vec<T> (&acc)[TILE_ROWS][2], T* out, int64_t step) {
  WCF_UNROLL
  for (int r = 0; r < TILE_ROWS; ++r) {
    add_to(out + r * step, acc[r][0]);
    add_to(out + r * step + WIDTH<T>, acc[r][1]);
  }
}

template <class T>
void add_row_gradient(const T* columns, const T* cells, int64_t height, int64_t dim, T* out) {
  for (int64_t d = 0; d < dim; d += TILE_ROWS) {
    Vec<T> acc[TILE_ROWS][2];
    WCF_UNROLL
    for (int r = 0; r < TILE_ROWS; ++r) acc[r][0] = acc[r][1] = Vec<T>{};
    multiply_tile<T>(columns + d * height, cells, height, acc);
    add_tile<T>(acc, out + d * TILE_COLUMNS<T>, TILE_COLUMNS<T>);
  }
}

template <class T>
void add_anchor_gradient(const T* cells, int64_t cells_step, int64_t panels, const T* columns, T* out,
                         int64_t out_step) {
  constexpr int COLUMNS = TILE_COLUMNS<T>;
  Vec<T> acc[TILE_ROWS][2];
  WCF_UNROLL
  for (int r = 0; r < TILE_ROWS; ++r) acc[r][0] = acc[r][1] = Vec<T>{};
  for (int64_t p = 0; p < panels; ++p) {
    const T *const a = cells + p * cells_step, *const b = columns + p * COLUMNS * COLUMNS;
    for (int k = 0; k < COLUMNS; ++k) {
      const Vec<T> b0 = load_vec<T>(b + k * COLUMNS), b1 = load_vec<T>(b + k * COLUMNS + WIDTH<T>);
      WCF_UNROLL
      for (int r = 0; r < TILE_ROWS; ++r) {
        const Vec<T> x = splat(a[r * COLUMNS + k]);
        acc[r][0] = fma(x, b0, acc[r][0]);
        acc[r][1] = fma(x, b1, acc[r][1]);
      }
    }
  }
  add_tile<T>(acc, out, out_step);
}

template <int UNIT, class T>
WCF_HD void pack_unit(const T* a, int64_t rows, int64_t dim, T* packed) {
  if (rows >= UNIT) {
    for (int64_t k = 0; k < dim; ++k) {
      WCF_UNROLL
      for (int i = 0; i < UNIT; ++i) packed[k * UNIT + i] = a[i * dim + k];
    }
    return;
  }
  for (int64_t k = 0; k < dim; ++k) {
    for (int i = 0; i < UNIT; ++i) packed[k * UNIT + i] = i < rows ? a[i * dim + k] : T(0);
  }
}

template <class T>
void pack_anchors(const T* a, int64_t rows, int64_t dim, T* packed) {
  pack_unit<TILE_ROWS>(a, rows, dim, packed);
}

template <class T>
void pack_rows(const T* a, int64_t rows, int64_t dim, T* packed) {
  pack_unit<TILE_COLUMNS<T>>(a, rows, dim, packed);
}

template <class T>
void pack_columns(const T* a, int64_t step, int64_t rows, int64_t height, int64_t dim, int64_t unit, T* packed) {
  for (int64_t d = 0; d < dim; d += unit) {
    const int64_t count = dim - d < unit ? dim - d : unit;
    T* const to = packed + d * height;
    for (int64_t i = 0; i < height; ++i) {
      const int64_t there = i < rows ? count : 0;
      for (int64_t k = 0; k < there; ++k) to[i * unit + k] = a[i * step + d + k];
      for (int64_t k = there; k < unit; ++k) to[i * unit + k] = T(0);
    }
  }
}

template <class T>
double squares(const T* a, int64_t n) {
  Vec<T> part[4] = {};
  int64_t i = 0;
  for (; i + 4 * WIDTH<T> <= n; i += 4 * WIDTH<T>) {
    WCF_UNROLL
    for (int v = 0; v < 4; ++v) {
      const Vec<T> x = load_vec<T>(a + i + v * WIDTH<T>);
      part[v] = fma(x, x, part[v]);
    }
  }
  double sum = static_cast<double>(sum_of<T>((part[0] + part[1]) + (part[2] + part[3])));
  if (!finite(sum)) sum = 0, i = 0;  // fp32 may have overflowed
  for (; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(a[i]);
  return sum;
}
