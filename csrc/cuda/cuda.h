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

}  // extern "C"
