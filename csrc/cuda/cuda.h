// Entry points of the CUDA code: integers in, CUDA error code out (0: started). Nothing here waits for the device.
// They have C names, so that the tests can load the same functions compiled for the CPU.
#pragma once
#include <cstdint>

extern "C" {

// Writes `value` to the one int32 at `out`: the proof that kernels of this build run on this device.
int wcf_cuda_probe(int device, uintptr_t stream, uintptr_t out, int32_t value);

// out [B, K] int64 as cpu_draw. An anchor with nothing valid to draw from gets -1 in all its places and sets
// STATUS_INDEX in *status.
int wcf_cuda_draw(int device, uintptr_t stream, uintptr_t index, int index_bytes, int64_t num_anchors,
                  int64_t num_draws, int64_t num_data, int64_t anchor_offset, int source, int replacement,
                  uintptr_t state, uintptr_t label, uintptr_t order, uintptr_t rank, uintptr_t class_start,
                  uintptr_t threshold, uintptr_t alias, uintptr_t out, uintptr_t status);

// As cpu_bank_update; an anchor whose index is out of [0, N) or whose row is not finite writes nothing and sets
// STATUS_INDEX or STATUS_UPDATE_ROW in *status.
int wcf_cuda_bank_update(int device, uintptr_t stream, uintptr_t bank, int bank_dtype, int64_t num_data, int64_t dim,
                         uintptr_t index, int index_bytes, int64_t batch, uintptr_t rows, int rows_dtype,
                         double momentum, uintptr_t status);

// As cpu_bank_init.
int wcf_cuda_bank_init(int device, uintptr_t stream, uintptr_t out, int dtype, int64_t n, int64_t dim, uint64_t seed,
                       int64_t bank_id, int64_t first_row);

// NCE loss (score 0), mean score (1) or log Z (2) of anchors [S, B, D] against S <= 2 banks, by walking each anchor's
// negatives: S directions share the draws. Two launches, three for log Z; nothing is added atomically but status bits.
//   draws: as wcf_cuda_draw, num_draws = K or -1 for the whole pool; or given [B, K] rows of `given_bytes` bytes with
//   rows `given_stride` apart; whole_pool: every pool row once, weighted K / P unless K is -1.
//   first_row, num_rows: the banks hold rows [first_row, first_row + num_rows) of the N, all or one part. Row numbers
//   are those of the whole; the positive's term and the constants belong to the part that holds the positive.
//   fp64: anchors, log_z, scratch and results are double, else float. log_z [S]: for score 2 what is known already
//   (NaN: unset), or 0. partial [S, B, splits]; partial_grad [S, B, splits, D] and grad [S, B, D], or 0 and 0: none.
//   splits * chunk >= the negatives of any anchor (num_rows for a whole pool). value [S, B], for score 2 [S]; or 0 with
//   score 2: no third launch, the anchors' log-sum-exps of all their scores / tau are left in partial[..., 0].
// An anchor that is not finite, an index or a given row out of [0, N): not read with, NaN, STATUS_ANCHOR, STATUS_INDEX.
int wcf_cuda_bank_gather(int device, uintptr_t stream, uintptr_t index, int index_bytes, int64_t num_anchors,
                         int64_t num_draws, int64_t num_data, int64_t anchor_offset, int source, int replacement,
                         uintptr_t state, uintptr_t label, uintptr_t order, uintptr_t rank, uintptr_t class_start,
                         uintptr_t threshold, uintptr_t alias, uintptr_t given, int given_bytes, int64_t given_stride,
                         int whole_pool, int64_t first_row, int64_t num_rows, int score, int directions,
                         uintptr_t anchors, int fp64, int64_t dim, uintptr_t bank_0, uintptr_t bank_1, int bank_dtype,
                         int64_t bank_stride_0, int64_t bank_stride_1, double temperature, uintptr_t log_z,
                         int64_t splits, int64_t chunk, uintptr_t partial, uintptr_t partial_grad, uintptr_t value,
                         uintptr_t grad, uintptr_t status);

// Which rows of [first_row, first_row + num_rows) each anchor draws, or how often: out [B, words] 32-bit words, all of
// them written. With r counted from first_row and n = num_rows,
//   kind 0: bit r & 31 of word r >> 5; words = ceil(n / 32). kind 1: 16-bit counts, two per word, words = ceil(n / 2),
//   K <= 32767. kind 2: 32-bit counts, words >= n.
// Draws as in wcf_cuda_bank_gather. A bad index or given row sets STATUS_INDEX and counts for nothing.
int wcf_cuda_membership(int device, uintptr_t stream, uintptr_t index, int index_bytes, int64_t num_anchors,
                        int64_t num_draws, int64_t num_data, int64_t anchor_offset, int source, int replacement,
                        uintptr_t state, uintptr_t label, uintptr_t order, uintptr_t rank, uintptr_t class_start,
                        uintptr_t threshold, uintptr_t alias, uintptr_t given, int given_bytes, int64_t given_stride,
                        int whole_pool, int64_t first_row, int64_t num_rows, int kind, int64_t words, uintptr_t out,
                        uintptr_t status);

}  // extern "C"
