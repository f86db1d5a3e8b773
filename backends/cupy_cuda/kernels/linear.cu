// Dense layers on rows: of an embedding, few rows against one wide matrix; of windows of codes, a product.
#include "product.cuh"
#include "reading.cuh"

#define THREADS 256
#define ROWS 4  // that a warp computes at once: they share what it reads of the matrix

// An activation in double, rounded once; GELU is not worth it.
__device__ __forceinline__ float activate_in_double(float sum, int activation) {
  double v = sum;
  switch (activation) {
    case LEAKY_RELU: return (float)(v < 0. ? v * 0.2f : v);
    case SILU: return (float)(v / (1. + exp(-v)));
    case QUICK_GELU: return (float)(v / (1. + exp(-1.702 * v)));
    case TANH: return (float)tanh(v);
    default: return activate(sum, activation);
  }
}

// out[m][o] = activation(sum over i of x[m][i] weight[o][i] + bias[o]): a warp an output of ROWS rows, grid (O, M).
// A lane has a chain of fmaf for each of four neighbours, 128 apart; then the four are added, then the lanes.
KERNEL(linear, Linear, THREADS) {
  int o = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32, m = blockIdx.y * ROWS;
  if (o >= a.outputs) return;
  const float* weight = a.weight + (long long)o * a.inputs;
  bool fours = a.inputs % 4 == 0 && ((int64)a.weight | (int64)a.x) % 16 == 0;
  float4 sums[ROWS] = {};
#pragma unroll 2
  for (int i = lane * 4; i < a.inputs; i += 128) {
    float4 w = read_row(weight, i, a.inputs, fours);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      if (m + r >= a.rows) break;
      float4 x = read_row(a.x + (long long)(m + r) * a.inputs, i, a.inputs, fours);
      sums[r].x = fmaf(x.x, w.x, sums[r].x);
      sums[r].y = fmaf(x.y, w.y, sums[r].y);
      sums[r].z = fmaf(x.z, w.z, sums[r].z);
      sums[r].w = fmaf(x.w, w.w, sums[r].w);
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (m + r >= a.rows) break;  // all lanes or none
    float sum = (sums[r].x + sums[r].y) + (sums[r].z + sums[r].w);
    for (int apart = 16; apart; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    if (a.bias) sum += __ldg(a.bias + o);
    if (lane == 0) a.out[(long long)(m + r) * a.outputs + o] = activate_in_double(sum, a.activation);
  }
}

// out[r][o] = bias[o] + sum over taps t, inputs i of table[windows[r][t]][i] weight[t][i][o]: a product whose rows are
// gathered, grid (rows, outputs)
template <class P>
__device__ __forceinline__ void convolve_windows(const Windows& a, typename P::Shared& shared) {
  int row0 = blockIdx.x * P::BM, o0 = blockIdx.y * P::BN, depth = a.taps * a.padded_inputs;
  bool fours = a.inputs % 4 == 0 && (int64)a.table % 16 == 0;
  const float4 zeros = make_float4(0.f, 0.f, 0.f, 0.f);
  float sums[P::TM][P::TN] = {};
  P::run(
      sums, shared, depth,
      [&](int e, int c) {
        int row = row0 + P::left_row(e);
        if (row >= a.rows || c >= depth) return zeros;
        int code = __ldg(a.windows + (long long)row * a.taps + c / a.padded_inputs);
        return code < 0 ? zeros
                        : read_row(a.table + (long long)code * a.inputs, c % a.padded_inputs, a.inputs, fours);
      },
      [&](int c, int column) {
        return c < depth && o0 + column < a.padded_outputs
                   ? load_4(a.weight + (long long)c * a.padded_outputs + o0 + column)
                   : zeros;
      });
  P::each_four(sums, shared, [&](int row, int column, const float* four) {
    int r = row0 + row, o = o0 + column;
    if (r >= a.rows) return;
    for (int i = 0; i < 4 && o + i < a.outputs; i++)
      a.out[(long long)r * a.outputs + o + i] = a.bias ? four[i] + __ldg(a.bias + o + i) : four[i];
  });
}

#define WINDOWS(...) \
  __shared__ Product<__VA_ARGS__>::Shared shared; \
  convolve_windows<Product<__VA_ARGS__>>(a, shared)
KERNEL(windows_64x64, Windows, 256) { WINDOWS(64, 64, 4, 4); }
KERNEL(windows_16x64, Windows, 128) { WINDOWS(16, 64, 2, 4, 64); }
KERNEL(windows_64x16, Windows, 256) { WINDOWS(64, 16, 4, 1, 32); }
