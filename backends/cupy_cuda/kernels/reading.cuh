// How kernels read a `Source`: concatenate, upsample, norm, modulate, activate; 0 outside the image, after all that.
#pragma once
#include "kernel.cuh"

enum Activation { IDENTITY, RELU, LEAKY_RELU, SILU, TANH };

// A comparison with NaN is false: written so, NaN passes through ReLU and is found by the watch.
__device__ __forceinline__ float activate(float v, int activation) {
  switch (activation) {
    case RELU: return v < 0.f ? 0.f : v;
    case LEAKY_RELU: return v < 0.f ? v * 0.2f : v;
    case SILU: return v / (1.f + expf(-v));
    case TANH: return tanhf(v);
    default: return v;
  }
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

// Channels c … c + V - 1 of the pixel (y, x), which lies inside the image. V = 4 only of a source with `fours`.
template <int V>
__device__ __forceinline__ void read_inside(const Source& s, int n, int y, int x, int c, float (&v)[V]) {
  int C = channels(s);
  long long pixel = ((long long)n * (s.height >> s.halved) + (y >> s.halved)) * (s.width >> s.halved) + (x >> s.halved);
  load<V>(c < s.first_channels ? s.first + pixel * s.first_channels + c
                               : s.second + pixel * s.second_channels + c - s.first_channels, v);
  if (s.scale) {
    int row = n * s.affine_stride;
    float scale[V], shift[V];
    load<V>(s.scale + row + c, scale);
    load<V>(s.shift + row + c, shift);
#pragma unroll
    for (int i = 0; i < V; i++) v[i] = fmaf(v[i], scale[i], shift[i]);
  }
  if (s.modulation) {
    long long row = ((long long)n * s.height + y) * s.width + x;
    if (s.codes) row = __ldg(s.codes + row);
    float gamma[V], beta[V];
    load<V>(s.modulation + row * 2 * C + c, gamma);
    load<V>(s.modulation + row * 2 * C + C + c, beta);
#pragma unroll
    for (int i = 0; i < V; i++) v[i] = fmaf(v[i], 1.f + gamma[i], beta[i]);
  }
#pragma unroll
  for (int i = 0; i < V; i++) v[i] = activate(v[i], s.activation);
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
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (i >= count) break;
        v[i] = read_inside(s, n, y, x, c + i);
      }
    }
  }
  return make_float4(v[0], v[1], v[2], v[3]);
}

// An output from its sum: + bias + shift + residual, then the activation.
__device__ __forceinline__ float finish(const Epilogue& e, float v, int n, int y, int x, int c) {
  if (e.bias) v += __ldg(e.bias + c);
  if (e.shift) v += __ldg(e.shift + n * e.shift_stride + c);
  if (e.residual.first) v += read_inside(e.residual, n, y, x, c);
  return activate(v, e.activation);
}
