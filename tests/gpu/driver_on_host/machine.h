// The machine that libcuda.cpp is the driver of: streams that run late, memory that is spoilt when freed, kernels as g++
// compiled them.
#pragma once
#include <cuda.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

using Work = std::function<void()>;
constexpr size_t TOTAL = size_t(8) << 30;
constexpr int GARBAGE = 0xFF;  // NaN in every float type
constexpr unsigned MAJOR = 8, MINOR = 9;

std::recursive_mutex lock;
#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock)

// -- streams, events, graphs ------------------------------------------------------------------------------------------

struct Graph {
  std::vector<Work> work;
};

struct Stream {
  std::deque<Work> queue;
  unsigned long long enqueued = 0, done = 0;
  std::unique_ptr<Graph> captured;
  bool broken = false;  // something on the way could not be captured

  void run_until(unsigned long long place) {
    while (done < place) {
      Work work = std::move(queue.front());
      queue.pop_front();
      ++done;
      work();
    }
  }
  void push(Work work) {
    if (captured) return captured->work.push_back(std::move(work));
    queue.push_back(std::move(work));
    ++enqueued;
  }
};

struct Event {
  Stream* stream = nullptr;
  unsigned long long place = 0;
};

struct Context {
} primary;

thread_local std::vector<CUcontext> contexts;
Stream default_stream;
std::set<Stream*> streams{&default_stream};
std::set<CUevent> events;

Stream* of(CUstream stream) {
  const auto address = reinterpret_cast<size_t>(stream);
  return address <= 2 ? &default_stream : reinterpret_cast<Stream*>(stream);
}
Event* of(CUevent event) { return reinterpret_cast<Event*>(event); }
CUcontext the_context() { return reinterpret_cast<CUcontext>(&primary); }

// Waiting is what a capture does not allow, whoever waits.
bool refused_while_capturing() {
  bool found = false;
  for (Stream* stream : streams)
    if (stream->captured) found = stream->broken = true;
  return found;
}

// -- memory -----------------------------------------------------------------------------------------------------------

struct Allocation {
  size_t size;
  bool pinned, freed;
};
// Given back late: work that runs late must find garbage there, not another's array.
std::map<size_t, Allocation> allocations;
std::deque<size_t> freed;
size_t used = 0, freed_bytes = 0;
constexpr size_t KEPT = size_t(256) << 20;

const std::pair<const size_t, Allocation>* find(size_t address, size_t size = 1) {
  auto next = allocations.upper_bound(address);
  if (next == allocations.begin()) return nullptr;
  auto& found = *--next;
  return address + size <= found.first + found.second.size ? &found : nullptr;
}

void* allocate(size_t size, bool pinned) {
  void* memory = std::aligned_alloc(512, (size + 1023) / 512 * 512);
  std::memset(memory, GARBAGE, size);
  allocations[reinterpret_cast<size_t>(memory)] = {std::max(size, size_t(1)), pinned, false};
  if (!pinned) used += size;
  return memory;
}

CUresult release(size_t address) {
  auto found = allocations.find(address);
  if (found == allocations.end() || found->second.freed) return CUDA_ERROR_INVALID_VALUE;
  found->second.freed = true;
  if (!found->second.pinned) used -= found->second.size;
  std::memset(reinterpret_cast<void*>(address), GARBAGE, found->second.size);
  freed.push_back(address);
  freed_bytes += found->second.size;
  while (freed_bytes > KEPT) {
    found = allocations.find(freed.front());
    freed_bytes -= found->second.size;
    std::free(reinterpret_cast<void*>(found->first));
    allocations.erase(found);
    freed.pop_front();
  }
  return CUDA_SUCCESS;
}

// Whole and alive, or not the driver's at all; else a kernel or copy leaves its array.
bool is_sound(size_t address, size_t size) {
  const auto* start = find(address);
  return !start || (!start->second.freed && find(address, size));
}

// Late, from ordinary host memory too: the driver may read that before the call returns, or not.
CUresult copy(size_t target, size_t source, size_t size, Stream* stream) {
  if (!is_sound(target, size) || !is_sound(source, size)) return CUDA_ERROR_INVALID_VALUE;
  if (stream->captured && (!find(source) || !find(target)))
    return stream->broken = true, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  stream->push([=] { std::memmove(reinterpret_cast<void*>(target), reinterpret_cast<void*>(source), size); });
  return CUDA_SUCCESS;
}

// What does not take a stream waits for the default one, and for no other: those of cuda.core do not wait for it.
CUresult copy_now(size_t target, size_t source, size_t size) {
  const CUresult found = copy(target, source, size, &default_stream);
  default_stream.run_until(default_stream.enqueued);
  return found;
}

// -- kernels ----------------------------------------------------------------------------------------------------------

using Launcher = int (*)(const unsigned*, unsigned, void**, int);

struct Kernel {
  std::string name;
  Launcher launch;
  std::string signature;  // a letter an argument
};
struct Library {
  std::string code;
  std::map<std::string, std::unique_ptr<Kernel>> kernels;
};

std::vector<void*>& host_libraries() {
  static std::vector<void*> found = [] {
    std::vector<void*> opened;
    if (const char* folder = std::getenv("DRIVER_ON_HOST_KERNELS"))
      for (const auto& entry : std::filesystem::directory_iterator(folder))
        if (entry.path().extension() == ".so") opened.push_back(dlopen(entry.path().c_str(), RTLD_NOW));
    return opened;
  }();
  return found;
}

template <typename T>
T host_function(const std::string& name) {
  for (void* library : host_libraries())
    if (library)
      if (void* found = dlsym(library, name.c_str())) return reinterpret_cast<T>(found);
  return nullptr;
}

size_t bytes_of(char letter) { return letter == 'i' || letter == 'f' ? 4 : 8; }

CUresult enqueue(const Kernel* kernel, const unsigned (&grid)[3], const unsigned (&block)[3], void** values,
                 Stream* stream) {
  const unsigned long long blocks = 1ull * grid[0] * grid[1] * grid[2];
  if (!blocks || grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535 || block[0] == 0 || block[0] > 1024 ||
      block[1] != 1 || block[2] != 1)
    return CUDA_ERROR_INVALID_VALUE;
  auto cells = std::make_shared<std::vector<std::vector<char>>>();
  for (size_t i = 0; i < kernel->signature.size(); ++i) {
    const char* value = static_cast<const char*>(values[i]);
    cells->emplace_back(value, value + bytes_of(kernel->signature[i]));
    size_t address;
    if (kernel->signature[i] != 'p') continue;
    std::memcpy(&address, value, sizeof address);
    if (address && (!find(address) || find(address)->second.freed)) return CUDA_ERROR_ILLEGAL_ADDRESS;
  }
  const std::vector<unsigned> sizes(grid, grid + 3);
  stream->push([=, threads = block[0]] {
    std::vector<void*> pointers;
    for (auto& cell : *cells) pointers.push_back(cell.data());
    if (kernel->launch(sizes.data(), threads, pointers.data(), 0)) std::abort();
  });
  return CUDA_SUCCESS;
}

template <typename T, typename H>
T* as(H handle) {
  return reinterpret_cast<T*>(handle);
}

}  // namespace
