// One visit: the rows of one bank tile that one anchor drew, scored and added to its value and gradient.
// Included once per instruction set.
//
// W rows (a vector's lanes) are scored at a time: W dot products, one vector of critic terms, W multiply-adds into the
// gradient while the rows are still in L1. The dimensions are cut into blocks of 8, 4, 2 or 1 vectors. The block's part
// of the anchor (or of the gradient) stays in registers for all W rows. At D = 128 and 16 lanes there is one block.

// f.template operator()<V, TAIL>(d, n): a block of V vectors at dimension d, or the last n < W elements.
template <class Real, class F>
WCF_HD void for_blocks(int64_t dim, F f) {
  constexpr int W = WIDTH<Real>;
  int64_t d = 0;
  for (; d + 8 * W <= dim; d += 8 * W) f.template block<8>(d);
  if (d + 4 * W <= dim) {
    f.template block<4>(d);
    d += 4 * W;
  }
  if (d + 2 * W <= dim) {
    f.template block<2>(d);
    d += 2 * W;
  }
  if (d + W <= dim) {
    f.template block<1>(d);
    d += W;
  }
  if (d < dim) f.tail(d, static_cast<int>(dim - d));
}

// part[j] += row[j] * x, lane by lane.
template <class Real, class Bank>
struct Dots {
  const Bank* const* row;
  int count;
  const Real* x;
  Vec<Real>* part;

  template <int V>
  WCF_HD void block(int64_t d) const {
    constexpr int W = WIDTH<Real>;
    Vec<Real> own[V];
    for (int v = 0; v < V; ++v) own[v] = load_vec<Real>(x + d + v * W);
    for (int j = 0; j < count; ++j) {
      const Bank* const m = row[j] + d;
      Vec<Real> sum = d == 0 ? Vec<Real>{} : part[j];
      WCF_UNROLL
      for (int v = 0; v < V; ++v) sum = fma(load_vec<Real>(m + v * W), own[v], sum);
      part[j] = sum;
    }
  }
  WCF_HD void tail(int64_t d, int n) const {
    const Vec<Real> own = load_part<Real>(x + d, n);
    for (int j = 0; j < count; ++j) part[j] = fma(load_part<Real>(row[j] + d, n), own, d == 0 ? Vec<Real>{} : part[j]);
  }
};

// grad += sum over j of weight[j] * row[j]; the sum over j comes first, so that no long chain of small additions forms.
template <class Real, class Bank>
struct Combine {
  const Bank* const* row;
  const Bank* const* next;  // the rows after these, to be prefetched
  int count;
  const Real* weight;
  Real* grad;

  template <int V>
  WCF_HD void block(int64_t d) const {
    constexpr int W = WIDTH<Real>;
    Vec<Real> sum[V] = {};
    for (int j = 0; j < count; ++j) {
      const Bank* const m = row[j] + d;
      const Vec<Real> w = splat(weight[j]);
      const char* const ahead = reinterpret_cast<const char*>(next[j] + d);
      WCF_UNROLL
      for (int at = 0; at < V * W * static_cast<int>(sizeof(Bank)); at += 64) __builtin_prefetch(ahead + at);
      WCF_UNROLL
      for (int v = 0; v < V; ++v) sum[v] = fma(w, load_vec<Real>(m + v * W), sum[v]);
    }
    for (int v = 0; v < V; ++v) store_vec(grad + d + v * W, load_vec<Real>(grad + d + v * W) + sum[v]);
  }
  WCF_HD void tail(int64_t d, int n) const {
    Vec<Real> sum{};
    for (int j = 0; j < count; ++j) sum = fma(splat(weight[j]), load_part<Real>(row[j] + d, n), sum);
    store_part(grad + d, load_part<Real>(grad + d, n) + sum, n);
  }
};

