// One vector of REALs and what the compiler's vector extensions lack: fused multiply-add, exp, log, sums.
// Included once per instruction set and REAL, by sinkhorn_kernels.h only, with REAL, WCF_REAL_BITS and WCF_VECTOR_BYTES
// (16 portable, 32 AVX2, 64 AVX-512) defined.
//
// vec.inl is the bank's. They are two because they are made for different things: there one inclusion serves both REALs
// and widens rows of any storage type as it loads them, and its exp and log1p are good to an ulp or two for terms of one
// sign; here one REAL is the whole inclusion, and exp is one polynomial of the exponent's fraction, clamped at both ends.

constexpr int LANES = WCF_VECTOR_BYTES / static_cast<int>(sizeof(REAL));

#if WCF_REAL_BITS == 32
using Int = int32_t;
using Unsigned = uint32_t;
constexpr int MANTISSA = 23, BIAS = 127;
constexpr REAL ROUND = 0x1.8p23f;                                    // x + ROUND has round(x) in its low bits
constexpr REAL EXPONENT = 0x1p23f;                                   // EXPONENT's bits | e are those of 2^23 + e
constexpr REAL EXP_LEAST = -87.3f, EXP_MOST = 88.3f;                // e^x is normal and finite between them
constexpr REAL EXP2[] = {1.f,           6.931472e-1f,  2.4022646e-1f, 5.5503286e-2f,  // minimax, 2e-9 relative
                         9.618489e-3f,  1.3399931e-3f, 1.5345812e-4f};
constexpr int LOG_TERMS = 5;
#else
using Int = int64_t;
using Unsigned = uint64_t;
constexpr int MANTISSA = 52, BIAS = 1023;
constexpr REAL ROUND = 0x1.8p52;
constexpr REAL EXPONENT = 0x1p52;
constexpr REAL EXP_LEAST = -708.3, EXP_MOST = 709.3;
constexpr REAL EXP2[] = {1.0,                   0.6931471805599497,    0.24022650695908768,   0.05550410866445884,
                         0.0096181291080346,    0.0013333558228560043, 0.00015403529961103714, 1.52526581173374e-05,
                         1.3215662851330036e-06, 1.0208537775312956e-07, 7.037275963097554e-09};
constexpr int LOG_TERMS = 12;
#endif
constexpr int EXP2_TERMS = static_cast<int>(sizeof(EXP2) / sizeof(REAL));

