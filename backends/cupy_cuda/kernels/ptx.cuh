// Every PTX instruction that kernels use, beside what it computes: on a card the instruction, on a CPU its meaning in
// C++. Source: the PTX ISA, sections "Warp Level Matrix Instructions", "cvt" and "cp.async". The tests compare each with
// a formula in NumPy (`tests/cuda/ptx_checks.cu`).
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

// The bits of a float rounded to TF32, 10 bits of mantissa: to the nearest, ties away from zero. The lowest 13 bits of a
// number are 0; a NaN stays a NaN.
__device__ __forceinline__ unsigned to_tf32(float v) {
  unsigned bits;
#ifdef ON_CPU
  memcpy(&bits, &v, 4);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits & 0x007fffffu ? 0x7fffffffu : bits;
  return (bits + 0x1000u) & 0xffffe000u;
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
#endif
}

// -- Asynchronous copies to shared memory. A thread's copies belong to groups, which end with `copy_commit`; a copy has
// -- landed after the thread waited for its group, and for other threads after a barrier that follows.

// 16 bytes to shared memory, or 16 zeros; both addresses are multiples of 16
__device__ __forceinline__ void copy_16(void* to, const void* from, bool valid) {
#ifdef ON_CPU
  memset(to, 0xff, 16);  // until it lands
  cpu::fibers[cpu::current].copies.back().push_back({to, valid ? from : nullptr, 16});
#else
  unsigned shared = (unsigned)__cvta_generic_to_shared(to);
  int bytes = valid ? 16 : 0;  // that are read; zeros fill the rest
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(bytes) : "memory");
#endif
}

__device__ __forceinline__ void copy_commit() {
#ifdef ON_CPU
  cpu::fibers[cpu::current].copies.emplace_back();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// wait until at most the last N groups have not landed
template <int N>
__device__ __forceinline__ void copy_wait() {
#ifdef ON_CPU
  auto& groups = cpu::fibers[cpu::current].copies;  // the last one is open
  for (; (int)groups.size() > N + 1; groups.erase(groups.begin()))
    for (const cpu::PendingCopy& copy : groups.front()) {
      if (copy.from) memcpy(copy.to, copy.from, copy.bytes);
      else memset(copy.to, 0, copy.bytes);
    }
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// -- Products of small matrices by all lanes of a warp. A row of the left matrix, or a column of the right one, is eight
// -- words of 32 bits along the depth: eight numbers of TF32, or sixteen of float16, the earlier in the lower half.
// -- Lane 4 g + t (g < 8, t < 4) holds of the left matrix the words t of row g, t of row g + 8, t + 4 of row g, t + 4 of
// -- row g + 8; of the right one the words t and t + 4 of column g; of the sums those of row g in the columns 2 t and
// -- 2 t + 1, then the same of row g + 8.

// Four matrices of 8 rows of 16 bytes from shared memory: lane 8 m + r gives the address of row r of matrix m, a multiple
// of 16, and lane 4 g + t receives word t of row g of each. (One instruction, "ldmatrix", loads the fragments that the
// products take.)
__device__ __forceinline__ void load_matrices(unsigned (&words)[4], const void* row) {
#ifdef ON_CPU
  const int lane = cpu::lane();
  memcpy(&cpu::slots[cpu::warp()][lane][0], &row, sizeof row);
  cpu::exchange_barrier(~0u, __LINE__);
  for (int m = 0; m < 4; m++) {
    const char* from;
    memcpy(&from, &cpu::slots[cpu::warp()][8 * m + lane / 4][0], sizeof from);
    memcpy(&words[m], from + lane % 4 * 4, 4);
  }
  cpu::exchange_barrier(~0u, __LINE__);
#else
  unsigned shared = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared)
               : "memory");
#endif
}

#ifdef ON_CPU
// sums += left right, of fragments whose words are N numbers each; a card may add in another order
template <int N>
inline void multiply(float (&sums)[4], const float (&left)[4][N], const float (&right)[2][N]) {
  const int lane = cpu::lane(), g = lane / 4, t = lane % 4;
  struct Fragments { float left[4][N], right[2][N]; };
  auto of_lane = [](int lane) { return reinterpret_cast<Fragments*>(cpu::slots[cpu::warp()][lane]); };
  static_assert(sizeof(Fragments) <= sizeof cpu::slots[0][0], "a lane's slots hold its fragments");
  memcpy(of_lane(lane)->left, left, sizeof left);
  memcpy(of_lane(lane)->right, right, sizeof right);
  cpu::exchange_barrier(~0u, __LINE__);
  for (int i = 0; i < 4; i++) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    for (int word = 0; word < 8; word++) {
      const float* x = of_lane(row % 8 * 4 + word % 4)->left[row / 8 + word / 4 * 2];
      const float* y = of_lane(column * 4 + word % 4)->right[word / 4];
      for (int n = 0; n < N; n++) sums[i] = fmaf(x[n], y[n], sums[i]);
    }
  }
  cpu::exchange_barrier(~0u, __LINE__);
}
#endif

// sums [16, 8] += left [16, 8] right [8, 8], TF32 (the lowest 13 bits of a word are ignored), sums in float32
__device__ __forceinline__ void multiply_tf32(float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2]) {
#ifdef ON_CPU
  float x[4][1], y[2][1];
  for (int i = 0; i < 4; i++) x[i][0] = __int_as_float((int)(left[i] & 0xffffe000u));
  for (int i = 0; i < 2; i++) y[i][0] = __int_as_float((int)(right[i] & 0xffffe000u));
  multiply(sums, x, y);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#endif
}

// sums [16, 8] += left [16, 16] right [16, 8], float16, sums in float32
__device__ __forceinline__ void multiply_half(float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2]) {
#ifdef ON_CPU
  float x[4][2], y[2][2];
  for (int i = 0; i < 8; i++) x[i / 2][i % 2] = from_half((unsigned short)(left[i / 2] >> i % 2 * 16));
  for (int i = 0; i < 4; i++) y[i / 2][i % 2] = from_half((unsigned short)(right[i / 2] >> i % 2 * 16));
  multiply(sums, x, y);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#endif
}

}  // namespace ptx
