// Runs a CUDA kernel's own source on the CPU: the language's extensions, and a launcher.
//
// Blocks run one after the other. A kernel that never waits runs thread by thread; one that does (the test compiles it
// with CUDA_HOST_FIBERS) has a fiber per thread. A warp runs until all of it waits for the block, its threads taking
// turns at every shuffle; then the next warp runs: no warp waits for another but at __syncthreads, as on a GPU. Threads
// that wait at different places are an error. Threads and blocks run in ascending or in descending order: results that
// differ mean that a kernel does not wait where it must.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct Index {
  unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

struct float2 {
  float x, y;
};
struct uint2 {
  unsigned x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float sinpif(float x) { return float(std::sin(M_PI * x)); }
inline float cospif(float x) { return float(std::cos(M_PI * x)); }

namespace host {

static bool descending;

inline unsigned turn(unsigned i, unsigned count) { return descending ? count - 1 - i : i; }

enum Outcome : int { DONE = 0, DIVERGED = 1 };

#ifdef CUDA_HOST_FIBERS
enum Place { RUNNING, FINISHED, SYNCHRONISING, SHUFFLING };

constexpr size_t STACK = 64 * 1024;
constexpr unsigned WARP = 32;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  Place place = RUNNING;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static std::function<void()> body;
static std::vector<float> exchange;

inline void wait(Place place) {
  Fiber& self = fibers[threadIdx.x];
  self.place = place;
  swapcontext(&self.context, &scheduler);
}

static void enter() {
  body();
  fibers[threadIdx.x].place = FINISHED;  // uc_link leads back to the scheduler
}

// Runs a warp until all of it waits for the block or has finished; false if its threads wait at different places.
inline bool run_warp(unsigned first) {
  const unsigned threads = std::min(WARP, blockDim.x - first);
  do {
    for (unsigned i = 0; i < threads; ++i) {
      threadIdx.x = first + turn(i, threads);
      swapcontext(&scheduler, &fibers[threadIdx.x].context);
    }
    for (unsigned i = 1; i < threads; ++i)
      if (fibers[first + i].place != fibers[first].place) return false;
  } while (fibers[first].place == SHUFFLING);
  return true;
}

inline Outcome run_block() {
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = &scheduler;
    fiber.place = RUNNING;
    makecontext(&fiber.context, enter, 0);
  }
  const unsigned warps = (blockDim.x + WARP - 1) / WARP;
  do {
    for (unsigned i = 0; i < warps; ++i)
      if (!run_warp(turn(i, warps) * WARP)) return DIVERGED;
    for (const Fiber& fiber : fibers)
      if (fiber.place != fibers[0].place) return DIVERGED;
  } while (fibers[0].place != FINISHED);
  return DONE;
}
#endif

template <typename... A, size_t... I>
int run(void (*kernel)(A...), const unsigned* grid, unsigned threads, void** arguments, std::index_sequence<I...>) {
  const auto call = [&] { kernel(*static_cast<A*>(arguments[I])...); };
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {threads, 1, 1};
#ifdef CUDA_HOST_FIBERS
  fibers = std::vector<Fiber>(threads);
  exchange.assign(threads, 0.0f);
  body = call;
#endif
  const unsigned blocks = grid[0] * grid[1] * grid[2];
  for (unsigned i = 0; i < blocks; ++i) {
    const unsigned block = turn(i, blocks);
    blockIdx = {block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
#ifdef CUDA_HOST_FIBERS
    if (const Outcome outcome = run_block()) return outcome;
#else
    for (unsigned thread = 0; thread < threads; ++thread) {
      threadIdx.x = turn(thread, threads);
      call();
    }
#endif
  }
  return DONE;
}

template <typename... A>
int launch(void (*kernel)(A...), const unsigned* grid, unsigned threads, void** arguments, int backwards) {
  descending = backwards;
  return run(kernel, grid, threads, arguments, std::index_sequence_for<A...>());
}

template <typename T>
constexpr char letter(T*) { return 'p'; }
constexpr char letter(int) { return 'i'; }
constexpr char letter(long long) { return 'l'; }
constexpr char letter(unsigned long long) { return 'u'; }
constexpr char letter(float) { return 'f'; }

template <typename... A>
const char* signature(void (*)(A...)) {
  static const char letters[] = {letter(A())..., '\0'};
  return letters;
}

}  // namespace host

#ifdef CUDA_HOST_FIBERS
inline void __syncthreads() { host::wait(host::SYNCHRONISING); }
inline float __shfl_xor_sync(unsigned, float value, int mask) {
  host::exchange[threadIdx.x] = value;
  host::wait(host::SHUFFLING);
  const float other = host::exchange[threadIdx.x ^ mask];
  host::wait(host::SHUFFLING);  // nobody writes the next value before all have read this one
  return other;
}
#endif

// What Python finds: the launcher of an entry point, and its argument types as letters.
#define HOST_ENTRY(name)                                                                                \
  extern "C" __attribute__((visibility("default"))) int launch_##name(const unsigned* grid, unsigned threads, \
                                                                      void** arguments, int backwards) { \
    return host::launch(name, grid, threads, arguments, backwards);                                    \
  }                                                                                                     \
  extern "C" __attribute__((visibility("default"))) const char* signature_##name() { return host::signature(name); }
