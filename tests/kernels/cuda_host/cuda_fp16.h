// IEEE half on the CPU, by the F16C instructions: the part of CUDA's header that the kernels use.
#pragma once
#include <immintrin.h>

struct __half {
  unsigned short bits;
};
inline float __half2float(__half x) { return _cvtsh_ss(x.bits); }
inline __half __float2half_rn(float x) { return {_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)}; }
