// Moments of channels, and the norms made of them. All sums are in double and in one order: a thread adds pixels, the
// lanes of a channel are added in their order, then the parts of an image in theirs. The parts depend on the size of
// the image alone, so a sample's bits depend neither on the other samples nor on the other tiles.
#include "reading.cuh"

#define WIDTH 32     // channels of a block, side by side
#define LANES 8      // of a channel: they take its pixels, or parts, in turn
#define THREADS 256

struct Sums {
  double first, second;
};
__device__ __forceinline__ void add(Sums& sums, Sums other) {
  sums.first += other.first;
  sums.second += other.second;
}

__device__ __forceinline__ int channel_here() { return blockIdx.y * WIDTH + threadIdx.x % WIDTH; }
__device__ __forceinline__ int lane_here() { return threadIdx.x / WIDTH; }

// Lane 0 gets the sum of a channel's lanes. All threads of the block call it.
__device__ __forceinline__ Sums add_lanes(Sums mine, Sums (&shared)[LANES][WIDTH]) {
  shared[lane_here()][threadIdx.x % WIDTH] = mine;
  __syncthreads();
  Sums all = {0., 0.};
  if (lane_here() == 0)
    for (int lane = 0; lane < LANES; lane++) add(all, shared[lane][threadIdx.x]);
  return all;
}

// sums[n][part][2][C] of this block, where grid x is the part and grid z the sample
__device__ __forceinline__ void keep_part(double* sums, Sums all, int parts, int channels) {
  if (lane_here() || channel_here() >= channels) return;
  double* to = sums + ((long long)blockIdx.z * parts + blockIdx.x) * 2 * channels + channel_here();
  to[0] = all.first;
  to[channels] = all.second;
}

// Lane 0 gets the sums over all parts.
__device__ __forceinline__ Sums add_parts(const double* sums, Sums (&shared)[LANES][WIDTH], int parts, int channels) {
  Sums mine = {0., 0.};
  if (channel_here() < channels) {
    const double* from = sums + (long long)blockIdx.z * parts * 2 * channels + channel_here();
#pragma unroll 4
    for (int part = lane_here(); part < parts; part += LANES)
      add(mine, {from[(long long)part * 2 * channels], from[((long long)part * 2 + 1) * channels]});
  }
  return add_lanes(mine, shared);
}

// -- of a canvas ----------------------------------------------------------------------------------------------------

// The values of a channel are taken about its first pixel, so that a mean far from 0 costs no digits of the variance:
// d = v - v[first], mean = v[first] + mean(d), variance = mean(d²) - mean(d)². In double, the first pixel may well be
// the one that lies far off.

// sums[n][part] = sum of d and of d² over the part's pixels: grid (parts, channels, N)
KERNEL(moments_of_parts, Moments, THREADS) {
  __shared__ Sums shared[LANES][WIDTH];
  const Source& s = a.source;
  int C = channels(s), c = channel_here(), n = blockIdx.z, pixels = s.height * s.width;
  int begin = blockIdx.x * a.pixels_per_part + lane_here();
  int end = min(pixels, (int)(blockIdx.x + 1) * a.pixels_per_part);
  Sums sums = {0., 0.};
  if (c < C) {
    double origin = read_inside(s, n, 0, 0, c);
    bool pending = s.second || s.scale || s.modulation || s.halved || s.activation != IDENTITY;
    if (!pending) {
      const float* v = s.first + (long long)n * pixels * C + c;
#pragma unroll 4
      for (int i = begin; i < end; i += LANES) {
        double d = __ldg(v + (long long)i * C) - origin;
        add(sums, {d, d * d});
      }
    } else {
#pragma unroll 1
      for (int i = begin; i < end; i += LANES) {
        double d = read_inside(s, n, i / s.width, i % s.width, c) - origin;
        add(sums, {d, d * d});
      }
    }
  }
  keep_part(a.sums, add_lanes(sums, shared), a.parts, C);
}

