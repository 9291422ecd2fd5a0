// The passes of the Sinkhorn iteration over a strip of rows. Included once per instruction set.
//
// A strip is `rows` rows (a multiple of GROUP) of length ld (a multiple of the tile's width), `stride` numbers from row
// to row; the columns m .. ld-1 are padding, which q (0) or bx and beta (Range<T>::nowhere) take out. GROUP rows are
// processed together, so the vectors over the columns (q, bx, c) are read or updated once per group, and the second
// half of a group's work has its rows in L1.

// row + column - s C. The row's potential and s C are combined first. The difference has the size of the column's
// potential, so this order rounds at half the size of s C or less.
template <class T>
WCF_HD Vec<T> exponent(T s, Vec<T> cost, Vec<T> row, Vec<T> column) {
  return fma(splat(-s), cost, row) + column;
}

// The partial sums of K_ij q_j of a group k of rows at two vectors of columns, one sum for each vector: twice as many
// chains of additions.
template <class T>
WCF_HD void receive_at(const T* k, int64_t stride, const T* q, Vec<T>* even, Vec<T>* odd) {
  const Vec<T> q0 = load_vec<T>(q), q1 = load_vec<T>(q + WIDTH<T>);
  WCF_UNROLL
  for (int i = 0; i < GROUP; ++i) {
    even[i] = fma(load_vec<T>(k + i * stride), q0, even[i]);
    odd[i] = fma(load_vec<T>(k + i * stride + WIDTH<T>), q1, odd[i]);
  }
}

// c_j += sum_i p_i K_ij at one vector of columns.
template <class T>
WCF_HD void give_at(const T* k, int64_t stride, const Vec<T>* p, T* c) {
  Vec<T> sum = load_vec<T>(c);
  WCF_UNROLL
  for (int i = 0; i < GROUP; ++i) sum = fma(load_vec<T>(k + i * stride), p[i], sum);
  store_vec(c, sum);
}

// r of a group and p = a / r in every lane; which r are in the safe range.
template <class T>
WCF_HD IntFour<T> scale_group(const Vec<T>* even, const Vec<T>* odd, const T* a, T* r, Vec<T>* p) {
  Vec<T> both[GROUP];
  WCF_UNROLL
  for (int i = 0; i < GROUP; ++i) both[i] = even[i] + odd[i];
  const Four<T> received = sums_of<T>(both), scale = load_four<T>(a) / received;
  store_four(r, received);
  WCF_UNROLL
  for (int i = 0; i < GROUP; ++i) p[i] = splat(scale[i]);
  return (received >= Range<T>::row_least) & (received <= Range<T>::row_most);
}

