// Runs the threads of a launch as fibers, one at a time, in an order that is shuffled anew for every launch.
//
// A fiber runs until it meets a barrier or returns. A warp, a block or a cooperative grid goes on when all its threads
// wait at the same barrier; when none of its threads can run and they do not, that is a bug in the kernel, and the
// process aborts with the kernel, the thread and both places.
#include <cxxabi.h>
#include <dlfcn.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {
namespace {

constexpr size_t STACK_BYTES = 256 * 1024;
constexpr size_t MAX_SHARED_BYTES = 227 * 1024;  // per block on sm_90
constexpr size_t GUARD_BYTES = 256;              // after the shared memory, to catch a write past its end
constexpr int MAX_THREADS = 16384;               // alive at once in a cooperative grid
constexpr int THREADS_PER_SM = 2048;
constexpr unsigned char POISON = 0xFF;  // NaN in every floating-point type
constexpr unsigned char GUARD = 0xA5;

enum class State { ready, at_warp, at_block, at_group, returned };

struct Fiber {
  ucontext_t first;  // entered once; from then on the fiber is resumed by longjmp, which saves no signal mask
  jmp_buf resume;
  bool entered = false;
  State state = State::ready;
  const char* barrier = "";
  Site site{};
  uint3 thread{};
  struct Warp* warp = nullptr;
};

struct Warp {
  std::vector<Fiber*> lanes;
  uint64_t value[2][32];  // a lane may hand in for the next operation while others still read the last
  int side = 0;
  struct Block* block = nullptr;
};

struct Block {
  uint3 index{};
  std::vector<unsigned char> shared;
  size_t shared_bytes = 0;
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<Fiber*> fibers;
  bool vote = false, voted = false;  // __syncthreads_or: of the barrier that fills, and of the last one
};

std::mutex launching;
std::vector<std::unique_ptr<Fiber>> pool;
const std::function<void()>* job = nullptr;
const void* kernel_address = nullptr;
bool is_cooperative = false;
Fiber* current = nullptr;
jmp_buf scheduler;
uint64_t order_seed = 1;
int current_device = 0;
size_t shared_limit = MAX_SHARED_BYTES;  // per block of the device that is played

std::string kernel_name() {
  Dl_info info{};
  if (!dladdr(kernel_address, &info) || !info.dli_sname) return "?";
  int status = 0;
  char* plain = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  const std::string name = status == 0 ? plain : info.dli_sname;
  std::free(plain);
  return name;
}

std::string place(const Fiber& f) {
  const uint3 b = f.warp->block->index;
  char text[512];
  std::snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u) ", b.x, b.y, b.z, f.thread.x, f.thread.y,
                f.thread.z);
  if (f.state == State::returned) return std::string(text) + "has returned";
  if (f.state == State::ready) return std::string(text) + "is running";
  return std::string(text) + "waits at " + f.barrier + " (" + f.site.file + ":" + std::to_string(f.site.line) + ")";
}

[[noreturn]] void die(const std::string& message) {
  std::fprintf(stderr, "cuda_on_cpu: kernel %s: %s\n", kernel_name().c_str(), message.c_str());
  std::fflush(stderr);
  std::abort();
}

uint64_t next_random() {  // splitmix64
  uint64_t z = order_seed += 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

template <class T>
void shuffle(std::vector<T>& items) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[next_random() % i]);
}

void fiber_main() {
  for (;;) {
    (*job)();
    current->state = State::returned;
    if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
  }
}

__attribute__((noinline)) void resume(Fiber* f) {
  current = f;
  threadIdx = f->thread;
  blockIdx = f->warp->block->index;
  if (_setjmp(scheduler) != 0) return;
  if (f->entered) _longjmp(f->resume, 1);
  f->entered = true;
  setcontext(&f->first);
}

__attribute__((noinline)) void wait(State state, const char* barrier, Site site) {
  current->state = state;
  current->barrier = barrier;
  current->site = site;
  if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
}

