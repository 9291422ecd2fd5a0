// Entropic optimal transport on the CPU: what the solver takes and gives. Addresses and shapes are checked in Python.
#pragma once
#include <cstdint>

namespace wcf {

struct OtShape {
  int64_t problems;  // G
  int64_t n, m, dim;
};

struct OtOptions {
  bool cosine;  // else squared Euclidean
  bool ipot;    // else sinkhorn
  double eps;
  int64_t iters;
  double tol;  // < 0: never tested
  bool dual;   // value = <P, C> + eps * sum P log(P / R), R = ab without pairs; else <P, C>
  double rho;  // of R's mass on the pairs, in [0, 1)
};

// All contiguous, of the solve's REAL. A null mass is uniform; a null gradient is not wanted.
template <class T>
struct OtTensors {
  const T* x;           // [G, n, d]
  const T* y;           // [G, m, d]
  const T* a;           // [G, n]
  const T* b;           // [G, m]
  T* value;             // [G]
  T* alpha;             // [G, n]
  T* beta;              // [G, m]
  T* scale;             // [G]
  T* error;             // [G] sum_i |row sum_i - a_i|
  int32_t* iterations;  // [G]
  T* grad_x;            // [G, n, d]
  T* grad_y;            // [G, m, d]
  T* grad_a;            // [G, n]
  T* grad_b;            // [G, m]
  const int64_t* row_labels;     // [G, n] rows and columns of equal label are pairs, a negative one has none; or null
  const int64_t* column_labels;  // [G, m]
};

// Where a problem's n x m matrix lives: stored (one matrix per thread that solves a problem of its own), or not at all,
// each strip of rows recomputed when it is needed.
struct OtPlan {
  bool resident;
  bool per_thread;        // each thread solves problems of its own; else all threads solve one problem after another
  int64_t scratch_bytes;  // all scratch together
};

// `resident_bytes`: the budget for stored matrices.
OtPlan ot_plan(const OtShape& shape, const OtOptions& options, bool want_x, bool want_y, int real_bytes,
               int64_t resident_bytes, int threads);

// Solves every problem. False: some value is not acceptable (NaN, inf, a negative mass, masses that do not sum to 1, a
// zero row with mass under the cosine cost), nothing in the results means anything, and the caller has to say which.
template <class T>
bool ot_solve(const OtShape& shape, const OtOptions& options, const OtTensors<T>& tensors, int64_t resident_bytes,
              int threads);

// plan [G, n, m] = exp(alpha_i + beta_j - scale C_ij), from the very C that ot_solve sees. alpha [G, n] and beta [G, m]
// may be -inf.
template <class T>
void ot_plan_matrix(const OtShape& shape, bool cosine, const T* x, const T* y, const T* alpha, const T* beta,
                    const T* scale, T* plan, int threads);

}  // namespace wcf
