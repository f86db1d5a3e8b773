// A block's part of a matrix product, by one multiply-add unit a thread (FFMA): the loop that float32 convolutions share.
//
//   sums[i][j] += sum over depth c of left(row i, c) * right(c, column j)
//
// A block makes BM rows × BN columns, a thread TM × TN of these. Each output is one chain of fmaf over the depth in its
// order, so a value's bits depend neither on the shape of the block nor on the rows beside it. (`direct.cu` cuts the
// depth, and so the chain, at places that do not depend on these either.)
#pragma once
#include "kernel.cuh"

// 128 registers a thread, so that a multiprocessor has 16 warps of these kernels: eight alone cannot hide their loads.
// (For sm_120 the compiler needs more for the largest block: it would keep some in memory.)
#undef LEAST_BLOCKS
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
#define LEAST_BLOCKS(threads) ((threads) < 256 ? 512 / (threads) : 1)
#else
#define LEAST_BLOCKS(threads) (512 / (threads))
#endif

// DEPTH values of the depth are in shared memory at a time, and as many under way: few rows need many, because nothing
// but these loads hides their own latency.
template <int BM_, int BN_, int TM_, int TN_, int DEPTH_ = 16>
struct Product {
  static constexpr int BM = BM_, BN = BN_, TM = TM_, TN = TN_, DEPTH = DEPTH_;
  static constexpr int THREADS = BM / TM * (BN / TN);
  static constexpr bool STREAMS = false;
  static_assert(BM / TM % 4 == 0 && BN / TN % 8 == 0 && DEPTH % 4 == 0 && BN % 4 == 0, "whole warps, and float4");
  // a thread's rows (columns) lie in groups of at most four neighbours, which one instruction reads
  static constexpr int VM = TM < 4 ? TM : 4, VN = TN < 4 ? TN : 4;
  struct __align__(16) Shared {
    float left[2][DEPTH][BM + 4];  // + 4: fewer of the threads that store a column of it use the same bank
    float right[2][DEPTH][BN];
  };
  // A warp has 4 × 8 of the threads. Lanes that differ in bit 0 read the same columns, in bit 1 the same rows: of each
  // half of a warp, a read of 16 bytes a lane is then one pass over the banks.
  static __device__ __forceinline__ int row(int i) {
    int t = threadIdx.x, mine = t / 32 / (BN / TN / 8) * 4 + t / 16 % 2 * 2 + t % 2;
    return i / VM * (BM / (TM / VM)) + mine * VM + i % VM;
  }
  static __device__ __forceinline__ int column(int j) {
    int t = threadIdx.x, mine = t / 32 % (BN / TN / 8) * 8 + t / 2 % 8;
    return j / VN * (BN / (TN / VN)) + mine * VN + j % VN;
  }

  static constexpr int LEFTS = (BM * DEPTH / 4 + THREADS - 1) / THREADS;
  static constexpr int RIGHTS = (BN * DEPTH / 4 + THREADS - 1) / THREADS;
  // the row that load e of this thread reads, the same at every depth
  static __device__ __forceinline__ int left_row(int e) { return (threadIdx.x + e * THREADS) / (DEPTH / 4); }

  struct Nothing {
    __device__ __forceinline__ void operator()(int) const {}
  };

  // Add the products of `depth` values to `sums`. `load_left(e, c)` gives four values of row `left_row(e)` from depth c
  // on, `load_right(c, column)` four neighbours at depth c; beyond the edges both give zeros. After each step
  // `added(c)` is called: the products of the values before c, a multiple of DEPTH, are in the sums.
  template <class Left, class Right, class Added = Nothing>
  static __device__ __forceinline__ void run(float (&sums)[TM][TN], Shared& shared, int depth, Left load_left,
                                             Right load_right, Added added = {}) {
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
#pragma unroll 16
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
        added(c0);
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

  // Call `write(row, column, sums)` for every four neighbouring outputs of the block, `sums` in shared memory, aligned to
  // 16 bytes: neighbouring threads get neighbouring columns. Rolled, so that `write` is compiled once for each group.
  template <class Write>
  static __device__ __forceinline__ void each_four(const float (&sums)[TM][TN], Shared& shared, Write write) {
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
      for (int e = threadIdx.x * 4; e < ROWS * BN; e += THREADS * 4) write(g * ROWS + e / BN, e % BN, staged + e);
    }
  }
};

