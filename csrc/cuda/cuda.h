// Entry points of the CUDA code: a record in, a CUDA error code out (0: started). Nothing here waits for the device.
// common/ documents each record. The names are C names, so tests can load these functions compiled for the CPU.
#pragma once
#include "../common/bank_score.h"
#include "../common/bank_update.h"
#include "../common/step_rows.h"
#include "../common/sinkhorn.h"

extern "C" {

// Writes `value` to the one int32 at `out`: the proof that kernels of this build run on this device.
int wcf_cuda_probe(const wcf::Probe* record);

// An anchor with nothing valid to draw from gets -1 in all its places and sets the index bit.
int wcf_cuda_draw(const wcf::Draw* record);

// An anchor whose index is out of [0, N) or whose row is not finite writes nothing and sets the index or update_row
// bit.
int wcf_cuda_bank_update(const wcf::BankUpdate* record);

int wcf_cuda_bank_init(const wcf::BankInit* record);

// One launch each for both networks. An index out of [0, N) sets the index bit; an embedding that is not finite becomes
// NaN, is not written to a bank, and sets the update_row bit.
int wcf_cuda_step_embed(const wcf::StepRows* record);
int wcf_cuda_step_finish(const wcf::StepRows* record);

int wcf_cuda_spectral_iterate(const wcf::SpectralPair* record);
int wcf_cuda_spectral_gradient(const wcf::SpectralPair* record);

// Reads each anchor's negatives once for all S <= 2 directions. Two launches, three for log Z. Only status bits are set
// atomically. For log_z `value` is [S], the batch's log Z; if `value` is null there is no third launch, and
// partial[..., 0] has each anchor's log-sum-exp of all its scores / tau. For infonce and sigmoid `value` and `grad` are
// sums over the negatives: no positive is read. An anchor that is not finite, or an index or
// given row out of [0, N), makes the anchor's results NaN and sets the anchor or index bit. Such an index is not read
// with.
int wcf_cuda_bank_score(const wcf::BankScore* record);

// A bad index or given row sets the index bit and has no other effect.
int wcf_cuda_membership(const wcf::Membership* record);

// Writes the plan for these sizes: regime, blocks, rows, sms and shared_bytes. It asks the driver only.
int wcf_cuda_ot_plan(wcf::OtPlan* record);

// Writes the device memory that a call with the plan needs: scratch_bytes and zeroed_bytes. Reads regime and blocks.
void wcf_cuda_ot_memory(wcf::OtPlan* record);

// Solves all problems in one launch. A problem with a bad value gets NaN in all its results and sets its bit. `scratch`
// and `zeroed` belong to this call until the kernel has run.
int wcf_cuda_ot_solve(const wcf::OtSolve* record);

// For costs, potentials and weights of a problem that was solved; a shared matrix sums over the problems.
int wcf_cuda_ot_matrix_gradient(const wcf::OtMatrixGradient* record);

}  // extern "C"
