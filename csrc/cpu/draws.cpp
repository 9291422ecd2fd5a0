// The draws of a batch, in order, and two functions for tests.
#include <algorithm>
#include <atomic>

#include "cpu.h"
#include "simd_kernels.h"

namespace wcf {
namespace {

constexpr int64_t CHUNK = 32 * DRAW_BLOCK;  // draws per OpenMP task

}  // namespace

int64_t cpu_draw(const Draw& call) {
  const DrawSpec& args = call.draws;
  const int threads = threads_of(call.place);
  const auto draw_block = simd_kernels().draw_block;
  const int64_t chunks = (args.num_draws + CHUNK - 1) / CHUNK;
  std::atomic<int64_t> invalid{args.num_anchors};
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < args.num_anchors; ++b) {
    for (int64_t c = 0; c < chunks; ++c) {
      Drawer d;
      drawer_open_with_keys(args, b, &d);
      if (d.mode == MODE_INVALID) {
        for (int64_t seen = invalid; b < seen && !invalid.compare_exchange_weak(seen, b);) {
        }
        continue;
      }
      const int64_t end = std::min(args.num_draws, (c + 1) * CHUNK);
      for (int64_t k = c * CHUNK; k < end; k += DRAW_BLOCK) {
        uint32_t rows[DRAW_BLOCK];
        const int n = static_cast<int>(std::min<int64_t>(DRAW_BLOCK, end - k));
        draw_block(d, k, n, rows);
        std::copy_n(rows, n, call.out + b * args.num_draws + k);
      }
    }
  }
  return invalid < args.num_anchors ? invalid.load() : -1;
}

bool cpu_positions(const DrawSpec& args, int64_t b, const int64_t* rows, int64_t* position, int64_t n) {
  Drawer d;
  drawer_open(args, b, &d);
  if (d.mode == MODE_INVALID) return false;
  for (int64_t i = 0; i < n; ++i) position[i] = pool_position(d.pool, rows[i]);
  return true;
}

void cpu_permute(const Stream& stream, int64_t size, const int64_t* in, int64_t* out, int64_t n, bool inverse) {
  Permutation p;
  permutation_shape(&p, static_cast<uint32_t>(size));
  for (int j = 0; j < p.rounds / 2; ++j) permutation_keys(&p, stream, j);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t x = static_cast<uint32_t>(in[i]);
    out[i] = inverse ? permute_inverse(p, x) : permute(p, x);
  }
}

}  // namespace wcf
