// How the tensors of a gate lie in memory, and how the work on them is cut.
//
// N images, C channels, S = H * W, P = C * S pixels of an image, D = degree + 1 = TERMS.
//
// x, y and their gradients [N, P]: one image after the other. Of an image with channels a, b, c and S = 4:
//
//     contiguous     [C, S]   a0 a1 a2 a3 b0 b1 b2 b3 c0 c1 c2 c3   channel = pixel / S
//     channels last  [S, C]   a0 b0 c0 a1 b1 c1 a2 b2 c2 a3 b3 c3   channel = pixel % C
//
// mask, score and its gradient [C, S]: always the first of the two, once for all images. The mask is a byte per pixel, 0
// or 1. coefficients and their gradients [C, D]: those of a, of b, of c, constant first. range [3, C]: the lowest, the
// highest of all channels, the pull of all channels.
//
// Pixels are cut into blocks of kBlock and images into chunks of kChunk. A task is one block of one chunk:
//
//               block 0   block 1   block 2 (the rest)
//     chunk 0 |  task 0 |  task 1 | task 2 |   64 images
//     chunk 1 |  task 3 |  task 4 | task 5 |   the rest
//              4096 pixels
//
// A task goes through its rectangle in columns: one or kLine vectors of kLanes pixels, in one or kRows images. It owns
// its partial sums and adds images in their order; partial sums are added in the order of tasks afterwards. So nothing
// needs an atomic, and no result depends on the number of threads.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "lanes.h"

namespace {

using S = STORAGE;
constexpr int D = TERMS;
using T = S::Element;  // as stored
using A = S::Scalar;   // as computed with
using Vector = S::Vector;
constexpr int64_t kLanes = S::kCount;
// Vectors at a time: with less than a cache line each line is fetched twice; with more the registers do not suffice.
constexpr int kLine = std::min<int>(2, 64 / (sizeof(T) * kLanes));

constexpr int64_t kBlock = 4096;             // pixels: long runs of memory, and sums that stay in the cache
constexpr int64_t kChunk = 64;               // images
constexpr int kRows = kWidth == 64 ? 4 : 2;  // images whose sums are formed in registers: there are 32 or 16

}  // namespace

// What Python passes: the same fields in the same order as `Arguments` of native.py. Null is what a pass does not need.
struct Arguments {
  const T* x;
  const T* grad_y;
  const uint8_t* mask;
  const A* coefficients_CD;
  const A* score;
  const A* range_3C;
  T* y;
  T* grad_x;
  A* grad_score;
  A* grad_coefficients_CD;
  int64_t images;
  int64_t channels;
  int64_t spatial;
  bool channels_last;
  int threads;
};

namespace {

struct Shape {
  int64_t images, channels, spatial;
  bool channels_last;
  explicit Shape(const Arguments& a)
      : images(a.images), channels(a.channels), spatial(a.spatial), channels_last(a.channels_last) {}
  int64_t pixels() const { return channels * spatial; }
  int64_t blocks() const { return (pixels() + kBlock - 1) / kBlock; }
  int64_t chunks() const { return (images + kChunk - 1) / kChunk; }
  int64_t tasks() const { return blocks() * chunks(); }
  // The sums of a block's channels lie in slots, slot 0 for the first channel that the block can touch.
  int64_t first_channel(int64_t pixel) const { return channels_last ? 0 : pixel / spatial; }
  int64_t slots() const { return channels_last ? channels : std::min(channels, kBlock / spatial + 2); }
};

struct Task {
  int64_t index, chunk, first, count, from, to;  // pixels [first, first + count) of images [from, to)
  Task(const Shape& shape, int64_t index)
      : index(index), chunk(index / shape.blocks()), first(index % shape.blocks() * kBlock),
        count(std::min(kBlock, shape.pixels() - first)), from(chunk * kChunk),
        to(std::min(from + kChunk, shape.images)) {}
};

// body(i, count, channel) for the runs of a task's pixels. A run has one channel; with channels last it has all channels
// from this one on.
template <class F>
void for_each_run(const Shape& shape, const Task& task, const F& body) {
  for (int64_t i = 0; i < task.count;) {
    const int64_t pixel = task.first + i, length = shape.channels_last ? shape.channels : shape.spatial;
    const int64_t count = std::min(length - pixel % length, task.count - i);
    body(i, count, shape.channels_last ? pixel % shape.channels : pixel / shape.spatial);
    i += count;
  }
}

// place(i, j) for `count` pixels from `first` on: the i-th of them is the j-th in the order [C, S].
template <class F>
INLINE void for_each_place(const Shape& shape, int64_t first, int64_t count, const F& place) {
  if (!shape.channels_last || shape.spatial == 1) {
    for (int64_t i = 0; i < count; ++i) place(i, first + i);
    return;
  }
  for (int64_t channel = 0; channel < shape.channels; ++channel) {
    int64_t s = (first - channel + shape.channels - 1) / shape.channels;
    for (int64_t i = s * shape.channels + channel - first; i < count; i += shape.channels, ++s)
      place(i, channel * shape.spatial + s);
  }
}

// column(rows, vectors, image, i, lanes) for all columns of a task: `vectors` times `lanes` pixels from the i-th on, of
// `rows` images.
template <class F>
INLINE void for_each_column(const Task& task, const F& column) {
  const auto one = std::integral_constant<int, 1>();
  const auto line = std::integral_constant<int, kLine>();
  const auto images = [&](auto rows, int64_t n) {
    int64_t i = 0;
    for (; i + kLine * kLanes <= task.count; i += kLine * kLanes) column(rows, line, n, i, kLanes);
    for (; i + kLanes <= task.count; i += kLanes) column(rows, one, n, i, kLanes);
    if (i < task.count) column(rows, one, n, i, task.count - i);
  };
  int64_t n = task.from;
  for (; n + kRows <= task.to; n += kRows) images(std::integral_constant<int, kRows>(), n);
  for (; n < task.to; ++n) images(one, n);
}

}  // namespace
