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

  static constexpr int LEFTS = (BM * DEPTH / 4 + THREADS - 1) / THREADS;
  static constexpr int RIGHTS = (BN * DEPTH / 4 + THREADS - 1) / THREADS;
  // the row that load e of this thread reads, the same at every depth
  static __device__ __forceinline__ int left_row(int e) { return (threadIdx.x + e * THREADS) / (DEPTH / 4); }

  // Add the products of `depth` values to `sums`. `load_left(e, c)` gives four values of row `left_row(e)` from depth c
  // on, `load_right(c, column)` four neighbours at depth c; beyond the edges both give zeros.
  template <class Left, class Right>
  static __device__ __forceinline__ void run(float (&sums)[TM][TN], Shared& shared, int depth, Left load_left,
                                             Right load_right) {
    float4 lefts[LEFTS], rights[RIGHTS];
    int t = threadIdx.x;
    // One step fetches from the arrays while the one before it is computed. The halves of shared memory alternate: who
    // is a step ahead writes the half that nobody reads any more, so one barrier a step is enough.
    for (int c0 = 0, half = 0; c0 < depth + DEPTH; c0 += DEPTH, half ^= 1) {
      bool more = c0 < depth;
      if (more) {
#pragma unroll
        for (int e = 0; e < LEFTS; e++)
          if (left_row(e) < BM) lefts[e] = load_left(e, c0 + (t + e * THREADS) % (DEPTH / 4) * 4);
#pragma unroll
        for (int e = 0; e < RIGHTS; e++) {
          int at = t + e * THREADS;
          if (at < BN * DEPTH / 4) rights[e] = load_right(c0 + at / (BN / 4), at % (BN / 4) * 4);
        }
      }
      if (c0) {
#pragma unroll
        for (int c = 0; c < DEPTH; c++) {
          float x[TM], w[TN];
#pragma unroll
          for (int i = 0; i < TM; i++) x[i] = shared.left[half ^ 1][c][row(i)];
#pragma unroll
          for (int j = 0; j < TN; j++) w[j] = shared.right[half ^ 1][c][column(j)];
#pragma unroll
          for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) sums[i][j] = fmaf(x[i], w[j], sums[i][j]);
        }
      }
      if (more) {
#pragma unroll
        for (int e = 0; e < LEFTS; e++) {
          int r = left_row(e), c = (t + e * THREADS) % (DEPTH / 4) * 4;
          if (r >= BM) continue;
          shared.left[half][c][r] = lefts[e].x;
          shared.left[half][c + 1][r] = lefts[e].y;
          shared.left[half][c + 2][r] = lefts[e].z;
          shared.left[half][c + 3][r] = lefts[e].w;
        }
#pragma unroll
        for (int e = 0; e < RIGHTS; e++) {
          int at = t + e * THREADS;
          if (at < BN * DEPTH / 4)
            *reinterpret_cast<float4*>(&shared.right[half][at / (BN / 4)][at % (BN / 4) * 4]) = rights[e];
        }
        __syncthreads();
      }
    }
  }

  // Call `write(row, column, sum)` for every output of the block: neighbouring threads get neighbouring columns. The
  // sums pass through shared memory, so that `write` is compiled for a rolled loop and not for each of them.
  template <class Write>
  static __device__ __forceinline__ void each_sum(const float (&sums)[TM][TN], Shared& shared, Write write) {
    constexpr int GROUPS = TM / VM, ROWS = BM / GROUPS;
    static_assert(ROWS * BN * sizeof(float) <= sizeof(Shared), "the sums of a group of rows fit");
    float* staged = reinterpret_cast<float*>(&shared);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
      __syncthreads();  // nobody reads what was there before
#pragma unroll
      for (int i = 0; i < VM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) staged[(row(g * VM + i) - g * ROWS) * BN + column(j)] = sums[g * VM + i][j];
      __syncthreads();
#pragma unroll 1
      for (int e = threadIdx.x; e < ROWS * BN; e += THREADS) write(g * ROWS + e / BN, e % BN, staged[e]);
    }
  }
};

__device__ __forceinline__ float4 load_4(const float* from) { return __ldg(reinterpret_cast<const float4*>(from)); }
