// Attention of the pixels of active tiles to all tokens of their sample, or to those up to their own, in heads of
// d = C / heads channels (arXiv 1706.03762, section 3.2), float32:
//
//   score[j] = scale * sum over channels c of query[c] * key[j][c]
//   out[c]   = sum over tokens j of exp(score[j] - max) * value[j][c]  /  sum over j of exp(score[j] - max)
//
// Tokens are taken KEYS at a time, in order. The maximum is that of the tokens so far: when a chunk raises it, the sums
// so far are multiplied by exp(old maximum - new) (arXiv 2205.14135), so no row of scores is ever written out.
//
// A warp owns four queries, a row of a tile. A lane makes their scores with two keys of a chunk, and holds the sums of
// CT channels. Every sum has a fixed order: a query's bits do not depend on the queries beside it.
#include "reading.cuh"

#define KEYS 64    // of a chunk: two for each lane
#define QUERIES 4  // of a warp
#define STEP 8     // tokens whose values are under way at a time
#define NEGATIVE_INFINITY __int_as_float(0xff800000)

// ROWS of a tile in a block, each by SPLITS warps, which share out the channels: those that scores are summed over, and
// those of the output. Few tiles and wide heads need many warps for each query.
template <int ROWS_, int SPLITS_, int CT_, int DEPTH_>
struct Heads {
  static constexpr int ROWS = ROWS_, SPLITS = SPLITS_, CT = CT_;
  static constexpr int DEPTH = DEPTH_;  // channels of the keys that a split holds at a time
  static constexpr int WARPS = ROWS * SPLITS;
  static constexpr int CHANNELS = SPLITS * 32 * CT;  // of the output, of a block
  static constexpr int LOADS = KEYS * DEPTH / 4 / (ROWS * 32);
  struct __align__(16) Shared {
    float keys[SPLITS][KEYS][DEPTH + 4];  // + 4: eight lanes that read four values each then use all banks
    float weights[WARPS][QUERIES][KEYS];  // each warp's exponentials; before, its part of the scores
    float scores[SPLITS > 1 ? ROWS : 1][QUERIES][KEYS];
  };
};

// the query's values, 0 beyond the border and beyond the head's channels: q [ROWS * 4][width]
template <class H>
__device__ __forceinline__ void read_queries(const Attention& a, Place p, int head, float* q, int width) {
  const Source& s = a.query;
  for (int i = threadIdx.x / 32; i < H::ROWS * QUERIES; i += H::WARPS) {
    int y = p.y + i / TILE, x = p.x + i % TILE, lane = threadIdx.x % 32;
    int c1 = y < s.height && x < s.width ? a.channels : 0;
    if (is_plain(s)) {  // nothing but loads, several under way at once
      const float* from = s.first + at(p.n, y, x, s.height, s.width, s.first_channels) + head * a.channels;
#pragma unroll 4
      for (int c = lane; c < width; c += 32) q[i * width + c] = c < c1 ? __ldg(from + c) : 0.f;
    } else {  // rolled: its branches are compiled once
#pragma unroll 1
      for (int c = lane; c < width; c += 32)
        q[i * width + c] = c < c1 ? read_inside(s, p.n, y, x, head * a.channels + c) : 0.f;
    }
  }
}

