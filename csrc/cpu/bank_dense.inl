// The dense plan's cells: scores in, coefficients out, a vector at a time. Included once per instruction set.

// How often each of the cells i .. i+W-1 counts; i is a multiple of W.
template <class Real>
WCF_HD Vec<Real> cell_weight(const Cells& a, int64_t i) {
  constexpr int W = WIDTH<Real>;
  const IntVec<Real> lane = lane_numbers<Real>();
  const Vec<Real> one = splat(Real(1)), none{};
  const int left = static_cast<int>(a.count - i < W ? a.count - i : W);
  IntVec<Real> counted = lane < left;
  if (a.weight == CELLS_BITS) {
    const IntVec<Real> bit = IntVec<Real>{} + 1 << lane;
    counted &= (bit & static_cast<int32_t>(a.counts[i / 32] >> (i % 32) & ((1u << W) - 1u))) != 0;
  } else if (a.weight == CELLS_COUNTS) {
    Vec<Real> times{};
    for (int j = 0; j < W; ++j) times[j] = static_cast<Real>(a.counts[i + j]);
    return times;
  } else if (a.weight == CELLS_LABELS) {
    int32_t label[W] = {};
    __builtin_memcpy(label, a.label + i, static_cast<size_t>(left) * sizeof *label);
    for (int j = 0; j < W; ++j) counted[j] &= label[j] != a.own ? -1 : 0;
  } else if (a.skip >= i && a.skip < i + W) {
    counted[a.skip - i] = 0;
  }
  return counted ? one : none;
}

template <int OP, class Real>
void cells(const Cells& a) {
  constexpr int W = WIDTH<Real>;
  Real* const cell = static_cast<Real*>(a.cell);
  const Vec<Real> scale = splat(static_cast<Real>(a.scale)), none{};
  const Real high = static_cast<Real>(a.offset);
  const Real low = static_cast<Real>(a.offset - static_cast<double>(high));
  NceSum<Real> nce;
  LogSum<Real> log_sum;
  for (int64_t i = 0; i < a.count; i += W) {
    const Vec<Real> weight = cell_weight<Real>(a, i);
    const Vec<Real> score = load_vec<Real>(cell + i);
    if (OP == BANK_ROW_SUM) {
      store_vec(cell + i, weight);
    } else if (OP == BANK_LOG_Z) {
      log_sum.add(score * scale, weight);
    } else {
      const Vec<Real> u = fma(score, scale, none - high) - low;
      store_vec(cell + i, a.weight == CELLS_COUNTS ? nce.add_times(u, weight) : nce.add(u, weight != Real(0)));
    }
  }
  for (int64_t i = (a.count + W - 1) / W * W; i < a.width; ++i) cell[i] = Real(0);
  if (OP == BANK_NCE) a.value[0] += nce.total();
  if (OP == BANK_LOG_Z) log_sum.merge_into(a.value);
}

CellsFn pick_cells(int op, bool wide) {
  if (op == BANK_NCE) return wide ? cells<BANK_NCE, double> : cells<BANK_NCE, float>;
  if (op == BANK_ROW_SUM) return wide ? cells<BANK_ROW_SUM, double> : cells<BANK_ROW_SUM, float>;
  return wide ? cells<BANK_LOG_Z, double> : cells<BANK_LOG_Z, float>;
}
