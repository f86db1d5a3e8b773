// Every PTX instruction that kernels use, beside what it computes: on a card the instruction, on a CPU its meaning in
// C++. Source: the PTX ISA, sections "Warp Level Matrix Instructions", "cvt" and "cp.async".
#pragma once

namespace ptx {

// float16, to the nearest, ties to even; beyond 65504 infinity
__device__ __forceinline__ unsigned short to_half(float v) {
#ifdef ON_CPU
  _Float16 h = (_Float16)v;
  unsigned short bits;
  memcpy(&bits, &h, 2);
  return bits;
#else
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
#endif
}

__device__ __forceinline__ float from_half(unsigned short bits) {
#ifdef ON_CPU
  _Float16 h;
  memcpy(&h, &bits, 2);
  return (float)h;
#else
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
  return v;
#endif
}

}  // namespace ptx
