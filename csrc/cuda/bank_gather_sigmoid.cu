// The kernels of bank_gather_rows.h for the sigmoid loss. A file for each kind of sum: they compile side by side.
#include "cuda.h"
#include "bank_gather_rows.h"

bool wcf::gather_rows_slopes(const BankScore& a, cudaError_t* error) { return launch_bank<SUM_SLOPES>(a, error); }
