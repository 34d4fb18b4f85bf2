// One step of the denoising loop behind the U-Net: guidance, optional rescale, the sampler's linear map, the next rows.
//
//   e       = sum_b weights[step, b] predictions[b]                 classifier-free guidance as numbers
//   e      *= rescale std(e_p) / std(e) + 1 - rescale               e_p: the last branch (arXiv:2305.08891 section 3.4)
//   new[i]  = sum_j M[i, j] state[j] + M[i, S] e + M[i, S+1] z      M = matrices[step], every sampler in one form
//   rows[k] = new[0]                                                for each branch k
//
// Reference: tests/kernels/references/guided_step.py.
// state is float32 [states, videos, elements] and updated in place; predictions and
// rows are T; sums run in the order written, terms of weight 0 left out, without fused multiply-add, so that host and
// device agree bit for bit.
// Preconditions: 1 <= states <= 4, branches >= 1, gridDim.y == videos; guidance_moments: gridDim.x == MOMENT_BLOCKS,
// blockDim.x == 256. The step's number is read from memory, so that one CUDA graph serves all steps.

#include "element_types.cuh"

constexpr int MAX_STATES = 4;
constexpr int MOMENT_BLOCKS = 32;
constexpr int MOMENTS = 4;  // sum e, sum e^2, sum e_p, sum e_p^2
constexpr int THREADS = 256;

template <typename T>
__device__ inline float guided(const T* predictions, const float* weights, int branches, long long branch_stride) {
  float sum = 0.0f;
#pragma unroll 1
  for (int b = 0; b < branches; ++b)
    if (weights[b] != 0.0f) sum += weights[b] * to_float(predictions[b * branch_stride]);
  return sum;
}

// float64 sums: an unbiased variance from sum and sum of squares then keeps float32's full precision, whatever the mean.
template <typename T>
__device__ inline void moments_of_video(const T* predictions, const float* weights, double* moments, const int* step,
                                        int steps, int branches, int weight_stride, int videos, long long elements) {
  if (*step < 0 || *step >= steps) return;
  weights += (long long)*step * weight_stride;
  const long long branch_stride = videos * elements;
  predictions += blockIdx.y * elements;
  double sums[MOMENTS] = {0, 0, 0, 0};
#pragma unroll 1
  for (long long i = grid_index(); i < elements; i += grid_stride()) {
    const double e = guided(predictions + i, weights, branches, branch_stride);
    const double prompt = to_float(predictions[(branches - 1) * branch_stride + i]);
    sums[0] += e;
    sums[1] += e * e;
    sums[2] += prompt;
    sums[3] += prompt * prompt;
  }
  __shared__ double shared[MOMENTS][THREADS];
  for (int m = 0; m < MOMENTS; ++m) shared[m][threadIdx.x] = sums[m];
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
      for (int m = 0; m < MOMENTS; ++m) shared[m][threadIdx.x] += shared[m][threadIdx.x + half];
  }
  __syncthreads();
  if (threadIdx.x < MOMENTS)
    moments[(blockIdx.y * MOMENT_BLOCKS + blockIdx.x) * MOMENTS + threadIdx.x] = shared[threadIdx.x][0];
}

__device__ inline double unbiased_std(double sum, double squares, long long count) {
  const double variance = (squares - sum * sum / count) / (count - 1);
  return sqrt(variance < 0 ? 0 : variance);  // rounding may leave a constant prediction a hair below zero
}

// What e is multiplied with; every thread of the block gets it.
__device__ inline float rescale_factor(const double* moments, float rescale, long long elements) {
  __shared__ double totals[MOMENTS];
  if (threadIdx.x < MOMENTS) {
    double total = 0;
#pragma unroll 1
    for (int block = 0; block < MOMENT_BLOCKS; ++block)
      total += moments[(blockIdx.y * MOMENT_BLOCKS + block) * MOMENTS + threadIdx.x];
    totals[threadIdx.x] = total;
  }
  __syncthreads();
  const double ratio = unbiased_std(totals[2], totals[3], elements) / unbiased_std(totals[0], totals[1], elements);
  return (float)(rescale * ratio + (1.0 - rescale));
}

template <typename T>
__device__ inline void step_of_video(float* state, const T* predictions, const float* weights, const float* matrices,
                                     const float* noise, const double* moments, T* rows, const int* step, int steps,
                                     int branches, int weight_stride, int videos, long long elements, int states,
                                     int copies, long long noise_stride, float rescale) {
  if (*step < 0 || *step >= steps) return;
  weights += (long long)*step * weight_stride;
  matrices += (long long)*step * states * (states + 2);
  if (noise) noise += *step * noise_stride;
  const float factor = moments ? rescale_factor(moments, rescale, elements) : 1.0f;
  const long long all = videos * elements, video = blockIdx.y * elements;
#pragma unroll 1
  for (long long i = video + grid_index(); i < video + elements; i += grid_stride()) {
    float e = guided(predictions + i, weights, branches, all);
    if (moments) e *= factor;
    float old[MAX_STATES];
    for (int j = 0; j < MAX_STATES; ++j) old[j] = j < states ? state[j * all + i] : 0.0f;
#pragma unroll 1
    for (int k = 0; k < states; ++k) {
      const float* row = matrices + k * (states + 2);
      float next = 0.0f;
      for (int j = 0; j < MAX_STATES; ++j)
        if (j < states && row[j] != 0.0f) next += row[j] * old[j];
      if (row[states] != 0.0f) next += row[states] * e;
      if (noise && row[states + 1] != 0.0f) next += row[states + 1] * noise[i];
      state[k * all + i] = next;
      if (k == 0 && rows)
#pragma unroll 1
        for (int copy = 0; copy < copies; ++copy) store(rows + copy * all + i, next);
    }
  }
}

template <typename T>
__device__ inline void repeat(const float* latents, T* rows, int copies, long long elements) {
#pragma unroll 1
  for (long long i = grid_index(); i < elements; i += grid_stride())
    for (int copy = 0; copy < copies; ++copy) store(rows + copy * elements + i, latents[i]);
}

#define ENTRY_POINTS(T, suffix)                                                                                       \
  extern "C" __global__ void guidance_moments_##suffix(                                                               \
      const T* predictions, const float* weights, double* moments, const int* step, int steps, int branches,          \
      int weight_stride, int videos, long long elements) {                                                            \
    moments_of_video(predictions, weights, moments, step, steps, branches, weight_stride, videos, elements);          \
  }                                                                                                                   \
  extern "C" __global__ void guided_step_##suffix(                                                                    \
      float* state, const T* predictions, const float* weights, const float* matrices, const float* noise,            \
      const double* moments, T* rows, const int* step, int steps, int branches, int weight_stride, int videos,        \
      long long elements, int states, int copies, long long noise_stride, float rescale) {                            \
    step_of_video(state, predictions, weights, matrices, noise, moments, rows, step, steps, branches, weight_stride,  \
                  videos, elements, states, copies, noise_stride, rescale);                                           \
  }                                                                                                                   \
  extern "C" __global__ void repeat_rows_##suffix(const float* latents, T* rows, int copies, long long elements) {    \
    repeat(latents, rows, copies, elements);                                                                          \
  }

ENTRY_POINTS(float, f32)
ENTRY_POINTS(__half, f16)
ENTRY_POINTS(__nv_bfloat16, bf16)

extern "C" __global__ void advance_step(int* step, const long long* timesteps, long long* timestep, int steps) {
  const int next = *step + 1;
  *step = next;
  if (next >= 0 && next < steps) *timestep = timesteps[next];
}
