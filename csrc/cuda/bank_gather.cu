// The kernels of bank_gather_rows.h for NCE and the mean score. A file for each kind of sum: they compile side by side.
#include "cuda.h"
#include "bank_gather_rows.h"

bool wcf::gather_rows_terms(const BankScore& a, cudaError_t* error) { return launch_bank<SUM_TERMS>(a, error); }
