// The arguments of every kernel: one structure each, passed by value. The host packs them by these very lines
// (`arguments.py` reads this file), so names, types and order are declared once.
//
// Arrays are as in `backends/interface.py`: canvases [N, H, W, C], channels last. A pointer that may be null says so.
// `tiles` is [4 + 3 K] of int: the number K, three unused words, then sample, tile row and tile column of each tile.
// A grid is made for at least K tiles and reads K there, so that one recorded launch serves any list that fits.
#pragma once

typedef long long int64;

struct Source {             // an input and the pointwise work pending on it, as `interface.Source`
  const float* first;       // [N, h, w, first_channels]
  const float* second;      // [N, h, w, second_channels], read after the first's channels; null: one part
  const float* scale;       // [1 or N, C]; null: no norm
  const float* shift;       // as scale
  const float* modulation;  // [N, H, W, 2C], or [R, 2C] with codes; null: none
  const int* codes;         // [N, H, W], the row of each pixel; null: none
  int first_channels;
  int second_channels;
  int height;               // H, W: as read, after upsampling
  int width;
  int halved;               // 1: nearest upsampling by two, h = H / 2
  int affine_stride;        // C: each sample has its scale; 0: one for all
  int activation;
  int fours;                // 1: every array is aligned to 16 bytes and has a multiple of four channels
};

struct Combined {           // a source whose values depend on all channels of their pixel: a layer norm, or geglu
  const float* canvas;      // [N, H, W, C]; of geglu [N, H, W, 2C]
  const float* scale;       // [1 or N, C], of a layer norm; null: geglu
  const float* shift;       // as scale
  int height, width, channels;
  int affine_stride;        // C: each sample has its scale; 0: one for all
  float eps;                // of a layer norm
  int fours;                // 1: every array is aligned to 16 bytes, C is a multiple of four
};

struct Epilogue {           // what follows a convolution's sum: + bias + shift + residual, then the activation
  Source residual;          // read at the output's pixels; first is null: none
  const float* bias;        // [O]; null: none
  const float* shift;       // [1 or N, O]; null: none
  int shift_stride;         // O: each sample has its shift; 0: one for all
  int activation;
  int fours;                // 1: bias, shift and the output are aligned to 16 bytes, O is a multiple of four
};

// -- copies.cu: words of 4 bytes, a float, an int, or two halves of neighbouring channels --------------------------

struct CopyTiles {          // values [K, 4, 4, C] from or into the tiles of a canvas
  const int64* values_place; // where the address of the values stands, in a recorded run; null: `values` has it
  int* canvas;              // [N, H, W, C]
  int* values;
  const int* tiles;
  int height, width, channels;
};

struct CopyManyTiles {      // the same for many canvases at once
  const CopyTiles* each;    // [count], on the device
  int count;
};

struct CopyArray {          // `words` words from an array to another
  int* target;
  const int* source;
  int words, unused;
};

struct CopyArrays {
  const CopyArray* each;    // [count], on the device
  int count;
};

struct MergeTiles {         // values where `pixels` is not 0
  int* canvas;
  const void* values;       // [K, 4, 4, C], words, or halves of a float canvas
  const unsigned char* pixels;  // [K, 4, 4]
  const int* tiles;
  int height, width, channels;
  int halves;               // 1: values are float16
};

struct AddTiles {           // canvas += values
  float* canvas;
  const float* values;      // [K, 4, 4, C]
  const int* tiles;
  int height, width, channels;
};

struct TileChange {         // change = canvas - old, 0 beyond the border
  const float* canvas;
  const void* old;          // [K, 4, 4, C], float, or halves
  float* change;            // [K, 4, 4, C]
  const int* tiles;
  int height, width, channels;
  int halves;               // 1: old is float16
};

struct HalfTiles {          // float16 copies of float32 canvases
  float* canvas;            // [N, H, W, C]
  unsigned short* halves;   // [N, H, W, C]
  const int* tiles;
  int height, width, channels;
};

// -- watch.cu -------------------------------------------------------------------------------------------------------

struct WatchTiles {         // *first = min(*first, place of a value that is not finite)
  const float* canvas;
  const int* tiles;
  unsigned long long* first;  // layer (20 bits), tile (24), pixel (4), channel (16)
  int height, width, channels;
  int layer;
};

struct WatchManyTiles {
  const WatchTiles* each;   // [count], on the device
  int count;
};

struct LargestChange {      // largest[k] = max |canvas - old| over tile k
  const float* canvas;
  const void* old;          // [K, 4, 4, C], float, int or halves
  float* largest;           // [K]
  const int* tiles;
  int height, width, channels;
  int type;                 // 0: float; 1: float16 (of old alone); 2: int
};

