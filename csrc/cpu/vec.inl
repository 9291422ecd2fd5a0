// Vectors of one instruction set: W lanes of float or double, loads from every storage type, sums, exp and log1p.
// Included once per set, by bank_set.inl only. Plain arithmetic is the compiler's own on vector types.

constexpr int VEC_BYTES = WCF_AVX512 ? 64 : WCF_AVX2 ? 32 : 16;

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(VEC_BYTES)));
};
template <class T>
struct HalfVecOf {
  typedef T type __attribute__((vector_size(VEC_BYTES / 2)));
};
template <class Real>
using Vec = typename VecOf<Real>::type;
template <class Real>
constexpr int WIDTH = VEC_BYTES / static_cast<int>(sizeof(Real));

// Integers as wide as the lanes: what comparing two vectors gives, all ones for true.
template <class Real>
struct IntOf {
  using type = int32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
};
template <class Real>
using IntVec = typename VecOf<typename IntOf<Real>::type>::type;

template <class Real>
WCF_HD Vec<Real> splat(Real x) {
  return x - Vec<Real>{};  // not x + {}: -0.0 stays itself
}

// 0, 1, 2, ...
template <class Real>
WCF_HD IntVec<Real> lane_numbers() {
  IntVec<Real> n{};
  for (int i = 0; i < WIDTH<Real>; ++i) n[i] = i;
  return n;
}

template <class To, class From>
WCF_HD To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

WCF_HD Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if WCF_AVX512
  return _mm512_fmadd_ps(a, b, c);
#elif WCF_AVX2
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
WCF_HD Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if WCF_AVX512
  return _mm512_fmadd_pd(a, b, c);
#elif WCF_AVX2
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// W elements at p, in the type to calculate in.
template <class Real, class T>
WCF_HD Vec<Real> load_vec(const T* p) {
  Vec<Real> v{};
  if constexpr (std::is_same_v<Real, T>) {
    __builtin_memcpy(&v, p, sizeof v);
  } else if constexpr (std::is_same_v<T, float>) {
    HalfVecOf<float>::type narrow;
    __builtin_memcpy(&narrow, p, sizeof narrow);
    v = __builtin_convertvector(narrow, Vec<Real>);
  } else if constexpr (std::is_same_v<Real, float> && std::is_same_v<T, Bf16>) {
    HalfVecOf<uint16_t>::type bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    v = same_bits<Vec<float>>(__builtin_convertvector(bits, VecOf<uint32_t>::type) << 16);
#if WCF_AVX512
  } else if constexpr (std::is_same_v<Real, float> && std::is_same_v<T, F16>) {
    v = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif WCF_AVX2
  } else if constexpr (std::is_same_v<Real, float> && std::is_same_v<T, F16>) {
    v = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
  } else {
    for (int i = 0; i < WIDTH<Real>; ++i) v[i] = static_cast<Real>(load(p[i]));
  }
  return v;
}

// The first n < W elements at p, zeros behind them.
template <class Real, class T>
WCF_HD Vec<Real> load_part(const T* p, int n) {
#if WCF_AVX512
  if constexpr (std::is_same_v<Real, float> && std::is_same_v<T, float>) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
  }
#endif
  Vec<Real> v{};
  for (int i = 0; i < n; ++i) v[i] = static_cast<Real>(load(p[i]));
  return v;
}

template <class Real>
WCF_HD void store_vec(Real* p, const Vec<Real>& v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <class Real>
WCF_HD void store_part(Real* p, const Vec<Real>& v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}

// The sum, and the largest, of all lanes, pairwise.
template <class Real>
WCF_HD Real sum_of(Vec<Real> v) {
#if WCF_AVX512
  if constexpr (std::is_same_v<Real, float>) return _mm512_reduce_add_ps(v);
#endif
  Real lane[WIDTH<Real>];
  store_vec(lane, v);
  for (int half = WIDTH<Real> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}
template <class Real>
WCF_HD Real largest_of(Vec<Real> v) {
  Real best = v[0];
  for (int i = 1; i < WIDTH<Real>; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// Lane j of the result is the sum of the lanes of v[j]: W sums at once.
template <class Real>
WCF_HD Vec<Real> sum_each(const Vec<Real>* v) {
  Vec<Real> out{};
  for (int j = 0; j < WIDTH<Real>; ++j) out[j] = sum_of<Real>(v[j]);
  return out;
}
#if WCF_AVX2
WCF_HD __m256 sum_pairs(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
}
WCF_HD __m256 sum_quads(__m256 ab, __m256 cd) {
  const __m256d x = _mm256_castps_pd(ab), y = _mm256_castps_pd(cd);
  return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
}
#endif
#if WCF_AVX512
WCF_HD __m512 sum_pairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
WCF_HD __m512 sum_quads(__m512 ab, __m512 cd) {
  const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}
// Adds neighbouring 128-bit quarters of x, then of y.
WCF_HD __m512 sum_quarters(__m512 x, __m512 y) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xDD));
}
template <>
WCF_HD Vec<float> sum_each<float>(const Vec<float>* v) {
  __m512 four[4];  // [128-bit quarter][v of four]
  WCF_UNROLL
  for (int i = 0; i < 4; ++i) {
    four[i] = sum_quads(sum_pairs(v[4 * i], v[4 * i + 1]), sum_pairs(v[4 * i + 2], v[4 * i + 3]));
  }
  return sum_quarters(sum_quarters(four[0], four[1]), sum_quarters(four[2], four[3]));
}
#elif WCF_AVX2
template <>
WCF_HD Vec<float> sum_each<float>(const Vec<float>* v) {
  const __m256 low = sum_quads(sum_pairs(v[0], v[1]), sum_pairs(v[2], v[3]));
  const __m256 high = sum_quads(sum_pairs(v[4], v[5]), sum_pairs(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}
#endif

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
  const auto scale = (same_bits<VecOf<uint32_t>::type>(shifted) << 23) + (127u << 23);  // unsigned: what vanishes wraps
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
  const Vec<float> lost = (q - (y - 1.0f)) / y;  // what rounding 1 + q took away
  Vec<float> small = fma(square * f, p, fma(e, splat(-2.12194440e-4f), lost));
  small = fma(square, splat(-0.5f), small);
  return fma(e, splat(0.693359375f), f + small);
}

// fp64 is the type of tests and of the undecided: its lanes go through the C library.
WCF_HD Vec<double> exp_nonpositive(Vec<double> y) {
  for (int i = 0; i < WIDTH<double>; ++i) y[i] = __builtin_exp(y[i]);
  return y;
}
WCF_HD Vec<double> log1p_nonnegative(Vec<double> q) {
  for (int i = 0; i < WIDTH<double>; ++i) q[i] = __builtin_log1p(q[i]);
  return q;
}
