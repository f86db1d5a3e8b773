// Convolutions by tensor cores, in TF32 or float16 with float32 sums: any kernel, stride and padding, one group. The
// kernels stand in `tensor_tf32.cu` and `tensor_float16.cu`.
//
//   out[pixel][o] = epilogue(sum over taps t, channels c of round(read(pixel * stride + t - padding, c)) * weight[o][t][c])
//
// A product whose rows are the output pixels of the active tiles (tile k has rows 16 k … 16 k + 15), whose columns are
// the output channels, and whose depth is the taps times the input channels.
//
// `windows` first writes the input pixels of each tile's window once, after the pending work and rounded: a 3×3
// kernel reads a pixel nine times for every 64 or 128 output channels, and an activation costs as much as fifty products
// on a tensor core. The product then copies both matrices to shared memory without touching them.
//
// The depth is cut into chains of a length that follows from the layer alone. An output is the sum of its chains in
// their order, each one chain of matrix products in the order of the depth. Where there are blocks enough, one block
// makes all chains of its outputs; where there are few (a small edit of a deep layer), a block makes one chain, and
// `chains.cu` adds them. The bits are the same, whatever the shape of a block and whatever is edited beside a tile.
//
// Words of both precisions lie alike in the fragments (see ptx.cuh), so one code serves both: depths are counted in
// chunks of 16 bytes, four values in TF32 or eight in float16.
#pragma once
#include "combined.cuh"

#define CHUNK 16        // bytes
#define STEP_CHUNKS 8   // of the depth, that a block holds at a time
#define STEP_BYTES (STEP_CHUNKS * CHUNK)
#define STAGES 3        // steps in shared memory: one in use, two on their way

__device__ __forceinline__ uint2 to_halves(float4 v) {
  return make_uint2(ptx::to_half(v.x) | (unsigned)ptx::to_half(v.y) << 16,
                    ptx::to_half(v.z) | (unsigned)ptx::to_half(v.w) << 16);
}

__device__ __forceinline__ uint4 to_tf32(float4 v) {
  return make_uint4(ptx::to_tf32(v.x), ptx::to_tf32(v.y), ptx::to_tf32(v.z), ptx::to_tf32(v.w));
}

// Four channels of a pixel as tensor cores take them, at place `four` of an array of such.
template <bool HALF>
__device__ __forceinline__ void store_rounded(void* array, long long four, float4 v) {
  if (HALF) ((uint2*)array)[four] = to_halves(v);
  else ((uint4*)array)[four] = to_tf32(v);
}

// The windows of a 1×1 kernel over a combined source: grid as `combine`.
template <bool HALF>
__device__ __forceinline__ void write_combined(const CombinedRows& a, Kept& kept) {
  int count = tiles_here(a.tiles, a.first_tile, a.tile_room);
  combine(a.source, a.tiles, a.first_tile, count, a.padded, kept, [&](int k, int pixel, Place, int c, float4 v) {
    store_rounded<HALF>(a.rows, (((long long)k * PIXELS + pixel) * a.padded + c) / 4, v);
  });
}

// The place in the source, from the window's first, of row (column) i of a window. Output pixel i of a row reads the
// window's columns i * step … i * step + kernel - 1, step = min(stride, kernel): those that no output reads are left out.
__device__ __forceinline__ int in_source(int i, int kernel, int stride) {
  return stride > kernel ? i / kernel * stride + i % kernel : i;
}

