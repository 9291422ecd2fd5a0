// The terms that one vector of scores adds to a sum and a gradient. Included once per instruction set.

// exp(y) for y <= 0, 0 below -87; NaN stays NaN. Cephes' reduction and polynomial (Moshier), 1-2 ulp.
WCF_HD Vec<float> exp_nonpositive(Vec<float> y) {
  const IntVec<float> vanishes = y < -87.0f;
  const Vec<float> shifted = fma(y, splat(1.44269504089f), splat(12582912.0f));  // 1.5 * 2^23: rounds to an integer
  const Vec<float> n = shifted - 12582912.0f;
  Vec<float> r = fma(n, splat(-0.693359375f), y);
  r = fma(n, splat(2.12194440e-4f), r);
  Vec<float> p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p * r, r, r) + 1.0f;
  const auto scale = (same_bits<VecOf<uint32_t>::type>(shifted) << 23) +
                     (127u << 23);  // unsigned: the exponent of a vanishing term wraps
  return vanishes ? Vec<float>{} : p * same_bits<Vec<float>>(scale);
}

// log(1 + q) for 0 <= q < 2^64, to full relative precision for tiny q too; NaN stays NaN.
WCF_HD Vec<float> log1p_nonnegative(Vec<float> q) {
  const Vec<float> y = 1.0f + q;
  const IntVec<float> bits = same_bits<IntVec<float>>(y);
  const IntVec<float> exponent = (bits - 0x3F3504F3) >> 23;  // so that f + 1 lies in [sqrt(1/2), sqrt(2))
  const Vec<float> f = same_bits<Vec<float>>(bits - (exponent << 23)) - 1.0f;
  const Vec<float> e = __builtin_convertvector(exponent, Vec<float>);
  Vec<float> p = splat(7.0376836292e-2f);
  p = fma(p, f, splat(-1.1514610310e-1f));
  p = fma(p, f, splat(1.1676998740e-1f));
  p = fma(p, f, splat(-1.2420140846e-1f));
  p = fma(p, f, splat(1.4249322787e-1f));
  p = fma(p, f, splat(-1.6668057665e-1f));
  p = fma(p, f, splat(2.0000714765e-1f));
  p = fma(p, f, splat(-2.4999993993e-1f));
  p = fma(p, f, splat(3.3333331174e-1f));
  const Vec<float> square = f * f;
  const Vec<float> lost = (q - (y - 1.0f)) / y;  // the part of q that rounding 1 + q took away
  Vec<float> small = fma(square * f, p, fma(e, splat(-2.12194440e-4f), lost));
  small = fma(square, splat(-0.5f), small);
  return fma(e, splat(0.693359375f), f + small);
}

// fp64 serves exactness, not speed: each lane calls the C library.
WCF_HD Vec<double> exp_nonpositive(Vec<double> y) {
  for (int i = 0; i < WIDTH<double>; ++i) y[i] = __builtin_exp(y[i]);
  return y;
}
WCF_HD Vec<double> log1p_nonnegative(Vec<double> q) {
  for (int i = 0; i < WIDTH<double>; ++i) q[i] = __builtin_log1p(q[i]);
  return q;
}

// Sums over softplus(u) = max(u, 0) + log(1 + x), x = exp(-|u|). Each lane keeps prod (1 + x) - 1, so one log serves
// MAX_FACTORS terms, and no precision is lost where every x is far below 1.
template <class Real>
struct SoftplusSum {
  static constexpr int MAX_FACTORS = 32;  // 2^32 at most
  Vec<Real> above;                        // sum of max(u, 0)
  Vec<Real> slopes;                       // sum of sigmoid(u)
  Vec<Real> product;                      // prod (1 + x) - 1
  int factors;

  WCF_HD SoftplusSum() : above{}, slopes{}, product{}, factors(0) {}

  // Adds the terms of u where `counted` is all ones; returns the sigmoid of u there, 0 elsewhere.
  WCF_HD Vec<Real> add(Vec<Real> u, IntVec<Real> counted) {
    const IntVec<Real> positive = u > Real(0);
    const Vec<Real> none{};
    Vec<Real> x = exp_nonpositive(positive ? -u : u);
    x = counted ? x : none;
    above += (positive & counted) ? u : none;
    product = fma(x, Real(1) + product, product);
    if (++factors == MAX_FACTORS) flush();
    const Vec<Real> inverse = Real(1) / (Real(1) + x);
    const Vec<Real> slope = positive ? (counted ? inverse : none) : x * inverse;
    slopes += slope;
    return slope;
  }

  // add() with a multiplicity for each lane; returns multiplicity * sigmoid(u).
  WCF_HD Vec<Real> add_times(Vec<Real> u, Vec<Real> times) {
    const IntVec<Real> positive = u > Real(0);
    const IntVec<Real> counted = times != Real(0);
    const Vec<Real> none{};
    const Vec<Real> x = exp_nonpositive(positive ? -u : u);
    const Vec<Real> inverse = Real(1) / (Real(1) + x);
    above += counted ? times * ((positive ? u : none) + log1p_nonnegative(x)) : none;
    const Vec<Real> slope = counted ? times * (positive ? inverse : x * inverse) : none;
    slopes += slope;
    return slope;
  }

  WCF_HD void flush() {
    above += log1p_nonnegative(product);
    product = Vec<Real>{};
    factors = 0;
  }

  WCF_HD double total() {
    flush();
    return static_cast<double>(sum_of<Real>(above));
  }
};
