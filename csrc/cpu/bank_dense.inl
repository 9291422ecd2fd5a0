// Dense plan: a block of anchors against consecutive tiles of the bank. Included once per instruction set.
//
// The anchors are the lanes: a group of L anchors has one number of each in NV vectors. So one loop (an element of the
// bank, broadcast, times L lanes) makes both products, scores and gradient; the bank is read in its layout; and the
// critic's sums need no reduction over lanes. A tile comes from memory once for all groups of the block. The scores of
// one group, [TILE, L], stay in cache.

// Where the matrix of a product [rows, depth] lies: rows of the bank (BY_ROW), or its columns (BY_COLUMN).
enum DenseOrder { BY_ROW, BY_COLUMN };

// c [ROWS, L] += sum over k < depth of m[r, k] * q[k, L]. The sum over k comes first, in registers, so that no long
// chain of small additions forms. m[r, k] is at r * step + k (BY_ROW) or at r + k * step (BY_COLUMN).
template <DenseOrder ORDER, int NV, int ROWS, class Real>
WCF_HD void multiply_rows(const Real* m, int64_t step, int64_t depth, const Real* q, Real* c) {
  constexpr int W = WIDTH<Real>;
  Vec<Real> sum[ROWS][NV];
  WCF_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    WCF_UNROLL
    for (int v = 0; v < NV; ++v) sum[r][v] = Vec<Real>{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<Real> lanes[NV];
    WCF_UNROLL
    for (int v = 0; v < NV; ++v) lanes[v] = load_vec<Real>(q + (k * NV + v) * W);
    WCF_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      const Vec<Real> element = splat(ORDER == BY_ROW ? m[r * step + k] : m[r + k * step]);
      WCF_UNROLL
      for (int v = 0; v < NV; ++v) sum[r][v] = fma(element, lanes[v], sum[r][v]);
    }
  }
  WCF_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    WCF_UNROLL
    for (int v = 0; v < NV; ++v) {
      Real* const to = c + (r * NV + v) * W;
      store_vec(to, load_vec<Real>(to) + sum[r][v]);
    }
  }
}

// multiply_rows for any number of rows. Six at a time, of two vectors each, are 12 sums; the operands take three more
// of the 16 registers.
template <DenseOrder ORDER, int NV, class Real>
void multiply(const Real* m, int64_t step, int64_t rows, int64_t depth, const Real* q, Real* c) {
  constexpr int L = NV * WIDTH<Real>;
  const int64_t next = ORDER == BY_ROW ? step : 1;
  int64_t r = 0;
  for (; r + 6 <= rows; r += 6) multiply_rows<ORDER, NV, 6>(m + r * next, step, depth, q, c + r * L);
  for (; r + 2 <= rows; r += 2) multiply_rows<ORDER, NV, 2>(m + r * next, step, depth, q, c + r * L);
  if (r < rows) multiply_rows<ORDER, NV, 1>(m + r * next, step, depth, q, c + r * L);
}

// The weights of bank row `row` for anchors first .. first+W-1 of the block.
template <class Real>
WCF_HD Vec<Real> row_weight(const DenseUnit& a, int64_t row, int first) {
  constexpr int W = WIDTH<Real>;
  const Vec<Real> one = splat(Real(1)), none{};
  const int lane = a.mask_lane + first;
  const int64_t group = lane / 32 * a.group_step + row - a.mask_row;
  if (a.weight == DENSE_BITS) {
    const int32_t bits = static_cast<int32_t>(a.mask[group] >> (lane % 32));
    const IntVec<Real> bit = (IntVec<Real>{} + 1) << lane_numbers<Real>();
    return (bit & bits) != 0 ? one : none;
  }
  Vec<Real> times{};
  if (a.weight == DENSE_COUNTS) {
    for (int j = 0; j < W; ++j) times[j] = static_cast<Real>(a.mask[group * 32 + lane % 32 + j]);
    return times;
  }
  const int32_t id = a.id ? a.id[row] : static_cast<int32_t>(row);
  IntVec<Real> own{};
  for (int j = 0; j < W; ++j) own[j] = a.own[first + j];
  return own != id ? one : none;
}