// windows[tile][pixel][channel]. A thread writes four channels of every few pixels of a window, of B pixels at a time:
// their loads are under way together. B = 1 of a source without `fours`.
template <bool HALF, int B>
__device__ __forceinline__ void write_pixels(const TensorWindows& a) {
  const Source& s = a.source;
  int count = tiles_here(a.tiles, a.first_tile, a.tile_room), C = channels(s), fours = a.chunks * (HALF ? 2 : 1);
  int pixels = a.window_height * a.window_width, apart = blockDim.x / a.across, first = threadIdx.x / a.across;
  int four = blockIdx.y * a.across + threadIdx.x % a.across, c = four * 4;
  if (first >= apart || four >= fours) return;
  int row0 = first / a.window_width, column0 = first % a.window_width;
  int rows_apart = apart / a.window_width, columns_apart = apart % a.window_width;
  for (int k = blockIdx.x; k < count; k += gridDim.x) {
    Place p = tile_place(a.tiles, a.first_tile + k);
    int top = p.y * a.stride - a.top, left = p.x * a.stride - a.left, row = row0, column = column0;
    long long to = ((long long)k * pixels + first) * fours + four;
#pragma unroll 1
    for (int pixel = first; pixel < pixels; pixel += B * apart) {
      int y[B], x[B];
      bool inside[B];
#pragma unroll
      for (int b = 0; b < B; b++) {
        y[b] = top + in_source(row, a.kernel_height, a.stride), x[b] = left + in_source(column, a.kernel_width, a.stride);
        inside[b] = pixel + b * apart < pixels && is_inside(s, y[b], x[b]);
        row += rows_apart, column += columns_apart;
        if (column >= a.window_width) column -= a.window_width, row++;
      }
      float v[B * 4] = {};
      if (B == 1) {
        float4 read = read_4(s, p.n, y[0], x[0], c, C - c);
        v[0] = read.x, v[1] = read.y, v[2] = read.z, v[3] = read.w;
      } else if (c < C) {
        read_pixels<4, B>(s, p.n, y, x, inside, c, v);
      }
#pragma unroll
      for (int b = 0; b < B; b++, to += apart * fours)
        if (pixel + b * apart < pixels)
          store_rounded<HALF>(a.windows, to, make_float4(v[b * 4], v[b * 4 + 1], v[b * 4 + 2], v[b * 4 + 3]));
    }
  }
}

// grid (tiles, channels / 4 / a.across)
template <bool HALF>
__device__ __forceinline__ void write_windows(const TensorWindows& a) {
  if (a.source.fours) write_pixels<HALF, 4>(a);
  else write_pixels<HALF, 1>(a);
}

// Four neighbouring output channels of a pixel from their sums, as `finish`, and stored where they exist.
__device__ __forceinline__ void finish_4(const Epilogue& e, const float* sums, float* out, int n, int y, int x,
                                         int height, int width, int o, int outputs) {
  float* to = out + at(n, y, x, height, width, outputs) + o;
  if (outputs % 4 || (unsigned long long)out % 16 || (e.residual.first && !e.residual.fours)) {
#pragma unroll 1
    for (int i = 0; i < 4 && o + i < outputs; i++) to[i] = finish(e, sums[i], n, y, x, o + i);
    return;
  }
  float4 four = *(const float4*)sums;
  float v[4] = {four.x, four.y, four.z, four.w}, residual[4];
  if (e.residual.first) read_inside<4>(e.residual, n, y, x, o, residual);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (e.bias) v[i] += __ldg(e.bias + o + i);
    if (e.shift) v[i] += __ldg(e.shift + n * e.shift_stride + o + i);
    if (e.residual.first) v[i] += residual[i];
    v[i] = activate(v[i], e.activation);
  }
  *(float4*)to = make_float4(v[0], v[1], v[2], v[3]);
}

// A block of BM rows × BN columns; a warp makes WM × WN of them.
template <bool HALF, int BM, int BN, int WM, int WN>
struct Block {
  static constexpr int WARP_COLUMNS = BN / WN, COUNT = BM / WM * WARP_COLUMNS * 32;  // threads
  static constexpr int STAGE = (BM + BN) * STEP_BYTES;
  static constexpr int PASS = COUNT / STEP_CHUNKS;  // rows that one chunk of each thread copies
  static constexpr int LEFTS = BM / PASS, RIGHTS = BN / PASS;
  static constexpr int TM = WM / 16, TN = WN / 8, PITCH = BN + 8;
  static_assert(BM % PASS == 0 && BN % PASS == 0 && PASS % 8 == 0 && WM % 16 == 0 && WN % 16 == 0, "shape of a block");
  static_assert(BM * PITCH * 4 <= STAGES * STAGE, "the sums fit where the stages were");

