// The spectral norm on the CPU. Sums are taken in fp64 and in a fixed order.
#include "../common/spectral.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu.h"

namespace wcf {
namespace {

constexpr int LANES = 8;

template <class A, class B>
double dot(const A* a, const B* b, int64_t n) {
  double part[LANES] = {};
  for (int64_t i = 0; i < n; ++i) part[i % LANES] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

template <class Real>
void store_unit(const std::vector<double>& from, double norm, void* to) {
  for (size_t i = 0; i < from.size(); ++i) static_cast<Real*>(to)[i] = static_cast<Real>(from[i] / norm);
}

template <class Real>
double iterate(const Spectral& a) {
  const Real *const weight = static_cast<const Real*>(a.weight), *const v = static_cast<const Real*>(a.v);
  std::vector<double> left(static_cast<size_t>(a.out_dim)), right(static_cast<size_t>(a.in_dim), 0.0);
  for (int64_t i = 0; i < a.out_dim; ++i) left[static_cast<size_t>(i)] = dot(weight + i * a.in_dim, v, a.in_dim);
  if (!a.moves) return dot(static_cast<const Real*>(a.u), left.data(), a.out_dim);
  store_unit<Real>(left, std::max(std::sqrt(dot(left.data(), left.data(), a.out_dim)), a.least), a.new_u);
  const Real* const u = static_cast<const Real*>(a.new_u);
  for (int64_t i = 0; i < a.out_dim; ++i) {
    const double factor = static_cast<double>(u[i]);
    const Real* const row = weight + i * a.in_dim;
    for (int64_t j = 0; j < a.in_dim; ++j) right[static_cast<size_t>(j)] += factor * static_cast<double>(row[j]);
  }
  const double sigma = std::sqrt(dot(right.data(), right.data(), a.in_dim));
  store_unit<Real>(right, std::max(sigma, a.least), a.new_v);
  return sigma;
}

template <class Real>
void gradient(const Spectral& a) {
  const Real *const weight = static_cast<const Real*>(a.weight), *const u = static_cast<const Real*>(a.u),
                    *const v = static_cast<const Real*>(a.v);
  Real* const grad = static_cast<Real*>(a.grad);
  double along = 0.0;
  for (int64_t i = 0; i < a.out_dim; ++i) along += dot(grad + i * a.in_dim, weight + i * a.in_dim, a.in_dim);
  for (int64_t i = 0; i < a.out_dim; ++i) {
    const Real factor = static_cast<Real>(along / a.sigma * static_cast<double>(u[i]));
    for (int64_t j = 0; j < a.in_dim; ++j) grad[i * a.in_dim + j] -= factor * v[j];
  }
}

}  // namespace

double cpu_spectral_iterate(const Spectral& a) { return a.wide ? iterate<double>(a) : iterate<float>(a); }

void cpu_spectral_gradient(const Spectral& a) {
  if (a.wide) {
    gradient<double>(a);
  } else {
    gradient<float>(a);
  }
}

}  // namespace wcf
