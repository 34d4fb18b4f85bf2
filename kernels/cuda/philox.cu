// Standard normal noise: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") and the
// Box-Muller transform. Counter-based: any element of any draw is computed on its own.
//
// Reference: tests/kernels/references/philox.py.
// normals is float32 [videos, elements], gridDim.y == videos; a video's key is its seed,
// its counter (element / 4, draw + step), so a video's noise does not depend on its place in the batch.

#include "element_types.cuh"

__device__ inline uint4 philox4x32(uint4 counter, uint2 key) {
  for (int round = 0; round < 10; ++round) {
    const unsigned long long even = 0xD2511F53ull * counter.x, odd = 0xCD9E8D57ull * counter.z;
    counter = make_uint4((unsigned)(odd >> 32) ^ counter.y ^ key.x, (unsigned)odd,
                         (unsigned)(even >> 32) ^ counter.w ^ key.y, (unsigned)even);
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
  return counter;
}

// Two uniform 32-bit numbers -> two normals. The radius' uniform is in (0, 1], so its logarithm is finite.
__device__ inline float2 box_muller(unsigned radius_bits, unsigned angle_bits) {
  const float uniform = (float)radius_bits * 0x1p-32f + 0x1p-33f;
  const float half_turns = (float)angle_bits * 0x1p-31f;
  const float radius = sqrtf(-2.0f * logf(uniform));
  return make_float2(radius * cospif(half_turns), radius * sinpif(half_turns));
}

extern "C" __global__ void philox_normal(float* normals, const unsigned long long* seeds, const int* step,
                                         unsigned long long draw, int videos, long long elements) {
  const unsigned long long seed = seeds[blockIdx.y];
  if (step) draw += *step;
  normals += blockIdx.y * elements;
#pragma unroll 1
  for (long long block = grid_index(); 4 * block < elements; block += grid_stride()) {
    const uint4 bits = philox4x32(make_uint4((unsigned)block, (unsigned)(block >> 32), (unsigned)draw,
                                             (unsigned)(draw >> 32)),
                                  make_uint2((unsigned)seed, (unsigned)(seed >> 32)));
    const float2 first = box_muller(bits.x, bits.y), second = box_muller(bits.z, bits.w);
    const float four[4] = {first.x, first.y, second.x, second.y};
    for (int lane = 0; lane < 4; ++lane)
      if (4 * block + lane < elements) normals[4 * block + lane] = four[lane];
  }
}
