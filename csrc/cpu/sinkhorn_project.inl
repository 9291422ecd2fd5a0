// Doubly stochastic projection of small matrices, one problem a lane. Included once per instruction set.
//
// K = exp((x - row peak) / eps) and v = 1; then `iters` times u = 1 / (K v), v = 1 / (K' u); P = u K v. Backward goes
// through the normalisations with g = dL / d log of the matrix: each subtracts from g its row (or column) sums times
// the normalised matrix, so no intermediate number is larger than the gradient.

template <class T>
void project(const ProjectStep<T>& step) {
  using Range = SharedRange<T>;
  constexpr int W = WIDTH<T>;
  constexpr T MOST_SPREAD = sizeof(T) == 4 ? 69 : 600;  // nats in a row: K stays a normal number
  const int64_t n = step.n, cells = n * n, kept = step.grad ? step.iters : 1;
  T* const k = step.scratch;        // [n, n, W]
  T* const g = k + cells * W;       // [n, n, W]
  T* const ones = g + cells * W;    // [n, W]
  T* const us = ones + n * W;       // [kept, n, W]
  T* const vs = us + kept * n * W;  // [kept, n, W]
  const auto gather = [&](const T* from, T* to) {
    for (int64_t lane = 0; lane < W; ++lane) {
      const T* const own = from + (lane < step.count ? lane : step.count - 1) * cells;
      for (int64_t i = 0; i < cells; ++i) to[i * W + lane] = own[i];
    }
  };
  gather(step.logits, k);
  IntVec<T> safe = ~IntVec<T>{};
  const auto inverse = [&](Vec<T> sum) {
    safe &= (sum >= Range::least) & (sum <= Range::most);
    return splat(T(1)) / sum;
  };
  for (int64_t i = 0; i < n; ++i) {
    T* const row = k + i * n * W;
    Vec<T> top = load_vec<T>(row), low = top;
    for (int64_t j = 1; j < n; ++j) {
      const Vec<T> x = load_vec<T>(row + j * W);
      top = max_vec(x, top), low = min_vec(x, low);
    }
    safe &= (top - low) * step.scale <= MOST_SPREAD;
    for (int64_t j = 0; j < n; ++j) {
      store_vec(row + j * W, exp_vec<T>((load_vec<T>(row + j * W) - top) * step.scale));
    }
    store_vec(ones + i * W, splat(T(1)));
  }
  const T* before = ones;
  for (int64_t t = 0; t < step.iters; ++t) {
    T *const u = us + (step.grad ? t : 0) * n * W, *const v = vs + (step.grad ? t : 0) * n * W;
    for (int64_t i = 0; i < n; ++i) {
      Vec<T> sum{};
      for (int64_t j = 0; j < n; ++j) sum = fma(load_vec<T>(k + (i * n + j) * W), load_vec<T>(before + j * W), sum);
      store_vec(u + i * W, inverse(sum));
    }
    for (int64_t j = 0; j < n; ++j) {
      Vec<T> sum{};
      for (int64_t i = 0; i < n; ++i) sum = fma(load_vec<T>(k + (i * n + j) * W), load_vec<T>(u + i * W), sum);
      store_vec(v + j * W, inverse(sum));
    }
    before = v;
  }
  const T *const u = us + (kept - 1) * n * W, *const v = vs + (kept - 1) * n * W;
  if (step.grad) gather(step.grad, g);
  T* const sums = ones;  // [n, W] column sums of g; v before the first iteration is 1 without it
  for (int64_t j = 0; j < n && step.grad; ++j) store_vec(sums + j * W, Vec<T>{});
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      T* const to = g + (i * n + j) * W;
      const Vec<T> p = load_vec<T>(u + i * W) * load_vec<T>(k + (i * n + j) * W) * load_vec<T>(v + j * W);
      store_vec(to, step.grad ? p * load_vec<T>(to) : p);
      if (step.grad) store_vec(sums + j * W, load_vec<T>(sums + j * W) + load_vec<T>(to));
    }
  }
  for (int64_t t = step.iters - 1; t >= 0 && step.grad; --t) {
    const T *const ut = us + t * n * W, *const vt = vs + t * n * W, *const old = t ? vt - n * W : nullptr;
    for (int64_t j = 0; j < n; ++j) {  // sums becomes v_j times the sum of column j
      store_vec(sums + j * W, load_vec<T>(sums + j * W) * load_vec<T>(vt + j * W));
    }
    for (int64_t i = 0; i < n; ++i) {
      const T* const kernel = k + i * n * W;
      T* const row = g + i * n * W;
      const Vec<T> scaling = load_vec<T>(ut + i * W);
      Vec<T> sum{};
      for (int64_t j = 0; j < n; ++j) {
        const Vec<T> a = scaling * load_vec<T>(kernel + j * W);
        const Vec<T> left = load_vec<T>(row + j * W) - a * load_vec<T>(sums + j * W);
        sum += left;
        store_vec(row + j * W, left);
      }
      const Vec<T> off = scaling * sum;
      for (int64_t j = 0; j < n; ++j) {
        const Vec<T> a = load_vec<T>(kernel + j * W) * off;
        store_vec(row + j * W, load_vec<T>(row + j * W) - (old ? a * load_vec<T>(old + j * W) : a));
      }
    }
    for (int64_t j = 0; j < n; ++j) {
      Vec<T> sum{};
      for (int64_t i = 0; i < n; ++i) sum += load_vec<T>(g + (i * n + j) * W);
      store_vec(sums + j * W, sum);
    }
  }
  const T factor = step.grad ? step.scale : T(1);
  for (int64_t lane = 0; lane < step.count; ++lane) {
    T* const own = step.out + lane * cells;
    for (int64_t i = 0; i < cells; ++i) own[i] = factor * g[i * W + lane];
    step.solved[lane] = safe[lane] != 0;
  }
}
