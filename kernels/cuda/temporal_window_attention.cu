// Temporal self-attention with rotary positions and the first-frame window: for every clip, position and head, the
// queries of `frames` frames over frames + 8 keys (16 x 24 in the shipped model), too few for general attention kernels.
//
// Reference: tests/kernels/references/temporal_window_attention.py.
// query, key, value and out are T [clips, frames, height * width,
// heads * D] as the projections leave them: nothing is transposed, concatenated or rotated in memory. rotation is
// float32 [frames, heads * D / 4, 2] (cosine, sine), null for none. Products, softmax and sums are float32.
//
// A block is one position of one head of one clip: gridDim = (height * width, heads, clips). Four threads share a query,
// each with a quarter of its channels; blockDim.x is 4 * frames, rounded up to whole warps. Keys and values pass
// through shared memory in tiles, and the softmax is kept up to date as they pass (arXiv:1805.02867).
// Preconditions: 1 <= frames <= 32, D in {40, 80, 160}, arrays aligned to two elements.

#include "element_types.cuh"

constexpr int LANES = 4;
constexpr int TILE = 24;
constexpr int MAX_THREADS = 128;
constexpr int NEIGHBOURS = 8;

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T even, odd;
};

struct Shape {
  int clips, frames, height, width, heads;
};

// Channels (2i, 2i + 1) of a token, turned by its frame's angle if they are in the first half of the joined channels.
template <typename T>
__device__ inline float2 load(const T* tokens, long long token, int channel, int channels, const float2* rotation,
                              int frame) {
  const Pair<T> pair = *reinterpret_cast<const Pair<T>*>(tokens + token * channels + channel);
  const float even = to_float(pair.even), odd = to_float(pair.odd);
  if (!rotation || channel >= channels / 2) return make_float2(even, odd);
  const float2 turn = rotation[frame * (channels / 4) + channel / 2];
  return make_float2(even * turn.x - odd * turn.y, odd * turn.x + even * turn.y);
}

// The n-th of a position's 3x3 neighbours without the centre, row-major, edges replicated.
__device__ inline int neighbour(int position, int n, int height, int width) {
  const int cell = n < NEIGHBOURS / 2 ? n : n + 1;
  const int row = position / width + cell / 3 - 1, column = position % width + cell % 3 - 1;
  return min(max(row, 0), height - 1) * width + min(max(column, 0), width - 1);
}

template <typename T, int D>
__device__ inline void attend(const T* query, const T* key, const T* value, const float2* rotation, T* out,
                              float scale, Shape shape, bool window) {
  constexpr int SLICE = D / LANES;
  __shared__ float2 keys[TILE * (D / 2)], values[TILE * (D / 2)];
  const int position = blockIdx.x, first_channel = blockIdx.y * D, channels = shape.heads * D;
  const int positions = shape.height * shape.width, lane = threadIdx.x % LANES;
  const long long first_token = (long long)blockIdx.z * shape.frames * positions;
  // Threads past the last query keep their warp company and store nothing.
  const bool idle = threadIdx.x >= shape.frames * LANES;
  const int frame = idle ? shape.frames - 1 : threadIdx.x / LANES;
  const long long own = first_token + (long long)frame * positions + position;

  float2 q[SLICE / 2], sum[SLICE / 2];
  for (int i = 0; i < SLICE / 2; ++i) {
    q[i] = load(query, own, first_channel + lane * SLICE + 2 * i, channels, rotation, frame);
    q[i] = make_float2(q[i].x * scale, q[i].y * scale);
    sum[i] = make_float2(0.0f, 0.0f);
  }

  float highest = -3.402823466e38f, total = 0.0f;
  const int key_count = shape.frames + (window ? NEIGHBOURS : 0);
#pragma unroll 1
  for (int first = 0; first < key_count; first += TILE) {
    const int count = min(TILE, key_count - first);
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < count * (D / 2); i += blockDim.x) {
      const int j = first + i / (D / 2), channel = first_channel + 2 * (i % (D / 2));
      const bool own_position = j < shape.frames;
      const int at = own_position ? position : neighbour(position, j - shape.frames, shape.height, shape.width);
      const int key_frame = own_position ? j : 0;
      const long long token = first_token + (long long)key_frame * positions + at;
      keys[i] = load(key, token, channel, channels, rotation, key_frame);
      values[i] = load(value, token, channel, channels, nullptr, 0);
    }
    __syncthreads();
#pragma unroll 1
    for (int j = 0; j < count; ++j) {
      const int slice = j * (D / 2) + lane * (SLICE / 2);
      const float2 *k = keys + slice, *v = values + slice;
      float score = 0.0f;
      for (int i = 0; i < SLICE / 2; ++i) score = fmaf(q[i].x, k[i].x, fmaf(q[i].y, k[i].y, score));
      score += __shfl_xor_sync(0xffffffffu, score, 1);
      score += __shfl_xor_sync(0xffffffffu, score, 2);
      const float higher = fmaxf(highest, score);
      const float kept = expf(highest - higher), weight = expf(score - higher);
      highest = higher;
      total = fmaf(total, kept, weight);
      for (int i = 0; i < SLICE / 2; ++i)
        sum[i] = make_float2(fmaf(weight, v[i].x, sum[i].x * kept), fmaf(weight, v[i].y, sum[i].y * kept));
    }
  }
  if (idle) return;
  const float scale_out = 1.0f / total;
  for (int i = 0; i < SLICE / 2; ++i) {
    Pair<T> pair;
    store(&pair.even, sum[i].x * scale_out);
    store(&pair.odd, sum[i].y * scale_out);
    *reinterpret_cast<Pair<T>*>(out + own * channels + first_channel + lane * SLICE + 2 * i) = pair;
  }
}

#define ENTRY_POINT(D, T, suffix)                                                                                      \
  extern "C" __global__ void __launch_bounds__(MAX_THREADS) temporal_window_attention_d##D##_##suffix(                 \
      const T* query, const T* key, const T* value, const float* rotation, T* out, float scale, int clips, int frames, \
      int height, int width, int heads, int window) {                                                                  \
    attend<T, D>(query, key, value, reinterpret_cast<const float2*>(rotation), out, scale,                             \
                 Shape{clips, frames, height, width, heads}, window != 0);                                             \
  }

#define ENTRY_POINTS(D)                \
  ENTRY_POINT(D, float, f32)           \
  ENTRY_POINT(D, __half, f16)          \
  ENTRY_POINT(D, __nv_bfloat16, bf16)

ENTRY_POINTS(40)
ENTRY_POINTS(80)
ENTRY_POINTS(160)
