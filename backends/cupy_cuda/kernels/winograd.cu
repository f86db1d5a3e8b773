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

#define CHANNELS 64        // of a block
#define INPUT_THREADS 192  // three for each channel

__device__ __forceinline__ int rows_here(const int* tiles, int first_tile, int stride) {
  int rows = tile_count(tiles) - first_tile;
  return rows < stride ? rows : stride;
}

// V[p][row][c] = (Bt d B)[p] of the window of tile first_tile + row; 0 for the channels that pad the depth. A thread reads
// four channels of three pixels at once, then transforms two columns of the window, then two rows, of a channel.
KERNEL(winograd_input, WinogradInput, INPUT_THREADS) {
  __shared__ __align__(16) float window[36][CHANNELS];
  const Source& s = a.source;
  int rows = rows_here(a.tiles, a.first_tile, a.stride), C = channels(s), t = threadIdx.x;
  int c = t % CHANNELS, of_all = blockIdx.y * CHANNELS + c;
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    Place p = tile_place(a.tiles, a.first_tile + row);
    int top = p.y - a.top, left = p.x - a.left;
    if (s.fours) {
      int first = t / (CHANNELS / 4), c4 = t % (CHANNELS / 4) * 4, y[3], x[3];  // 12 pixels are two rows of the window
      bool inside[3];
      float v[12] = {};
#pragma unroll
      for (int b = 0; b < 3; b++) {
        y[b] = top + first / 6 + 2 * b, x[b] = left + first % 6;
        inside[b] = is_inside(s, y[b], x[b]);
      }
      if (blockIdx.y * CHANNELS + c4 < C) read_pixels<4, 3>(s, p.n, y, x, inside, blockIdx.y * CHANNELS + c4, v);
#pragma unroll
      for (int b = 0; b < 3; b++)
        *reinterpret_cast<float4*>(&window[first + 12 * b][c4]) =
            make_float4(v[4 * b], v[4 * b + 1], v[4 * b + 2], v[4 * b + 3]);
    } else {
#pragma unroll 1
      for (int i = t / CHANNELS; i < 36; i += INPUT_THREADS / CHANNELS)
        window[i][c] = of_all < C ? read(s, p.n, top + i / 6, left + i % 6, of_all) : 0.f;
    }
    __syncthreads();
    float d[6];
#pragma unroll
    for (int j = t / CHANNELS; j < 6; j += INPUT_THREADS / CHANNELS) {
#pragma unroll
      for (int i = 0; i < 6; i++) d[i] = window[6 * i + j][c];
      transform_input(d, 1);
#pragma unroll
      for (int i = 0; i < 6; i++) window[6 * i + j][c] = d[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = t / CHANNELS; i < 6; i += INPUT_THREADS / CHANNELS) {
#pragma unroll
      for (int j = 0; j < 6; j++) d[j] = window[6 * i + j][c];
      transform_input(d, 1);
#pragma unroll
      for (int j = 0; j < 6; j++)
        if (of_all < a.padded) a.transformed[((long long)(6 * i + j) * a.stride + row) * a.padded + of_all] = d[j];
    }
    __syncthreads();  // before the next tile's window
  }
}

// The products of a block, `left` and `right` from its first row and column on.
template <class P>
__device__ __forceinline__ void multiply(float (&sums)[P::TM][P::TN], typename P::Shared& shared, int depth,
                                         const float* left, int rows, const float* right, int columns, int pitch) {
  if constexpr (P::STREAMS) {
    P::run(sums, shared, depth, left, rows, right, columns, pitch);
  } else {
    const float4 zeros = make_float4(0.f, 0.f, 0.f, 0.f);
    P::run(
        sums, shared, depth,
        [&](int e, int c) {
          int row = P::left_row(e);
          return row < rows && c < depth ? load_4(left + (long long)row * depth + c) : zeros;
        },
        [&](int c, int column) {
          return c < depth && column < columns ? load_4(right + (long long)c * pitch + column) : zeros;
        });
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
  multiply<P>(sums, shared, a.depth, left + (long long)row0 * a.depth, rows - row0, right + o0, a.outputs - o0, a.outputs);
  P::each_four(sums, shared, [&](int row, int column, const float* four) {
    if (row0 + row < rows && o0 + column < a.outputs)  // a multiple of four
      *reinterpret_cast<float4*>(out + (long long)(row0 + row) * a.outputs + o0 + column) =
          *reinterpret_cast<const float4*>(four);
  });
}

#define PRODUCT(...) \
  __shared__ __VA_ARGS__::Shared shared; \
  winograd_product<__VA_ARGS__>(a, shared)
KERNEL(winograd_product_128x128, Products, 256) { PRODUCT(Product<128, 128, 8, 8>); }
KERNEL(winograd_product_128x64, Products, 256) { PRODUCT(Product<128, 64, 8, 4>); }
KERNEL(winograd_product_64x64, Products, 128) { PRODUCT(Streamed<64, 64, 8, 4, 16, 4>); }
KERNEL(winograd_product_32x64, Products, 128) { PRODUCT(Streamed<32, 64, 4, 4, 32, 3>); }
KERNEL(winograd_product_16x64, Products, 128) { PRODUCT(Streamed<16, 64, 2, 4, 32, 4>); }
KERNEL(winograd_product_8x64, Products, 64) { PRODUCT(Streamed<8, 64, 2, 4, 32, 4>); }
KERNEL(winograd_product_64x16, Products, 256) { PRODUCT(Product<64, 16, 4, 1, 32>); }

// out[tiles] = epilogue(At M A): a thread makes a channel of a tile. grid (tiles, outputs / CHANNELS); where the outputs
// are few, a block has as many tiles as fit.
KERNEL(winograd_output, WinogradOutput, CHANNELS) {
  int rows = rows_here(a.tiles, a.first_tile, a.stride), t = threadIdx.x;
  int across = a.padded < CHANNELS ? a.padded : CHANNELS, tiles = CHANNELS / across;
  int o = blockIdx.y * CHANNELS + t % across;
  if (o >= a.outputs || t / across >= tiles) return;
  for (int row = blockIdx.x * tiles + t / across; row < rows; row += gridDim.x * tiles) {
    float m[36], h[24];
#pragma unroll
    for (int i = 0; i < 36; i++) m[i] = a.products[((long long)i * a.stride + row) * a.padded + o];
#pragma unroll
    for (int j = 0; j < 6; j++) transform_output(m + j, 6, h + j, 6);
    Place p = tile_place(a.tiles, a.first_tile + row);
#pragma unroll
    for (int i = 0; i < TILE; i++) {
      float sums[TILE];
      transform_output(h + 6 * i, 1, sums, 1);
      int y[TILE], x[TILE];
      bool inside[TILE];
#pragma unroll
      for (int j = 0; j < TILE; j++) {
        y[j] = p.y + i, x[j] = p.x + j;
        inside[j] = y[j] < a.height && x[j] < a.width;
      }
      finish<1, TILE>(a.epilogue, sums, p.n, y, x, inside, o);
#pragma unroll
      for (int j = 0; j < TILE; j++)
        if (inside[j]) a.out[at(p.n, y[j], x[j], a.height, a.width, a.outputs) + o] = sums[j];
    }
  }
}
