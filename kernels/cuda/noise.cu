// Noise that is correlated between frames (PYoCo, arXiv:2305.10474), mixed in place from two draws.
//
//   pyoco_mixed         x_j = kept base + fresh independent_j
//   pyoco_progressive   x_0 = base_0; x_j = kept x_{j-1} + fresh independent_j
//
// Reference: kernels/noise.py (mix_noise). independent is float32 [planes, frames, area], planes = videos * channels;
// base [planes, 1, area] or, for pyoco_progressive, [planes, base_frames, area] of which frame 0 is used.

#include "element_types.cuh"

extern "C" __global__ void mix_noise_pyoco_mixed(const float* base, float* independent, float kept, float fresh,
                                                 int planes, int frames, long long area) {
  const long long volume = frames * area;
#pragma unroll 1
  for (long long i = grid_index(); i < planes * volume; i += grid_stride())
    independent[i] = base[i / volume * area + i % area] * kept + independent[i] * fresh;
}

// One thread walks through the frames of a position.
extern "C" __global__ void mix_noise_pyoco_progressive(const float* base, float* independent, float kept, float fresh,
                                                       int planes, int base_frames, int frames, long long area) {
#pragma unroll 1
  for (long long i = grid_index(); i < planes * area; i += grid_stride()) {
    const long long plane = i / area, position = i % area;
    float* x = independent + plane * frames * area + position;
    float previous = base[plane * base_frames * area + position];
    for (int frame = 0; frame < frames; ++frame) {
      if (frame > 0) previous = kept * previous + fresh * x[frame * area];
      x[frame * area] = previous;
    }
  }
}
