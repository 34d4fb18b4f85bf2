// A CUDA driver without a GPU: the functions of libcuda that cuda.core and cuda.bindings call, on host memory.
//
// For tests alone. With it the driver layer runs as it is, cuda.core included: arguments, life times, captured graphs.
// Work is queued per stream and runs when somebody waits, so that a result read too early, or memory freed too soon, is
// garbage here as on a GPU. A cubin's kernels run as g++ compiled their source: the libraries in the folder that
// DRIVER_ON_HOST_KERNELS names (see tests/kernels/cuda_host) hold launch_NAME and signature_NAME. Another version of
// cuda.core may ask for more functions: with DRIVER_ON_HOST_TRACE set, those that are not here are named.
#include "machine.h"

// -- the driver's functions, with the signatures of cuda.h ------------------------------------------------------------

extern "C" {

CUresult CUDAAPI cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult CUDAAPI cuDriverGetVersion(int* version) { return *version = CUDA_VERSION, CUDA_SUCCESS; }
CUresult CUDAAPI cuGetErrorName(CUresult error, const char** text) {
  return *text = error ? "CUDA_ERROR_OF_THE_DRIVER_ON_HOST" : "CUDA_SUCCESS", CUDA_SUCCESS;
}
CUresult CUDAAPI cuGetErrorString(CUresult error, const char** text) {
  return *text = error ? "the driver on the host refuses this" : "no error", CUDA_SUCCESS;
}

CUresult CUDAAPI cuGetExportTable(const void** table, const CUuuid*) { return *table = nullptr, CUDA_ERROR_NOT_FOUND; }

CUresult CUDAAPI cuDeviceGetCount(int* count) { return *count = 1, CUDA_SUCCESS; }
CUresult CUDAAPI cuDeviceGet(CUdevice* device, int ordinal) {
  return *device = ordinal, ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult CUDAAPI cuDeviceGetName(char* name, int length, CUdevice) {
  return std::snprintf(name, size_t(length), "driver on the host"), CUDA_SUCCESS;
}
CUresult CUDAAPI cuDeviceGetUuid(CUuuid* uuid, CUdevice) { return std::memset(uuid, 1, sizeof *uuid), CUDA_SUCCESS; }
CUresult CUDAAPI cuDeviceTotalMem(size_t* bytes, CUdevice) { return *bytes = TOTAL, CUDA_SUCCESS; }
CUresult CUDAAPI cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = MAJOR; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = MINOR; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 24; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: *value = 1; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return *context = the_context(), CUDA_SUCCESS; }
CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) {
  if (!contexts.empty()) contexts.pop_back();
  if (context) contexts.push_back(context);
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxGetCurrent(CUcontext* context) {
  return *context = contexts.empty() ? nullptr : contexts.back(), CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxPushCurrent(CUcontext context) { return contexts.push_back(context), CUDA_SUCCESS; }
CUresult CUDAAPI cuCtxPopCurrent(CUcontext* context) {
  if (contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (context) *context = contexts.back();
  return contexts.pop_back(), CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxGetDevice(CUdevice* device) {
  return *device = 0, contexts.empty() ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  return *least = 0, *greatest = -5, CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxSynchronize() {
  LOCKED;
  if (refused_while_capturing()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  for (Stream* stream : streams) stream->run_until(stream->enqueued);
  return CUDA_SUCCESS;
}

// Everything that needs a context says so on a thread without one, as the driver does.
#define IN_CONTEXT \
  LOCKED;          \
  if (contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT

CUresult CUDAAPI cuStreamCreateWithPriority(CUstream* stream, unsigned, int) {
  IN_CONTEXT;
  Stream* made = new Stream;
  streams.insert(made);
  return *stream = reinterpret_cast<CUstream>(made), CUDA_SUCCESS;
}
CUresult CUDAAPI cuStreamCreate(CUstream* stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }
CUresult CUDAAPI cuStreamDestroy(CUstream) { return CUDA_SUCCESS; }  // its work still runs
CUresult CUDAAPI cuStreamGetCtx(CUstream, CUcontext* context) { return *context = the_context(), CUDA_SUCCESS; }
CUresult CUDAAPI cuStreamGetDevice(CUstream, CUdevice* device) { return *device = 0, CUDA_SUCCESS; }
CUresult CUDAAPI cuStreamGetFlags(CUstream, unsigned* flags) { return *flags = CU_STREAM_NON_BLOCKING, CUDA_SUCCESS; }
CUresult CUDAAPI cuStreamGetPriority(CUstream, int* priority) { return *priority = 0, CUDA_SUCCESS; }
CUresult CUDAAPI cuStreamQuery(CUstream stream) {
  LOCKED;
  return of(stream)->done == of(stream)->enqueued ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult CUDAAPI cuStreamSynchronize(CUstream stream) {
  LOCKED;
  if (refused_while_capturing()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return of(stream)->run_until(of(stream)->enqueued), CUDA_SUCCESS;
}
CUresult CUDAAPI cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
  LOCKED;
  const Event seen = *of(event);
  if (of(stream)->captured) return of(stream)->broken = true, CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  if (seen.stream) of(stream)->push([=] { seen.stream->run_until(seen.place); });
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventCreate(CUevent* event, unsigned) {
  IN_CONTEXT;
  *event = reinterpret_cast<CUevent>(new Event);
  return events.insert(*event), CUDA_SUCCESS;
}
CUresult CUDAAPI cuEventDestroy(CUevent event) {
  LOCKED;
  return events.erase(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
  LOCKED;
  if (of(stream)->captured) return of(stream)->broken = true, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return *of(event) = {of(stream), of(stream)->enqueued}, CUDA_SUCCESS;
}
CUresult CUDAAPI cuEventQuery(CUevent event) {
  LOCKED;
  const Event* e = of(event);
  return !e->stream || e->stream->done >= e->place ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult CUDAAPI cuEventSynchronize(CUevent event) {
  LOCKED;
  if (refused_while_capturing()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (Event* e = of(event); e->stream) e->stream->run_until(e->place);
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  if (cuEventQuery(start) || cuEventQuery(end)) return CUDA_ERROR_NOT_READY;
  return *milliseconds = 1.0f, CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemGetInfo(size_t* free, size_t* total) {
  IN_CONTEXT;
  return *free = TOTAL - used, *total = TOTAL, CUDA_SUCCESS;
}
CUresult CUDAAPI cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice) {
  return *pool = reinterpret_cast<CUmemoryPool>(&primary), CUDA_SUCCESS;
}
CUresult CUDAAPI cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device) { return cuDeviceGetMemPool(pool, device); }
CUresult CUDAAPI cuMemPoolSetAttribute(CUmemoryPool, CUmemPool_attribute, void*) { return CUDA_SUCCESS; }
CUresult CUDAAPI cuMemPoolGetAttribute(CUmemoryPool, CUmemPool_attribute, void* value) {
  return std::memset(value, 0, 8), CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemAllocFromPoolAsync(CUdeviceptr* pointer, size_t size, CUmemoryPool, CUstream stream) {
  IN_CONTEXT;
  if (of(stream)->captured) return of(stream)->broken = true, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (used + size > TOTAL) return CUDA_ERROR_OUT_OF_MEMORY;
  return *pointer = reinterpret_cast<CUdeviceptr>(allocate(size, false)), CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemAllocAsync(CUdeviceptr* pointer, size_t size, CUstream stream) {
  return cuMemAllocFromPoolAsync(pointer, size, nullptr, stream);
}
CUresult CUDAAPI cuMemFreeAsync(CUdeviceptr pointer, CUstream stream) {
  LOCKED;
  // A graph may free only what it allocated.
  if (of(stream)->captured) return of(stream)->broken = true, CUDA_ERROR_INVALID_VALUE;
  of(stream)->push([=] {
    if (release(pointer)) std::abort();
  });
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemAllocHost(void** pointer, size_t size) {
  IN_CONTEXT;
  return *pointer = allocate(size, true), CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemFreeHost(void* pointer) {
  LOCKED;  // waits for the device first
  for (Stream* stream : streams) stream->run_until(stream->enqueued);
  return release(reinterpret_cast<size_t>(pointer));
}
CUresult CUDAAPI cuMemcpyAsync(CUdeviceptr target, CUdeviceptr source, size_t size, CUstream stream) {
  IN_CONTEXT;
  return copy(target, source, size, of(stream));
}
CUresult CUDAAPI cuMemcpy2DAsync(const CUDA_MEMCPY2D* shape, CUstream stream) {
  IN_CONTEXT;
  for (size_t row = 0; row < shape->Height; ++row)
    if (CUresult found = copy(shape->dstDevice + row * shape->dstPitch, shape->srcDevice + row * shape->srcPitch,
                              shape->WidthInBytes, of(stream)))
      return found;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemcpyHtoD(CUdeviceptr target, const void* source, size_t size) {
  IN_CONTEXT;
  return copy_now(target, reinterpret_cast<size_t>(source), size);
}
CUresult CUDAAPI cuMemcpyDtoH(void* target, CUdeviceptr source, size_t size) {
  IN_CONTEXT;
  return copy_now(reinterpret_cast<size_t>(target), source, size);
}
CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr target, unsigned char byte, size_t size, CUstream stream) {
  IN_CONTEXT;
  if (!find(target) || !is_sound(target, size)) return CUDA_ERROR_INVALID_VALUE;
  of(stream)->push([=] { std::memset(reinterpret_cast<void*>(target), byte, size); });
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
  IN_CONTEXT;
  of(stream)->push([=] { function(data); });
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode*) { return CUDA_SUCCESS; }
CUresult CUDAAPI cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
  IN_CONTEXT;
  if (of(stream) == &default_stream || of(stream)->captured) return CUDA_ERROR_ILLEGAL_STATE;
  of(stream)->broken = false;
  return of(stream)->captured.reset(new Graph), CUDA_SUCCESS;
}
CUresult CUDAAPI cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  LOCKED;
  *graph = nullptr;
  if (!of(stream)->captured) return CUDA_ERROR_ILLEGAL_STATE;
  std::unique_ptr<Graph> made = std::move(of(stream)->captured);
  if (of(stream)->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  return *graph = reinterpret_cast<CUgraph>(made.release()), CUDA_SUCCESS;
}
CUresult CUDAAPI cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  LOCKED;
  *status = !of(stream)->captured   ? CU_STREAM_CAPTURE_STATUS_NONE
            : of(stream)->broken ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                 : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphInstantiateWithParams(CUgraphExec* executable, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS* p) {
  LOCKED;
  if (p) p->result_out = CUDA_GRAPH_INSTANTIATE_SUCCESS;
  return *executable = reinterpret_cast<CUgraphExec>(new Graph(*as<Graph>(graph))), CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
  return cuGraphInstantiateWithParams(executable, graph, nullptr);
}
CUresult CUDAAPI cuGraphDestroy(CUgraph graph) { return delete as<Graph>(graph), CUDA_SUCCESS; }
CUresult CUDAAPI cuGraphExecDestroy(CUgraphExec executable) { return delete as<Graph>(executable), CUDA_SUCCESS; }
CUresult CUDAAPI cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  IN_CONTEXT;
  for (const Work& work : as<Graph>(executable)->work) of(stream)->push(work);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuLibraryLoadData(CUlibrary* library, const void* code, CUjit_option*, void**, unsigned,
                                   CUlibraryOption*, void**, unsigned) {
  LOCKED;
  const auto* elf = static_cast<const unsigned char*>(code);
  if (std::memcmp(elf, "\177ELF", 4) != 0) return CUDA_ERROR_INVALID_IMAGE;
  // Section headers end a cubin: their place, size and number stand in its header.
  unsigned long long place;
  unsigned short size, count;
  std::memcpy(&place, elf + 0x28, 8), std::memcpy(&size, elf + 0x3A, 2), std::memcpy(&count, elf + 0x3C, 2);
  auto* made = new Library{std::string(static_cast<const char*>(code), place + 1ull * size * count), {}};
  return *library = reinterpret_cast<CUlibrary>(made), CUDA_SUCCESS;
}
CUresult CUDAAPI cuLibraryUnload(CUlibrary) { return CUDA_SUCCESS; }
CUresult CUDAAPI cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name) {
  LOCKED;
  auto* held = as<Library>(library);
  const auto launcher = host_function<Launcher>(std::string("launch_") + name);
  const auto signature = host_function<const char* (*)()>(std::string("signature_") + name);
  if (held->code.find(std::string(".text.") + name + '\0') == std::string::npos || !launcher || !signature)
    return CUDA_ERROR_NOT_FOUND;
  auto& made = held->kernels[name];
  if (!made) made.reset(new Kernel{name, launcher, signature()});
  return *kernel = reinterpret_cast<CUkernel>(made.get()), CUDA_SUCCESS;
}
CUresult CUDAAPI cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  return *function = reinterpret_cast<CUfunction>(kernel), CUDA_SUCCESS;
}
CUresult CUDAAPI cuKernelGetAttribute(int* value, CUfunction_attribute, CUkernel, CUdevice) {
  return *value = 0, CUDA_SUCCESS;
}
CUresult CUDAAPI cuFuncGetAttribute(int* value, CUfunction_attribute, CUfunction) { return *value = 0, CUDA_SUCCESS; }
CUresult CUDAAPI cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t* offset, size_t* size) {
  const std::string& letters = as<Kernel>(kernel)->signature;
  if (index >= letters.size()) return CUDA_ERROR_INVALID_VALUE;
  size_t place = 0;
  for (size_t i = 0; i <= index; ++i) {
    place = (place + bytes_of(letters[i]) - 1) / bytes_of(letters[i]) * bytes_of(letters[i]);
    if (i < index) place += bytes_of(letters[i]);
  }
  if (offset) *offset = place;
  if (size) *size = bytes_of(letters[index]);
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** values, void**) {
  IN_CONTEXT;
  const unsigned grid[] = {config->gridDimX, config->gridDimY, config->gridDimZ};
  const unsigned block[] = {config->blockDimX, config->blockDimY, config->blockDimZ};
  return enqueue(as<Kernel>(function), grid, block, values, of(config->hStream));
}
CUresult CUDAAPI cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by,
                                unsigned bz, unsigned, CUstream stream, void** values, void**) {
  IN_CONTEXT;
  return enqueue(as<Kernel>(function), {x, y, z}, {bx, by, bz}, values, of(stream));
}

// Names come without the version that cuda.h appends; each function has one here, the newest.
CUresult CUDAAPI cuGetProcAddress(const char* name, void** function, int, cuuint64_t,
                                  CUdriverProcAddressQueryResult* status) {
  static void* self = [] {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&cuInit), &info);
    return dlopen(info.dli_fname, RTLD_NOW);
  }();
  *function = nullptr;
  for (const char* version : {"", "_v4", "_v3", "_v2", "_ptsz"})
    if (!*function) *function = dlsym(self, (std::string(name) + version).c_str());
  if (!*function && std::getenv("DRIVER_ON_HOST_TRACE")) std::fprintf(stderr, "no %s\n", name);
  if (status) *status = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

}  // extern "C"
