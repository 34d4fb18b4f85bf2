// Decoded latents to pixels: clamp(x / 2 + 0.5, 0, 1) * 255, truncated, channels last.
//
// Reference: kernels/frames.py. decoded is T [frames, 3, area], pixels uint8 [frames, area, 3]. Not a number becomes 0.

#include "element_types.cuh"

template <typename T>
__device__ inline void convert(const T* decoded, unsigned char* pixels, int frames, long long area) {
#pragma unroll 1
  for (long long i = grid_index(); i < frames * area; i += grid_stride()) {
    const long long frame = i / area;
    const T* source = decoded + frame * 2 * area + i;  // frame * 3 * area + (i - frame * area)
    for (int channel = 0; channel < 3; ++channel) {
      const float x = to_float(source[channel * area]) * 0.5f + 0.5f;
      pixels[3 * i + channel] = (unsigned char)(fminf(fmaxf(x, 0.0f), 1.0f) * 255.0f);
    }
  }
}

#define ENTRY_POINT(T, suffix)                                                                                   \
  extern "C" __global__ void frames_to_uint8_##suffix(const T* decoded, unsigned char* pixels, int frames,       \
                                                      long long area) {                                          \
    convert(decoded, pixels, frames, area);                                                                      \
  }

ENTRY_POINT(float, f32)
ENTRY_POINT(__half, f16)
ENTRY_POINT(__nv_bfloat16, bf16)
