// Blocks of one anchor's draws. Included once per instruction set.
// The compiler vectorises the plain loops. The two loops that it cannot vectorise have an AVX2 form.

// x [n] through all the rounds once, no walking.
template <int ROUNDS>
inline void rounds_once(const Permutation& p, uint32_t* x, int n) {
  const uint32_t mask = p.mask;
  const int shift = p.shift;
  uint32_t odd[ROUNDS], add[ROUNDS];
  for (int r = 0; r < ROUNDS; ++r) {
    odd[r] = p.odd[r];
    add[r] = p.add[r];
  }
  for (int i = 0; i < n; ++i) {
    uint32_t v = x[i];
    WCF_UNROLL
    for (int r = 0; r < ROUNDS; ++r) {
      v = (v * odd[r] + add[r]) & mask;
      v ^= v >> shift;
    }
    x[i] = v;
  }
}

// Lists the values outside [0, size): value[j] = x[i] and place[j] = at[i] (or i if `at` is null) for those i, in
// order. value may be x and place may be at; both need room for n rounded up to 8. Returns their number.
inline int list_outside(const uint32_t* x, const uint32_t* at, int n, uint32_t size, uint32_t* value, uint32_t* place) {
  int left = 0, i = 0;
#if WCF_AVX2
  // A signed compare suffices, because values are below 2^31.
  const __m256i last = _mm256_set1_epi32(static_cast<int>(size - 1));
  __m256i number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (; i + 8 <= n; i += 8) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    const __m256i from = at ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + i)) : number;
    const int out = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(v, last)));
    const auto* const lanes = reinterpret_cast<const __m128i*>(COMPACT_LANES.lane[out]);
    const __m256i pick = _mm256_cvtepu8_epi32(_mm_loadl_epi64(lanes));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(value + left), _mm256_permutevar8x32_epi32(v, pick));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(place + left), _mm256_permutevar8x32_epi32(from, pick));
    left += __builtin_popcount(static_cast<unsigned>(out));
    number = _mm256_add_epi32(number, _mm256_set1_epi32(8));
  }
#endif
  for (; i < n; ++i) {
    const uint32_t v = x[i], from = at ? at[i] : static_cast<uint32_t>(i);
    value[left] = v;
    place[left] = from;
    left += v >= size;
  }
  return left;
}

// x [n] <- pi(x). Values outside [0, P) are gathered into a dense list, and the list is walked on together.
template <int ROUNDS>
inline void permute_block(const Permutation& p, uint32_t* x, int n) {
  uint32_t value[DRAW_BLOCK], place[DRAW_BLOCK];
  rounds_once<ROUNDS>(p, x, n);
  int left = list_outside(x, nullptr, n, p.size, value, place);
  while (left > 0) {
    rounds_once<ROUNDS>(p, value, left);
    for (int i = 0; i < left; ++i) x[place[i]] = value[i];
    left = list_outside(value, place, left, p.size, value, place);
  }
}

// The 64-bit words (high << 32) | low of draws k0 .. k0+n-1 with replacement; k0 is even, n is rounded up to 8.
inline void replacement_words(const Stream& s, int64_t k0, int n, uint32_t* high, uint32_t* low) {
  const uint32_t first = static_cast<uint32_t>(k0 >> 1);
#if WCF_AVX2
  // Four counters at a time, each 32-bit word in the low half of a 64-bit lane. The high half is ignored.
  const __m256i m0 = _mm256_set1_epi64x(PHILOX_MUL_0), m1 = _mm256_set1_epi64x(PHILOX_MUL_1);
  for (int i = 0; i < n; i += 8) {
    const uint32_t at = first + static_cast<uint32_t>(i) / 2;
    __m256i c0 = _mm256_add_epi64(_mm256_set1_epi64x(at), _mm256_setr_epi64x(0, 1, 2, 3));
    __m256i c1 = _mm256_set1_epi64x(s.anchor);
    __m256i c2 = _mm256_set1_epi64x(static_cast<int64_t>(s.step));
    __m256i c3 = _mm256_set1_epi64x(static_cast<int64_t>(s.step >> 32));
    uint32_t key0 = static_cast<uint32_t>(s.seed), key1 = static_cast<uint32_t>(s.seed >> 32);
    WCF_UNROLL
    for (int round = 0; round < PHILOX_ROUNDS; ++round) {
      const __m256i p0 = _mm256_mul_epu32(c0, m0), p1 = _mm256_mul_epu32(c2, m1);
      c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1), _mm256_set1_epi64x(key0));
      c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3), _mm256_set1_epi64x(key1));
      c1 = p1;
      c3 = p0;
      key0 += PHILOX_KEY_0;
      key1 += PHILOX_KEY_1;
    }
    // Words 0 and 2 (low halves of draws 2j, 2j+1) and words 1 and 3 (high halves), side by side.
    const __m256i lows = _mm256_blend_epi32(c0, _mm256_slli_epi64(c2, 32), 0xAA);
    const __m256i highs = _mm256_blend_epi32(c1, _mm256_slli_epi64(c3, 32), 0xAA);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + i), lows);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high + i), highs);
  }
#else
  for (int i = 0; i < n; i += 2) {
    const Words q = stream_words(s, first + static_cast<uint32_t>(i) / 2);
    low[i] = q.v[0];
    high[i] = q.v[1];
    low[i + 1] = q.v[2];
    high[i + 1] = q.v[3];
  }
#endif
}

// rows [n] <- draws k0 .. k0+n-1 of a valid drawer. n <= DRAW_BLOCK, k0 is even, rows has DRAW_BLOCK places.
void draw_block(const Drawer& d, int64_t k0, int n, uint32_t* rows) {
  const uint32_t size = static_cast<uint32_t>(d.pool.size);
  if (d.mode == MODE_PERMUTED) {
    for (int i = 0; i < n; ++i) rows[i] = static_cast<uint32_t>(k0) + static_cast<uint32_t>(i);
    if (d.permutation.rounds == PERMUTATION_ROUNDS_LARGE) {
      permute_block<PERMUTATION_ROUNDS_LARGE>(d.permutation, rows, n);
    } else if (d.permutation.rounds == PERMUTATION_ROUNDS_SMALL) {
      permute_block<PERMUTATION_ROUNDS_SMALL>(d.permutation, rows, n);
    }  // P = 1: no rounds, the identity
  } else {
    uint32_t high[DRAW_BLOCK], low[DRAW_BLOCK];
    replacement_words(d.stream, k0, n, high, low);
    if (d.mode == MODE_WEIGHTED) {
      for (int i = 0; i < n; ++i) rows[i] = weighted_row(d, high[i], low[i]);
      return;
    }
    for (int i = 0; i < n; ++i) rows[i] = mulhi64(high[i], low[i], size);
  }
  if (d.pool.skip > 0) {
    const uint32_t first = static_cast<uint32_t>(d.pool.first), skip = static_cast<uint32_t>(d.pool.skip);
    for (int i = 0; i < n; ++i) rows[i] += rows[i] >= first ? skip : 0u;
  }
  if (const int32_t* const order = d.pool.order) {
    for (int i = 0; i < n; ++i) rows[i] = static_cast<uint32_t>(order[rows[i]]);
  }
}
