// The bank's own writes on the CPU: the momentum update and the initial value.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include "../common/bank_update.h"
#include "../common/dtype.h"
#include "bank_ops.h"
#include "cpu.h"

namespace wcf {
namespace {

constexpr int LANES = 8;  // partial sums per row: a fixed order of additions, whatever the instruction set

// writes[b] = 1 when no later anchor has the same index: an open-addressing set of the indices, filled from the back.
std::vector<uint8_t> last_of_each(const void* index, int32_t index_bytes, int64_t batch) {
  size_t slots = 16;
  while (slots < 2 * static_cast<size_t>(batch)) slots *= 2;
  std::vector<int64_t> seen(slots, -1);
  std::vector<uint8_t> writes(static_cast<size_t>(batch), 0);
  for (int64_t b = batch - 1; b >= 0; --b) {
    const int64_t row = index_at(index, index_bytes, b);
    size_t at = (static_cast<uint64_t>(row) * 0x9E3779B97F4A7C15u >> 32) & (slots - 1);
    while (seen[at] != -1 && seen[at] != row) at = (at + 1) & (slots - 1);
    writes[static_cast<size_t>(b)] = seen[at] == -1;
    seen[at] = row;
  }
  return writes;
}

// momentum * bank + (1 - momentum) * row, for one bank row [D] and one new row [D].
template <class Bank, class Row>
struct Mix {
  using Real = typename Compute<Bank>::type;
  const Bank* bank;
  const Row* row;
  Real keep, take;

  Real operator()(int64_t d) const { return keep * load(bank[d]) + take * static_cast<Real>(load(row[d])); }

  // The norm of such a row. Squares are summed in fp64, which neither overflows nor rounds noticeably for fp32 rows.
  Real norm(int64_t dim) const {
    double part[LANES] = {};
    for (int64_t d = 0; d < dim; ++d) {
      const double x = (*this)(d);
      part[d % LANES] += x * x;
    }
    double square = 0.0;
    for (double p : part) square += p;
    return static_cast<Real>(std::sqrt(square));
  }
};

// use(bank dtype, row dtype) with a value of each type.
template <class Use>
void with_types(const BankUpdate& a, Use use) {
  bool known = false;
  with_dtype(a.bank_dtype, [&](auto bank) { known = with_dtype(a.rows_dtype, [&](auto row) { use(bank, row); }); });
  if (!known) throw std::invalid_argument("unknown dtype code");
}

}  // namespace

int64_t update_norms(const BankUpdate& a, std::vector<double>* norms) {
  const int64_t dim = a.dim, batch = a.batch;
  const int threads = threads_of(a.place);
  norms->resize(static_cast<size_t>(batch));
  int64_t bad = batch;
  with_types(a, [&](auto bank_type, auto row_type) {
    using Bank = decltype(bank_type);
    using Row = decltype(row_type);
    using Real = typename Compute<Bank>::type;
    const Bank* const bank = static_cast<const Bank*>(a.bank);
    const Row* const rows = static_cast<const Row*>(a.rows);
    const Real keep = static_cast<Real>(a.momentum), take = static_cast<Real>(1.0 - a.momentum);
#pragma omp parallel for schedule(static) num_threads(threads) reduction(min : bad) if (threads > 1)
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t row = index_at(a.index, a.index_bytes, b);
      const bool inside = row >= 0 && row < a.num_data;
      const Real norm = inside ? Mix<Bank, Row>{bank + row * dim, rows + b * dim, keep, take}.norm(dim) : Real(0);
      if (!inside || !std::isfinite(norm)) bad = std::min(bad, b);
      (*norms)[static_cast<size_t>(b)] = static_cast<double>(norm);
    }
  });
  return bad < batch ? bad : -1;
}

void write_update(const BankUpdate& a, const std::vector<double>& norms) {
  const int64_t dim = a.dim, batch = a.batch;
  const int threads = threads_of(a.place);
  const std::vector<uint8_t> writes = last_of_each(a.index, a.index_bytes, batch);
  with_types(a, [&](auto bank_type, auto row_type) {
    using Bank = decltype(bank_type);
    using Row = decltype(row_type);
    using Real = typename Compute<Bank>::type;
    Bank* const bank = static_cast<Bank*>(a.bank);
    const Row* const rows = static_cast<const Row*>(a.rows);
    const Real keep = static_cast<Real>(a.momentum), take = static_cast<Real>(1.0 - a.momentum);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t b = 0; b < batch; ++b) {
      if (!writes[static_cast<size_t>(b)]) continue;
      Bank* const to = bank + index_at(a.index, a.index_bytes, b) * dim;
      const Mix<Bank, Row> mixed{to, rows + b * dim, keep, take};
      const Real size = std::max(static_cast<Real>(norms[static_cast<size_t>(b)]), static_cast<Real>(a.min_norm));
      for (int64_t d = 0; d < dim; ++d) store(&to[d], mixed(d) / size);
    }
  });
}

int64_t cpu_bank_update(const BankUpdate& a) {
  std::vector<double> norms;
  const int64_t bad = update_norms(a, &norms);
  if (bad < 0) write_update(a, norms);
  return bad;
}

void cpu_bank_init(const BankInit& a) {
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.dim) / 3.0));
  const int64_t dim = a.dim;
  const int threads = threads_of(a.place);
  const bool known = with_dtype(a.dtype, [&](auto type) {
    auto* const to = static_cast<decltype(type)*>(a.out);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < a.num_rows; ++r) {
      for (int64_t d = 0; d < dim; d += 4) {
        const InitialQuad quad = initial_quad(a.seed, a.bank_id, a.first_row + r, d / 4, scale);
        for (int64_t i = 0; i < 4 && d + i < dim; ++i) store(&to[r * dim + d + i], quad.v[i]);
      }
    }
  });
  if (!known) throw std::invalid_argument("unknown dtype code");
}

}  // namespace wcf
