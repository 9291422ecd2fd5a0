// The sizes of the records that this library's kernels take, to be compared with the native module's.
#include "../../csrc/common/bank_score.h"
#include "../../csrc/common/bank_update.h"
#include "../../csrc/common/step_rows.h"
#include "../../csrc/common/sinkhorn.h"

#define RECORD_BYTES(Name) \
  extern "C" int cuda_on_cpu_bytes_##Name() { return static_cast<int>(sizeof(wcf::Name)); }

RECORD_BYTES(Probe)
RECORD_BYTES(Draw)
RECORD_BYTES(BankUpdate)
RECORD_BYTES(BankInit)
RECORD_BYTES(BankScore)
RECORD_BYTES(Membership)
RECORD_BYTES(OtPlan)
RECORD_BYTES(OtSolve)
RECORD_BYTES(OtMatrixGradient)
RECORD_BYTES(StepRows)
RECORD_BYTES(SpectralPair)
