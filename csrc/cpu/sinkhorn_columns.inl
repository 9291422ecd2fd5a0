// The column step, and what is done once per row of features. Included once per instruction set and REAL, by
// sinkhorn_kernels.h only.

// total [first, last) = the partial sums of all chunks, parts [chunks, ld], in order. Padding gets 1.
WCF_INLINE void total_of(const REAL* parts, int64_t chunks, int64_t ld, int64_t m, int64_t first, int64_t last,
                         REAL* total) {
  for (int64_t j = first; j < last; j += LANES) {
    Vec sum = load_vec(parts + j);
    for (int64_t k = 1; k < chunks; ++k) sum += load_vec(parts + k * ld + j);
    store_vec(total + j, sum);
  }
  for (int64_t j = first > m ? first : m; j < last; ++j) total[j] = 1;
}

// Stored kernel, columns [first, last): c = what they receive, q = b / c. False: a c_j left the safe range.
static bool scale_columns(const REAL* parts, int64_t chunks, int64_t ld, int64_t m, int64_t first, int64_t last,
                          const REAL* b, REAL* c, REAL* q) {
  total_of(parts, chunks, ld, m, first, last, c);
  Vec least = splat(ROW_MOST), most = splat(ROW_LEAST);
  for (int64_t j = first; j < last; j += LANES) {
    const Vec cj = load_vec(c + j);
    least = min_vec(cj, least);
    most = max_vec(cj, most);
    store_vec(q + j, load_vec(b + j) / cj);
  }
  return least_of(least) >= ROW_LEAST && most_of(most) <= ROW_MOST;
}

// Stored cost: c as above. False: a c_j left the safe range, and the column step has to be done by maxima.
static bool exp_columns(const REAL* parts, int64_t chunks, int64_t ld, int64_t m, int64_t first, int64_t last,
                        REAL* c) {
  total_of(parts, chunks, ld, m, first, last, c);
  Vec least = splat(ROW_MOST), most = splat(COLUMN_LEAST);
  for (int64_t j = first; j < last; j += LANES) {
    least = min_vec(load_vec(c + j), least);
    most = max_vec(load_vec(c + j), most);
  }
  return least_of(least) >= COLUMN_LEAST && most_of(most) <= ROW_MOST;
}

// beta_j = from_j + log b_j - log c_j; bx_j = 2 beta_j - the old beta_j (ipot) or beta_j; returns max_j |new - old|.
// `from` is bx, or minus the column's maximum if c was summed relative to it.
static REAL step_columns(const REAL* from, const REAL* c, const REAL* log_b, int64_t m, int64_t first, int64_t last,
                         bool extrapolate, REAL* beta, REAL* bx) {
  Vec change = {};
  REAL tail = 0;
  for (int64_t j = first; j < last; j += LANES) {
    const Vec old = load_vec(beta + j);
    const Vec now = load_vec(from + j) + (load_vec(log_b + j) - log_vec(load_vec(c + j)));
    const Vec step = now - old, size = max_vec(step, -step);
    store_vec(beta + j, now);
    store_vec(bx + j, extrapolate ? now + step : now);
    if (j + LANES <= m) {
      change = max_vec(change, size);
    } else {
      for (int64_t i = 0; j + i < m; ++i) tail = size[i] > tail ? size[i] : tail;
    }
  }
  for (int64_t j = first > m ? first : m; j < last; ++j) beta[j] = bx[j] = NOWHERE;
  const REAL most = most_of(change);
  return most > tail ? most : tail;
}

// Whether x [n] is finite throughout.
static bool all_finite(const REAL* x, int64_t n) {
  constexpr Int INFINITE = ((Int(1) << (8 * sizeof(REAL) - 1 - MANTISSA)) - 1) << MANTISSA;
  Int bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    Int bits;
    __builtin_memcpy(&bits, x + i, sizeof bits);
    bad |= (bits & INFINITE) == INFINITE;
  }
  return bad == 0;
}

WCF_INLINE REAL power_of_two(int e) {
  const Unsigned bits = static_cast<Unsigned>(e + BIAS) << MANTISSA;
  REAL power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return power;
}

// unit [d] = x / |x|, and |x|, which is 1 for a zero row. A power of two near the largest entry is divided out before
// squaring (exactly), so that squares neither overflow nor vanish. False: x is zero.
static bool unit_row(const REAL* x, int64_t d, REAL* unit, REAL* length) {
  const int64_t whole = d / LANES * LANES;
  Vec peaks = {};
  for (int64_t k = 0; k < whole; k += LANES) {
    const Vec v = load_vec(x + k);
    peaks = max_vec(peaks, max_vec(v, -v));
  }
  REAL peak = most_of(peaks);
  for (int64_t k = whole; k < d; ++k) {
    const REAL size = x[k] < 0 ? -x[k] : x[k];
    peak = size > peak ? size : peak;
  }
  // 2^e <= peak < 2^(e + 1), e kept where 2^e and 2^-e are normal; a subnormal peak counts as the least normal number.
  Unsigned bits;
  __builtin_memcpy(&bits, &peak, sizeof bits);
  const int e = static_cast<int>(bits >> MANTISSA) - BIAS, least = 1 - BIAS, most = BIAS - 1;
  const REAL by = power_of_two(e < least ? least : e > most ? most : e), inverse = 1 / by;
  Vec squares = {};
  for (int64_t k = 0; k < whole; k += LANES) {
    const Vec v = load_vec(x + k) * inverse;
    squares = fma_vec(v, v, squares);
  }
  REAL square = sum_of(squares);
  for (int64_t k = whole; k < d; ++k) square += x[k] * inverse * (x[k] * inverse);
  const REAL root = square > 0 ? static_cast<REAL>(__builtin_sqrt(square)) : 1, factor = 1 / root;
  for (int64_t k = 0; k < whole; k += LANES) store_vec(unit + k, load_vec(x + k) * inverse * factor);
  for (int64_t k = whole; k < d; ++k) unit[k] = x[k] * inverse * factor;
  *length = root * by;
  return peak > 0;
}

// g [d] holds sum_j P_ij (y_j - centre) and becomes the gradient at x_i: 2 (mass (x_i - centre) - g), or for the cosine
// cost (null centre, y on unit rows) that through the normalisation which made x_i a unit row.
static void finish_gradient(const REAL* x, const REAL* centre, REAL mass, REAL length, int64_t d, REAL* g) {
  if (centre) {
    for (int64_t k = 0; k < d; ++k) g[k] = 2 * (mass * (x[k] - centre[k]) - g[k]);
    return;
  }
  const int64_t whole = d / LANES * LANES;
  Vec products = {};
  for (int64_t k = 0; k < whole; k += LANES) products = fma_vec(load_vec(g + k), load_vec(x + k), products);
  REAL along = sum_of(products);
  for (int64_t k = whole; k < d; ++k) along += g[k] * x[k];
  const REAL scale = 1 / length;
  for (int64_t k = 0; k < whole; k += LANES) store_vec(g + k, (along * load_vec(x + k) - load_vec(g + k)) * scale);
  for (int64_t k = whole; k < d; ++k) g[k] = (along * x[k] - g[k]) * scale;
}
