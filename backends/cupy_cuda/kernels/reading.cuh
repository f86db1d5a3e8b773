// How kernels read a `Source`: concatenate, upsample, norm, modulate, activate; 0 outside the image, after all that.
#pragma once
#include "kernel.cuh"

enum Activation { IDENTITY, RELU, LEAKY_RELU, SILU, GELU, QUICK_GELU, TANH };

// The share of a standard normal distribution below v, within 2e-7. With t = 1 / (1 + x / 2), x of 0 or more:
// erfc(x) = t exp(-x² + a polynomial of t), whose coefficients are those of Numerical Recipes, third edition, 6.2.2.
__device__ __forceinline__ float normal_distribution(float v) {
  float x = fabsf(v) * 0.70710678f, t = 1.f / fmaf(x, 0.5f, 1.f), p = 0.17087277f;
  p = fmaf(p, t, -0.82215223f);
  p = fmaf(p, t, 1.48851587f);
  p = fmaf(p, t, -1.13520398f);
  p = fmaf(p, t, 0.27886807f);
  p = fmaf(p, t, -0.18628806f);
  p = fmaf(p, t, 0.09678418f);
  p = fmaf(p, t, 0.37409196f);
  p = fmaf(p, t, 1.00002368f);
  p = fmaf(p, t, -1.26551223f);
  float tail = 0.5f * t * expf(fmaf(-x, x, p));
  return v < 0.f ? tail : 1.f - tail;
}

// A comparison with NaN is false: written so, NaN passes through ReLU and is found by the watch.
__device__ __forceinline__ float activate(float v, int activation) {
  switch (activation) {
    case RELU: return v < 0.f ? 0.f : v;
    case LEAKY_RELU: return v < 0.f ? v * 0.2f : v;
    case SILU: return v / (1.f + expf(-v));
    case GELU: return v * normal_distribution(v);
    case QUICK_GELU: return v / (1.f + expf(-1.702f * v));
    case TANH: return tanhf(v);
    default: return v;
  }
}

// The same of many values: the switch is outside of the loop.
template <int N>
__device__ __forceinline__ void activate(float (&v)[N], int activation) {
#define EACH(kind) \
  case kind: \
    _Pragma("unroll") for (int i = 0; i < N; i++) v[i] = activate(v[i], kind); \
    break
  switch (activation) {
    EACH(RELU);
    EACH(LEAKY_RELU);
    EACH(SILU);
    EACH(GELU);
    EACH(QUICK_GELU);
    EACH(TANH);
  }
#undef EACH
}

__device__ __forceinline__ int channels(const Source& s) { return s.first_channels + s.second_channels; }

// Whether nothing is pending: a value is that of the first canvas.
__device__ __forceinline__ bool is_plain(const Source& s) {
  return !s.second && !s.scale && !s.modulation && !s.halved && s.activation == IDENTITY;
}

// V neighbours of an array; four are aligned to 16 bytes.
template <int V>
__device__ __forceinline__ void load(const float* from, float (&v)[V]) {
  static_assert(V == 1 || V == 4, "one value, or four at once");
  if (V == 1) {
    v[0] = __ldg(from);
  } else {
    float4 four = __ldg(reinterpret_cast<const float4*>(from));
    v[0] = four.x, v[V / 4] = four.y, v[V / 2] = four.z, v[V - 1] = four.w;
  }
}

// Four neighbours of a row of `size`, 0 beyond its end; i is less than `size`.
__device__ __forceinline__ float4 read_row(const float* row, int i, int size, bool fours) {
  if (fours) return load_4(row + i);
  return make_float4(__ldg(row + i), i + 1 < size ? __ldg(row + i + 1) : 0.f, i + 2 < size ? __ldg(row + i + 2) : 0.f,
                     i + 3 < size ? __ldg(row + i + 3) : 0.f);
}

// Four neighbours, of which `count` exist; `fours`: all, aligned to 16 bytes.
__device__ __forceinline__ void store_4(float* to, float4 v, int count, bool fours) {
  if (fours) {
    *reinterpret_cast<float4*>(to) = v;
  } else {
    to[0] = v.x;
    if (count > 1) to[1] = v.y;
    if (count > 2) to[2] = v.z;
    if (count > 3) to[3] = v.w;
  }
}