// The same product of few rows, of two arrays that lie ready: what takes the time is to read the right one, so STAGES - 1
// steps of it are under way while one is computed, without a register for them.
template <int BM_, int BN_, int TM_, int TN_, int DEPTH_, int STAGES_>
struct Streamed : Product<BM_, BN_, TM_, TN_, DEPTH_> {
  using P = Product<BM_, BN_, TM_, TN_, DEPTH_>;
  static constexpr int BM = BM_, BN = BN_, TM = TM_, TN = TN_, DEPTH = DEPTH_, STAGES = STAGES_, THREADS = P::THREADS;
  static constexpr bool STREAMS = true;
  struct __align__(16) Stage {
    float left[BM][DEPTH + 4];  // + 4: the rows that a warp reads at once lie in different banks
    float right[DEPTH][BN];
  };
  struct Shared {
    Stage stages[STAGES];
  };
  static_assert(sizeof(Shared) <= 48 << 10, "more must be asked for");

  // Add the products of `left` [rows][depth] and `right` [depth][columns], whose block begins there, to `sums`: of row
  // and column of the block as in Product. `pitch` is what lies between rows of the right one.
  static __device__ __forceinline__ void run(float (&sums)[TM][TN], Shared& shared, int depth, const float* left, int rows,
                                             const float* right, int columns, int pitch) {
    int t = threadIdx.x;
    auto fetch = [&](int c0) {  // beyond the edges: zeros
      if (c0 < depth) {
        Stage& stage = shared.stages[c0 / DEPTH % STAGES];
#pragma unroll
        for (int e = 0; e < (BM * DEPTH / 4 + THREADS - 1) / THREADS; e++) {
          int at = t + e * THREADS, row = at / (DEPTH / 4), c = at % (DEPTH / 4) * 4;
          if (row < BM)
            ptx::copy_16(&stage.left[row][c], left + (long long)row * depth + c0 + c, row < rows && c0 + c < depth);
        }
#pragma unroll
        for (int e = 0; e < (DEPTH * BN / 4 + THREADS - 1) / THREADS; e++) {
          int at = t + e * THREADS, c = at / (BN / 4), column = at % (BN / 4) * 4;
          if (c < DEPTH)
            ptx::copy_16(&stage.right[c][column], right + (long long)(c0 + c) * pitch + column,
                         c0 + c < depth && column < columns);
        }
      }
      ptx::copy_commit();
    };
#pragma unroll 1
    for (int step = 0; step < STAGES - 1; step++) fetch(step * DEPTH);
#pragma unroll 1
    for (int c0 = 0; c0 < depth; c0 += DEPTH) {
      ptx::copy_wait<STAGES - 2>();
      __syncthreads();  // the step has landed, and nobody reads the stage any more that is fetched next
      fetch(c0 + (STAGES - 1) * DEPTH);
      const Stage& stage = shared.stages[c0 / DEPTH % STAGES];
#pragma unroll
      for (int c = 0; c < DEPTH; c += 4) {
        float x[TM][4], w[TN];
#pragma unroll
        for (int i = 0; i < TM; i++) {
          float4 four = *reinterpret_cast<const float4*>(&stage.left[P::row(i)][c]);
          x[i][0] = four.x, x[i][1] = four.y, x[i][2] = four.z, x[i][3] = four.w;
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
#pragma unroll
          for (int j = 0; j < TN; j++) w[j] = stage.right[c + k][P::column(j)];
#pragma unroll
          for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) sums[i][j] = fmaf(x[i][k], w[j], sums[i][j]);
        }
      }
    }
    ptx::copy_wait<0>();
  }

  template <class Write>
  static __device__ __forceinline__ void each_four(const float (&sums)[TM][TN], Shared& shared, Write write) {
    static_assert(sizeof(Shared) >= sizeof(typename P::Shared), "room for the sums");
    P::each_four(sums, reinterpret_cast<typename P::Shared&>(shared), write);
  }
};
