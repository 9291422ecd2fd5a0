// Entry points of the CPU code. Python has checked the fields of a record; common/ documents each record. An unknown
// dtype code throws std::invalid_argument.
#pragma once
#include "../common/bank_score.h"
#include "../common/bank_update.h"
#include "../common/contrast_rows.h"
#include "../common/contrast_step.h"
#include "../common/draw.h"
#include "../common/sinkhorn.h"
#include "../common/spectral.h"

namespace wcf {

// Returns the first anchor with nothing valid to draw from, or -1.
int64_t cpu_draw(const Draw& args);

// Returns the first anchor that cannot be scored, or -1: an index or an explicit row out of [0, N), an embedding that
// is not finite, nothing valid to draw from. Then `value` and `grad` are not defined.
int64_t cpu_bank_score(const BankScore& args);

// The bytes that the call would allocate beside its results. No address of the record is read.
int64_t cpu_bank_score_bytes(const BankScore& args);

// Returns the first anchor whose index is out of range or whose new row's norm is not finite, or -1. Nothing is written
// unless it returns -1.
int64_t cpu_bank_update(const BankUpdate& args);

void cpu_bank_init(const BankInit& args);

// The parts of a step, in this order; contrast_step.h documents each. The first and the last return the first image
// with a bad value, or -1. Unless it is -1, the results are not defined, and no state of the module has been written.
int64_t cpu_contrast_score(const ContrastStep& args);
void cpu_contrast_gradient(const ContrastStep& args);
int64_t cpu_contrast_finish(const ContrastStep& args);

// False: a value is not finite, or a score may not be. The results are then not defined.
bool cpu_contrast_values(const ContrastValues& args);

// Gradients for tensors that cpu_contrast_values has accepted.
void cpu_contrast_gradients(const ContrastGradients& args);

// Returns sigma. `gradient` needs it with the u and v that gave it.
double cpu_spectral_iterate(const Spectral& args);
void cpu_spectral_gradient(const Spectral& args);

// Solves every problem. False: a value is not acceptable (NaN, inf, a negative mass, masses that do not sum to 1, a
// zero row with mass under the cosine cost). The results are then not defined, and the caller looks for the value.
bool cpu_ot_solve(const OtSolve& args);

// Writes regime (resident: the n x m matrix is stored, one per thread that solves a problem of its own; streaming:
// strips of rows are recomputed when they are needed), per_thread and scratch_bytes.
void cpu_ot_plan(OtPlan& args);

// out = exp(alpha_i + beta_j - scale C_ij), with C rounded as in cpu_ot_solve. alpha and beta may be -inf.
void cpu_ot_plan_matrix(const OtPlanMatrix& args);

// Solves the problems whose scalings fp64 can hold (out_solved). Returns the number of other problems and of values
// that are not finite; or -1, with undefined results, if a cost or mass is negative or not finite, or a sum is wrong.
int64_t cpu_ot_matrix(const OtMatrix& args);

void cpu_ot_matrix_gradient(const OtMatrixGradient& args);

void cpu_ot_project(const OtProject& args);

// Vose's alias method. share [n]: weight * n / sum of weights, overwritten. threshold [n]: a draw below this fraction
// of 2^64 keeps its column; alias [n]: the row of the other draws. Equals ops/sampling/alias.py to the bit.
void cpu_alias_table(double* share, int64_t n, uint64_t* threshold, int32_t* alias);

// position [n] int64 of rows [n] int64 in the pool of anchor b (-1: excluded). False: the anchor is not valid.
bool cpu_positions(const DrawSpec& args, int64_t b, const int64_t* rows, int64_t* position, int64_t n);

// out [n] = pi(in[i]), or pi^-1(in[i]), of the permutation of [0, size) keyed by the stream.
void cpu_permute(const Stream& stream, int64_t size, const int64_t* in, int64_t* out, int64_t n, bool inverse);

}  // namespace wcf
