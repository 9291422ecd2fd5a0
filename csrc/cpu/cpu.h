// Entry points of the CPU code. Addresses are integers, checked in Python before they get here.
#pragma once
#include "../common/draw.h"

namespace wcf {

// out [B, K] int64: draw(k) of every anchor. Returns the first anchor with nothing valid to draw from, or -1.
int64_t cpu_draw(const DrawArgs& args, int64_t* out, int threads);

// Vose's alias method. share [n]: weight * n / sum of weights, destroyed. threshold [n]: the fraction of 2^64 below
// which a draw keeps its column; alias [n]: the row that it takes otherwise. Equals ops/sampling/alias.py to the bit.
void cpu_alias_table(double* share, int64_t n, uint64_t* threshold, int32_t* alias);

// position [n] int64 of rows [n] int64 in the pool of anchor b (-1: excluded). False: the anchor is not valid.
bool cpu_positions(const DrawArgs& args, int64_t b, const int64_t* rows, int64_t* position, int64_t n);

// out [n] = pi(in[i]), or pi^-1(in[i]), of the permutation of [0, size) keyed by the stream.
void cpu_permute(const Stream& stream, int64_t size, const int64_t* in, int64_t* out, int64_t n, bool inverse);

// bank [N, D] of dtype `bank_dtype`: row index[b] <- normalise(momentum * row + (1 - momentum) * rows[b]).
// *bad = -1, or the first anchor whose index is out of range or whose new row's norm is not finite: then nothing is
// written. False: an unknown dtype.
bool cpu_bank_update(void* bank, int32_t bank_dtype, int64_t num_data, int64_t dim, const void* index,
                     int32_t index_bytes, int64_t batch, const void* rows, int32_t rows_dtype, double momentum,
                     int threads, int64_t* bad);

// out [n, D]: rows first_row .. first_row + n - 1 of the initial bank. False: an unknown dtype.
bool cpu_bank_init(void* out, int32_t dtype, int64_t n, int64_t dim, uint64_t seed, int64_t bank_id, int64_t first_row,
                   int threads);

}  // namespace wcf