Fiber* fiber(size_t number) {
  while (pool.size() <= number) {
    auto f = std::make_unique<Fiber>();
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (stack == MAP_FAILED || getcontext(&f->first) != 0) die("no memory for another thread's stack");
    f->first.uc_stack.ss_sp = stack;
    f->first.uc_stack.ss_size = STACK_BYTES;
    f->first.uc_link = nullptr;
    makecontext(&f->first, fiber_main, 0);
    pool.push_back(std::move(f));
  }
  return pool[number].get();
}

// If all wait at the one barrier of this kind, lets them go on. True if they did; false if they wait for something
// wider or have all returned. Anything else can never be resolved.
bool release(const std::vector<Fiber*>& group, State kind) {
  const Fiber* waits = nullptr;
  for (const Fiber* f : group) {
    if (f->state == kind) waits = f;
  }
  if (!waits) return false;
  for (const Fiber* f : group) {
    if (f->state == State::returned) die("deadlock: " + place(*waits) + ", but " + place(*f));
    const bool same = f->state == kind && f->site.line == waits->site.line && f->barrier == waits->barrier &&
                      f->site.object == waits->site.object && std::strcmp(f->site.file, waits->site.file) == 0;
    if (!same) die("divergent barrier: " + place(*waits) + ", but " + place(*f));
  }
  for (Fiber* f : group) f->state = State::ready;
  return true;
}

// Runs a warp as far as it goes without a wider barrier. True if any of its threads ran.
bool run_warp(Warp& warp) {
  bool ran = false;
  for (;;) {
    for (Fiber* f : warp.lanes) {
      if (f->state != State::ready) continue;
      ran = true;
      resume(f);
    }
    if (!release(warp.lanes, State::at_warp)) return ran;
    warp.side ^= 1;
  }
}

bool run_block(Block& block) {
  bool ran = false;
  for (;;) {
    for (auto& warp : block.warps) ran |= run_warp(*warp);
    if (!release(block.fibers, State::at_block)) return ran;
    block.voted = block.vote;
    block.vote = false;
  }
}

std::unique_ptr<Block> make_block(uint3 index, dim3 size, size_t shared_bytes, size_t first_fiber) {
  auto block = std::make_unique<Block>();
  block->index = index;
  block->shared_bytes = shared_bytes;
  block->shared.assign(shared_bytes + GUARD_BYTES, POISON);
  std::fill(block->shared.end() - GUARD_BYTES, block->shared.end(), GUARD);
  for (unsigned z = 0; z < size.z; ++z) {
    for (unsigned y = 0; y < size.y; ++y) {
      for (unsigned x = 0; x < size.x; ++x) {
        const size_t number = block->fibers.size();
        if (number % 32 == 0) {
          block->warps.push_back(std::make_unique<Warp>());
          block->warps.back()->block = block.get();
        }
        Fiber* f = fiber(first_fiber + number);
        f->state = State::ready;
        f->thread = {x, y, z};
        f->warp = block->warps.back().get();
        f->warp->lanes.push_back(f);
        block->fibers.push_back(f);
      }
    }
  }
  for (auto& warp : block->warps) shuffle(warp->lanes);
  shuffle(block->warps);
  return block;
}

void check_guard(const Block& block) {
  for (size_t i = block.shared_bytes; i < block.shared.size(); ++i) {
    if (block.shared[i] != GUARD) {
      die("wrote at byte " + std::to_string(i) + " of " + std::to_string(block.shared_bytes) +
          " bytes of shared memory, " + "block (" + std::to_string(block.index.x) + "," +
          std::to_string(block.index.y) + "," + std::to_string(block.index.z) + ")");
    }
  }
}

// Lets the groups of blocks (equal blockIdx.y) go on whose threads all wait at the barrier of their group.
bool release_groups(const std::vector<Fiber*>& all) {
  std::map<unsigned, std::vector<Fiber*>> groups;
  std::map<const void*, unsigned> states;
  bool released = false;
  for (Fiber* f : all) {
    const unsigned group = f->warp->block->index.y;
    groups[group].push_back(f);
    if (f->state == State::at_group && states.emplace(f->site.object, group).first->second != group) {
      die("two groups of blocks at one state: " + place(*f));
    }
  }
  for (const auto& group : groups) released |= release(group.second, State::at_group);
  return released;
}

