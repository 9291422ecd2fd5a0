// The inner loops of the Sinkhorn solver as one table of functions per REAL; it is made for each instruction set
// (simd_kernels.h).
#pragma once
#include <cstdint>

#include "../common/defines.h"

namespace wcf {

constexpr int GROUP = 4;                       // rows of a strip that are worked on together (a `Four`)
constexpr int64_t ABLOCK = 96;                 // rows of A per block of a product: a multiple of 6, 8 and 16
constexpr int64_t PACK = ABLOCK * (256 + 16);  // elements of a product's scratch
constexpr int64_t PAD_BYTES = 128;             // rows of a strip are padded to this, the widest tile

// One half step of problems that share a kernel matrix (sinkhorn_shared.inl): sums = K in, then scaling = mass / sums.
// A panel holds `tile_columns` problems; arrays are [panels, rows or k, tile_columns].
template <class T>
struct SharedStep {
  const T* kernel;  // packed, [rows up to whole tiles, k]
  int64_t rows, k, panels;
  const T* in;    // [panels, k, ..]
  T* sums;        // [panels, rows, ..]; null: only scaling is needed
  const T* mass;  // null: only sums is needed
  T* scaling;     // [panels, rows, ..]; the old one on entry
  T* extended;    // ipot's columns: scaling^2 / the old one; else null
  T* partial;     // like sums, for k of more than one pass
  T damp;         // scaling = mass * sums^-damp
  T* marks;       // [panels, 2, ..] frozen problems (not 0), and those that were always in the safe range (not 0)
};

// Up to tile_columns / 2 small matrices, one a lane (sinkhorn_project.inl).
template <class T>
struct ProjectStep {
  const T* logits;  // [count, n, n]
  const T* grad;    // [count, n, n], or null
  T* out;           // [count, n, n]
  int32_t* solved;  // [count]
  int64_t count, n, iters;
  T scale;     // 1 / eps
  T* scratch;  // (2 n n + n (1 + 2 iters)) lanes; without grad iters counts as 1
};

template <class T>
struct SinkhornKernels {
  int tile_rows;
  void (*project)(const ProjectStep<T>& step);
  void (*shared_pack)(const T* cost, int64_t n, int64_t m, T s, const T* shift, int64_t first, int64_t last,
                      bool weighted, T* by_rows, T* by_columns, T* scratch);
  void (*shared_product)(const SharedStep<T>& step);
  void (*shared_log)(T* x, int64_t count);
  void (*alone_pack)(const T* cost, int64_t n, int64_t m, T s, const T* shift, bool weighted, T* kernel);
  void (*alone_product)(const SharedStep<T>& row, const SharedStep<T>* column);
  void (*plan_row)(const T* cost, int64_t m, T s, T alpha, const T* beta, T w, bool add, T* out);
  int tile_columns;
  void (*pack_b)(const T* b, int64_t step, int64_t stride, const T* centre, int64_t valid, int64_t width, int64_t k,
                 int64_t first, int64_t last, T* packed);
  void (*product)(const T* a, int64_t stride, int64_t step, const T* packed, int64_t rows, int64_t columns, int64_t k,
                  bool square, T base, T sign, T* out, int64_t ldo, T* scratch);
  bool (*scale_rows)(const T* kernel, int64_t stride, int64_t ld, int64_t rows, const T* q, const T* a, T* r, T* c);
  double (*scaled_row_error)(const T* kernel, int64_t stride, int64_t ld, int64_t rows, const T* q, const T* a,
                             const T* r);
  void (*exp_rows)(const T* cost, int64_t stride, int64_t ld, int64_t rows, T s, const T* bx, const T* a,
                   const T* log_a, bool peak, T* f, T* c, T* scratch);
  double (*exp_row_error)(const T* cost, int64_t stride, int64_t ld, int64_t rows, T s, const T* beta, const T* alpha,
                          const T* a);
  void (*column_peaks)(const T* cost, int64_t stride, int64_t ld, int64_t rows, T s, const T* alpha, T* top);
  void (*column_sums)(const T* cost, int64_t stride, int64_t ld, int64_t rows, T s, const T* alpha, const T* top, T* c);
  T (*row_spread)(const T* cost, int64_t stride, int64_t rows, int64_t m, T s, T* shift);
  void (*absorb)(T* cost, int64_t stride, int64_t ld, int64_t rows, T s, const T* f, const T* g);
  double (*finish_cost)(T* cost, int64_t stride, int64_t ld, int64_t rows, T s, const T* alpha, const T* beta,
                        bool keep, T* row_sum, T* c);
  double (*finish_kernel)(T* kernel, int64_t stride, int64_t ld, int64_t rows, T s, const T* f, const T* g, const T* a,
                          const T* r, const T* q, bool keep, T* row_sum, T* c);
  bool (*scale_columns)(const T* parts, int64_t chunks, int64_t ld, int64_t m, int64_t first, int64_t last, const T* b,
                        T* c, T* q);
  bool (*exp_columns)(const T* parts, int64_t chunks, int64_t ld, int64_t m, int64_t first, int64_t last, T* c);
  T(*step_columns)
  (const T* from, const T* c, const T* log_b, int64_t m, int64_t first, int64_t last, bool extrapolate, T* beta, T* bx);
  bool (*all_finite)(const T* x, int64_t n);
  bool (*unit_row)(const T* x, int64_t d, T* unit, T* length);
  void (*finish_gradient)(const T* x, const T* centre, T mass, T length, int64_t d, T* g);
};

// The safe range of a row's or column's sum, well inside REAL's range, so that terms lost to underflow are negligible:
// with shifts that keep terms below 1 / 2^LEAST, the lost part is below 2^-40 of the sum.
template <class T>
struct Range;
template <>
struct Range<float> {
  static constexpr float row_least = 0x1p-40f, row_most = 0x1p40f, column_least = 0x1p-60f, nowhere = -1e30f;
  static constexpr float spread = 69;  // nats of s C in one row above which no kernel is stored at the start
  static constexpr float drift = 27;   // nats of change of the potentials below which a stored kernel repays its cost
};
template <>
struct Range<double> {
  static constexpr double row_least = 0x1p-300, row_most = 0x1p300, column_least = 0x1p-500, nowhere = -1e200;
  static constexpr double spread = 600;
  static constexpr double drift = 207;
};

}  // namespace wcf
