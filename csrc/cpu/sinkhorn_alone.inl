// One problem with a matrix of its own: an iteration reads the kernel K once. Included once per instruction set.
//
// K is stored by rows of length round_up(m, TILE_COLUMNS), zeros behind the m columns and in the rows that fill the
// last block. A block of TILE_COLUMNS rows gets its sums, its scalings, and its share of the columns' sums while it is
// in L1 or L2. Vectors over rows and columns are as long as the padded sides; behind the end scalings are 0.

// K_ij = exp(shift_i - s C_ij), or, if `weighted`, C_ij times the K that is there.
template <class T>
void alone_pack(const T* cost, int64_t n, int64_t m, T s, const T* shift, bool weighted, T* kernel) {
  const int64_t ld = round_up(m, TILE_COLUMNS<T>), whole = m / WIDTH<T> * WIDTH<T>;
  for (int64_t i = 0; i < n; ++i) {
    const T* const row = cost + i * m;
    T* const to = kernel + i * ld;
    const auto cell = [&](Vec<T> c, int64_t j) {
      return weighted ? c * load_vec<T>(to + j) : exp_vec<T>(fma(splat(-s), c, splat(shift[i])));
    };
    for (int64_t j = 0; j < whole; j += WIDTH<T>) store_vec(to + j, cell(load_vec<T>(row + j), j));
    if (whole < m) store_vec(to + whole, cell(load_part<T>(row + whole, static_cast<int>(m - whole)), whole));
    for (int64_t j = m; j < ld; ++j) to[j] = 0;
  }
  const int64_t end = round_up(n, TILE_COLUMNS<T>);
  for (int64_t k = n * ld; k < end * ld; ++k) kernel[k] = 0;
}

// sums [GROUP] of K_ij in_j for a group of rows.
template <class T>
WCF_HD void alone_receive(const T* kernel, int64_t ld, const T* in, T* sums) {
  Vec<T> even[GROUP] = {}, odd[GROUP] = {};
  for (int64_t j = 0; j < ld; j += 2 * WIDTH<T>) receive_at(kernel + j, ld, in + j, even, odd);
  WCF_UNROLL
  for (int i = 0; i < GROUP; ++i) even[i] += odd[i];
  store_four(sums, sums_of<T>(even));
}

// What `step` does with the sums of TILE_COLUMNS rows at i. Those behind the end are not looked at.
template <class T>
WCF_HD void alone_scale(const SharedStep<T>& step, int64_t i, T* sums, IntVec<T>* safe) {
  for (int64_t k = step.rows; k < i + TILE_COLUMNS<T>; ++k) sums[k - i] = 1;
  const Vec<T> sum[2] = {load_vec<T>(sums), load_vec<T>(sums + WIDTH<T>)}, frozen[2] = {};
  shared_scale(step, !step.extended && step.damp == 1, i, sum, frozen, safe);
}

// The row step, then the column step if there is one. Without a mass a row step makes the sums alone.
template <class T>
void alone_product(const SharedStep<T>& row, const SharedStep<T>* column) {
  constexpr int64_t BLOCK = TILE_COLUMNS<T>;
  static_assert(BLOCK % GROUP == 0, "whole groups");
  const int64_t ld = round_up(row.k, BLOCK);
  IntVec<T> safe[2] = {~IntVec<T>{}, ~IntVec<T>{}};
  if (column) {
    for (int64_t j = 0; j < ld; ++j) column->sums[j] = 0;
  }
  for (int64_t i0 = 0; i0 < row.rows; i0 += BLOCK) {
    const T* const block = row.kernel + i0 * ld;
    T sums[BLOCK];
    for (int64_t i = 0; i < BLOCK; i += GROUP) alone_receive(block + i * ld, ld, row.in, sums + i);
    if (!row.mass) {
      __builtin_memcpy(row.sums + i0, sums, sizeof sums);
      continue;
    }
    alone_scale(row, i0, sums, safe);
    for (int64_t i = 0; i < BLOCK && column; i += GROUP) {
      Vec<T> p[GROUP];
      WCF_UNROLL
      for (int k = 0; k < GROUP; ++k) p[k] = splat(row.scaling[i0 + i + k]);
      for (int64_t j = 0; j < ld; j += WIDTH<T>) give_at(block + i * ld + j, ld, p, column->sums + j);
    }
  }
  for (int64_t j = 0; column && j < column->rows; j += BLOCK) alone_scale(*column, j, column->sums + j, safe);
  if (any_lane<T>(~(safe[0] & safe[1]))) row.marks[1] = 0;
}

// out_j = w exp(alpha + beta_j - s C_j), or that on top of what is there.
template <class T>
void plan_row(const T* cost, int64_t m, T s, T alpha, const T* beta, T w, bool add, T* out) {
  const auto cell = [&](Vec<T> c, Vec<T> b) { return splat(w) * exp_vec<T>(exponent(s, c, splat(alpha), b)); };
  int64_t j = 0;
  for (; j + WIDTH<T> <= m; j += WIDTH<T>) {
    const Vec<T> p = cell(load_vec<T>(cost + j), load_vec<T>(beta + j));
    store_vec(out + j, add ? load_vec<T>(out + j) + p : p);
  }
  if (j == m) return;
  const int rest = static_cast<int>(m - j);
  const Vec<T> p = cell(load_part<T>(cost + j, rest), load_part<T>(beta + j, rest));
  store_part(out + j, add ? load_part<T>(out + j, rest) + p : p, rest);
}