// Blocks that are alive together: one, or a whole cooperative grid.
void run_together(const std::vector<uint3>& indices, dim3 size, size_t shared_bytes) {
  const size_t threads = static_cast<size_t>(size.x) * size.y * size.z;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<Fiber*> all;
  for (const uint3 index : indices) {
    blocks.push_back(make_block(index, size, shared_bytes, blocks.size() * threads));
    all.insert(all.end(), blocks.back()->fibers.begin(), blocks.back()->fibers.end());
  }
  do {
    for (auto& block : blocks) run_block(*block);
  } while (release_groups(all));
  for (auto& block : blocks) check_guard(*block);
}

}  // namespace

unsigned char* shared_memory() { return current->warp->block->shared.data(); }

void block_barrier(Site site) { wait(State::at_block, "__syncthreads", site); }

bool block_any(bool vote, Site site) {
  Block& block = *current->warp->block;
  block.vote |= vote;
  wait(State::at_block, "__syncthreads_or", site);
  return block.voted;
}

void group_barrier(const void* state, const char* file, int line) {
  if (!is_cooperative) die("group_sync in a launch that is not cooperative: " + place(*current));
  wait(State::at_group, "group_sync", {file, line, state});
}

const uint64_t* warp_collect(const char* operation, unsigned mask, Site site, uint64_t value) {
  Warp& warp = *current->warp;
  if (mask != FULL) die(std::string(operation) + " with a mask that is not full: " + place(*current));
  if (warp.lanes.size() != 32) die(std::string(operation) + " in a warp of fewer than 32 threads: " + place(*current));
  const int side = warp.side;
  const uint3 t = current->thread;
  warp.value[side][(t.x + blockDim.x * (t.y + blockDim.y * t.z)) % 32] = value;
  wait(State::at_warp, operation, site);
  return warp.value[side];
}

cudaError_t run(const void* kernel, const std::function<void()>& body, dim3 grid, dim3 block, size_t shared_bytes,
                bool cooperative) {
  const std::lock_guard<std::mutex> lock(launching);
  const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
  const size_t blocks = static_cast<size_t>(grid.x) * grid.y * grid.z;
  if (threads < 1 || threads > 1024 || blocks < 1 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (shared_bytes > shared_limit) return cudaErrorInvalidValue;
  if (cooperative && blocks * threads > MAX_THREADS) return cudaErrorCooperativeLaunchTooLarge;
  kernel_address = kernel;
  job = &body;
  is_cooperative = cooperative;
  blockDim = block;
  gridDim = grid;
  std::vector<uint3> indices;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) indices.push_back({x, y, z});
    }
  }
  shuffle(indices);
  if (cooperative) {
    run_together(indices, block, shared_bytes);
  } else {
    for (const uint3 index : indices) run_together({index}, block, shared_bytes);
  }
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

cudaError_t cudaGetDevice(int* device) {
  *device = cuda_on_cpu::current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device > 1) return cudaErrorInvalidDevice;
  cuda_on_cpu::current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  using namespace cuda_on_cpu;
  if (device < 0 || device > 1) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = MAX_THREADS / THREADS_PER_SM;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(shared_limit);
      return cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return value <= static_cast<int>(cuda_on_cpu::shared_limit) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t shared) {
  using namespace cuda_on_cpu;
  const size_t by_shared = shared_limit / std::max<size_t>(shared, 1);
  *blocks = static_cast<int>(std::min<size_t>(THREADS_PER_SM / threads, by_shared));
  return cudaSuccess;
}

extern "C" void cuda_on_cpu_seed(uint64_t seed) { cuda_on_cpu::order_seed = seed; }

// Plays a device with so much shared memory per block; 0: the most there is.
extern "C" void cuda_on_cpu_shared_limit(size_t bytes) {
  cuda_on_cpu::shared_limit = bytes == 0 ? cuda_on_cpu::MAX_SHARED_BYTES : bytes;
}

extern "C" int cuda_on_cpu_device() { return cuda_on_cpu::current_device; }