// -- moments.cu: sums in double, first of parts of an image, then of all parts in their order ------------------------

struct Moments {            // mean and biased variance of each channel over a sample's pixels
  Source source;
  double* sums;             // [N, parts, 2, C]: sums of d and d * d over a part, d = v - the sample's first pixel
  float* mean;              // [N, C]
  float* variance;          // [N, C]
  int parts, pixels_per_part;
};

struct SumChange {          // how the sums over a canvas changed with its tiles
  const float* canvas;      // [N, H, W, C]
  const void* old;          // [K, 4, 4, C], float or halves
  const int64* old_place;   // where the address of the old values stands, in a recorded run; null: `old` has it
  double* sums;             // [N, parts, 2, C]: of the tiles of a part
  double* change;           // [N, 2, C]
  const int* tiles;
  int height, width, channels;
  int parts;
  int halves;               // 1: the old values are float16
};

struct FollowMoments {      // `interface.Backend.follow_moments`, a thread a channel
  const float* used_mean;   // all [N, C]
  const float* used_variance;
  const double* stale_mean;
  const double* stale_square;
  const double* fresh_mean;
  const double* fresh_square;
  const double* change;     // [N, 2, C]; null: fresh are the means after the edit
  float* new_used_mean;
  float* new_used_variance;
  double* new_stale_mean;
  double* new_stale_square;
  double* new_fresh_mean;   // null without change
  double* new_fresh_square;
  const int* tiles;
  double statistics;
  double pixels;            // H * W
  int channels, of_sample;  // the tiles of one sample
};

struct SecondMoments {      // mean, and mean of v * v = variance + mean * mean, in double
  const float* mean;        // [N, C]
  const float* variance;
  double* first;            // [N, C]
  double* second;
  int count;                // N * C
};

struct NormAffine {         // `interface.Backend.norm_affine`, a warp a group of a sample
  const void* mean;         // [1 or N, C], float or double
  const void* variance;
  const float* weight;      // [C]; null: 1
  const float* bias;        // [C]; null: 0
  const float* film;        // [1 or N, 2C]; null: none
  float* scale;             // [N, C]
  float* shift;
  double eps;
  int channels, groups;
  int moment_stride;        // C: each sample has its moments; 0: one for all
  int film_stride;          // 2C: each sample has its film; 0: one for all
  int mean_doubles;         // 1: mean is double
  int variance_doubles;
};

// -- combined.cuh, pointwise.cu --------------------------------------------------------------------------------------

struct CombinedRows {       // the tiles' pixels of a combined source, in the order of the list
  Combined source;
  const int* tiles;
  void* rows;               // [tile_room, 16, padded], floats, or values as tensor cores take them; zeros from C on
  int first_tile, tile_room;  // of the tiles from first_tile on, at most tile_room
  int padded;
};

struct CombinedPointwise {  // out = source + residual
  Combined source;
  Source residual;          // first is null: none
  float* out;               // [N, H, W, C]
  const int* tiles;
};

struct Pointwise {          // out = source + residual
  Source source;
  Source residual;          // first is null: none
  float* out;               // [N, H, W, C]
  const int* tiles;
};

struct JoinChannels {       // columns [rows, first + second] of a wider array, in words of 4 bytes
  const int* first;         // [rows, first_words]
  const int* second;        // [rows, second_words]; null: none
  int* out;                 // [rows, stride], written from column `offset` on
  int first_words, second_words, stride, offset;
};

// -- linear.cu -------------------------------------------------------------------------------------------------------

struct Linear {             // out = activation(x weight^T + bias)
  const float* x;           // [M, I]
  const float* weight;      // [O, I]
  const float* bias;        // [O]; null: 0
  float* out;               // [M, O]
  int rows, inputs, outputs, activation;
};

struct Windows {            // out[r] = bias + sum over taps of table[windows[r, tap]] weight[tap]
  const int* windows;       // [R, taps], -1: 0
  const float* table;       // [V, I]
  const float* weight;      // [taps, I, O]
  const float* bias;        // [O]; null: 0
  float* out;               // [R, O]
  int rows, taps, inputs, outputs;
  int padded_inputs, padded_outputs;  // the strides of weight
};

// -- lookup.cu, attention.cu -----------------------------------------------------------------------------------------

struct Lookup {             // a k×k convolution of one-hot channels
  const int* indices;       // [N, h, w, P]
  const float* table;       // [k * k, V, O]
  const float* bias;        // [O]
  float* out;               // [N, H, W, O]
  const int* tiles;
  int height, width;        // of out
  int index_height, index_width, planes;
  int labels, outputs, side, step, activation;  // the kernel is side × side
};

