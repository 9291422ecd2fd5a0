// The passes of the Sinkhorn iteration over a strip of rows. Included once per instruction set and REAL, by
// sinkhorn_kernels.h only.
//
// A strip is `rows` rows (a multiple of GROUP) of length ld (a multiple of the tile's width), `stride` apart; the columns
// m .. ld-1 are padding, which q (0) or bx and beta (NOWHERE) take out. GROUP rows are worked on
// together, so that the vectors over the columns (q, bx, c) are read, or read and written, once for them all, and the
// second half of a group's work finds its rows in L1.

// row + column - s C. The potential of the row is taken off first: what is left is of the size of the column's, so this
// order rounds at half the size of s C or less.
WCF_INLINE Vec exponent(REAL s, Vec cost, Vec row, Vec column) { return fma_vec(splat(-s), cost, row) + column; }

// The partial sums of K_ij q_j of a group k of rows at two vectors of columns, even and odd ones apart: twice as many
// chains of additions.
WCF_INLINE void receive_at(const REAL* k, int64_t stride, const REAL* q, Vec* even, Vec* odd) {
  const Vec q0 = load_vec(q), q1 = load_vec(q + LANES);
  WCF_UNROLL
  for (int i = 0; i < GROUP; ++i) {
    even[i] = fma_vec(load_vec(k + i * stride), q0, even[i]);
    odd[i] = fma_vec(load_vec(k + i * stride + LANES), q1, odd[i]);
  }
}

// c_j += sum_i p_i K_ij at one vector of columns.
WCF_INLINE void give_at(const REAL* k, int64_t stride, const Vec* p, REAL* c) {
  Vec sum = load_vec(c);
  WCF_UNROLL
  for (int i = 0; i < GROUP; ++i) sum = fma_vec(load_vec(k + i * stride), p[i], sum);
  store_vec(c, sum);
}

// r of a group and p = a / r in every lane; which r are in the safe range.
WCF_INLINE IntFour scale_group(const Vec* even, const Vec* odd, const REAL* a, REAL* r, Vec* p) {
  Vec both[GROUP];
  WCF_UNROLL
  for (int i = 0; i < GROUP; ++i) both[i] = even[i] + odd[i];
  const Four received = sums_of(both), scale = load_four(a) / received;
  store_four(r, received);
  WCF_UNROLL
  for (int i = 0; i < GROUP; ++i) p[i] = splat(scale[i]);
  return (received >= ROW_LEAST) & (received <= ROW_MOST);
}

// Stored kernel K [rows, ld]: r_i = sum_j K_ij q_j, then c_j += sum_i (a_i / r_i) K_ij. False: an r_i left the safe range.
// Reads each row from memory once.
static bool scale_rows(const REAL* kernel, int64_t stride, int64_t ld, int64_t rows, const REAL* q, const REAL* a, REAL* r, REAL* c) {
  constexpr int64_t L1_SHARE = 24 << 10;
  const int64_t apart = GROUP * stride;
  IntFour safe = ~IntFour{};
  if (3 * apart * static_cast<int64_t>(sizeof(REAL)) > L1_SHARE) {
    for (int64_t i = 0; i < rows; i += GROUP) {
      const REAL* const k = kernel + i * stride;
      Vec even[GROUP] = {}, odd[GROUP] = {}, p[GROUP];
      for (int64_t j = 0; j < ld; j += 2 * LANES) receive_at(k + j, stride, q + j, even, odd);
      safe &= scale_group(even, odd, a + i, r + i, p);
      for (int64_t j = 0; j < ld; j += LANES) {
        give_at(k + j, stride, p, c + j);
        WCF_UNROLL  // the next group: or memory would rest meanwhile
        for (int n = 0; n < GROUP; ++n) __builtin_prefetch(k + (GROUP + n) * stride + j, 0, 2);
      }
    }
    return (safe[0] & safe[1] & safe[2] & safe[3]) != 0;
  }
  // Three groups fit in L1: a group gives while the one after the next receives, and the sums and divisions between the
  // two halves hide behind that. The same operations in the same order as above, hence the same bits.
  Vec now[GROUP] = {}, next[GROUP] = {};
  for (int64_t i = 0; i < rows + 2 * GROUP; i += GROUP) {
    const REAL *const in = kernel + i * stride, *const out = in - 2 * apart;
    Vec even[GROUP] = {}, odd[GROUP] = {};
    if (i < 2 * GROUP || i >= rows) {
      if (i < rows) {
        for (int64_t j = 0; j < ld; j += 2 * LANES) receive_at(in + j, stride, q + j, even, odd);
      }
      if (i >= 2 * GROUP) {
        for (int64_t j = 0; j < ld; j += LANES) give_at(out + j, stride, now, c + j);
      }
    } else {
      for (int64_t j = 0; j < ld; j += 2 * LANES) {
        receive_at(in + j, stride, q + j, even, odd);
        give_at(out + j, stride, now, c + j);
        give_at(out + j + LANES, stride, now, c + j + LANES);
      }
    }
    WCF_UNROLL
    for (int n = 0; n < GROUP; ++n) now[n] = next[n];
    if (i < rows) safe &= scale_group(even, odd, a + i, r + i, next);
  }
  return (safe[0] & safe[1] & safe[2] & safe[3]) != 0;
}

