// Vectors of one instruction set: W lanes of float or double, loads from every storage type, sums and extremes.
// Included once per set. Plain arithmetic is the compiler's own on vector types;
// exp and log, which each op needs in its own range, are in bank_terms.inl and sinkhorn_math.inl.

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

// Integers as wide as the lanes: the type of a comparison of two vectors, all ones for true.
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

template <class V>
WCF_HD V min_vec(V a, V b) {
  return a < b ? a : b;  // b where either is NaN
}
template <class V>
WCF_HD V max_vec(V a, V b) {
  return a > b ? a : b;
}

// W elements at p, in the type of the arithmetic.
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

// Whether any lane of a comparison is true.
template <class Real>
WCF_HD bool any_lane(IntVec<Real> v) {
#if WCF_AVX512
  return sizeof(Real) == 4 ? _mm512_movepi32_mask(same_bits<__m512i>(v)) != 0
                           : _mm512_movepi64_mask(same_bits<__m512i>(v)) != 0;
#elif WCF_AVX2
  return _mm256_movemask_epi8(same_bits<__m256i>(v)) != 0;
#else
  bool any = false;
  for (int i = 0; i < WIDTH<Real>; ++i) any |= v[i] != 0;
  return any;
#endif
}

// The sum, the least and the largest of all lanes, halves onto halves.
template <class Real, class F>
WCF_HD Real reduce_lanes(const Vec<Real>& v, F f) {
  Real lane[WIDTH<Real>];
  store_vec(lane, v);
  WCF_UNROLL
  for (int half = WIDTH<Real> / 2; half > 0; half /= 2) {
    WCF_UNROLL
    for (int i = 0; i < half; ++i) lane[i] = f(lane[i], lane[i + half]);
  }
  return lane[0];
}
template <class Real>
WCF_HD Real sum_of(Vec<Real> v) {
#if WCF_AVX512
  if constexpr (std::is_same_v<Real, float>) return _mm512_reduce_add_ps(v);
#endif
  return reduce_lanes<Real>(v, [](Real a, Real b) { return a + b; });
}
template <class Real>
WCF_HD Real least_of(Vec<Real> v) {
  return reduce_lanes<Real>(v, [](Real a, Real b) { return a < b ? a : b; });
}
template <class Real>
WCF_HD Real most_of(Vec<Real> v) {
  return reduce_lanes<Real>(v, [](Real a, Real b) { return a > b ? a : b; });
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

// One number for each row of a group of four.
template <class Real>
struct FourOf {
  typedef Real type __attribute__((vector_size(4 * sizeof(Real))));
};
template <class Real>
using Four = typename FourOf<Real>::type;
template <class Real>
using IntFour = typename FourOf<typename IntOf<Real>::type>::type;

template <class Real>
WCF_HD Four<Real> load_four(const Real* p) {
  Four<Real> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class Real>
WCF_HD void store_four(Real* p, const Four<Real>& v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The sums over all lanes of four vectors.
template <class Real>
WCF_HD Four<Real> sums_of(const Vec<Real>* v) {
  return Four<Real>{sum_of<Real>(v[0]), sum_of<Real>(v[1]), sum_of<Real>(v[2]), sum_of<Real>(v[3])};
}
#if WCF_AVX2
template <>
WCF_HD Four<float> sums_of<float>(const Vec<float>* v) {
  __m128 x[4];
  WCF_UNROLL
  for (int i = 0; i < 4; ++i) {
#if WCF_AVX512
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
#else
    const __m256 half = v[i];
#endif
    x[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  }
  return _mm_hadd_ps(_mm_hadd_ps(x[0], x[1]), _mm_hadd_ps(x[2], x[3]));
}
template <>
WCF_HD Four<double> sums_of<double>(const Vec<double>* v) {
  __m128d x[4];
  WCF_UNROLL
  for (int i = 0; i < 4; ++i) {
#if WCF_AVX512
    const __m256d half = _mm256_add_pd(_mm512_castpd512_pd256(v[i]), _mm512_extractf64x4_pd(v[i], 1));
#else
    const __m256d half = v[i];
#endif
    x[i] = _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
  }
  return _mm256_set_m128d(_mm_hadd_pd(x[2], x[3]), _mm_hadd_pd(x[0], x[1]));
}
#endif