struct AttentionRows {      // a source written out for attention, which reads four values of it at once
  Source source;            // [N, h, w, C]
  float* rows;              // [N, h * w, heads, padded]: each head's channels, then zeros
  int samples, heads;
  int channels, padded;     // of a head
};

struct Attention {          // each pixel of the tiles against all pixels of its sample
  Source query;             // [N, H, W, C]
  const float* key;         // [1 or N, tokens, heads, key_padded], 16-byte aligned
  const float* value;       // [1 or N, tokens, heads, value_padded]
  float* out;               // [N, H, W, C]
  const int* tiles;
  int tokens, heads;
  int channels;             // of a head: C / heads
  int key_padded, value_padded;  // multiples of four
  int slice;                // of the channels that each split sums scores over: a multiple of the kernel's DEPTH
  int shared_keys;          // 1: keys and values are one sample's, for all
  int causal;               // 1: against the tokens up to its own
  float scale;              // 1 / sqrt(channels)
};

// -- winograd.cu -----------------------------------------------------------------------------------------------------

struct WinogradInput {      // windows of 6×6 pixels -> V [36, rows, C], the transforms of each tile's window
  Source source;
  const int* tiles;
  float* transformed;       // [36, stride, padded]
  int first_tile, stride, padded;   // of the tiles from first_tile on, at most stride
  int top, left;
};

struct Products {           // M[p] = V[p] U[p], each output one chain of fmaf over the depth in its order
  const float* left;        // V [36, stride, depth]
  const float* right;       // U [36, depth, outputs]
  float* out;               // M [36, stride, outputs]
  const int* tiles;         // how many rows there are: the tiles from first_tile on
  int first_tile, stride, depth, outputs;
};

struct WinogradOutput {     // M -> 4×4 pixels, and the epilogue
  const float* products;    // [36, stride, padded]
  float* out;               // [N, H, W, O]
  const int* tiles;
  Epilogue epilogue;
  int first_tile, stride, padded;
  int height, width, outputs;
};

// -- direct.cu, depthwise.cu -----------------------------------------------------------------------------------------

struct Conv {               // a convolution as a product: a row for each output pixel, a column for each output channel
  Source source;
  const void* weight;       // [groups, taps, padded inputs of a group, padded outputs of a group]; depthwise [taps, C]
  float* sums;              // [chains, tile_room * 16, sum_outputs]: a chain's sums each; null: add and finish them
  float* out;               // [N, H, W, O]
  const int* tiles;
  Epilogue epilogue;
  int height, width;        // of out
  int inputs, outputs;      // of a group
  int padded_inputs, padded_outputs;
  int kernel_height, kernel_width, stride, top, left, groups;
  int in_rows;              // 1: source is [tiles, 4, 4, I], the tiles' own pixels in the order of the list
  int tile_room, sum_outputs;
};

// -- tensor.cu: a chunk is 16 bytes, four values in TF32 or eight in float16; a step is 8 chunks of the depth ----------

struct TensorWindows {      // the input pixels of each tile's window, after pending work and rounded
  Source source;
  const int* tiles;
  void* windows;            // [tile_room, window pixels, chunks]
  int first_tile, tile_room;  // of the tiles from first_tile on, at most tile_room
  int window_height, window_width, chunks;
  int across;               // of a pixel's channels, how many fours a block writes
  int kernel_height, kernel_width, stride, top, left;
};

struct TensorProduct {      // windows times weights: a row for each output pixel, a column for each output channel
  const void* windows;      // [tile_room, window pixels, chunks]
  const void* weight;       // [outputs, steps, 8 chunks]: taps * chunks, then zeros
  float* sums;              // [chains, tile_room * 16, padded_outputs]: a chain's sums each; null: add and finish them
  float* out;               // [N, H, W, O]
  const int* tiles;
  Epilogue epilogue;
  int first_tile, tile_room;
  int height, width;        // of out
  int outputs, padded_outputs;
  int window_height, window_width, chunks;
  int taps, kernel_width;
  int row_step, column_step;  // in the window, from an output pixel to the next
  int steps, chain_steps;
};

// -- chains.cu -------------------------------------------------------------------------------------------------------

struct ChainSums {          // out = epilogue(the chains' sums, added in their order)
  const float* sums;        // [chains, tile_room * 16, padded_outputs]
  float* out;               // [N, H, W, O]
  const int* tiles;
  Epilogue epilogue;
  int first_tile, tile_room;
  int height, width;
  int outputs, padded_outputs, chains;
};
