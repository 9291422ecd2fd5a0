// The kernels of bank_gather_rows.h for InfoNCE and log Z: a file of their own, so that files are compiled side by side.
#include "cuda.h"
#include "bank_gather_rows.h"

bool wcf::gather_rows_softmax(const BankScore& a, cudaError_t* error) { return launch_bank<SUM_SOFTMAX>(a, error); }