// Stored kernel K [rows, ld]: r_i = sum_j K_ij q_j, then c_j += sum_i (a_i / r_i) K_ij. False: an r_i left the safe
// range. Reads each row from memory once.
template <class T>
bool scale_rows(const T* kernel, int64_t stride, int64_t ld, int64_t rows, const T* q, const T* a, T* r, T* c) {
  constexpr int64_t L1_SHARE = 24 << 10;
  const int64_t group_step = GROUP * stride;
  IntFour<T> safe = ~IntFour<T>{};
  if (3 * group_step * static_cast<int64_t>(sizeof(T)) > L1_SHARE) {
    for (int64_t i = 0; i < rows; i += GROUP) {
      const T* const k = kernel + i * stride;
      Vec<T> even[GROUP] = {}, odd[GROUP] = {}, p[GROUP];
      for (int64_t j = 0; j < ld; j += 2 * WIDTH<T>) receive_at(k + j, stride, q + j, even, odd);
      safe &= scale_group(even, odd, a + i, r + i, p);
      for (int64_t j = 0; j < ld; j += WIDTH<T>) {
        give_at(k + j, stride, p, c + j);
        WCF_UNROLL  // prefetch the next group, or memory would be idle
            for (int n = 0; n < GROUP; ++n) __builtin_prefetch(k + (GROUP + n) * stride + j, 0, 2);
      }
    }
    return (safe[0] & safe[1] & safe[2] & safe[3]) != 0;
  }
  // Three groups fit in L1: the second half of a group runs beside the first half of the group after the next, which
  // hides the sums and divisions between the halves. Operations and their order are those above, hence also the bits.
  Vec<T> now[GROUP] = {}, next[GROUP] = {};
  for (int64_t i = 0; i < rows + 2 * GROUP; i += GROUP) {
    const int64_t in = i * stride,
                  out = in - 2 * group_step;  // not pointers: the first `out` and the last `in` lie outside
    Vec<T> even[GROUP] = {}, odd[GROUP] = {};
    if (i < 2 * GROUP || i >= rows) {
      if (i < rows) {
        for (int64_t j = 0; j < ld; j += 2 * WIDTH<T>) receive_at(kernel + in + j, stride, q + j, even, odd);
      }
      if (i >= 2 * GROUP) {
        for (int64_t j = 0; j < ld; j += WIDTH<T>) give_at(kernel + out + j, stride, now, c + j);
      }
    } else {
      for (int64_t j = 0; j < ld; j += 2 * WIDTH<T>) {
        receive_at(kernel + in + j, stride, q + j, even, odd);
        give_at(kernel + out + j, stride, now, c + j);
        give_at(kernel + out + j + WIDTH<T>, stride, now, c + j + WIDTH<T>);
      }
    }
    WCF_UNROLL
    for (int n = 0; n < GROUP; ++n) now[n] = next[n];
    if (i < rows) safe &= scale_group(even, odd, a + i, r + i, next);
  }
  return (safe[0] & safe[1] & safe[2] & safe[3]) != 0;
}

// Stored kernel: sum_i |row sum_i - a_i| for the scalings r (of the rows) and q.
template <class T>
double scaled_row_error(const T* kernel, int64_t stride, int64_t ld, int64_t rows, const T* q, const T* a, const T* r) {
  double error = 0;
  for (int64_t i0 = 0; i0 < rows; i0 += GROUP) {
    Vec<T> sum[GROUP] = {};
    for (int64_t j = 0; j < ld; j += WIDTH<T>) {
      const Vec<T> qj = load_vec<T>(q + j);
      WCF_UNROLL
      for (int i = 0; i < GROUP; ++i) sum[i] = fma(load_vec<T>(kernel + (i0 + i) * stride + j), qj, sum[i]);
    }
    const Four<T> total = sums_of<T>(sum);
    for (int i = 0; i < GROUP; ++i) {
      const T off = a[i0 + i] / r[i0 + i] * total[i] - a[i0 + i];
      error += off < 0 ? -off : off;
    }
  }
  return error;
}

// max_j (bx_j - s C_ij)
template <class T>
WCF_HD T row_peak(const T* cost, int64_t ld, T s, const T* bx) {
  Vec<T> peak = splat(Range<T>::nowhere);
  for (int64_t j = 0; j < ld; j += WIDTH<T>) {
    peak = max_vec(peak, fma(splat(-s), load_vec<T>(cost + j), load_vec<T>(bx + j)));
  }
  return most_of<T>(peak);
}

// e_j = exp(shift + bx_j - s C_j), and their sum by lanes. One row at a time: the constants of an exp fill the
// registers.
template <class T>
WCF_HD Vec<T> exp_row(const T* cost, int64_t ld, T s, T shift, const T* bx, T* e) {
  Vec<T> sum = {};
  for (int64_t j = 0; j < ld; j += WIDTH<T>) {
    const Vec<T> x = exp_vec<T>(exponent(s, load_vec<T>(cost + j), splat(shift), load_vec<T>(bx + j)));
    store_vec(e + j, x);
    sum += x;
  }
  return sum;
}

