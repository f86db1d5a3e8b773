// A block's part of a matrix product, by one multiply-add unit a thread (FFMA): the loop that float32 convolutions share.
//
//   sums[i][j] += sum over depth c of left(row i, c) * right(c, column j)
//
// A block makes BM rows × BN columns, a thread TM × TN of these. Each output is one chain of fmaf over the depth in its
// order, so a value's bits depend neither on the shape of the block nor on the rows beside it.
#pragma once
#include "kernel.cuh"

#define DEPTH 16  // values of the depth that a block holds at a time

template <int BM_, int BN_, int TM_, int TN_>
struct Product {
  static constexpr int BM = BM_, BN = BN_, TM = TM_, TN = TN_;
  static constexpr int THREADS = BM / TM * (BN / TN);
  // a thread's rows (columns) lie in groups of at most four neighbours, which one instruction reads
  static constexpr int VM = TM < 4 ? TM : 4, VN = TN < 4 ? TN : 4;
  struct __align__(16) Shared {
    float left[2][DEPTH][BM + 4];  // + 4: threads that store a column of it then use different banks
    float right[2][DEPTH][BN];
  };
  static __device__ __forceinline__ int row(int i) {
    return i / VM * (BM / (TM / VM)) + threadIdx.x / (BN / TN) * VM + i % VM;
  }
  static __device__ __forceinline__ int column(int j) {
    return j / VN * (BN / (TN / VN)) + threadIdx.x % (BN / TN) * VN + j % VN;
  }

  // `load_left(row, c)` and `load_right(c, column)` give four values each, neighbours along the depth and along the
  // columns; `depth` is rounded up to a multiple of DEPTH: beyond the end both give zeros.
  template <class Left, class Right>
  static __device__ __forceinline__ void run(float (&sums)[TM][TN], Shared& shared, int depth, Left load_left,
                                             Right load_right) {
    constexpr int LEFT = BM * DEPTH / 4, RIGHT = BN * DEPTH / 4;
    constexpr int LEFTS = (LEFT + THREADS - 1) / THREADS, RIGHTS = (RIGHT + THREADS - 1) / THREADS;
    float4 lefts[LEFTS], rights[RIGHTS];
    int t = threadIdx.x;
    auto fetch = [&](int c0) {
#pragma unroll
      for (int e = 0; e < LEFTS; e++) {
        int at = t + e * THREADS;
        if (LEFT % THREADS == 0 || at < LEFT) lefts[e] = load_left(at / (DEPTH / 4), c0 + at % (DEPTH / 4) * 4);
      }
#pragma unroll
      for (int e = 0; e < RIGHTS; e++) {
        int at = t + e * THREADS;
        if (RIGHT % THREADS == 0 || at < RIGHT) rights[e] = load_right(c0 + at / (BN / 4), at % (BN / 4) * 4);
      }
    };
    auto keep = [&](int half) {
#pragma unroll
      for (int e = 0; e < LEFTS; e++) {
        int at = t + e * THREADS, r = at / (DEPTH / 4), c = at % (DEPTH / 4) * 4;
        if (LEFT % THREADS && at >= LEFT) continue;
        shared.left[half][c][r] = lefts[e].x;
        shared.left[half][c + 1][r] = lefts[e].y;
        shared.left[half][c + 2][r] = lefts[e].z;
        shared.left[half][c + 3][r] = lefts[e].w;
      }
#pragma unroll
      for (int e = 0; e < RIGHTS; e++) {
        int at = t + e * THREADS;
        if (RIGHT % THREADS && at >= RIGHT) continue;
        *reinterpret_cast<float4*>(&shared.right[half][at / (BN / 4)][at % (BN / 4) * 4]) = rights[e];
      }
    };
    fetch(0);
    for (int c0 = 0, half = 0; c0 < depth; c0 += DEPTH, half ^= 1) {
      keep(half);
      __syncthreads();  // the halves alternate: who is a step ahead writes the half that nobody reads any more
      if (c0 + DEPTH < depth) fetch(c0 + DEPTH);
#pragma unroll
      for (int c = 0; c < DEPTH; c++) {
        float x[TM], w[TN];
#pragma unroll
        for (int i = 0; i < TM; i++) x[i] = shared.left[half][c][row(i)];
#pragma unroll
        for (int j = 0; j < TN; j++) w[j] = shared.right[half][c][column(j)];
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
          for (int j = 0; j < TN; j++) sums[i][j] = fmaf(x[i], w[j], sums[i][j]);
      }
    }
  }
};

__device__ __forceinline__ float4 load_4(const float* from) { return __ldg(reinterpret_cast<const float4*>(from)); }
