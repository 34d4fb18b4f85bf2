// Decoded latents to pixels: clamp(x / 2 + 0.5, 0, 1) * 255, truncated, channels last.
//
// Reference: kernels/vae.py. decoded is T [frames, 3, area], pixels uint8 [frames, area, 3]. Not a number becomes 0.
// Where overflowed is given, it is set to 1 if any number is NaN or infinite, and left as it is otherwise.

#include "element_types.cuh"

template <typename T>
__device__ inline void convert(const T* decoded, unsigned char* pixels, int* overflowed, int frames,
                               long long area) {
#pragma unroll 1
  for (long long i = grid_index(); i < frames * area; i += grid_stride()) {
    const long long frame = i / area;
    const T* source = decoded + frame * 2 * area + i;  // frame * 3 * area + (i - frame * area)
    for (int channel = 0; channel < 3; ++channel) {
      const float value = to_float(source[channel * area]);
      // False for NaN too. Every thread that writes writes the same number, so no atomic operation is needed.
      if (overflowed != nullptr && !(fabsf(value) <= 3.402823466e38f)) *overflowed = 1;
      const float x = value * 0.5f + 0.5f;
      pixels[3 * i + channel] = (unsigned char)(fminf(fmaxf(x, 0.0f), 1.0f) * 255.0f);
    }
  }
}

#define ENTRY_POINT(T, suffix)                                                                                   \
  extern "C" __global__ void frames_to_uint8_##suffix(const T* decoded, unsigned char* pixels, int* overflowed,  \
                                                      int frames, long long area) {                              \
    convert(decoded, pixels, overflowed, frames, area);                                                          \
  }

ENTRY_POINT(float, f32)
ENTRY_POINT(__half, f16)
ENTRY_POINT(__nv_bfloat16, bf16)