// Stored kernel: sum_i |row sum_i - a_i| for the scalings r (of the rows) and q.
static double scaled_row_error(const REAL* kernel, int64_t stride, int64_t ld, int64_t rows, const REAL* q, const REAL* a, const REAL* r) {
  double error = 0;
  for (int64_t i0 = 0; i0 < rows; i0 += GROUP) {
    Vec sum[GROUP] = {};
    for (int64_t j = 0; j < ld; j += LANES) {
      const Vec qj = load_vec(q + j);
      WCF_UNROLL
      for (int i = 0; i < GROUP; ++i) sum[i] = fma_vec(load_vec(kernel + (i0 + i) * stride + j), qj, sum[i]);
    }
    const Four total = sums_of(sum);
    for (int i = 0; i < GROUP; ++i) {
      const REAL off = a[i0 + i] / r[i0 + i] * total[i] - a[i0 + i];
      error += off < 0 ? -off : off;
    }
  }
  return error;
}

// max_j (bx_j - s C_ij)
WCF_INLINE REAL row_peak(const REAL* cost, int64_t ld, REAL s, const REAL* bx) {
  Vec peak = splat(NOWHERE);
  for (int64_t j = 0; j < ld; j += LANES) {
    peak = max_vec(peak, fma_vec(splat(-s), load_vec(cost + j), load_vec(bx + j)));
  }
  return most_of(peak);
}

// e_j = exp(shift + bx_j - s C_j), and their sum by lanes. One row at a time: the constants of an exp fill the registers.
WCF_INLINE Vec exp_row(const REAL* cost, int64_t ld, REAL s, REAL shift, const REAL* bx, REAL* e) {
  Vec sum = {};
  for (int64_t j = 0; j < ld; j += LANES) {
    const Vec x = exp_vec(exponent(s, load_vec(cost + j), splat(shift), load_vec(bx + j)));
    store_vec(e + j, x);
    sum += x;
  }
  return sum;
}

// Stored cost C [rows, ld]: with E_ij = exp(f_i + bx_j - s C_ij) and r_i = sum_j E_ij, f_i becomes
// f_i + log(a_i / r_i), which is alpha_i, and c_j += sum_i w_i E_ij with w_i = a_i / r_i. The incoming f_i is only a
// shift: a row whose sum leaves the safe range (or every row, if `peak`) is shifted by its maximum instead. w_i is taken
// from the rounded alpha_i, so that the columns are right for the potentials that are kept. scratch [GROUP, ld].
static void exp_rows(const REAL* cost, int64_t stride, int64_t ld, int64_t rows, REAL s, const REAL* bx, const REAL* a,
                     const REAL* log_a, bool peak, REAL* f, REAL* c, REAL* scratch) {
  constexpr int WIDTH = LANES > GROUP ? LANES : GROUP;
  for (int64_t i0 = 0; i0 < rows; i0 += GROUP) {
    const REAL* const from = cost + i0 * stride;
    bool redo[GROUP];
    REAL r[WIDTH] = {}, shift[WIDTH] = {}, w[WIDTH];
    for (int i = 0; i < GROUP; ++i) redo[i] = peak;
    if (!peak) {
      Vec sum[GROUP];
      for (int i = 0; i < GROUP; ++i) {
        shift[i] = f[i0 + i];
        sum[i] = exp_row(from + i * stride, ld, s, shift[i], bx, scratch + i * ld);
      }
      store_four(r, sums_of(sum));
      for (int i = 0; i < GROUP; ++i) redo[i] = !(r[i] >= ROW_LEAST && r[i] <= ROW_MOST);
    }
    for (int i = 0; i < GROUP; ++i) {
      if (!redo[i]) continue;
      shift[i] = -row_peak(from + i * stride, ld, s, bx);
      r[i] = sum_of(exp_row(from + i * stride, ld, s, shift[i], bx, scratch + i * ld));
    }
    REAL alpha[WIDTH] = {};
    for (int i = 0; i < GROUP; ++i) alpha[i] = log_a[i0 + i];
    for (int i = 0; i < GROUP; i += LANES) {
      const Vec from_shift = load_vec(shift + i), now = from_shift + (load_vec(alpha + i) - log_vec(load_vec(r + i)));
      store_vec(alpha + i, now);
      store_vec(w + i, exp_vec(now - from_shift));
    }
    Vec p[GROUP];
    WCF_UNROLL
    for (int i = 0; i < GROUP; ++i) {
      p[i] = splat(a[i0 + i] > 0 ? w[i] : REAL(0));
      f[i0 + i] = alpha[i];
    }
    for (int64_t j = 0; j < ld; j += LANES) {
      Vec sum = load_vec(c + j);
      WCF_UNROLL
      for (int i = 0; i < GROUP; ++i) sum = fma_vec(load_vec(scratch + i * ld + j), p[i], sum);
      store_vec(c + j, sum);
    }
  }
}

