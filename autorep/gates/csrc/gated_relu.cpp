// Forward and backward of "ReLU here, polynomial there", one pass over memory each, for one storage type and degree:
// the compiler's command line says -DSTORAGE=Bfloat16 -DTERMS=3 (degree + 1). layout.h draws the memory and the tasks.
//
// Plain C interface and no PyTorch header: it compiles in a second, and for every version of PyTorch.

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "layout.h"

// Enters the OpenMP runtime that PyTorch has already loaded: compiling with -fopenmp could bring in a second one, whose
// own threads compete with PyTorch's. Without such a runtime the symbol is null and one thread works.
extern "C" __attribute__((weak)) void GOMP_parallel(void (*)(void*), void*, unsigned threads, unsigned flags);

namespace {

constexpr int64_t kSerialWork = 1 << 17;  // elements: up to this, waking threads costs more than it saves

using Block = A[kBlock];

// body(i) for i < count; `work` is the number of elements that all of it reads.
template <class F>
void parallel_for(int64_t count, int64_t work, int threads, const F& body) {
  struct Shared { const F& body; int64_t count; std::atomic<int64_t> next; } shared{body, count, {0}};
  const auto worker = [](void* pointer) {
    auto& s = *static_cast<Shared*>(pointer);
    for (int64_t i; (i = s.next.fetch_add(1, std::memory_order_relaxed)) < s.count;) s.body(i);
  };
  if (threads > 1 && count > 1 && work > kSerialWork && GOMP_parallel) GOMP_parallel(worker, &shared, threads, 0);
  else worker(&shared);
}

// to[k][i] = the k-th of a channel's numbers, from[channel * per_channel + k * per_number], for every pixel i of a task.
template <int kNumbers>
void spread(const A* from, int64_t per_channel, int64_t per_number, const Shape& shape, const Task& task, Block* to) {
  for_each_run(shape, task, [&](int64_t i, int64_t count, int64_t channel) {
    const A* own = from + channel * per_channel;
    const int64_t step = shape.channels_last ? per_channel : 0;
    for (int k = 0; k < kNumbers; ++k) {
      if (step && i >= shape.channels) std::copy_n(to[k] + i - shape.channels, count, to[k] + i);
      else for (int64_t j = 0; j < count; ++j) to[k][i + j] = own[j * step + k * per_number];
    }
  });
}

// What a task needs of every pixel again and again: the mask as bits of a lane, its channel's coefficients.
struct Pixels {
  alignas(64) S::Integer kept[kBlock] = {};
  alignas(64) Block c[D] = {};

