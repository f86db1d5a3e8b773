// 3×3 convolutions by Winograd's F(4×4, 3×3), float32. For a tile's 4×4 outputs of a kernel g over its 6×6 window d
// (Lavin & Gray, arXiv 1509.09308):
//
//   y = At [ (G g Gt) * (Bt d B) ] A      sum over input channels of the product, for each of the 36 places
//
// with the interpolation points 0, ±3/4, ±3/2, infinity. `transforms.py` has the matrices and makes U = G g Gt, in
// double. Three kernels: the windows' transforms V, the 36 products M[p] = V[p] U[p], the outputs and their epilogue.
#include "product.cuh"
#include "reading.cuh"

#define A1 0.75f
#define B1 1.5f
#define A2 0.5625f
#define B2 2.25f

// Bt d of six values, `step` apart, in place
__device__ __forceinline__ void transform_input(float* d, int step) {
  float d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  float even_a = fmaf(-B2, d2, d4), odd_a = fmaf(-B2, d1, d3);
  float even_b = fmaf(-A2, d2, d4), odd_b = fmaf(-A2, d1, d3);
  d[0] = fmaf(A2 * B2, d0, fmaf(-(A2 + B2), d2, d4));
  d[step] = fmaf(A1, odd_a, even_a);
  d[2 * step] = fmaf(-A1, odd_a, even_a);
  d[3 * step] = fmaf(B1, odd_b, even_b);
  d[4 * step] = fmaf(-B1, odd_b, even_b);
  d[5 * step] = fmaf(A2 * B2, d1, fmaf(-(A2 + B2), d3, d5));
}

#define S (1.f / (A2 * B2))
#define SA (1.f / (2.f * A2 * (A2 - B2)))
#define SB (1.f / (2.f * B2 * (B2 - A2)))

// At m of six values, `step` apart, into four, `to_step` apart
__device__ __forceinline__ void transform_output(const float* m, int step, float* y, int to_step) {
  float sum_a = m[step] + m[2 * step], difference_a = m[step] - m[2 * step];
  float sum_b = m[3 * step] + m[4 * step], difference_b = m[3 * step] - m[4 * step];
  y[0] = fmaf(S, m[0], fmaf(SA, sum_a, SB * sum_b));
  y[to_step] = fmaf(A1 * SA, difference_a, B1 * SB * difference_b);
  y[2 * to_step] = fmaf(A2 * SA, sum_a, B2 * SB * sum_b);
  y[3 * to_step] = fmaf(A1 * A2 * SA, difference_a, fmaf(B1 * B2 * SB, difference_b, m[5 * step]));
}

#define CHANNELS 64  // of a block

__device__ __forceinline__ int rows_here(const int* tiles, int first_tile, int stride) {
  int rows = tile_count(tiles) - first_tile;
  return rows < stride ? rows : stride;
}

// V[p][row][c] = (Bt d B)[p] of the window of tile first_tile + row; 0 for the channels that pad the depth.
// A rolled loop reads the window into shared memory: unrolled, its branches would be compiled 36 times.
KERNEL(winograd_input, WinogradInput, CHANNELS) {
  __shared__ float window[36][CHANNELS];
  int rows = rows_here(a.tiles, a.first_tile, a.stride), C = channels(a.source);
  int c = blockIdx.y * CHANNELS + threadIdx.x;
  if (c >= a.padded) return;
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    Place p = tile_place(a.tiles, a.first_tile + row);
#pragma unroll 1
    for (int i = 0; i < 36; i++)  // each thread reads back what it wrote: no barrier
      window[i][threadIdx.x] = c < C ? read(a.source, p.n, p.y - a.top + i / 6, p.x - a.left + i % 6, c) : 0.f;
    float d[36];
#pragma unroll
    for (int i = 0; i < 36; i++) d[i] = window[i][threadIdx.x];
#pragma unroll
    for (int i = 0; i < 6; i++) transform_input(d + i, 6);
#pragma unroll
    for (int i = 0; i < 6; i++) transform_input(d + 6 * i, 1);
#pragma unroll
    for (int i = 0; i < 36; i++) a.transformed[((long long)i * a.stride + row) * a.padded + c] = d[i];
  }
}

// M[p][row][o] = sum over c of V[p][row][c] U[p][c][o]: grid (rows, outputs, 36)
template <class P>
__device__ __forceinline__ void winograd_product(const Products& a, typename P::Shared& shared) {
  int rows = rows_here(a.tiles, a.first_tile, a.stride), row0 = blockIdx.x * P::BM, o0 = blockIdx.y * P::BN;
  if (row0 >= rows) return;
  const float* left = a.left + (long long)blockIdx.z * a.stride * a.depth;
  const float* right = a.right + (long long)blockIdx.z * a.depth * a.outputs;
  float* out = a.out + (long long)blockIdx.z * a.stride * a.outputs;
  float sums[P::TM][P::TN] = {};
  const float4 zeros = make_float4(0.f, 0.f, 0.f, 0.f);
  P::run(
      sums, shared, a.depth,
      [&](int e, int c) {
        int row = row0 + P::left_row(e);
        return row < rows && c < a.depth ? load_4(left + (long long)row * a.depth + c) : zeros;
      },
      [&](int c, int column) {
        return c < a.depth && o0 + column < a.outputs ? load_4(right + (long long)c * a.outputs + o0 + column) : zeros;
      });
  P::each_sum(sums, shared, [&](int row, int column, float sum) {
    if (row0 + row < rows && o0 + column < a.outputs) out[(long long)(row0 + row) * a.outputs + o0 + column] = sum;
  });
}

#define PRODUCT(BM, BN, TM, TN) \
  __shared__ Product<BM, BN, TM, TN>::Shared shared; \
  winograd_product<Product<BM, BN, TM, TN>>(a, shared)
KERNEL(winograd_product_128x128, Products, 256) { PRODUCT(128, 128, 8, 8); }
KERNEL(winograd_product_64x64, Products, 256) { PRODUCT(64, 64, 4, 4); }
KERNEL(winograd_product_32x64, Products, 128) { PRODUCT(32, 64, 4, 4); }
KERNEL(winograd_product_16x64, Products, 128) { PRODUCT(16, 64, 2, 4); }
KERNEL(winograd_product_64x16, Products, 256) { PRODUCT(64, 16, 4, 1); }

// out[tiles] = epilogue(At M A)
KERNEL(winograd_output, WinogradOutput, CHANNELS) {
  int rows = rows_here(a.tiles, a.first_tile, a.stride), o = blockIdx.y * CHANNELS + threadIdx.x;
  if (o >= a.outputs) return;
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    float m[36], h[24], y[PIXELS];
#pragma unroll
    for (int i = 0; i < 36; i++) m[i] = a.products[((long long)i * a.stride + row) * a.padded + o];
#pragma unroll
    for (int j = 0; j < 6; j++) transform_output(m + j, 6, h + j, 6);
#pragma unroll
    for (int i = 0; i < 4; i++) transform_output(h + 6 * i, 1, y + 4 * i, 1);
    Place p = tile_place(a.tiles, a.first_tile + row);
#pragma unroll
    for (int i = 0; i < PIXELS; i++) {
      int py = p.y + i / TILE, px = p.x + i % TILE;
      if (py < a.height && px < a.width)
        a.out[at(p.n, py, px, a.height, a.width, a.outputs) + o] = finish(a.epilogue, y[i], p.n, py, px, o);
    }
  }
}