// Stored cost: sum_i |row sum_i - a_i| for the potentials alpha and beta.
static double exp_row_error(const REAL* cost, int64_t stride, int64_t ld, int64_t rows, REAL s, const REAL* beta, const REAL* alpha,
                            const REAL* a) {
  double error = 0;
  for (int64_t i = 0; i < rows; ++i) {
    Vec sum = {};
    for (int64_t j = 0; j < ld; j += LANES) {
      sum += exp_vec(exponent(s, load_vec(cost + i * stride + j), splat(alpha[i]), load_vec(beta + j)));
    }
    const REAL off = sum_of(sum) - a[i];
    error += off < 0 ? -off : off;
  }
  return error;
}

// top_j = max(top_j, max_i (alpha_i - s C_ij)): the first half of a column step by maxima.
static void column_peaks(const REAL* cost, int64_t stride, int64_t ld, int64_t rows, REAL s, const REAL* alpha, REAL* top) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < ld; j += LANES) {
      store_vec(top + j, max_vec(load_vec(top + j), fma_vec(splat(-s), load_vec(cost + i * stride + j), splat(alpha[i]))));
    }
  }
}

// c_j += sum_i exp(alpha_i - s C_ij - top_j): the second half.
static void column_sums(const REAL* cost, int64_t stride, int64_t ld, int64_t rows, REAL s, const REAL* alpha, const REAL* top, REAL* c) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < ld; j += LANES) {
      const Vec t = exponent(s, load_vec(cost + i * stride + j), splat(alpha[i]), -load_vec(top + j));
      store_vec(c + j, load_vec(c + j) + exp_vec(t));
    }
  }
}

// The spread max_i (max_j C_ij - min_j C_ij) over the m columns, and shift_i = s min_j C_ij.
static REAL row_spread(const REAL* cost, int64_t stride, int64_t rows, int64_t m, REAL s, REAL* shift) {
  REAL spread = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const REAL* const row = cost + i * stride;
    REAL least = row[0], most = row[0];
    int64_t j = 0;
    if (m >= LANES) {
      Vec low = load_vec(row), high = low;
      for (; j + LANES <= m; j += LANES) {
        low = min_vec(low, load_vec(row + j));
        high = max_vec(high, load_vec(row + j));
      }
      least = least_of(low), most = most_of(high);
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
static void absorb(REAL* cost, int64_t stride, int64_t ld, int64_t rows, REAL s, const REAL* f, const REAL* g) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < ld; j += LANES) {
      REAL* const at = cost + i * stride + j;
      store_vec(at, exp_vec(exponent(s, load_vec(at), splat(f[i]), load_vec(g + j))));
    }
  }
}

// The end of a solve: P over the strip in place (if `keep`), its row sums, its column sums on top of c (if c), and
// sum P C. Stored cost: P = exp(alpha_i + beta_j - s C_ij).
static double finish_cost(REAL* cost, int64_t stride, int64_t ld, int64_t rows, REAL s, const REAL* alpha, const REAL* beta, bool keep,
                          REAL* row_sum, REAL* c) {
  double value = 0;
  for (int64_t i = 0; i < rows; ++i) {
    Vec sum = {}, weighted = {};
    for (int64_t j = 0; j < ld; j += LANES) {
      REAL* const at = cost + i * stride + j;
      const Vec x = load_vec(at), p = exp_vec(exponent(s, x, splat(alpha[i]), load_vec(beta + j)));
      sum += p;
      weighted = fma_vec(p, x, weighted);
      if (c) store_vec(c + j, load_vec(c + j) + p);
      if (keep) store_vec(at, p);
    }
    row_sum[i] = sum_of(sum);
    value += sum_of(weighted);
  }
  return value;
}

// The same from the stored kernel K = exp(f_i + g_j - s C_ij): P = p_i K_ij q_j with p_i = a_i / r_i, and C from log K.
static double finish_kernel(REAL* kernel, int64_t stride, int64_t ld, int64_t rows, REAL s, const REAL* f, const REAL* g, const REAL* a,
                            const REAL* r, const REAL* q, bool keep, REAL* row_sum, REAL* c) {
  double value = 0;
  for (int64_t i = 0; i < rows; ++i) {
    Vec sum = {}, weighted = {};
    const REAL scale = a[i] / r[i];
    for (int64_t j = 0; j < ld; j += LANES) {
      REAL* const at = kernel + i * stride + j;
      const Vec k = load_vec(at), p = k * (load_vec(q + j) * scale);
      sum += p;
      weighted = fma_vec(p, f[i] + load_vec(g + j) - log_vec(k), weighted);
      if (c) store_vec(c + j, load_vec(c + j) + p);
      if (keep) store_vec(at, p);
    }
    row_sum[i] = sum_of(sum);
    value += sum_of(weighted) / s;
  }
  return value;
}
