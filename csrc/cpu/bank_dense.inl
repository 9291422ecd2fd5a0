// Dense plan: a block of anchors against consecutive tiles of the bank. Included once per instruction set.
//
// The anchors are the lanes: L = NV vectors hold one number of each anchor of the block. Then both products, scores and
// gradient, are the same loop (an element of the bank, broadcast, times L lanes), the bank is read as it lies in
// memory, and the critic's sums need no reduction over lanes. Scores of a tile [TILE, L] stay in cache.

// c [rows, L] += sum over k < depth of m[row * row_step + k * depth_step] * q[k, L], ROWS rows at a time in registers;
// the sum over k comes first, so that no long chain of small additions forms.
template <int NV, int ROWS, class Real>
WCF_HD void multiply_rows(const Real* m, int64_t row_step, int64_t depth_step, int64_t depth, const Real* q, Real* c) {
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
      const Vec<Real> element = splat(m[r * row_step + k * depth_step]);
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

template <int NV, class Real>
void multiply(const Real* m, int64_t row_step, int64_t depth_step, int64_t rows, int64_t depth, const Real* q,
              Real* c) {
  constexpr int L = NV * WIDTH<Real>;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) multiply_rows<NV, 4>(m + r * row_step, row_step, depth_step, depth, q, c + r * L);
  for (; r < rows; ++r) multiply_rows<NV, 1>(m + r * row_step, row_step, depth_step, depth, q, c + r * L);
}

// How often bank row `row` counts for anchors first .. first+W-1 of the block.
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

template <BankTerm TERM, int NV, class Real, class Bank>
void dense_unit(const DenseUnit& a) {
  constexpr int W = WIDTH<Real>, L = NV * W;
  const Bank* const bank = static_cast<const Bank*>(a.bank);
  Real* const lanes = static_cast<Real*>(a.scratch);  // [D, L] the anchors
  Real* const grad = lanes + a.dim * L;               // [D, L]
  Real* const cells = grad + a.dim * L;               // [TILE, L]
  Real* const copy = cells + DENSE_TILE * L;          // [TILE, D] the tile, where it must be converted
  const Real* const anchors = static_cast<const Real*>(a.anchors);
  for (int64_t d = 0; d < a.dim; ++d) {
    for (int j = 0; j < L; ++j) lanes[d * L + j] = j < a.count ? anchors[j * a.dim + d] : Real(0);
  }
  for (int64_t i = 0; i < a.dim * L; ++i) grad[i] = Real(0);
  const Vec<Real> scale = splat(static_cast<Real>(a.scale)), none{};
  Real high[L], low[L];
  for (int j = 0; j < L; ++j) {
    const double offset = a.offset && j < a.count ? a.offset[j] : 0.0;
    high[j] = static_cast<Real>(offset);
    low[j] = static_cast<Real>(offset - static_cast<double>(high[j]));
  }
  double value[L][2] = {};
  Real largest[L];
  for (int j = 0; j < L; ++j) largest[j] = static_cast<Real>(LOWEST_SCORE);
  for (int64_t first = a.row; first < a.row_end; first += DENSE_TILE) {
    const int64_t rows = a.row_end - first < DENSE_TILE ? a.row_end - first : DENSE_TILE;
    const Real* tile;
    if constexpr (std::is_same_v<Real, Bank>) {
      tile = bank + first * a.dim;
    } else {
      for (int64_t i = 0; i < rows * a.dim; ++i) copy[i] = static_cast<Real>(load(bank[first * a.dim + i]));
      tile = copy;
    }
    if (TERM != TERM_ROW) {
      for (int64_t i = 0; i < rows * L; ++i) cells[i] = Real(0);
      multiply<NV>(tile, a.dim, 1, rows, a.dim, lanes, cells);
    }
    for (int v = 0; v < NV; ++v) {
      Real* const column = cells + v * W;  // of W anchors: row t is at t * L
      Vec<Real> sums[2] = {none, none};
      if (TERM == TERM_ROW) {
        for (int64_t t = 0; t < rows; ++t) store_vec(column + t * L, row_weight<Real>(a, first + t, v * W));
      } else if (TERM == TERM_SOFTPLUS) {
        SoftplusSum<Real> softplus;
        const Vec<Real> minus = none - load_vec<Real>(high + v * W), rest = load_vec<Real>(low + v * W);
        for (int64_t t = 0; t < rows; ++t) {
          const Vec<Real> weight = row_weight<Real>(a, first + t, v * W);
          const Vec<Real> u = fma(load_vec<Real>(column + t * L), scale, minus) - rest;
          store_vec(column + t * L,
                    a.weight == DENSE_COUNTS ? softplus.add_times(u, weight) : softplus.add(u, weight != Real(0)));
        }
        softplus.flush();
        sums[0] = softplus.above;
        sums[1] = softplus.slopes;
      } else {
        const Vec<Real> before = load_vec<Real>(largest + v * W);
        Vec<Real> top = before;
        for (int64_t t = 0; t < rows; ++t) {
          const Vec<Real> scaled = load_vec<Real>(column + t * L) * scale;
          const IntVec<Real> larger = (row_weight<Real>(a, first + t, v * W) != Real(0)) & (scaled > top);
          top = larger ? scaled : top;
        }
        if (any_lane<Real>(top > before)) {  // what has been summed is now relative to a larger score
          const Vec<Real> kept = exp_nonpositive(before - top);
          for (int64_t d = 0; a.grad && d < a.dim; ++d) {
            store_vec(grad + d * L + v * W, load_vec<Real>(grad + d * L + v * W) * kept);
          }
          for (int j = 0; j < W; ++j) value[v * W + j][1] *= static_cast<double>(kept[j]);
          store_vec(largest + v * W, top);
        }
        for (int64_t t = 0; t < rows; ++t) {
          const Vec<Real> weight = row_weight<Real>(a, first + t, v * W);
          const Vec<Real> share = weight * exp_nonpositive(load_vec<Real>(column + t * L) * scale - top);
          const Vec<Real> term = weight != Real(0) ? share : none;
          sums[1] += term;
          store_vec(column + t * L, term);
        }
      }
      for (int j = 0; j < W; ++j) {
        value[v * W + j][0] += static_cast<double>(sums[0][j]);
        value[v * W + j][1] += static_cast<double>(sums[1][j]);
      }
    }
    if (a.grad) multiply<NV>(tile, 1, a.dim, a.dim, rows, cells, grad);
  }
  for (int j = 0; j < a.count; ++j) {
    Real* const to = a.grad ? static_cast<Real*>(a.grad) + j * a.dim : nullptr;
    if (TERM == TERM_EXP) {
      const double other[2] = {static_cast<double>(largest[j]), value[j][1]};
      join_exp_sums(a.value + 2 * j, to, other, grad + j, a.dim, L);
      continue;
    }
    a.value[2 * j] += value[j][0];
    a.value[2 * j + 1] += value[j][1];
    for (int64_t d = 0; to && d < a.dim; ++d) to[d] += grad[d * L + j];
  }
}

// Few anchors take one vector of lanes, more take NV.
template <BankTerm TERM, class Real, class Bank>
DenseKernel dense_kernel(int64_t batch) {
  constexpr int NV = WCF_AVX512 ? 4 : 2, W = WIDTH<Real>;
  if (batch <= W) return DenseKernel{dense_unit<TERM, 1, Real, Bank>, W};
  return DenseKernel{dense_unit<TERM, NV, Real, Bank>, NV * W};
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
