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

// Value c of the pixel (y, x), which lies inside the image.
__device__ __forceinline__ float read_inside(const Source& s, int n, int y, int x, int c) {
  int C = channels(s);
  long long pixel = ((long long)n * (s.height >> s.halved) + (y >> s.halved)) * (s.width >> s.halved) + (x >> s.halved);
  float v = c < s.first_channels ? __ldg(s.first + pixel * s.first_channels + c)
                                 : __ldg(s.second + pixel * s.second_channels + c - s.first_channels);
  if (s.scale) {
    int row = n * s.affine_stride;
    v = fmaf(v, __ldg(s.scale + row + c), __ldg(s.shift + row + c));
  }
  if (s.modulation) {
    long long row = ((long long)n * s.height + y) * s.width + x;
    if (s.codes) row = __ldg(s.codes + row);
    const float* gamma = s.modulation + row * 2 * C;
    v = fmaf(v, 1.f + __ldg(gamma + c), __ldg(gamma + C + c));
  }
  return activate(v, s.activation);
}

// Value c of the pixel (y, x); 0 outside the image.
__device__ __forceinline__ float read(const Source& s, int n, int y, int x, int c) {
  return y < 0 || y >= s.height || x < 0 || x >= s.width ? 0.f : read_inside(s, n, y, x, c);
}

// An output from its sum: + bias + shift + residual, then the activation.
__device__ __forceinline__ float finish(const Epilogue& e, float v, int n, int y, int x, int c) {
  if (e.bias) v += __ldg(e.bias + c);
  if (e.shift) v += __ldg(e.shift + n * e.shift_stride + c);
  if (e.residual.first) v += read_inside(e.residual, n, y, x, c);
  return activate(v, e.activation);
}