// Channels c … c + V - 1 of B pixels (y, x), v [B][V]; 0 of those that are not inside the image. V = 4 only of a source
// with `fours`. All loads of a kind are queued before the first is waited for.
template <int V, int B>
__device__ __forceinline__ void read_pixels(const Source& s, int n, const int (&y)[B], const int (&x)[B],
                                            const bool (&inside)[B], int c, float (&v)[B * V]) {
  int C = channels(s);
  bool of_first = c < s.first_channels;
  const float* from = of_first ? s.first + c : s.second + c - s.first_channels;
  int stride = of_first ? s.first_channels : s.second_channels;
  float part[B][V] = {};
#pragma unroll
  for (int b = 0; b < B; b++)
    if (inside[b])
      load<V>(from + at(n, y[b] >> s.halved, x[b] >> s.halved, s.height >> s.halved, s.width >> s.halved, stride), part[b]);
  if (s.scale) {
    int row = n * s.affine_stride;
    float scale[V], shift[V];
    load<V>(s.scale + row + c, scale);
    load<V>(s.shift + row + c, shift);
#pragma unroll
    for (int b = 0; b < B; b++)
#pragma unroll
      for (int i = 0; i < V; i++) part[b][i] = fmaf(part[b][i], scale[i], shift[i]);
  }
  if (s.modulation) {
    long long row[B];
    float gamma[B][V] = {}, beta[B][V] = {};
#pragma unroll
    for (int b = 0; b < B; b++) row[b] = ((long long)n * s.height + y[b]) * s.width + x[b];
    if (s.codes) {
#pragma unroll
      for (int b = 0; b < B; b++)
        if (inside[b]) row[b] = __ldg(s.codes + row[b]);
    }
#pragma unroll
    for (int b = 0; b < B; b++)
      if (inside[b]) {
        load<V>(s.modulation + row[b] * 2 * C + c, gamma[b]);
        load<V>(s.modulation + row[b] * 2 * C + C + c, beta[b]);
      }
#pragma unroll
    for (int b = 0; b < B; b++)
#pragma unroll
      for (int i = 0; i < V; i++) part[b][i] = fmaf(part[b][i], 1.f + gamma[b][i], beta[b][i]);
  }
#pragma unroll
  for (int b = 0; b < B; b++)
#pragma unroll
    for (int i = 0; i < V; i++) v[b * V + i] = inside[b] ? part[b][i] : 0.f;  // every activation keeps 0
  activate(v, s.activation);
}

// Channels c … c + V - 1 of the pixel (y, x), which lies inside the image.
template <int V>
__device__ __forceinline__ void read_inside(const Source& s, int n, int y, int x, int c, float (&v)[V]) {
  read_pixels<V, 1>(s, n, {y}, {x}, {true}, c, v);
}

__device__ __forceinline__ float read_inside(const Source& s, int n, int y, int x, int c) {
  float v[1];
  read_inside<1>(s, n, y, x, c, v);
  return v[0];
}

__device__ __forceinline__ bool is_inside(const Source& s, int y, int x) {
  return y >= 0 && y < s.height && x >= 0 && x < s.width;
}

// Value c of the pixel (y, x); 0 outside the image.
__device__ __forceinline__ float read(const Source& s, int n, int y, int x, int c) {
  return is_inside(s, y, x) ? read_inside(s, n, y, x, c) : 0.f;
}

// Channels c … c + 3 of the pixel (y, x), of which `count` exist; 0 outside the image and beyond the last.
__device__ __forceinline__ float4 read_4(const Source& s, int n, int y, int x, int c, int count) {
  float v[4] = {0.f, 0.f, 0.f, 0.f};
  if (is_inside(s, y, x)) {
    if (s.fours && count >= 4 && c % 4 == 0) {  // a group of channels may begin anywhere
      read_inside<4>(s, n, y, x, c, v);
    } else {
#pragma unroll 1
      for (int i = 0; i < 4; i++) {  // rolled: the values move up, so that none has a place that depends on i
        v[0] = v[1], v[1] = v[2], v[2] = v[3];
        v[3] = i < count ? read_inside(s, n, y, x, c + i) : 0.f;
      }
    }
  }
  return make_float4(v[0], v[1], v[2], v[3]);
}

__device__ __forceinline__ bool has_fours(const Epilogue& e) { return e.fours && (!e.residual.first || e.residual.fours); }

// Outputs of channels c … c + V - 1 at B pixels from their sums v [B][V], of pixels that are inside: + bias + shift +
// residual, then the activation. V = 4 only of an epilogue that has_fours.
template <int V, int B>
__device__ __forceinline__ void finish(const Epilogue& e, float (&v)[B * V], int n, const int (&y)[B],
                                       const int (&x)[B], const bool (&inside)[B], int c) {
  float bias[V], shift[V], residual[B * V];
  if (e.bias) load<V>(e.bias + c, bias);
  if (e.shift) load<V>(e.shift + n * e.shift_stride + c, shift);
  if (e.residual.first) read_pixels<V, B>(e.residual, n, y, x, inside, c, residual);
#pragma unroll
  for (int i = 0; i < B * V; i++) {
    if (e.bias) v[i] += bias[i % V];
    if (e.shift) v[i] += shift[i % V];
    if (e.residual.first) v[i] += residual[i];
  }
  activate(v, e.activation);
}

__device__ __forceinline__ float finish(const Epilogue& e, float v, int n, int y, int x, int c) {
  float all[1] = {v};
  finish<1, 1>(e, all, n, {y}, {x}, {true}, c);
  return all[0];
}

__device__ __forceinline__ float4 finish_4(const Epilogue& e, float4 v, int n, int y, int x, int c) {
  float all[4] = {v.x, v.y, v.z, v.w};
  finish<4, 1>(e, all, n, {y}, {x}, {true}, c);
  return make_float4(all[0], all[1], all[2], all[3]);
}