// grid (tiles × 4 / ROWS, heads, slices of CHANNELS of the head's output); dynamic shared memory holds the queries
template <class H>
__device__ __forceinline__ void attend(const Attention& a, typename H::Shared& shared, float* q) {
  constexpr int PER_TILE = TILE / H::ROWS, CT = H::CT;
  int tile = blockIdx.x / PER_TILE, head = blockIdx.y;
  if (tile >= tile_count(a.tiles)) return;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = warp % H::ROWS, split = warp / H::ROWS;
  Place p = tile_place(a.tiles, tile);
  p.y += blockIdx.x % PER_TILE * H::ROWS;
  read_queries<H>(a, p, head, q, H::SPLITS * a.slice);
  __syncthreads();

  long long first_token = a.shared_keys ? 0 : (long long)p.n * a.tokens;
  const float* key = a.key + (first_token * a.heads + head) * a.key_padded;
  const float* value = a.value + (first_token * a.heads + head) * a.value_padded;
  long long key_stride = (long long)a.heads * a.key_padded, value_stride = (long long)a.heads * a.value_padded;
  const float* my_q = q + row * QUERIES * H::SPLITS * a.slice + split * a.slice;
  int c0 = blockIdx.z * H::CHANNELS + split * 32 + lane;  // this lane's channels are SPLITS * 32 apart

  // A causal query sees the tokens up to its own: query i of this warp i more than the first one. The block reads none
  // that no query sees; a pixel beyond the border is dropped.
  int width = a.query.width, seen = a.causal ? (p.y + row) * width + p.x + 1 : a.tokens, tokens = a.tokens;
  if (a.causal) tokens = min(tokens, (p.y + H::ROWS - 1) * width + p.x + QUERIES);

  float4 fetched[H::LOADS];
  auto fetch = [&](int first, int depth) {  // keys [first, first + KEYS), channels [depth, depth + DEPTH) of the split
#pragma unroll
    for (int e = 0; e < H::LOADS; e++) {
      int i = e * H::ROWS * 32 + row * 32 + lane;
      int j = first + i / (H::DEPTH / 4), c = depth + i % (H::DEPTH / 4) * 4, of_head = split * a.slice + c;
      fetched[e] = j < tokens && c < a.slice && of_head < a.key_padded ? load_4(key + j * key_stride + of_head)
                                                                       : make_float4(0.f, 0.f, 0.f, 0.f);
    }
  };
  auto keep = [&]() {
#pragma unroll
    for (int e = 0; e < H::LOADS; e++) {
      int i = e * H::ROWS * 32 + row * 32 + lane;
      float* to = &shared.keys[split][i / (H::DEPTH / 4)][i % (H::DEPTH / 4) * 4];
      *reinterpret_cast<float4*>(to) = fetched[e];
    }
  };
  float values[STEP][CT];
  auto fetch_values = [&](int first) {
#pragma unroll
    for (int j = 0; j < STEP; j++)
#pragma unroll
      for (int i = 0; i < CT; i++) {
        int c = c0 + i * H::SPLITS * 32;
        values[j][i] = first + j < tokens && c < a.channels ? __ldg(value + (first + j) * value_stride + c) : 0.f;
      }
  };

  float sums[QUERIES][CT] = {}, most[QUERIES], total[QUERIES] = {};
#pragma unroll
  for (int i = 0; i < QUERIES; i++) most[i] = NEGATIVE_INFINITY;
  fetch(0, 0);
  for (int first = 0; first < tokens; first += KEYS) {
    float scores[QUERIES][2] = {};
    for (int depth = 0; depth < a.slice; depth += H::DEPTH) {
      // the warps that share these keys: nobody reads the last ones any more, all see the new ones
      if (H::ROWS > 1) __syncthreads(); else __syncwarp();
      keep();
      if (H::ROWS > 1) __syncthreads(); else __syncwarp();
      if (depth + H::DEPTH < a.slice) fetch(first, depth + H::DEPTH);
      else if (first + KEYS < tokens) fetch(first + KEYS, 0);
#pragma unroll
      for (int c = 0; c < H::DEPTH; c += 4) {
        float4 k[2];
#pragma unroll
        for (int j = 0; j < 2; j++) k[j] = *reinterpret_cast<float4*>(&shared.keys[split][j * 32 + lane][c]);
#pragma unroll
        for (int i = 0; i < QUERIES; i++) {
          float4 v = *reinterpret_cast<const float4*>(my_q + i * H::SPLITS * a.slice + depth + c);
#pragma unroll
          for (int j = 0; j < 2; j++)
            scores[i][j] = fmaf(v.w, k[j].w, fmaf(v.z, k[j].z, fmaf(v.y, k[j].y, fmaf(v.x, k[j].x, scores[i][j]))));
        }
      }
    }
    fetch_values(first);  // under way while the exponentials are computed

    float (&weights)[QUERIES][KEYS] = shared.weights[warp];
    if (H::SPLITS > 1) {  // scores = the sum of the splits' parts, in their order
#pragma unroll
      for (int i = 0; i < QUERIES; i++)
#pragma unroll
        for (int j = 0; j < 2; j++) weights[i][j * 32 + lane] = scores[i][j];
      __syncthreads();
      for (int i = threadIdx.x; i < H::ROWS * QUERIES * KEYS; i += H::WARPS * 32) {
        int r = i / (QUERIES * KEYS), of_row = i % (QUERIES * KEYS);
        float sum = 0.f;
#pragma unroll
        for (int s = 0; s < H::SPLITS; s++) sum += shared.weights[s * H::ROWS + r][of_row / KEYS][of_row % KEYS];
        shared.scores[r][of_row / KEYS][of_row % KEYS] = sum;
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < QUERIES; i++)
#pragma unroll
        for (int j = 0; j < 2; j++) scores[i][j] = shared.scores[row][i][j * 32 + lane];
    }

#pragma unroll
    for (int i = 0; i < QUERIES; i++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        bool sees = first + j * 32 + lane < min(tokens, seen + i * a.causal);
        scores[i][j] = sees ? scores[i][j] * a.scale : NEGATIVE_INFINITY;
      }
      float top = fmaxf(most[i], fmaxf(scores[i][0], scores[i][1]));  // passes NaN over, which its exponential keeps
      for (int bit = 16; bit; bit /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, bit));
      float zero = top == NEGATIVE_INFINITY ? 0.f : top;  // all scores so far -inf: their weights are 0, not NaN
      float kept = expf(most[i] - zero), sum = 0.f;
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float weight = expf(scores[i][j] - zero);
        weights[i][j * 32 + lane] = weight;
        sum += weight;
      }
      for (int bit = 16; bit; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
      most[i] = top;
      total[i] = fmaf(total[i], kept, sum);
#pragma unroll
      for (int j = 0; j < CT; j++) sums[i][j] *= kept;
    }
    __syncwarp();

    for (int j0 = 0; j0 < KEYS && first + j0 < tokens; j0 += STEP) {
      float now[STEP][CT];
#pragma unroll
      for (int j = 0; j < STEP; j++)
#pragma unroll
        for (int i = 0; i < CT; i++) now[j][i] = values[j][i];
      if (j0 + STEP < KEYS) fetch_values(first + j0 + STEP);
#pragma unroll
      for (int j = 0; j < STEP; j += 4)
#pragma unroll
        for (int i = 0; i < QUERIES; i++) {
          float4 w = *reinterpret_cast<float4*>(&weights[i][j0 + j]);
#pragma unroll
          for (int c = 0; c < CT; c++)
            sums[i][c] = fmaf(w.w, now[j + 3][c], fmaf(w.z, now[j + 2][c],
                                                       fmaf(w.y, now[j + 1][c], fmaf(w.x, now[j][c], sums[i][c]))));
        }
    }
    // the next chunk overwrites the weights after the barriers of its keys
  }

  int y = p.y + row;
