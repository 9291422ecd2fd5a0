// What one vector of scores adds to a loss, a gradient or a log-sum-exp. Included once per instruction set.

// Sums over softplus(u) = max(u, 0) + log(1 + x), x = exp(-|u|). Per lane, prod (1 + x) - 1 is kept, so that a log is
// taken once per MAX_FACTORS terms and nothing is lost where every x is far below 1.
template <class Real>
struct NceSum {
  static constexpr int MAX_FACTORS = 32;  // 2^32 at most
  Vec<Real> above;                        // sum of max(u, 0)
  Vec<Real> product;                      // prod (1 + x) - 1
  int factors;

  WCF_HD NceSum() : above{}, product{}, factors(0) {}

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
    return positive ? (counted ? inverse : none) : x * inverse;
  }

  // The same with a multiplicity for each lane; returns multiplicity * sigmoid(u).
  WCF_HD Vec<Real> add_times(Vec<Real> u, Vec<Real> times) {
    const IntVec<Real> positive = u > Real(0);
    const IntVec<Real> counted = times != Real(0);
    const Vec<Real> none{};
    const Vec<Real> x = exp_nonpositive(positive ? -u : u);
    const Vec<Real> inverse = Real(1) / (Real(1) + x);
    above += counted ? times * ((positive ? u : none) + log1p_nonnegative(x)) : none;
    return counted ? times * (positive ? inverse : x * inverse) : none;
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

// A running log-sum-exp: per lane the largest value so far and the sum of exp relative to it.
template <class Real>
struct LogSum {
  static constexpr Real LOWEST = sizeof(Real) == 4 ? Real(-3e38) : Real(-1e300);
  Vec<Real> largest;
  Vec<Real> sum;

  WCF_HD LogSum() : largest(splat(LOWEST)), sum{} {}

  // Adds times * exp(v) for each lane; a lane with times = 0 adds nothing.
  WCF_HD void add(Vec<Real> v, Vec<Real> times) {
    const IntVec<Real> counted = times != Real(0);
    v = counted ? v : largest;
    const Vec<Real> top = v > largest ? v : largest;
    sum = fma(sum, exp_nonpositive(largest - top), counted ? times * exp_nonpositive(v - top) : Vec<Real>{});
    largest = top;
  }

  // Merges all lanes into state = {largest, sum}.
  WCF_HD void merge_into(double* state) {
    const Real top = largest_of<Real>(largest);
    const Real mine = sum_of<Real>(sum * exp_nonpositive(largest - top));
    merge_log_sums(state, static_cast<double>(top), static_cast<double>(mine));
  }
};