// mean and variance [N, C] from the sums of all parts: grid (1, channels, N)
KERNEL(moments, Moments, THREADS) {
  __shared__ Sums shared[LANES][WIDTH];
  int C = channels(a.source), c = channel_here(), n = blockIdx.z;
  double pixels = (double)a.source.height * a.source.width;
  Sums sums = add_parts(a.sums, shared, a.parts, C);
  if (lane_here() || c >= C) return;
  double mean = sums.first / pixels, variance = sums.second / pixels - mean * mean;
  a.mean[n * C + c] = (float)(read_inside(a.source, n, 0, 0, c) + mean);
  a.variance[n * C + c] = (float)(variance < 0. ? 0. : variance);
}

// -- of tiles that changed ------------------------------------------------------------------------------------------

// The part of a tile, by its place: neighbours lie in different parts, so that an edit's blocks share its tiles.
__device__ __forceinline__ int part_of(Place p, int parts) { return (p.y / TILE * 11 + p.x / TILE) % parts; }

// sums[n][part] = sum of v - old and of v² - old² over the pixels of the sample's tiles of the part, in the order of
// the list: grid (parts, channels, N), whatever the list. Each block looks through all of it.
KERNEL(change_of_parts, SumChange, THREADS) {
  __shared__ Sums shared[LANES][WIDTH];
  __shared__ unsigned taken[THREADS / 4];  // a byte a tile: whether it is of this block
  int count = tile_count(a.tiles), c = channel_here(), n = blockIdx.z;
  const void* old = a.old_place ? (const void*)*a.old_place : a.old;
  Sums sums = {0., 0.};
#pragma unroll 1
  for (int first = 0; first < count; first += THREADS) {
    int mine = first + threadIdx.x;
    Place p = mine < count ? tile_place(a.tiles, mine) : Place{-1, 0, 0};
    ((unsigned char*)taken)[threadIdx.x] = p.n == n && part_of(p, a.parts) == blockIdx.x;
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < THREADS && first + k < count; k++) {
      if (!taken[k / 4]) {
        k |= 3;  // none of these four
        continue;
      }
      if (!((const unsigned char*)taken)[k] || c >= a.channels) continue;
      Place q = tile_place(a.tiles, first + k);
#pragma unroll
      for (int pixel = lane_here(); pixel < PIXELS; pixel += LANES) {
        int y = q.y + pixel / TILE, x = q.x + pixel % TILE;
        if (y >= a.height || x >= a.width) continue;
        long long value = ((long long)(first + k) * PIXELS + pixel) * a.channels + c;
        double was = a.halves ? ptx::from_half(((const unsigned short*)old)[value]) : ((const float*)old)[value];
        double v = a.canvas[at(n, y, x, a.height, a.width, a.channels) + c];
        add(sums, {v - was, v * v - was * was});
      }
    }
    __syncthreads();
  }
  keep_part(a.sums, add_lanes(sums, shared), a.parts, a.channels);
}

// change [N, 2, C] from the sums of all parts: grid (1, channels, N)
KERNEL(sum_change, SumChange, THREADS) {
  __shared__ Sums shared[LANES][WIDTH];
  int c = channel_here();
  Sums sums = add_parts(a.sums, shared, a.parts, a.channels);
  if (lane_here() || c >= a.channels) return;
  double* to = a.change + (long long)blockIdx.z * 2 * a.channels + c;
  to[0] = sums.first;
  to[a.channels] = sums.second;
}

// -- followed through an edit ---------------------------------------------------------------------------------------

