// Alias tables for weighted draws (Walker 1977, Vose 1991), O(N): two stacks in one array of N numbers.
#include <cstddef>
#include <vector>

#include "cpu.h"

namespace wcf {

void cpu_alias_table(double* share, int64_t n, uint64_t* threshold, int32_t* alias) {
  std::vector<int32_t> stack(static_cast<size_t>(n));  // columns below 1 grow from the front, the others from the back
  std::vector<bool> drawable(static_cast<size_t>(n));
  int64_t small = 0, large = n;
  int32_t heaviest = 0;
  for (int64_t i = 0; i < n; ++i) {
    alias[i] = static_cast<int32_t>(i);
    drawable[static_cast<size_t>(i)] = share[i] > 0.0;
    if (share[i] > share[heaviest]) heaviest = static_cast<int32_t>(i);
    if (share[i] < 1.0) stack[static_cast<size_t>(small++)] = static_cast<int32_t>(i);
  }
  for (int64_t i = 0; i < n; ++i) {  // large columns, like small ones, are used up from the last one on
    if (!(share[i] < 1.0)) stack[static_cast<size_t>(--large)] = static_cast<int32_t>(i);
  }
  while (small > 0 && large < n) {
    const int32_t low = stack[static_cast<size_t>(--small)], high = stack[static_cast<size_t>(large)];
    alias[low] = high;
    share[high] -= 1.0 - share[low];
    if (share[high] < 1.0) {
      ++large;
      stack[static_cast<size_t>(small++)] = high;
    }
  }
  for (int64_t j = 0; j < small;
       ++j) {  // a column that is left differs from 1 by rounding only, unless its weight is 0
    const int32_t i = stack[static_cast<size_t>(j)];
    const bool keep = drawable[static_cast<size_t>(i)];
    share[i] = keep ? 1.0 : 0.0;
    alias[i] = keep ? i : heaviest;
  }
  for (int64_t i = 0; i < n; ++i) {
    const bool full = share[i] >= 1.0;
    threshold[i] = full ? ~uint64_t{0} : static_cast<uint64_t>(share[i] * 0x1p64);
  }
}

}  // namespace wcf