  Pixels(const uint8_t* mask, const A* coefficients_CD, const Shape& shape, const Task& task) {
    for_each_place(shape, task.first, task.count, [&](int64_t i, int64_t j) { kept[i] = -S::Integer(mask[j]); });
    spread<D>(coefficients_CD, D, 1, shape, task, c);
  }
};

// The range of a pixel's channel, and how strongly a value beyond it is pulled back.
struct Range {
  alignas(64) Block of[3] = {};
  Range(const A* range_3C, const Shape& shape, const Task& task) {
    if (range_3C) spread<3>(range_3C, 1, shape.channels, shape, task, of);
  }
};

// ---- columns: the only loops over activations

// The next images' pixels: processors do not foresee jumps from image to image. Beyond the end it does nothing.
INLINE void prefetch(const T* next) { __builtin_prefetch(next, 0, 2); }

INLINE Vector clamped(Vector v, Vector low, Vector high) { return v < low ? low : v > high ? high : v; }

// What pulls values beyond a range back: in proportion to the excess, up to half the width of the range.
INLINE Vector pull_back(Vector excess, const Vector (&range)[3]) {
  const Vector half = (range[1] - range[0]) * A(0.5);
  return range[2] * clamped(excess, -half, half);
}

template <bool kRange, int kImages, int kVectors>
INLINE void forward_column(const T* x, const Pixels& p, const Range& ranges, T* y, int64_t stride, int64_t i,
                           int64_t lanes) {
  S::Choice kept[kVectors];
  Vector c[kVectors][D], range[kVectors][2];
  for (int j = 0; j < kVectors; ++j) {
    kept[j] = S::choice(load<S::Condition>(p.kept + i + j * kLanes, kLanes));
    for (int k = 0; k < D; ++k) c[j][k] = load<Vector>(p.c[k] + i + j * kLanes, kLanes);
    for (int k = 0; k < 2 && kRange; ++k) range[j][k] = load<Vector>(ranges.of[k] + i + j * kLanes, kLanes);
  }
  for (int row = 0; row < kImages; ++row) {
    prefetch(x + (row + kImages) * stride + i);
    for (int j = 0; j < kVectors; ++j) {
      const int64_t at = row * stride + i + j * kLanes;
      const auto stored = load<S::Stored>(x + at, lanes);
      const Vector v = S::value(stored), u = kRange ? clamped(v, range[j][0], range[j][1]) : v;
      Vector polynomial = c[j][D - 1];
      for (int k = D - 2; k >= 0; --k) polynomial = polynomial * u + c[j][k];
      // NaN and -0.0 stay, as in torch.relu.
      store(S::chosen(kept[j], S::negative(v), stored, polynomial), y + at, lanes);
    }
  }
}

struct Sums {
  alignas(64) Block moments[D] = {};  // of every pixel, sum over images of grad * x^k
  alignas(64) Block relus = {};       // of every pixel, sum over images of grad * relu(x)
};

INLINE void add(Vector v, A* to) { store(load<Vector>(to, kLanes) + v, to, kLanes); }

template <bool kSums, bool kRange, int kImages, int kVectors>
INLINE void backward_column(const T* x, const T* grad, const Pixels& p, const Range& ranges, T* grad_x, Sums& sums,
                            int64_t stride, int64_t i, int64_t lanes) {
  S::Choice kept[kVectors];
  Vector slopes[kVectors][D], moments[kVectors][D] = {}, relus[kVectors] = {}, range[kVectors][3];
  for (int j = 0; j < kVectors; ++j) {
    kept[j] = S::choice(load<S::Condition>(p.kept + i + j * kLanes, kLanes));
    for (int k = 0; k < D; ++k) slopes[j][k] = load<Vector>(p.c[k] + i + j * kLanes, kLanes) * A(k);
    for (int k = 0; k < 3 && kRange; ++k) range[j][k] = load<Vector>(ranges.of[k] + i + j * kLanes, kLanes);
  }
  for (int row = 0; row < kImages; ++row) {
    prefetch(x + (row + kImages) * stride + i);
    prefetch(grad + (row + kImages) * stride + i);
    for (int j = 0; j < kVectors; ++j) {
      const int64_t at = row * stride + i + j * kLanes;
      const auto stored_grad = load<S::Stored>(grad + at, lanes);
      const Vector v = S::value(load<S::Stored>(x + at, lanes)), g = S::value(stored_grad);
      const auto zero = S::not_positive(v);
      const Vector u = kRange ? clamped(v, range[j][0], range[j][1]) : v;
      Vector slope = slopes[j][D - 1];
      for (int k = D - 2; k >= 1; --k) slope = slope * u + slopes[j][k];
      const Vector dropped = kRange ? (u == v ? g * slope : pull_back(v - u, range[j])) : g * slope;
      store(S::chosen(kept[j], zero, stored_grad, dropped), grad_x + at, lanes);
      if (!kSums) continue;
      relus[j] += S::zeroed(zero, g * v);
      Vector term = g;
      for (int k = 0; k < D; ++k, term *= u) moments[j][k] += term;
    }
  }
  if (!kSums) return;
  for (int j = 0; j < kVectors; ++j) {
    add(relus[j], sums.relus + i + j * kLanes);
    for (int k = 0; k < D; ++k) add(moments[j][k], sums.moments[k] + i + j * kLanes);
  }
}

// ---- sums of a task

// grad_gate = sum of grad * (relu(x) - polynomial(x)).
void sum_gate(const Pixels& p, const Sums& sums, int64_t count, A* __restrict grad_gate) {
  std::copy_n(sums.relus, count, grad_gate);
  for (int k = 0; k < D; ++k)
    for (int64_t i = 0; i < count; ++i) grad_gate[i] -= p.c[k][i] * sums.moments[k][i];
}

// slots [D, shape.slots()] = of each channel, the sum of grad * x^k over dropped pixels.
void sum_channels(const Pixels& p, const Sums& sums, const Shape& shape, const Task& task, A* slots_D) {
  std::fill_n(slots_D, D * shape.slots(), A(0));
  for (int k = 0; k < D; ++k)
    for_each_run(shape, task, [&](int64_t i, int64_t count, int64_t channel) {
      A* __restrict slot = slots_D + k * shape.slots() + channel - shape.first_channel(task.first);
      const A* __restrict moments = sums.moments[k] + i;
      const S::Integer* __restrict kept = p.kept + i;
      if (shape.channels_last) {
        for (int64_t j = 0; j < count; ++j) slot[j] += kept[j] ? A(0) : moments[j];
        return;
      }
      A total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t j = 0; j < count; ++j) total += kept[j] ? A(0) : moments[j];
      *slot += total;
    });
}