  // Row r, chunk q of a matrix in shared memory. Eight rows' chunks q then lie in all 32 banks, and so do the eight
  // chunks of one row: neither `load_matrices` nor the copies wait for a bank.
  static __device__ __forceinline__ int place(int r, int q) { return r * STEP_BYTES + (q ^ r % 8) * CHUNK; }

  // grid (rows, outputs, 1, or the chains where a.sums is given)
  static __device__ __forceinline__ void run(const TensorProduct& a, unsigned char* shared) {
    int rows = tiles_here(a.tiles, a.first_tile, a.tile_room) * PIXELS, row0 = blockIdx.x * BM, o0 = blockIdx.y * BN;
    if (row0 >= rows) return;
    int t = threadIdx.x, q = t % STEP_CHUNKS, r = t / STEP_CHUNKS;
    int first = blockIdx.z * a.chain_steps, last = a.sums && first + a.chain_steps < a.steps ? first + a.chain_steps : a.steps;

    // What this thread copies: chunk q of the rows r + i * PASS of both matrices, step after step.
    int windows[LEFTS], left_rows = rows - row0 - r, right_rows = a.outputs - o0 - r;
#pragma unroll
    for (int i = 0; i < LEFTS; i++) {
      int row = row0 + r + i * PASS, y = row % PIXELS / TILE * a.row_step, x = row % TILE * a.column_step;
      windows[i] = ((row / PIXELS * a.window_height + y) * a.window_width + x) * a.chunks;
    }
    const uint4* weight = (const uint4*)a.weight + ((long long)(o0 + r) * a.steps + first) * STEP_CHUNKS + q;
    long long pass = (long long)PASS * a.steps * STEP_CHUNKS;
    int chunk = (first * STEP_CHUNKS + q) % a.chunks, tap = (first * STEP_CHUNKS + q) / a.chunks;
    int tap_x = tap % a.kernel_width, offset = (tap / a.kernel_width * a.window_width + tap_x) * a.chunks;
    unsigned char *filled = shared + place(r, q), *end = filled + STAGES * STAGE;
    auto fetch = [&] {  // the next step; what does not exist is zeros, and its address is not read
#pragma unroll
      for (int i = 0; i < LEFTS; i++)
        ptx::copy_16(filled + i * PASS * STEP_BYTES, (const uint4*)a.windows + windows[i] + offset + chunk,
                     tap < a.taps && i * PASS < left_rows);
#pragma unroll
      for (int i = 0; i < RIGHTS; i++)
        ptx::copy_16(filled + (BM + i * PASS) * STEP_BYTES, weight + i * pass, i * PASS < right_rows);
      weight += STEP_CHUNKS;
      filled += STAGE;
      if (filled == end) filled -= STAGES * STAGE;
      for (chunk += STEP_CHUNKS; chunk >= a.chunks; chunk -= a.chunks) {  // without a division
        tap++, tap_x++, offset += a.chunks;
        if (tap_x == a.kernel_width) tap_x = 0, offset += (a.window_width - a.kernel_width) * a.chunks;
      }
    };

    // What a lane's fragments are: matrices of 8 rows × 16 bytes, in the order in which the products take them. Their
    // rows are multiples of 8 apart, so their chunks lie alike: k of them on, place(row, chunk + k) for an even k.
    int lane = t % 32, warp_row = t / 32 / WARP_COLUMNS * WM, warp_column = t / 32 % WARP_COLUMNS * WN;
    int left_row = warp_row + lane % 16, right_row = warp_column + lane / 16 * 8 + lane % 8;
    int left_place = place(left_row, lane / 16), right_place = BM * STEP_BYTES + place(right_row, lane / 8 % 2);

    float totals[TM][TN][4] = {}, sums[TM][TN][4] = {};
#pragma unroll
    for (int step = first; step < first + STAGES - 1; step++) {
      if (step < last) fetch();
      ptx::copy_commit();
    }
    int rest = a.chain_steps;
#pragma unroll 1
    for (int step = first; step < last; step++) {
      ptx::copy_wait<STAGES - 2>();
      __syncthreads();  // the step has landed, and nobody reads the stage any more that is fetched next
      if (step + STAGES - 1 < last) fetch();
      ptx::copy_commit();
      const unsigned char* stage = shared + (step - first) % STAGES * STAGE;
#pragma unroll
      for (int k = 0; k < STEP_CHUNKS; k += 2) {
        unsigned x[TM][4], w[TN / 2][4];
#pragma unroll
        for (int i = 0; i < TM; i++)
          ptx::load_matrices(x[i], stage + (left_place ^ k * CHUNK) + i * 16 * STEP_BYTES);
#pragma unroll
        for (int j = 0; j < TN / 2; j++)
          ptx::load_matrices(w[j], stage + (right_place ^ k * CHUNK) + j * 16 * STEP_BYTES);
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
          for (int j = 0; j < TN; j++) {
            unsigned pair[2] = {w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]};
            if (HALF) ptx::multiply_half(sums[i][j], x[i], pair);
            else ptx::multiply_tf32(sums[i][j], x[i], pair);
          }
      }
      if (--rest == 0 || step == last - 1) {
        rest = a.chain_steps;
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
          for (int j = 0; j < TN; j++)
#pragma unroll
            for (int l = 0; l < 4; l++) totals[i][j][l] += sums[i][j][l], sums[i][j][l] = 0.f;
      }
    }