typedef REAL Vec __attribute__((vector_size(WCF_VECTOR_BYTES)));
typedef Int IntVec __attribute__((vector_size(WCF_VECTOR_BYTES)));
typedef Unsigned Bits __attribute__((vector_size(WCF_VECTOR_BYTES)));  // wraps round
typedef REAL Unaligned __attribute__((vector_size(WCF_VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

#undef WCF_INLINE
#define WCF_INLINE static inline __attribute__((always_inline))

WCF_INLINE Vec load_vec(const REAL* p) { return *reinterpret_cast<const Unaligned*>(p); }
WCF_INLINE void store_vec(REAL* p, Vec v) { *reinterpret_cast<Unaligned*>(p) = v; }
WCF_INLINE Vec splat(REAL x) { return x - Vec{}; }

WCF_INLINE Vec fma_vec(Vec a, Vec b, Vec c) {
#if WCF_VECTOR_BYTES == 64 && WCF_REAL_BITS == 32
  return _mm512_fmadd_ps(a, b, c);
#elif WCF_VECTOR_BYTES == 64
  return _mm512_fmadd_pd(a, b, c);
#elif WCF_VECTOR_BYTES == 32 && WCF_REAL_BITS == 32
  return _mm256_fmadd_ps(a, b, c);
#elif WCF_VECTOR_BYTES == 32
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

WCF_INLINE Vec min_vec(Vec a, Vec b) { return a < b ? a : b; }  // b where either is NaN
WCF_INLINE Vec max_vec(Vec a, Vec b) { return a > b ? a : b; }

// e^x; 0 below the smallest normal number, and no more than about the largest, whatever x is. NaN gives 0.
WCF_INLINE Vec exp_vec(Vec x) {
  constexpr REAL LOG2_E = static_cast<REAL>(1.4426950408889634074);
  const Vec t = min_vec(x, splat(EXP_MOST));
  const Vec rounded = fma_vec(t, splat(LOG2_E), splat(ROUND));
  const Vec f = fma_vec(t, splat(LOG2_E), splat(ROUND) - rounded);  // of 2^(n + f); in [-1/2, 1/2]
  Vec power = splat(EXP2[EXP2_TERMS - 1]);
  WCF_UNROLL
  for (int i = EXP2_TERMS - 2; i >= 0; --i) power = fma_vec(power, f, splat(EXP2[i]));
  const Bits scaled = reinterpret_cast<Bits>(power) + (reinterpret_cast<Bits>(rounded) << MANTISSA);
  return x >= EXP_LEAST ? reinterpret_cast<Vec>(scaled) : Vec{};
}

// ln x of a positive normal x; finite, about -88 (-709), at 0.
WCF_INLINE Vec log_vec(Vec x) {
  // x = 2^e m with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh(z), z = (m - 1) / (m + 1).
  constexpr REAL LN_2 = static_cast<REAL>(0.69314718055994530942);
  const Bits bits = reinterpret_cast<Bits>(x);
  const Bits root = reinterpret_cast<Bits>(splat(static_cast<REAL>(0.70710678118654752440)));
  const IntVec e = reinterpret_cast<IntVec>(bits - root) >> MANTISSA;  // arithmetic
  const Vec m = reinterpret_cast<Vec>(bits - (reinterpret_cast<Bits>(e) << MANTISSA));
  const Vec exponent = reinterpret_cast<Vec>((e + BIAS) | reinterpret_cast<IntVec>(splat(EXPONENT))) - (EXPONENT + BIAS);
  const Vec z = (m - 1) / (m + 1), square = z * z;
  Vec sum = splat(static_cast<REAL>(2.0 / (2 * LOG_TERMS - 1)));
  WCF_UNROLL
  for (int i = LOG_TERMS - 2; i >= 0; --i) sum = fma_vec(sum, square, splat(static_cast<REAL>(2.0 / (2 * i + 1))));
  return fma_vec(exponent, splat(LN_2), sum * z);
}

// Fixed orders of reduction: halves onto halves.
#define WCF_HALVE(NAME, OP)                                            \
  WCF_INLINE REAL NAME(Vec v) {                                        \
    REAL x[LANES];                                                     \
    store_vec(x, v);                                                   \
    WCF_UNROLL                                                         \
    for (int half = LANES / 2; half > 0; half /= 2) {                  \
      WCF_UNROLL                                                       \
      for (int i = 0; i < half; ++i) x[i] = OP(x[i], x[i + half]);     \
    }                                                                  \
    return x[0];                                                       \
  }
#define WCF_ADD(a, b) ((a) + (b))
#define WCF_LESS(a, b) ((a) < (b) ? (a) : (b))
#define WCF_MORE(a, b) ((a) > (b) ? (a) : (b))
WCF_HALVE(sum_of, WCF_ADD)
WCF_HALVE(least_of, WCF_LESS)
WCF_HALVE(most_of, WCF_MORE)
#undef WCF_HALVE
#undef WCF_ADD
#undef WCF_LESS
#undef WCF_MORE

// One REAL for each row of a group.
typedef REAL Four __attribute__((vector_size(4 * sizeof(REAL))));
typedef Int IntFour __attribute__((vector_size(4 * sizeof(REAL))));
typedef REAL UnalignedFour __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

WCF_INLINE Four load_four(const REAL* p) { return *reinterpret_cast<const UnalignedFour*>(p); }
WCF_INLINE void store_four(REAL* p, Four v) { *reinterpret_cast<UnalignedFour*>(p) = v; }

// The sums over all lanes of four vectors.
WCF_INLINE Four sums_of(const Vec* v) {
#if WCF_VECTOR_BYTES >= 32 && WCF_REAL_BITS == 32
  __m128 x[4];
  WCF_UNROLL
  for (int i = 0; i < 4; ++i) {
#if WCF_VECTOR_BYTES == 64
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
#else
    const __m256 half = v[i];
#endif
    x[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  }
  return _mm_hadd_ps(_mm_hadd_ps(x[0], x[1]), _mm_hadd_ps(x[2], x[3]));
#elif WCF_VECTOR_BYTES >= 32
  __m128d x[4];
  WCF_UNROLL
  for (int i = 0; i < 4; ++i) {
#if WCF_VECTOR_BYTES == 64
    const __m256d half = _mm256_add_pd(_mm512_castpd512_pd256(v[i]), _mm512_extractf64x4_pd(v[i], 1));
#else
    const __m256d half = v[i];
#endif
    x[i] = _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
  }
  return _mm256_set_m128d(_mm_hadd_pd(x[2], x[3]), _mm_hadd_pd(x[0], x[1]));
#else
  return Four{sum_of(v[0]), sum_of(v[1]), sum_of(v[2]), sum_of(v[3])};
#endif
}