// grad_score = softplus(score) * the gate's gradient: the straight-through estimator.
void combine_score(const A* partial, const A* score, const Shape& shape, int threads, A* grad_score) {
  parallel_for(shape.blocks(), shape.chunks() * shape.pixels(), threads, [&](int64_t block) {
    const int64_t first = block * kBlock, count = std::min(kBlock, shape.pixels() - first);
    alignas(64) Block total = {}, scores = {};
    for_each_place(shape, first, count, [&](int64_t i, int64_t j) { scores[i] = score[j]; });
    for (int64_t chunk = 0; chunk < shape.chunks(); ++chunk)
      for (int64_t i = 0; i < count; ++i) total[i] += partial[chunk * shape.pixels() + first + i];
    for (int64_t i = 0; i < count; i += kLanes) {
      const Vector slope = S::softplus(load<Vector>(scores + i, kLanes));
      store(load<Vector>(total + i, kLanes) * slope, total + i, kLanes);
    }
    for_each_place(shape, first, count, [&](int64_t i, int64_t j) { grad_score[j] = total[i]; });
  });
}

void combine_channels(const A* partial, const Shape& shape, A* grad_coefficients_CD) {
  std::vector<double> total(D * shape.channels);
  for (int64_t task = 0; task < shape.tasks(); ++task) {
    const int64_t first = shape.first_channel(task % shape.blocks() * kBlock);
    const int64_t count = std::min(shape.slots(), shape.channels - first);
    for (int k = 0; k < D; ++k, partial += shape.slots())
      for (int64_t slot = 0; slot < count; ++slot) total[(first + slot) * D + k] += partial[slot];
  }
  std::copy(total.begin(), total.end(), grad_coefficients_CD);
}

template <bool kSums, bool kRange>
void backward(const Arguments& a) {
  const Shape shape(a);
  const int64_t pixels = shape.pixels(), slots_D = D * shape.slots();
  const std::unique_ptr<A[]> gates(a.score ? new A[shape.chunks() * pixels] : nullptr);
  const std::unique_ptr<A[]> slots(a.grad_coefficients_CD ? new A[shape.tasks() * slots_D] : nullptr);
  parallel_for(shape.tasks(), shape.images * pixels, a.threads, [&](int64_t index) {
    const Task task(shape, index);
    const Pixels p(a.mask, a.coefficients_CD, shape, task);
    const Range range(kRange ? a.range_3C : nullptr, shape, task);
    Sums sums;
    const T *x = a.x, *grad_y = a.grad_y;
    T* grad_x = a.grad_x;
    const auto column = [=, &p, &range, &sums](auto rows, auto vectors, int64_t image, int64_t i, int64_t lanes)
                            __attribute__((always_inline)) {
      const int64_t at = image * pixels + task.first;
      backward_column<kSums, kRange, rows(), vectors()>(x + at, grad_y + at, p, range, grad_x + at, sums, pixels, i,
                                                        lanes);
    };
    for_each_column(task, column);
    if (gates) sum_gate(p, sums, task.count, &gates[task.chunk * pixels + task.first]);
    if (slots) sum_channels(p, sums, shape, task, &slots[index * slots_D]);
  });
  if (gates) combine_score(gates.get(), a.score, shape, a.threads, a.grad_score);
  if (slots) combine_channels(slots.get(), shape, a.grad_coefficients_CD);
}

template <bool kRange>
void forward(const Arguments& a) {
  const Shape shape(a);
  parallel_for(shape.tasks(), shape.images * shape.pixels(), a.threads, [&](int64_t index) {
    const Task task(shape, index);
    const Pixels p(a.mask, a.coefficients_CD, shape, task);
    const Range range(kRange ? a.range_3C : nullptr, shape, task);
    const int64_t pixels = shape.pixels();
    const T* x = a.x;
    T* y = a.y;
    const auto column = [=, &p, &range](auto rows, auto vectors, int64_t image, int64_t i, int64_t lanes)
                            __attribute__((always_inline)) {
      const int64_t at = image * pixels + task.first;
      forward_column<kRange, rows(), vectors()>(x + at, p, range, y + at, pixels, i, lanes);
    };
    for_each_column(task, column);
  });
}

}  // namespace

extern "C" {

// x, mask, coefficients, range or null -> y.
void gated_relu_forward(const Arguments* a) { a->range_3C ? forward<true>(*a) : forward<false>(*a); }

// x, grad_y, mask, coefficients, range or null -> grad_x; with a score its gradient, and that of the coefficients where
// not null.
void gated_relu_backward(const Arguments* a) {
  const bool sums = a->score || a->grad_coefficients_CD;
  if (a->range_3C) sums ? backward<true, true>(*a) : backward<false, true>(*a);
  else sums ? backward<true, false>(*a) : backward<false, false>(*a);
}

}