// Stored cost C [rows, ld]: with E_ij = exp(f_i + bx_j - s C_ij) and r_i = sum_j E_ij, f_i becomes
// f_i + log(a_i / r_i), which is alpha_i, and c_j += sum_i w_i E_ij with w_i = a_i / r_i. The incoming f_i is only a
// shift: a row whose sum leaves the safe range (or every row, if `peak`) is shifted by its maximum instead. w_i is
// taken from the rounded alpha_i, so that the columns are right for the potentials that are kept. scratch [GROUP, ld].
template <class T>
void exp_rows(const T* cost, int64_t stride, int64_t ld, int64_t rows, T s, const T* bx, const T* a, const T* log_a,
              bool peak, T* f, T* c, T* scratch) {
  constexpr int ROUNDED = WIDTH<T> > GROUP ? WIDTH<T> : GROUP;
  for (int64_t i0 = 0; i0 < rows; i0 += GROUP) {
    const T* const from = cost + i0 * stride;
    bool redo[GROUP];
    T r[ROUNDED] = {}, shift[ROUNDED] = {}, w[ROUNDED];
    for (int i = 0; i < GROUP; ++i) redo[i] = peak;
    if (!peak) {
      Vec<T> sum[GROUP];
      for (int i = 0; i < GROUP; ++i) {
        shift[i] = f[i0 + i];
        sum[i] = exp_row(from + i * stride, ld, s, shift[i], bx, scratch + i * ld);
      }
      store_four(r, sums_of<T>(sum));
      for (int i = 0; i < GROUP; ++i) redo[i] = !(r[i] >= Range<T>::row_least && r[i] <= Range<T>::row_most);
    }
    for (int i = 0; i < GROUP; ++i) {
      if (!redo[i]) continue;
      shift[i] = -row_peak(from + i * stride, ld, s, bx);
      r[i] = sum_of<T>(exp_row(from + i * stride, ld, s, shift[i], bx, scratch + i * ld));
    }
    T alpha[ROUNDED] = {};
    for (int i = 0; i < GROUP; ++i) alpha[i] = log_a[i0 + i];
    for (int i = 0; i < GROUP; i += WIDTH<T>) {
      const Vec<T> from_shift = load_vec<T>(shift + i),
                   now = from_shift + (load_vec<T>(alpha + i) - log_vec<T>(load_vec<T>(r + i)));
      store_vec(alpha + i, now);
      store_vec(w + i, exp_vec<T>(now - from_shift));
    }
    Vec<T> p[GROUP];
    WCF_UNROLL
    for (int i = 0; i < GROUP; ++i) {
      p[i] = splat(a[i0 + i] > 0 ? w[i] : T(0));
      f[i0 + i] = alpha[i];
    }
    for (int64_t j = 0; j < ld; j += WIDTH<T>) {
      Vec<T> sum = load_vec<T>(c + j);
      WCF_UNROLL
      for (int i = 0; i < GROUP; ++i) sum = fma(load_vec<T>(scratch + i * ld + j), p[i], sum);
      store_vec(c + j, sum);
    }
  }
}

// Stored cost: sum_i |row sum_i - a_i| for the potentials alpha and beta.
template <class T>
double exp_row_error(const T* cost, int64_t stride, int64_t ld, int64_t rows, T s, const T* beta, const T* alpha,
                     const T* a) {
  double error = 0;
  for (int64_t i = 0; i < rows; ++i) {
    Vec<T> sum = {};
    for (int64_t j = 0; j < ld; j += WIDTH<T>) {
      sum += exp_vec<T>(exponent(s, load_vec<T>(cost + i * stride + j), splat(alpha[i]), load_vec<T>(beta + j)));
    }
    const T off = sum_of<T>(sum) - a[i];
    error += off < 0 ? -off : off;
  }
  return error;
}

// top_j = max(top_j, max_i (alpha_i - s C_ij)): the first half of a column step by maxima.
template <class T>
void column_peaks(const T* cost, int64_t stride, int64_t ld, int64_t rows, T s, const T* alpha, T* top) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < ld; j += WIDTH<T>) {
      store_vec(top + j,
                max_vec(load_vec<T>(top + j), fma(splat(-s), load_vec<T>(cost + i * stride + j), splat(alpha[i]))));
    }
  }
}