// With the sample's weight w and share s, for the mean and for the mean of squares (`interface.py`):
//
//   fresh += change / pixels      mixed = stale + w (fresh - stale)      stale += s w (fresh - stale)
//   used = mixed mean, max(0, mixed mean of squares - (mixed mean)²), as it was where s = 0
//
// grid (channels, samples), a thread a channel
KERNEL(follow_moments, FollowMoments, THREADS) {
  __shared__ int counted[THREADS];
  int C = a.channels, c = blockIdx.x * THREADS + threadIdx.x, n = blockIdx.y, i = n * C + c;
  int mine = 0;
  for (int k = threadIdx.x, count = tile_count(a.tiles); k < count; k += THREADS) mine += __ldg(a.tiles + 4 + 3 * k) == n;
  counted[threadIdx.x] = mine;
  __syncthreads();
  for (int half = THREADS / 2; half; half /= 2) {
    if (threadIdx.x < half) counted[threadIdx.x] += counted[threadIdx.x + half];
    __syncthreads();
  }
  if (c >= C) return;
  double s = (double)counted[0] / a.of_sample, w = a.statistics + (1. - a.statistics) * s, mixed[2];
#pragma unroll
  for (int moment = 0; moment < 2; moment++) {
    double fresh = (moment ? a.fresh_square : a.fresh_mean)[i], stale = (moment ? a.stale_square : a.stale_mean)[i];
    if (a.change) {
      fresh += a.change[((long long)n * 2 + moment) * C + c] * (1. / a.pixels);
      (moment ? a.new_fresh_square : a.new_fresh_mean)[i] = fresh;
    }
    double moved = fresh - stale;
    mixed[moment] = w == 1. ? fresh : stale + w * moved;
    (moment ? a.new_stale_square : a.new_stale_mean)[i] = s == 1. ? fresh : stale + s * w * moved;
  }
  double variance = mixed[1] - mixed[0] * mixed[0];
  a.new_used_mean[i] = s == 0. ? a.used_mean[i] : (float)mixed[0];
  a.new_used_variance[i] = s == 0. ? a.used_variance[i] : (float)(variance < 0. ? 0. : variance);
}

// first = mean, second = variance + mean * mean
KERNEL(second_moments, SecondMoments, THREADS) {
  int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= a.count) return;
  double mean = a.mean[i];
  a.first[i] = mean;
  a.second[i] = (double)a.variance[i] + mean * mean;
}

// -- as a scale and a shift -----------------------------------------------------------------------------------------

// The same in every lane of the warp: at each step two lanes add the same two numbers.
__device__ __forceinline__ double add_warp(double v) {
  for (int apart = 16; apart; apart /= 2) v += __shfl_xor_sync(0xffffffffu, v, apart);
  return v;
}

__device__ __forceinline__ double moment(const void* moments, int doubles, int i) {
  return doubles ? ((const double*)moments)[i] : (double)((const float*)moments)[i];
}

// A group's mean is the mean of its channels' means; its variance the mean of their variances plus the variance of
// their means:
//
//   scale = weight / sqrt(variance + eps)      shift = bias - mean * scale
//   with film: scale *= 1 + gain, shift = shift * (1 + gain) + offset
//
// grid (groups, N), a warp a group
KERNEL(norm_affine, NormAffine, THREADS) {
  int group = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32, n = blockIdx.y;
  if (group >= a.groups) return;
  int C = a.channels, each = C / a.groups, begin = group * each, end = begin + each, row = n * a.moment_stride;
  double mean = 0., variance = 0.;
  for (int c = begin + lane; c < end; c += 32) {
    mean += moment(a.mean, a.mean_doubles, row + c);
    variance += moment(a.variance, a.variance_doubles, row + c);
  }
  mean = add_warp(mean) / each;
  variance = add_warp(variance) / each;
  double spread = 0.;
  for (int c = begin + lane; c < end; c += 32) {
    double d = moment(a.mean, a.mean_doubles, row + c) - mean;
    spread += d * d;
  }
  double deviation = sqrt(variance + add_warp(spread) / each + a.eps);
  for (int c = begin + lane; c < end; c += 32) {
    double scale = (a.weight ? (double)a.weight[c] : 1.) / deviation;
    double shift = (a.bias ? (double)a.bias[c] : 0.) - mean * scale;
    if (a.film) {
      const float* film = a.film + n * a.film_stride;
      double gain = 1. + film[c];
      scale *= gain;
      shift = shift * gain + film[C + c];
    }
    a.scale[n * C + c] = (float)scale;
    a.shift[n * C + c] = (float)shift;
  }
}
