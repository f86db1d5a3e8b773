// Convolutions of any kernel, stride, padding and number of groups, float32: a product whose rows are the output pixels
// of the active tiles, whose columns are a group's output channels, and whose depth is the taps times the input channels
// (implicit GEMM: no window is ever written out).
//
//   out[pixel][o] = epilogue(sum over taps t, channels c of read(pixel * stride + t - padding, c) * weight[t][c][o])
#include "product.cuh"
#include "reading.cuh"

struct Pixel {  // row of the product: an output pixel
  int n, y, x;
  bool inside;
};
__device__ __forceinline__ Pixel pixel_of(const Conv& a, int row, int rows) {
  if (row >= rows) return {0, 0, 0, false};
  Place p = tile_place(a.tiles, row / PIXELS);
  int y = p.y + row % PIXELS / TILE, x = p.x + row % TILE;
  return {p.n, y, x, y < a.height && x < a.width};
}

// Where the product reads a row: the output pixel, or its place in a list of tiles.
__device__ __forceinline__ Pixel source_of(const Conv& a, int row, int rows) {
  if (!a.in_rows) return pixel_of(a, row, rows);
  return {row / PIXELS, row % PIXELS / TILE, row % TILE, row < rows};
}

// grid (rows, outputs of a group, groups)
template <class P>
__device__ __forceinline__ void direct_product(const Conv& a, typename P::Shared& shared) {
  int rows = tile_count(a.tiles) * PIXELS, row0 = blockIdx.x * P::BM, o0 = blockIdx.y * P::BN, group = blockIdx.z;
  if (row0 >= rows) return;
  int taps = a.kernel_height * a.kernel_width, depth = taps * a.padded_inputs;
  const float* weight = (const float*)a.weight + (long long)group * depth * a.padded_outputs;
  float sums[P::TM][P::TN] = {};
  const float4 zeros = make_float4(0.f, 0.f, 0.f, 0.f);
  Pixel pixels[P::LEFTS];
#pragma unroll
  for (int e = 0; e < P::LEFTS; e++) pixels[e] = source_of(a, row0 + P::left_row(e), rows);
  int of_tap = 0, tap_y = -a.top, tap_x = -a.left;  // the tap that this thread reads, and where its channels begin
  P::run(
      sums, shared, depth,
      [&](int e, int c) {  // c, the same for every e, grows; padded_inputs is a multiple of four
        for (; c - of_tap >= a.padded_inputs; of_tap += a.padded_inputs)
          if (++tap_x == a.kernel_width - a.left) tap_x = -a.left, tap_y++;
        Pixel p = pixels[e];
        if (!p.inside || c >= depth) return zeros;
        int first = c - of_tap;
        return read_4(a.source, p.n, p.y * a.stride + tap_y, p.x * a.stride + tap_x, group * a.inputs + first,
                      a.inputs - first);
      },
      [&](int c, int column) {
        return c < depth && o0 + column < a.padded_outputs ? load_4(weight + (long long)c * a.padded_outputs + o0 + column)
                                                           : zeros;
      });
  P::each_four(sums, shared, [&](int row, int column, const float* four) {
    Pixel p = pixel_of(a, row0 + row, rows);
    int o = o0 + column, channel = group * a.outputs + o;
    if (!p.inside || o >= a.outputs) return;
    float* out = a.out + at(p.n, p.y, p.x, a.height, a.width, a.groups * a.outputs) + channel;
    if (has_fours(a.epilogue) && a.outputs % 4 == 0) {
      float4 v = *reinterpret_cast<const float4*>(four);
      *reinterpret_cast<float4*>(out) = finish_4(a.epilogue, v, p.n, p.y, p.x, channel);
    } else {
#pragma unroll 1
      for (int i = 0; i < 4 && o + i < a.outputs; i++)
        out[i] = finish(a.epilogue, four[i], p.n, p.y, p.x, channel + i);
    }
  });
}

#define DIRECT(...) \
  __shared__ Product<__VA_ARGS__>::Shared shared; \
  direct_product<Product<__VA_ARGS__>>(a, shared)
KERNEL(direct_128x64, Conv, 256) { DIRECT(128, 64, 8, 4); }
KERNEL(direct_64x64, Conv, 256) { DIRECT(64, 64, 4, 4); }
KERNEL(direct_32x64, Conv, 128) { DIRECT(32, 64, 4, 4, 32); }
KERNEL(direct_16x64, Conv, 128) { DIRECT(16, 64, 2, 4, 64); }
KERNEL(direct_64x16, Conv, 256) { DIRECT(64, 16, 4, 1, 32); }
