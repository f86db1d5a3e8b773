// Copies of tiles: a canvas [N, H, W, C] and values [K, 4, 4, C], in words of 4 bytes. A block takes tiles in turn,
// its threads the words of a tile, neighbours side by side.
#include "reading.cuh"

struct Word {  // a word of tile k: where it lies in the values and in the canvas
  long long value, canvas;
  bool inside;
};
__device__ __forceinline__ Word word_of(const int* tiles, int k, int i, int height, int width, int channels) {
  Place p = tile_place(tiles, k);
  int pixel = i / channels, y = p.y + pixel / TILE, x = p.x + pixel % TILE;
  return {(long long)k * PIXELS * channels + i, at(p.n, y, x, height, width, channels) + i % channels,
          y < height && x < width};
}

#define EACH_WORD(tiles, channels) \
  for (int k = blockIdx.x, count = tile_count(tiles); k < count; k += gridDim.x) \
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < PIXELS * (channels); i += gridDim.y * blockDim.x)

// T is a word, or four words.
template <bool READ, class T>
__device__ __forceinline__ void copy_words(const CopyTiles& a, T* values) {
  int channels = a.channels / (int)(sizeof(T) / 4);
  EACH_WORD(a.tiles, channels) {
    Word w = word_of(a.tiles, k, i, a.height, a.width, channels);
    T* canvas = reinterpret_cast<T*>(a.canvas) + w.canvas;
    if (READ) values[w.value] = w.inside ? *canvas : T{};
    else if (w.inside) *canvas = values[w.value];
  }
}

template <bool READ>
__device__ __forceinline__ void copy_one(const CopyTiles& a) {
  int* values = a.values_place ? reinterpret_cast<int*>(*a.values_place) : a.values;
  if (a.channels % 4 == 0 && ((int64)a.canvas | (int64)values) % 16 == 0)
    copy_words<READ>(a, reinterpret_cast<uint4*>(values));
  else
    copy_words<READ>(a, values);
}

// values = canvas[tiles], 0 where a tile overhangs the border
KERNEL(read_tiles, CopyTiles, 256) { copy_one<true>(a); }
// canvas[tiles] = values
KERNEL(write_tiles, CopyTiles, 256) { copy_one<false>(a); }
// the same for many canvases: grid z counts them
KERNEL(read_many_tiles, CopyManyTiles, 256) { copy_one<true>(a.each[blockIdx.z]); }
KERNEL(write_many_tiles, CopyManyTiles, 256) { copy_one<false>(a.each[blockIdx.z]); }

// target[i] = source[i] for each pair of arrays: grid y counts them
KERNEL(copy_arrays, CopyArrays, 256) {
  const CopyArray& one = a.each[blockIdx.y];
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < one.words; i += gridDim.x * blockDim.x)
    one.target[i] = one.source[i];
}

// canvas[tiles] = values, where `pixels` is not 0
KERNEL(merge_tiles, MergeTiles, 256) {
  EACH_WORD(a.tiles, a.channels) {
    Word w = word_of(a.tiles, k, i, a.height, a.width, a.channels);
    if (!w.inside || !a.pixels[k * PIXELS + i / a.channels]) continue;
    if (a.halves)
      ((float*)a.canvas)[w.canvas] = ptx::from_half(((const unsigned short*)a.values)[w.value]);
    else
      a.canvas[w.canvas] = ((const int*)a.values)[w.value];
  }
}

// canvas[tiles] += values
KERNEL(add_tiles, AddTiles, 256) {
  EACH_WORD(a.tiles, a.channels) {
    Word w = word_of(a.tiles, k, i, a.height, a.width, a.channels);
    if (w.inside) a.canvas[w.canvas] += a.values[w.value];
  }
}

// change = canvas[tiles] - old
KERNEL(tile_change, TileChange, 256) {
  EACH_WORD(a.tiles, a.channels) {
    Word w = word_of(a.tiles, k, i, a.height, a.width, a.channels);
    float old = a.halves ? ptx::from_half(((const unsigned short*)a.old)[w.value]) : ((const float*)a.old)[w.value];
    a.change[w.value] = w.inside ? a.canvas[w.canvas] - old : 0.f;
  }
}

// halves[tiles] = canvas[tiles] as float16, and the canvas the same values
KERNEL(narrow_tiles, HalfTiles, 256) {
  EACH_WORD(a.tiles, a.channels) {
    Word w = word_of(a.tiles, k, i, a.height, a.width, a.channels);
    if (!w.inside) continue;
    unsigned short half = ptx::to_half(a.canvas[w.canvas]);
    a.halves[w.canvas] = half;
    a.canvas[w.canvas] = ptx::from_half(half);
  }
}

// canvas[tiles] = halves[tiles]
KERNEL(widen_tiles, HalfTiles, 256) {
  EACH_WORD(a.tiles, a.channels) {
    Word w = word_of(a.tiles, k, i, a.height, a.width, a.channels);
    if (w.inside) a.canvas[w.canvas] = ptx::from_half(a.halves[w.canvas]);
  }
}
