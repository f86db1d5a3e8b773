// Layer norm and geglu in float32: written out, or as the rows of a product.
#include "combined.cuh"

// rows[tile][pixel] = source: grid as `combine`
KERNEL(combined_rows_float32, CombinedRows, 128) {
  __shared__ Kept kept;
  int count = tiles_here(a.tiles, a.first_tile, a.tile_room);
  combine(a.source, a.tiles, a.first_tile, count, a.padded, kept, [&](int k, int pixel, Place, int c, float4 v) {
    *reinterpret_cast<float4*>((float*)a.rows + ((long long)k * PIXELS + pixel) * a.padded + c) = v;
  });
}

// out[tiles] = source + residual: grid as `combine`
KERNEL(combined_pointwise, CombinedPointwise, 128) {
  __shared__ Kept kept;
  int C = a.source.channels, height = a.source.height, width = a.source.width;
  combine(a.source, a.tiles, 0, tile_count(a.tiles), C, kept, [&](int, int, Place p, int c, float4 v) {
    if (p.y >= height || p.x >= width) return;
    if (a.residual.first) {
      float4 r = read_4(a.residual, p.n, p.y, p.x, c, C - c);
      v = make_float4(v.x + r.x, v.y + r.y, v.z + r.z, v.w + r.w);
    }
    store_4(a.out + at(p.n, p.y, p.x, height, width, C) + c, v, C - c, C % 4 == 0 && (int64)a.out % 16 == 0);
  });
}
