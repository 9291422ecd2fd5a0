// The column step, and the work that is done once per row of features. Included once per instruction set.

// total [first, last) = the partial sums of all chunks, parts [chunks, ld], in order. Padding gets 1.
template <class T>
WCF_HD void total_of(const T* parts, int64_t chunks, int64_t ld, int64_t m, int64_t first, int64_t last, T* total) {
  for (int64_t j = first; j < last; j += WIDTH<T>) {
    Vec<T> sum = load_vec<T>(parts + j);
    for (int64_t k = 1; k < chunks; ++k) sum += load_vec<T>(parts + k * ld + j);
    store_vec(total + j, sum);
  }
  for (int64_t j = first > m ? first : m; j < last; ++j) total[j] = 1;
}

// Stored kernel, columns [first, last): c = the column sums, q = b / c. False: a c_j left the safe range.
template <class T>
bool scale_columns(const T* parts, int64_t chunks, int64_t ld, int64_t m, int64_t first, int64_t last, const T* b, T* c,
                   T* q) {
  total_of(parts, chunks, ld, m, first, last, c);
  Vec<T> least = splat(Range<T>::row_most), most = splat(Range<T>::row_least);
  for (int64_t j = first; j < last; j += WIDTH<T>) {
    const Vec<T> cj = load_vec<T>(c + j);
    least = min_vec(cj, least);
    most = max_vec(cj, most);
    store_vec(q + j, load_vec<T>(b + j) / cj);
  }
  return least_of<T>(least) >= Range<T>::row_least && most_of<T>(most) <= Range<T>::row_most;
}

// Stored cost: c as above. False: a c_j left the safe range, and the column step needs maxima.
template <class T>
bool exp_columns(const T* parts, int64_t chunks, int64_t ld, int64_t m, int64_t first, int64_t last, T* c) {
  total_of(parts, chunks, ld, m, first, last, c);
  Vec<T> least = splat(Range<T>::row_most), most = splat(Range<T>::column_least);
  for (int64_t j = first; j < last; j += WIDTH<T>) {
    least = min_vec(load_vec<T>(c + j), least);
    most = max_vec(load_vec<T>(c + j), most);
  }
  return least_of<T>(least) >= Range<T>::column_least && most_of<T>(most) <= Range<T>::row_most;
}

// beta_j = from_j + log b_j - log c_j; bx_j = 2 beta_j - the old beta_j (ipot) or beta_j; returns max_j |new - old|.
// `from` is bx, or minus the column's maximum if c was summed relative to it.
template <class T>
T step_columns(const T* from, const T* c, const T* log_b, int64_t m, int64_t first, int64_t last, bool extrapolate,
               T* beta, T* bx) {
  Vec<T> change = {};
  T tail = 0;
  for (int64_t j = first; j < last; j += WIDTH<T>) {
    const Vec<T> old = load_vec<T>(beta + j);
    const Vec<T> now = load_vec<T>(from + j) + (load_vec<T>(log_b + j) - log_vec<T>(load_vec<T>(c + j)));
    const Vec<T> step = now - old, size = max_vec(step, -step);
    store_vec(beta + j, now);
    store_vec(bx + j, extrapolate ? now + step : now);
    if (j + WIDTH<T> <= m) {
      change = max_vec(change, size);
    } else {
      for (int64_t i = 0; j + i < m; ++i) tail = size[i] > tail ? size[i] : tail;
    }
  }
  for (int64_t j = first > m ? first : m; j < last; ++j) beta[j] = bx[j] = Range<T>::nowhere;
  const T most = most_of<T>(change);
  return most > tail ? most : tail;
}

// Whether x [n] is finite throughout.
template <class T>
bool all_finite(const T* x, int64_t n) {
  using Int = typename IntOf<T>::type;
  constexpr int MANTISSA = Format<T>::mantissa;
  constexpr Int INFINITE = ((Int(1) << (8 * sizeof(T) - 1 - MANTISSA)) - 1) << MANTISSA;
  Int bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    Int bits;
    __builtin_memcpy(&bits, x + i, sizeof bits);
    bad |= (bits & INFINITE) == INFINITE;
  }
  return bad == 0;
}

// unit [d] = x / |x|, and |x|, which is 1 for a zero row. A power of two near the largest entry is divided out before
// squaring (exactly), so that squares neither overflow nor vanish. False: x is zero.
template <class T>
bool unit_row(const T* x, int64_t d, T* unit, T* length) {
  const int64_t whole = d / WIDTH<T> * WIDTH<T>;
  Vec<T> peaks = {};
  for (int64_t k = 0; k < whole; k += WIDTH<T>) {
    const Vec<T> v = load_vec<T>(x + k);
    peaks = max_vec(peaks, max_vec(v, -v));
  }
  T peak = most_of<T>(peaks);
  for (int64_t k = whole; k < d; ++k) {
    const T size = x[k] < 0 ? -x[k] : x[k];
    peak = size > peak ? size : peak;
  }
  // 2^e <= peak < 2^(e + 1), e kept where 2^e and 2^-e are normal; a subnormal peak counts as the least normal number.
  constexpr int MOST = Format<T>::bias - 1;
  const int e = exponent_of(peak);
  const T by = power_of_two<T>(e < -MOST ? -MOST : e > MOST ? MOST : e), inverse = 1 / by;
  Vec<T> squares = {};
  for (int64_t k = 0; k < whole; k += WIDTH<T>) {
    const Vec<T> v = load_vec<T>(x + k) * inverse;
    squares = fma(v, v, squares);
  }
  T square = sum_of<T>(squares);
  for (int64_t k = whole; k < d; ++k) square += x[k] * inverse * (x[k] * inverse);
  const T root = square > 0 ? static_cast<T>(__builtin_sqrt(square)) : 1, factor = 1 / root;
  for (int64_t k = 0; k < whole; k += WIDTH<T>) store_vec(unit + k, load_vec<T>(x + k) * inverse * factor);
  for (int64_t k = whole; k < d; ++k) unit[k] = x[k] * inverse * factor;
  *length = root * by;
  return peak > 0;
}

// g [d] holds sum_j P_ij (y_j - centre) and becomes the gradient at x_i: 2 (mass (x_i - centre) - g), or for the cosine
// cost (null centre, y on unit rows) that through the normalisation which made x_i a unit row.
template <class T>
void finish_gradient(const T* x, const T* centre, T mass, T length, int64_t d, T* g) {
  if (centre) {
    for (int64_t k = 0; k < d; ++k) g[k] = 2 * (mass * (x[k] - centre[k]) - g[k]);
    return;
  }
  const int64_t whole = d / WIDTH<T> * WIDTH<T>;
  Vec<T> products = {};
  for (int64_t k = 0; k < whole; k += WIDTH<T>) products = fma(load_vec<T>(g + k), load_vec<T>(x + k), products);
  T along = sum_of<T>(products);
  for (int64_t k = whole; k < d; ++k) along += g[k] * x[k];
  const T scale = 1 / length;
  for (int64_t k = 0; k < whole; k += WIDTH<T>)
    store_vec(g + k, (along * load_vec<T>(x + k) - load_vec<T>(g + k)) * scale);
  for (int64_t k = whole; k < d; ++k) g[k] = (along * x[k] - g[k]) * scale;
}
