// The kernels of bank_gather_rows.h for InfoNCE and log Z. A file for each kind of sum: they compile side by side.
#include "cuda.h"
#include "bank_gather_rows.h"

bool wcf::gather_rows_softmax(const BankScore& a, cudaError_t* error) { return launch_bank<SUM_SOFTMAX>(a, error); }
