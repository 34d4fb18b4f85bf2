// FrameInit on the device, around a real-input FFT over (T, h, w) and its inverse:
//
//   frame_init_difference   low - high, low being the still video diffused with the SAME noise that is high
//   low_pass_mix            its half spectrum times the real mask
//   initial_latents         high + correction / N, split into frame 0 and the frames to denoise
//
// Reference: kernels/frame_init.py (add_noise, mix_frequencies). noise is float32 [planes, frames, area] with
// planes = videos * channels and area = h * w; the still video [planes, static_frames, area], static_frames 1 or frames;
// spectrum float32 pairs (real, imaginary) [planes, bins] with bins = T * h * (w / 2 + 1); mask float32 [bins].

#include "element_types.cuh"

extern "C" __global__ void frame_init_difference(const float* static_latents, const float* noise, float* difference,
                                                 float signal, float spread, int planes, int static_frames, int frames,
                                                 long long area) {
  const long long volume = frames * area;
#pragma unroll 1
  for (long long i = grid_index(); i < planes * volume; i += grid_stride()) {
    const long long plane = i / volume, within = i % volume;
    // One still frame serves every frame.
    const long long still = plane * static_frames * area + (static_frames == 1 ? within % area : within);
    difference[i] = (signal * static_latents[still] + spread * noise[i]) - noise[i];
  }
}

extern "C" __global__ void low_pass_mix(float2* spectrum, const float* mask, int planes, long long bins) {
#pragma unroll 1
  for (long long i = grid_index(); i < planes * bins; i += grid_stride()) {
    const float kept = mask[i % bins];
    spectrum[i].x *= kept;
    spectrum[i].y *= kept;
  }
}

extern "C" __global__ void initial_latents(const float* noise, const float* correction, float* first_frame,
                                           float* latents, float scale, int planes, int frames, long long area) {
  const long long volume = frames * area;
#pragma unroll 1
  for (long long i = grid_index(); i < planes * volume; i += grid_stride()) {
    const long long plane = i / volume, within = i % volume;
    const float value = correction ? noise[i] + correction[i] * scale : noise[i];
    if (within >= area)
      latents[plane * (volume - area) + within - area] = value;
    else if (first_frame)
      first_frame[plane * area + within] = value;
  }
}
