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

template <int OP, int NV, class Real, class Bank>
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
  double above[L] = {};
  LogSum<Real> log_sum[NV];
  for (int64_t first = a.row; first < a.row_end; first += DENSE_TILE) {
    const int64_t rows = a.row_end - first < DENSE_TILE ? a.row_end - first : DENSE_TILE;
    const Real* tile;
    if constexpr (std::is_same_v<Real, Bank>) {
      tile = bank + first * a.dim;
    } else {
      for (int64_t i = 0; i < rows * a.dim; ++i) copy[i] = static_cast<Real>(load(bank[first * a.dim + i]));
      tile = copy;
    }
    if (OP != BANK_MEAN_SCORE) {
      for (int64_t i = 0; i < rows * L; ++i) cells[i] = Real(0);
      multiply<NV>(tile, a.dim, 1, rows, a.dim, lanes, cells);
    }
    for (int v = 0; v < NV; ++v) {
      NceSum<Real> nce;
      const Vec<Real> minus = none - load_vec<Real>(high + v * W), rest = load_vec<Real>(low + v * W);
      for (int64_t t = 0; t < rows; ++t) {
        Real* const cell = cells + t * L + v * W;
        const Vec<Real> weight = row_weight<Real>(a, first + t, v * W);
        if (OP == BANK_MEAN_SCORE) {
          store_vec(cell, weight);
          continue;
        }
        const Vec<Real> score = load_vec<Real>(cell);
        if (OP == BANK_LOG_Z) {
          log_sum[v].add(score * scale, weight);
          continue;
        }
        const Vec<Real> u = fma(score, scale, minus) - rest;
        store_vec(cell, a.weight == DENSE_COUNTS ? nce.add_times(u, weight) : nce.add(u, weight != Real(0)));
      }
      nce.flush();
      for (int j = 0; j < W; ++j) above[v * W + j] += static_cast<double>(nce.above[j]);
    }
    if (a.grad) multiply<NV>(tile, 1, a.dim, a.dim, rows, cells, grad);
  }
  for (int j = 0; j < a.count; ++j) {
    if (OP == BANK_NCE) a.value[2 * j] += above[j];
    if (OP == BANK_LOG_Z) merge_log_sums(a.value + 2 * j, log_sum[j / W].largest[j % W], log_sum[j / W].sum[j % W]);
    if (!a.grad) continue;
    Real* const to = static_cast<Real*>(a.grad) + j * a.dim;
    for (int64_t d = 0; d < a.dim; ++d) to[d] += grad[d * L + j];
  }
}

// Few anchors take one vector of lanes, more take NV.
template <int OP, class Real, class Bank>
DenseKernel dense_kernel(int64_t batch) {
  constexpr int NV = WCF_AVX512 ? 4 : 2, W = WIDTH<Real>;
  if (batch <= W) return DenseKernel{dense_unit<OP, 1, Real, Bank>, W};
  return DenseKernel{dense_unit<OP, NV, Real, Bank>, NV * W};
}

template <class Real, class Bank>
DenseKernel dense_for(int op, int64_t batch) {
  return op == BANK_NCE          ? dense_kernel<BANK_NCE, Real, Bank>(batch)
         : op == BANK_MEAN_SCORE ? dense_kernel<BANK_MEAN_SCORE, Real, Bank>(batch)
                                 : dense_kernel<BANK_LOG_Z, Real, Bank>(batch);
}

DenseKernel pick_dense(int op, int bank, bool wide, int64_t batch) {
  switch (bank) {
    case DTYPE_F32:
      return wide ? dense_for<double, float>(op, batch) : dense_for<float, float>(op, batch);
    case DTYPE_BF16:
      return wide ? dense_for<double, Bf16>(op, batch) : dense_for<float, Bf16>(op, batch);
    case DTYPE_F16:
      return wide ? dense_for<double, F16>(op, batch) : dense_for<float, F16>(op, batch);
    case DTYPE_F64:
      return dense_for<double, double>(op, batch);
    default:
      return DenseKernel{nullptr, 0};
  }
}
