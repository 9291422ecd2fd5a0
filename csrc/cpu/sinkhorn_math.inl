// The bits of REALs, exp and log. Included once per instruction set.
//
// They differ from the bank's (bank_terms.inl), which have an error of an ulp or two and take arguments of one sign.
// Here exp is one polynomial of the exponent's fraction, clamped at both ends, because its argument has a rounding
// error of the size of s C's anyway.

template <class T>
struct Format;
template <>
struct Format<float> {
  using Unsigned = uint32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float exp_least = -87.3f, exp_most = 88.3f;  // e^x is normal and finite between them
  static constexpr float exp2[] = {1.f,          6.931472e-1f,  2.4022646e-1f, 5.5503286e-2f,  // minimax, 2e-9 relative
                                   9.618489e-3f, 1.3399931e-3f, 1.5345812e-4f};
  static constexpr int log_terms = 5;
};
template <>
struct Format<double> {
  using Unsigned = uint64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double exp_least = -708.3, exp_most = 709.3;
  static constexpr double exp2[] = {1.0,
                                    0.6931471805599497,
                                    0.24022650695908768,
                                    0.05550410866445884,
                                    0.0096181291080346,
                                    0.0013333558228560043,
                                    0.00015403529961103714,
                                    1.52526581173374e-05,
                                    1.3215662851330036e-06,
                                    1.0208537775312956e-07,
                                    7.037275963097554e-09};
  static constexpr int log_terms = 12;
};
template <class T>
using Bits = typename VecOf<typename Format<T>::Unsigned>::type;  // wraps round

template <class T>
WCF_HD T power_of_two(int e) {
  return same_bits<T>(static_cast<typename Format<T>::Unsigned>(e + Format<T>::bias) << Format<T>::mantissa);
}

// e of 2^e <= x < 2^(e + 1), x >= 0; -bias if x is zero or subnormal.
template <class T>
WCF_HD int exponent_of(T x) {
  return static_cast<int>(same_bits<typename Format<T>::Unsigned>(x) >> Format<T>::mantissa) - Format<T>::bias;
}

// e^x; 0 below the smallest normal number, and no more than about the largest, whatever x is. NaN gives 0.
template <class T>
WCF_HD Vec<T> exp_vec(Vec<T> x) {
  using F = Format<T>;
  constexpr T LOG2_E = static_cast<T>(1.4426950408889634074);
  constexpr T ROUND = T(1.5) * (typename F::Unsigned(1) << F::mantissa);  // x + ROUND has round(x) in its low bits
  constexpr int TERMS = static_cast<int>(sizeof(F::exp2) / sizeof(T));
  const Vec<T> t = min_vec(x, splat(F::exp_most));
  const Vec<T> rounded = fma(t, splat(LOG2_E), splat(ROUND));
  const Vec<T> f = fma(t, splat(LOG2_E), splat(ROUND) - rounded);  // of 2^(n + f); in [-1/2, 1/2]
  Vec<T> power = splat(F::exp2[TERMS - 1]);
  WCF_UNROLL
  for (int i = TERMS - 2; i >= 0; --i) power = fma(power, f, splat(F::exp2[i]));
  const Bits<T> scaled = same_bits<Bits<T>>(power) + (same_bits<Bits<T>>(rounded) << F::mantissa);
  return x >= F::exp_least ? same_bits<Vec<T>>(scaled) : Vec<T>{};
}

// ln x of a positive normal x; finite, about -88 (-709), at 0.
template <class T>
WCF_HD Vec<T> log_vec(Vec<T> x) {
  // x = 2^e m with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh(z), z = (m - 1) / (m + 1).
  using F = Format<T>;
  constexpr T LN_2 = static_cast<T>(0.69314718055994530942);
  const T two = power_of_two<T>(F::mantissa);  // its bits | e are those of 2^mantissa + e
  const Bits<T> bits = same_bits<Bits<T>>(x);
  const Bits<T> root = same_bits<Bits<T>>(splat(static_cast<T>(0.70710678118654752440)));
  const IntVec<T> e = same_bits<IntVec<T>>(bits - root) >> F::mantissa;  // arithmetic
  const Vec<T> m = same_bits<Vec<T>>(bits - (same_bits<Bits<T>>(e) << F::mantissa));
  const Vec<T> exponent = same_bits<Vec<T>>((e + F::bias) | same_bits<IntVec<T>>(splat(two))) - (two + F::bias);
  const Vec<T> z = (m - 1) / (m + 1), square = z * z;
  Vec<T> sum = splat(static_cast<T>(2.0 / (2 * F::log_terms - 1)));
  WCF_UNROLL
  for (int i = F::log_terms - 2; i >= 0; --i) sum = fma(sum, square, splat(static_cast<T>(2.0 / (2 * i + 1))));
  return fma(exponent, splat(LN_2), sum * z);
}