template <BankTerm TERM, class Real, class Bank>
void visit(const Visit& a) {
  constexpr int W = WIDTH<Real>;
  const Bank* const tile = static_cast<const Bank*>(a.tile);
  const Real* const x = static_cast<const Real*>(a.anchor);
  Real* const grad = static_cast<Real*>(a.grad);
  const Vec<Real> scale = splat(static_cast<Real>(a.scale)), none{};
  const Real high = static_cast<Real>(a.offset);
  const Real low = static_cast<Real>(a.offset - static_cast<double>(high));
  const IntVec<Real> lane = lane_numbers<Real>();
  SoftplusSum<Real> softplus;
  Vec<Real> exp_sum{};
  Real largest = static_cast<Real>(a.value[0]);  // TERM_EXP
  for (int64_t start = 0; start < a.count; start += W) {
    const int count = static_cast<int>(a.count - start < W ? a.count - start : W);
    const Bank *row[W], *next[W];
    for (int j = 0; j < count; ++j) {
      row[j] = tile + static_cast<int64_t>(a.rows[start + j]) * a.dim;
      const int64_t after = start + j + W;
      next[j] = tile + static_cast<int64_t>(a.rows[after < a.count ? after : start]) * a.dim;
    }
    const IntVec<Real> counted = lane < count;
    Real weight[W];
    if (TERM == TERM_ROW) {
      for (int j = 0; j < W; ++j) weight[j] = Real(1);
    } else {
      Vec<Real> part[W];
      for (int j = count; j < W; ++j) part[j] = none;
      for_blocks<Real>(a.dim, Dots<Real, Bank>{row, count, x, part});
      const Vec<Real> score = sum_each<Real>(part);
      if (TERM == TERM_EXP) {
        const Vec<Real> scaled = counted ? score * scale : none + static_cast<Real>(LOWEST_SCORE);
        if (any_lane<Real>(scaled > largest)) {  // seldom: the sums become relative to a larger score
          const Real top = most_of<Real>(scaled);
          const Real kept = exp_nonpositive(splat(largest - top))[0];
          exp_sum *= kept;
          a.value[1] *= static_cast<double>(kept);
          for (int64_t d = 0; grad && d < a.dim; ++d) grad[d] *= kept;
          largest = top;
        }
        const Vec<Real> share = exp_nonpositive(scaled - largest);
        const Vec<Real> term = counted ? share : none;
        exp_sum += term;
        store_vec(weight, term);
      } else {
        store_vec(weight, softplus.add(fma(score, scale, none - high) - low, counted));
      }
    }
    if (grad) for_blocks<Real>(a.dim, Combine<Real, Bank>{row, next, count, weight, grad});
  }
  if (TERM == TERM_SOFTPLUS) {
    a.value[0] += softplus.total();
    a.value[1] += static_cast<double>(sum_of<Real>(softplus.slopes));
  }
  if (TERM == TERM_EXP) {
    a.value[0] = static_cast<double>(largest);
    a.value[1] += static_cast<double>(sum_of<Real>(exp_sum));
  }
}

template <class Real, class Bank>
VisitFn visit_for(BankTerm term) {
  return term == TERM_SOFTPLUS ? visit<TERM_SOFTPLUS, Real, Bank>
         : term == TERM_ROW    ? visit<TERM_ROW, Real, Bank>
                               : visit<TERM_EXP, Real, Bank>;
}

// The visit for a bank of dtype `bank`, in fp64 if `wide` (always so for an fp64 bank).
VisitFn pick_visit(BankTerm term, int bank, bool wide) {
  switch (bank) {
    case DTYPE_F32:
      return wide ? visit_for<double, float>(term) : visit_for<float, float>(term);
    case DTYPE_BF16:
      return wide ? visit_for<double, Bf16>(term) : visit_for<float, Bf16>(term);
    case DTYPE_F16:
      return wide ? visit_for<double, F16>(term) : visit_for<float, F16>(term);
    case DTYPE_F64:
      return visit_for<double, double>(term);
    default:
      return nullptr;
  }
}