#pragma unroll
  for (int i = 0; i < QUERIES; i++) {
    int x = p.x + i;
    if (y >= a.query.height || x >= a.query.width) continue;
    float* out = a.out + at(p.n, y, x, a.query.height, a.query.width, a.heads * a.channels) + head * a.channels;
#pragma unroll
    for (int j = 0; j < CT; j++) {
      int c = c0 + j * H::SPLITS * 32;
      if (c < a.channels) out[c] = sums[i][j] / total[i];
    }
  }
}

#define ATTENTION(ROWS, SPLITS, CT, DEPTH) \
  __shared__ Heads<ROWS, SPLITS, CT, DEPTH>::Shared shared; \
  DYNAMIC_SHARED(float, queries); \
  attend<Heads<ROWS, SPLITS, CT, DEPTH>>(a, shared, queries)
// by the most channels of a head; the last takes more in several slices
KERNEL(attention_64, Attention, 128) { ATTENTION(4, 1, 2, 16); }
KERNEL(attention_96, Attention, 128) { ATTENTION(4, 1, 3, 16); }
KERNEL(attention_192, Attention, 256) { ATTENTION(4, 2, 3, 16); }
KERNEL(attention_512, Attention, 256) { ATTENTION(1, 8, 2, 8); }

// rows = source, head by head: grid (pixels), a block takes pixels in turn
KERNEL(attention_rows, AttentionRows, 128) {
  int size = a.source.height * a.source.width;
  for (int pixel = blockIdx.x; pixel < a.samples * size; pixel += gridDim.x)
#pragma unroll 1
    for (int i = threadIdx.x; i < a.heads * a.padded; i += blockDim.x) {
      int of_sample = pixel % size, head = i / a.padded, c = i % a.padded;
      a.rows[(long long)pixel * a.heads * a.padded + i] =
          c < a.channels ? read_inside(a.source, pixel / size, of_sample / a.source.width, of_sample % a.source.width,
                                       head * a.channels + c)
                         : 0.f;
    }
}