// The terms of W anchors, first .. first+W-1 of the block, in one tile. The scores at `column` become the weights of
// the rows in the gradient; the sums are added to value [W, 2]. TERM_EXP: a larger score rescales value and grad, and
// is the new `largest`.
template <BankTerm TERM, class Real>
struct DenseColumn {
  const DenseUnit& unit;
  int first;
  int lanes;         // L, the step from row to row
  Real* column;      // [rows, L], of which these are W lanes
  const Real* high;  // [W] the offset, and
  const Real* low;   // [W] its rounding
  Real* largest;     // [W]
  Real* grad;        // [D, L], of which these are W lanes; null: not wanted
  double* value;     // [W, 2]

  WCF_HD Vec<Real> weight(int64_t row) const { return row_weight<Real>(unit, row, first); }

  WCF_HD void run(int64_t row, int64_t rows) const {
    constexpr int W = WIDTH<Real>;
    const Vec<Real> scale = splat(static_cast<Real>(unit.scale)), none{};
    Vec<Real> sums[2] = {none, none};
    if (TERM == TERM_ROW) {
      for (int64_t t = 0; t < rows; ++t) store_vec(column + t * lanes, weight(row + t));
    } else if (TERM == TERM_SOFTPLUS) {
      SoftplusSum<Real> softplus;
      const Vec<Real> minus = none - load_vec<Real>(high), rest = load_vec<Real>(low);
      for (int64_t t = 0; t < rows; ++t) {
        const Vec<Real> times = weight(row + t);
        const Vec<Real> u = fma(load_vec<Real>(column + t * lanes), scale, minus) - rest;
        store_vec(column + t * lanes,
                  unit.weight == DENSE_COUNTS ? softplus.add_times(u, times) : softplus.add(u, times != Real(0)));
      }
      softplus.flush();
      sums[0] = softplus.above;
      sums[1] = softplus.slopes;
    } else {
      const Vec<Real> top = follow_largest(row, rows, scale);
      for (int64_t t = 0; t < rows; ++t) {
        const Vec<Real> times = weight(row + t);
        const Vec<Real> share = times * exp_nonpositive(load_vec<Real>(column + t * lanes) * scale - top);
        const Vec<Real> term = times != Real(0) ? share : none;
        sums[1] += term;
        store_vec(column + t * lanes, term);
      }
    }
    for (int j = 0; j < W; ++j) {
      value[2 * j] += static_cast<double>(sums[0][j]);
      value[2 * j + 1] += static_cast<double>(sums[1][j]);
    }
  }

  // Updates the largest scores and makes the sums relative to them.
  WCF_HD Vec<Real> follow_largest(int64_t row, int64_t rows, Vec<Real> scale) const {
    const Vec<Real> before = load_vec<Real>(largest);
    Vec<Real> top = before;
    for (int64_t t = 0; t < rows; ++t) {
      const Vec<Real> scaled = load_vec<Real>(column + t * lanes) * scale;
      const IntVec<Real> larger = (weight(row + t) != Real(0)) & (scaled > top);
      top = larger ? scaled : top;
    }
    if (any_lane<Real>(top > before)) {
      const Vec<Real> kept = exp_nonpositive(before - top);
      for (int64_t d = 0; grad && d < unit.dim; ++d) {
        store_vec(grad + d * lanes, load_vec<Real>(grad + d * lanes) * kept);
      }
      for (int j = 0; j < WIDTH<Real>; ++j) value[2 * j + 1] *= static_cast<double>(kept[j]);
      store_vec(largest, top);
    }
    return top;
  }
};