    // a lane's sums are pairs of neighbours, in the rows lane / 4 and 8 below
    int pair_row = warp_row + lane / 4, pair_column = warp_column + lane % 4 * 2;
    if (a.sums) {
      float* to = a.sums + (long long)blockIdx.z * a.tile_room * PIXELS * a.padded_outputs;
#pragma unroll
      for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++)
#pragma unroll
          for (int l = 0; l < 4; l += 2) {
            int row = row0 + pair_row + i * 16 + l * 4, o = o0 + pair_column + j * 8;
            if (row < rows && o < a.padded_outputs)
              *(float2*)(to + (long long)row * a.padded_outputs + o) = make_float2(totals[i][j][l], totals[i][j][l + 1]);
          }
      return;
    }
    float* made = (float*)shared;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
      for (int j = 0; j < TN; j++)
#pragma unroll
        for (int l = 0; l < 4; l += 2)
          *(float2*)(made + (pair_row + i * 16 + l * 4) * PITCH + pair_column + j * 8) =
              make_float2(totals[i][j][l], totals[i][j][l + 1]);
    __syncthreads();
#pragma unroll 1  // the epilogue is compiled once
    for (int e = t; e < BM * BN / 4; e += COUNT) {
      int row = e / (BN / 4), column = e % (BN / 4) * 4, o = o0 + column;
      if (row0 + row >= rows || o >= a.outputs) continue;
      Place p = tile_place(a.tiles, a.first_tile + (row0 + row) / PIXELS);
      int y = p.y + row % PIXELS / TILE, x = p.x + row % TILE;
      if (y >= a.height || x >= a.width) continue;
      finish_4(a.epilogue, made + row * PITCH + column, a.out, p.n, y, x, a.height, a.width, o, a.outputs);
    }
  }
};

#define TENSOR(HALF, BM, BN, WM, WN) \
  DYNAMIC_SHARED(unsigned char, shared); \
  Block<HALF, BM, BN, WM, WN>::run(a, shared)
