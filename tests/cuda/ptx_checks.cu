// Kernels that call each wrapper of ptx.cuh alone: `test_ptx.py` compares what they write with formulas in NumPy, on the
// CPU (the twins), and on a card (the instructions).
#include "kernel.cuh"

struct RoundValues {
  const float* values;      // [count]
  const unsigned short* halves;  // [count]
  unsigned* tf32;           // the bits of values as TF32
  unsigned short* narrowed;  // the bits of values as float16
  float* widened;           // halves as float32
  int count;
};

KERNEL(round_values, RoundValues, 128) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= a.count) return;
  a.tf32[i] = ptx::to_tf32(a.values[i]);
  a.narrowed[i] = ptx::to_half(a.values[i]);
  a.widened[i] = ptx::from_half(a.halves[i]);
}

struct LoadMatrices {
  const unsigned* rows;     // [32, 4 words]
  const int* order;         // [32]: the row that each lane gives the address of
  unsigned* words;          // [4, 32]: what each lane receives of each matrix
};

KERNEL(load_matrices, LoadMatrices, 32) {
  __shared__ __align__(16) unsigned rows[32][4];
  int lane = threadIdx.x;
  for (int i = 0; i < 4; i++) rows[lane][i] = a.rows[lane * 4 + i];
  __syncthreads();
  unsigned words[4];
  ptx::load_matrices(words, rows[a.order[lane]]);
  for (int m = 0; m < 4; m++) a.words[m * 32 + lane] = words[m];
}

struct MultiplyMatrices {   // sums[b] += left[b] right[b], for each block b
  const unsigned* left;     // [B, 16 rows, 8 words]
  const unsigned* right;    // [B, 8 columns, 8 words]
  float* sums;              // [B, 16, 8]
  int halves;               // 0: a word is a number in TF32; 1: two in float16
};

KERNEL(multiply_matrices, MultiplyMatrices, 32) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const unsigned *left = a.left + blockIdx.x * 16 * 8, *right = a.right + blockIdx.x * 8 * 8;
  float* sums = a.sums + blockIdx.x * 16 * 8;
  unsigned x[4] = {left[g * 8 + t], left[(g + 8) * 8 + t], left[g * 8 + t + 4], left[(g + 8) * 8 + t + 4]};
  unsigned w[2] = {right[g * 8 + t], right[g * 8 + t + 4]};
  float s[4];
  for (int i = 0; i < 4; i++) s[i] = sums[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  if (a.halves) ptx::multiply_half(s, x, w);
  else ptx::multiply_tf32(s, x, w);
  for (int i = 0; i < 4; i++) sums[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = s[i];
}

struct CopyChunks {
  const float* from;        // [3 groups, 64, 4]
  const int* valid;         // [3, 64]; 0: zeros
  float* first;             // [64, 4]: the first group, after waiting for it alone, read by another thread
  float* all;               // [3, 64, 4]
};

KERNEL(copy_chunks, CopyChunks, 64) {
  __shared__ __align__(16) float chunks[3][64][4];
  int t = threadIdx.x, other = 63 - t;
  for (int group = 0; group < 3; group++) {
    ptx::copy_16(chunks[group][t], a.from + (group * 64 + t) * 4, a.valid[group * 64 + t]);
    ptx::copy_commit();
  }
  ptx::copy_wait<2>();
  __syncthreads();
  for (int i = 0; i < 4; i++) a.first[other * 4 + i] = chunks[0][other][i];
  ptx::copy_wait<0>();
  __syncthreads();
  for (int group = 0; group < 3; group++)
    for (int i = 0; i < 4; i++) a.all[(group * 64 + other) * 4 + i] = chunks[group][other][i];
}
