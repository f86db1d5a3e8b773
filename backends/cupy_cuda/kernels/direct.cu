// Convolutions of any kernel, stride, padding and number of groups, float32: a product whose rows are the output pixels
// of the active tiles, whose columns are a group's output channels, and whose depth is the taps times the input channels
// (implicit GEMM: no window is ever written out).
//
//   out[pixel][o] = epilogue(sum over taps t, channels c of read(pixel * stride + t - padding, c) * weight[t][c][o])
//
// The depth is cut into chains of CHAIN values. An output is the sum of its chains in their order, each one chain of fmaf
// in the order of the depth. Where there are blocks enough, one block makes all chains of its outputs; where there are
// few (a small edit of a deep layer), a block makes one chain, and `chains.cu` adds them. The bits are the same.
#include "product.cuh"
#include "reading.cuh"

#undef LEAST_BLOCKS
#define LEAST_BLOCKS(threads) (512 / (threads))  // for sm_120, too: no block here is as large as Winograd's

struct __align__(16) Pixel {  // row of the product: an output pixel
  int n, y, x, inside;
};
__device__ __forceinline__ Pixel pixel_of(const Conv& a, int row, int rows) {
  if (row >= rows) return {0, 0, 0, 0};
  Place p = tile_place(a.tiles, row / PIXELS);
  int y = p.y + row % PIXELS / TILE, x = p.x + row % TILE;
  return {p.n, y, x, y < a.height && x < a.width};
}

#define CHAIN 128  // values of the depth, a multiple of every block's DEPTH

template <class P>
struct Direct {
  static_assert(CHAIN % P::DEPTH == 0, "a chain ends with a step");
  struct Shared {
    typename P::Shared product;
    Pixel corners[P::BM];  // where the window of each row begins: registers are too few for them
  };

  // The corner of a row's window in the source, whose samples are the output's, or the tiles of the list.
  static __device__ __forceinline__ Pixel corner_of(const Conv& a, int row, int rows) {
    if (a.in_rows) return {row / PIXELS, row % PIXELS / TILE, row % TILE, row < rows};
    Pixel p = pixel_of(a, row, rows);
    return {p.n, p.y * a.stride - a.top, p.x * a.stride - a.left, p.inside};
  }

  // grid (rows, outputs of a group, groups, or groups times chains where a.sums is given)
  static __device__ __forceinline__ void run(const Conv& a, Shared& shared) {
    int rows = tile_count(a.tiles) * PIXELS, row0 = blockIdx.x * P::BM, o0 = blockIdx.y * P::BN;
    if (row0 >= rows) return;
    int group = blockIdx.z % a.groups, chain = blockIdx.z / a.groups, begin = chain * CHAIN;
    int whole = a.kernel_height * a.kernel_width * a.padded_inputs, depth = whole - begin;
    if (a.sums && depth > CHAIN) depth = CHAIN;
    const float* weight = (const float*)a.weight + ((long long)group * whole + begin) * a.padded_outputs + o0;
    const float4 zeros = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int i = threadIdx.x; i < P::BM; i += P::THREADS) shared.corners[i] = corner_of(a, row0 + i, rows);
    __syncthreads();
    float totals[P::TM][P::TN] = {}, sums[P::TM][P::TN] = {};
    int of_tap = -begin, tap_y = 0, tap_x = 0;  // the tap that this thread reads, and where its channels begin
    P::run(
        sums, shared.product, depth,
        [&](int e, int c) {  // c, the same for every e, grows; padded_inputs is a multiple of four
          for (; c - of_tap >= a.padded_inputs; of_tap += a.padded_inputs)
            if (++tap_x == a.kernel_width) tap_x = 0, tap_y++;
          Pixel p = shared.corners[P::left_row(e)];
          if (!p.inside || c >= depth) return zeros;
          int first = c - of_tap;
          return read_4(a.source, p.n, p.y + tap_y, p.x + tap_x, group * a.inputs + first, a.inputs - first);
        },
        [&](int c, int column) {
          return c < depth && o0 + column < a.padded_outputs ? load_4(weight + (long long)c * a.padded_outputs + column)
                                                             : zeros;
        },
        [&](int c) {
          if (c % CHAIN && c < depth) return;
#pragma unroll
          for (int i = 0; i < P::TM; i++)
#pragma unroll
            for (int j = 0; j < P::TN; j++) totals[i][j] += sums[i][j], sums[i][j] = 0.f;
        });
    P::each_four(totals, shared.product, [&](int row, int column, const float* four) {
      Pixel p = pixel_of(a, row0 + row, rows);
      int o = o0 + column, channel = group * a.outputs + o;
      if (!p.inside || o >= a.outputs) return;
      float4 v = *reinterpret_cast<const float4*>(four);
      if (a.sums) {
        long long place = (long long)chain * a.tile_room * PIXELS + row0 + row;
        store_4(a.sums + place * a.sum_outputs + channel, v, a.outputs - o, a.outputs % 4 == 0);
        return;
      }
      float* out = a.out + at(p.n, p.y, p.x, a.height, a.width, a.groups * a.outputs) + channel;
      if (has_fours(a.epilogue) && a.outputs % 4 == 0) {
        *reinterpret_cast<float4*>(out) = finish_4(a.epilogue, v, p.n, p.y, p.x, channel);
      } else {
#pragma unroll 1
        for (int i = 0; i < 4 && o + i < a.outputs; i++)
          out[i] = finish(a.epilogue, four[i], p.n, p.y, p.x, channel + i);
      }
    });
  }
};

#define DIRECT(...) \
  __shared__ Direct<Product<__VA_ARGS__>>::Shared shared; \
  Direct<Product<__VA_ARGS__>>::run(a, shared)
KERNEL(direct_128x64, Conv, 256) { DIRECT(128, 64, 8, 4); }
KERNEL(direct_64x64, Conv, 256) { DIRECT(64, 64, 4, 4); }
KERNEL(direct_32x64, Conv, 128) { DIRECT(32, 64, 4, 4, 32); }
KERNEL(direct_16x64, Conv, 128) { DIRECT(16, 64, 2, 4, 64); }
KERNEL(direct_64x16, Conv, 256) { DIRECT(64, 16, 4, 1, 32); }