template <BankTerm TERM, int NV, class Real, class Bank>
void dense_unit(const DenseUnit& a) {
  constexpr int W = WIDTH<Real>, L = NV * W;
  const int groups = (a.count + L - 1) / L, all = groups * L;
  const Bank* const bank = static_cast<const Bank*>(a.bank);
  Real* const lanes = static_cast<Real*>(a.scratch);  // [groups, D, L] the anchors
  Real* const grad = lanes + a.dim * all;             // [groups, D, L]
  Real* const cells = grad + a.dim * all;             // [TILE, L]
  Real* const copy = cells + DENSE_TILE * L;          // [TILE, D] the tile, where it must be converted
  const Real* const anchors = static_cast<const Real*>(a.anchors);
  Real high[DENSE_LANES], low[DENSE_LANES], largest[DENSE_LANES];
  double value[DENSE_LANES][2] = {};
  for (int j = 0; j < all; ++j) {
    Real* const to = lanes + j / L * a.dim * L + j % L;
    for (int64_t d = 0; d < a.dim; ++d) to[d * L] = j < a.count ? anchors[j * a.dim + d] : Real(0);
    const double offset = a.offset && j < a.count ? a.offset[j] : 0.0;
    high[j] = static_cast<Real>(offset);
    low[j] = static_cast<Real>(offset - static_cast<double>(high[j]));
    largest[j] = static_cast<Real>(LOWEST_SCORE);
  }
  for (int64_t i = 0; i < a.dim * all; ++i) grad[i] = Real(0);
  for (int64_t first = a.row; first < a.row_end; first += DENSE_TILE) {
    const int64_t rows = a.row_end - first < DENSE_TILE ? a.row_end - first : DENSE_TILE;
    const Real* tile;
    if constexpr (std::is_same_v<Real, Bank>) {
      tile = bank + first * a.dim;
    } else {
      for (int64_t i = 0; i < rows * a.dim; ++i) copy[i] = static_cast<Real>(load(bank[first * a.dim + i]));
      tile = copy;
    }
    for (int g = 0; g < groups; ++g) {
      Real* const own = grad + g * a.dim * L;
      if (TERM != TERM_ROW) {
        for (int64_t i = 0; i < rows * L; ++i) cells[i] = Real(0);
        multiply<BY_ROW, NV>(tile, a.dim, rows, a.dim, lanes + g * a.dim * L, cells);
      }
      for (int v = 0; v < NV; ++v) {
        const int j = g * L + v * W;
        Real* const rescaled = a.grad ? own + v * W : nullptr;
        const DenseColumn<TERM, Real> column{a,       j,           L,        cells + v * W, high + j,
                                             low + j, largest + j, rescaled, value[j]};
        column.run(first, rows);
      }
      if (a.grad) multiply<BY_COLUMN, NV>(tile, a.dim, a.dim, rows, cells, own);
    }
  }
  for (int j = 0; j < a.count; ++j) {
    Real* const to = a.grad ? static_cast<Real*>(a.grad) + j * a.dim : nullptr;
    const Real* const own = grad + j / L * a.dim * L + j % L;
    if (TERM == TERM_EXP) {
      const double other[2] = {static_cast<double>(largest[j]), value[j][1]};
      join_exp_sums(a.value + 2 * j, to, other, own, a.dim, L);
      continue;
    }
    a.value[2 * j] += value[j][0];
    a.value[2 * j + 1] += value[j][1];
    for (int64_t d = 0; to && d < a.dim; ++d) to[d] += own[d * L];
  }
}

// A call has as many groups as the anchors fill: groups of one vector for few anchors, else groups of NV vectors.
template <BankTerm TERM, class Real, class Bank>
DenseKernel dense_kernel(int64_t batch) {
  constexpr int NV = WCF_AVX512 ? 4 : 2, W = WIDTH<Real>, L = NV * W;
  if (batch <= W) return DenseKernel{dense_unit<TERM, 1, Real, Bank>, W};
  const int64_t groups = (batch + L - 1) / L, most = DENSE_LANES / L;
  return DenseKernel{dense_unit<TERM, NV, Real, Bank>, static_cast<int>(groups < most ? groups : most) * L};
}

template <class Real, class Bank>
DenseKernel dense_for(BankTerm term, int64_t batch) {
  return term == TERM_SOFTPLUS ? dense_kernel<TERM_SOFTPLUS, Real, Bank>(batch)
         : term == TERM_ROW    ? dense_kernel<TERM_ROW, Real, Bank>(batch)
                               : dense_kernel<TERM_EXP, Real, Bank>(batch);
}

DenseKernel pick_dense(BankTerm term, int bank, bool wide, int64_t batch) {
  switch (bank) {
    case DTYPE_F32:
      return wide ? dense_for<double, float>(term, batch) : dense_for<float, float>(term, batch);
    case DTYPE_BF16:
      return wide ? dense_for<double, Bf16>(term, batch) : dense_for<float, Bf16>(term, batch);
    case DTYPE_F16:
      return wide ? dense_for<double, F16>(term, batch) : dense_for<float, F16>(term, batch);
    case DTYPE_F64:
      return dense_for<double, double>(term, batch);
    default:
      return DenseKernel{nullptr, 0};
  }
}