// c_j += sum_i exp(alpha_i - s C_ij - top_j): the second half.
template <class T>
void column_sums(const T* cost, int64_t stride, int64_t ld, int64_t rows, T s, const T* alpha, const T* top, T* c) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < ld; j += WIDTH<T>) {
      const Vec<T> t = exponent(s, load_vec<T>(cost + i * stride + j), splat(alpha[i]), -load_vec<T>(top + j));
      store_vec(c + j, load_vec<T>(c + j) + exp_vec<T>(t));
    }
  }
}

// The spread max_i (max_j C_ij - min_j C_ij) over the m columns, and shift_i = s min_j C_ij.
template <class T>
T row_spread(const T* cost, int64_t stride, int64_t rows, int64_t m, T s, T* shift) {
  T spread = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const T* const row = cost + i * stride;
    T least = row[0], most = row[0];
    int64_t j = 0;
    if (m >= WIDTH<T>) {
      Vec<T> low = load_vec<T>(row), high = low;
      for (; j + WIDTH<T> <= m; j += WIDTH<T>) {
        low = min_vec(low, load_vec<T>(row + j));
        high = max_vec(high, load_vec<T>(row + j));
      }
      least = least_of<T>(low), most = most_of<T>(high);
    }
    for (; j < m; ++j) {
      least = row[j] < least ? row[j] : least;
      most = row[j] > most ? row[j] : most;
    }
    shift[i] = s * least;
    spread = most - least > spread ? most - least : spread;
  }
  return spread;
}

// The cost becomes the stored kernel exp(f_i + g_j - s C_ij), in place.
template <class T>
void absorb(T* cost, int64_t stride, int64_t ld, int64_t rows, T s, const T* f, const T* g) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < ld; j += WIDTH<T>) {
      T* const at = cost + i * stride + j;
      store_vec(at, exp_vec<T>(exponent(s, load_vec<T>(at), splat(f[i]), load_vec<T>(g + j))));
    }
  }
}

// The end of a solve: writes P over the strip (if `keep`), makes its row sums, adds its column sums to c (if c), and
// sums P C. Stored cost: P = exp(alpha_i + beta_j - s C_ij).
template <class T>
double finish_cost(T* cost, int64_t stride, int64_t ld, int64_t rows, T s, const T* alpha, const T* beta, bool keep,
                   T* row_sum, T* c) {
  double value = 0;
  for (int64_t i = 0; i < rows; ++i) {
    Vec<T> sum = {}, weighted = {};
    for (int64_t j = 0; j < ld; j += WIDTH<T>) {
      T* const at = cost + i * stride + j;
      const Vec<T> x = load_vec<T>(at), p = exp_vec<T>(exponent(s, x, splat(alpha[i]), load_vec<T>(beta + j)));
      sum += p;
      weighted = fma(p, x, weighted);
      if (c) store_vec(c + j, load_vec<T>(c + j) + p);
      if (keep) store_vec(at, p);
    }
    row_sum[i] = sum_of<T>(sum);
    value += sum_of<T>(weighted);
  }
  return value;
}

// The end of a solve with the stored kernel K = exp(f_i + g_j - s C_ij): P = p_i K_ij q_j with p_i = a_i / r_i, and C
// comes from log K.
template <class T>
double finish_kernel(T* kernel, int64_t stride, int64_t ld, int64_t rows, T s, const T* f, const T* g, const T* a,
                     const T* r, const T* q, bool keep, T* row_sum, T* c) {
  double value = 0;
  for (int64_t i = 0; i < rows; ++i) {
    Vec<T> sum = {}, weighted = {};
    const T scale = a[i] / r[i];
    for (int64_t j = 0; j < ld; j += WIDTH<T>) {
      T* const at = kernel + i * stride + j;
      const Vec<T> k = load_vec<T>(at), p = k * (load_vec<T>(q + j) * scale);
      sum += p;
      weighted = fma(p, f[i] + load_vec<T>(g + j) - log_vec<T>(k), weighted);
      if (c) store_vec(c + j, load_vec<T>(c + j) + p);
      if (keep) store_vec(at, p);
    }
    row_sum[i] = sum_of<T>(sum);
    value += sum_of<T>(weighted) / s;
  }
  return value;
}
