// Storage types (fp32, bf16, fp16, fp64) as vectors of lanes. `Word` holds stored bits in lanes as wide as a computed
// value, so everything is selected and rounded lane by lane. The vectors are those of GCC and Clang, 64 bytes wide on
// any processor: spelled out, because automatic vectorisation gave up on these loops.

#pragma once

#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

// kMantissa and kBias are those of Value; kExp, kAtanh: terms of their series beyond which it rounds the same.
template <class Value, class Signed, class Unsigned, int kMantissa, int kBias, int kExp, int kAtanh>
struct Lanes {
  static constexpr int64_t kCount = 64 / sizeof(Value);
  using Scalar = Value;
  using Integer = Signed;
  typedef Value Vector __attribute__((vector_size(64)));
  typedef Signed Condition __attribute__((vector_size(64)));
  typedef Unsigned Word __attribute__((vector_size(64)));

  // log(1 + e^s) = max(s, 0) + log(1 + u) with u = e^-|s|, and log(1 + u) = 2 atanh(u / (2 + u)).
  static INLINE Vector softplus(Vector s) {
    const Vector u = exp_of_negative(s < 0 ? s : -s), t = u / (2 + u), square = t * t;
    Vector series{};
    for (int k = kAtanh; k >= 0; --k) series = series * square + Value(1) / Value(2 * k + 1);
    return (s > 0 ? s : Vector{}) + 2 * t * series;
  }

 private:
  // 2^n e^r with |r| <= ln(2) / 2.
  static INLINE Vector exp_of_negative(Vector s) {
    const Value lowest = -kBias * Value(0.69);  // below it the result is nothing beside any gradient
    s = s < lowest ? Vector{} + lowest : s;
    const Condition n = __builtin_convertvector(s * Value(1.4426950408889634) - Value(0.5), Condition);
    const Vector r = s - __builtin_convertvector(n, Vector) * Value(0.6931471805599453);
    Vector series = Vector{} + 1;
    for (int k = kExp; k >= 1; --k) series = 1 + series * r * (Value(1) / Value(k));
    return series * (Vector)((Word)(n + kBias) << kMantissa);
  }
};
using Single = Lanes<float, int32_t, uint32_t, 23, 127, 7, 7>;
using Double = Lanes<double, int64_t, uint64_t, 52, 1023, 13, 16>;

// `count` lanes; those beyond read zero and are not written.
template <class V, class E> INLINE V load(const E* from, int64_t count) {
  V v{};
  std::memcpy(&v, from, count * sizeof(E));
  return v;
}
template <class V, class E> INLINE void store(V v, E* to, int64_t count) { std::memcpy(to, &v, count * sizeof(E)); }

template <class Base, class Raw>
struct Wide : Base {
  using Element = Raw;
  using typename Base::Condition;
  using typename Base::Vector;
  using typename Base::Word;
  static INLINE Word load_word(const Raw* from, int64_t count) { return load<Word>(from, count); }
  static INLINE Vector value(Word word) { return (Vector)word; }
  static INLINE void store_choice(Condition kept, Condition zero, Word word, Vector other, Raw* to, int64_t count) {
    store(kept ? (zero ? Word{} : word) : (Word)other, to, count);
  }
};
using Float32 = Wide<Single, uint32_t>;
using Float64 = Wide<Double, uint64_t>;

template <class Format>
struct Narrow : Single {
  using Element = uint16_t;
  typedef uint16_t Packed __attribute__((vector_size(32)));
#ifdef __AVX512F__  // GCC 12 makes ten instructions of what are single ones
  static INLINE Word load_word(const uint16_t* from, int64_t count) {
    return (Word)_mm512_cvtepu16_epi32((__m256i)load<Packed>(from, count));
  }
  static INLINE Packed packed(Word word) { return (Packed)_mm512_cvtepi32_epi16((__m512i)word); }
#else
  static INLINE Word load_word(const uint16_t* from, int64_t count) {
    return __builtin_convertvector(load<Packed>(from, count), Word);
  }
  static INLINE Packed packed(Word word) { return __builtin_convertvector(word, Packed); }
#endif
  static INLINE void store_choice(Condition kept, Condition zero, Word word, Vector other, uint16_t* to,
                                  int64_t count) {
    store(packed(kept ? (zero ? Word{} : word) : Format::rounded(other)), to, count);
  }
};

struct Bfloat16 : Narrow<Bfloat16> {
  static INLINE Vector value(Word word) { return (Vector)(word << 16); }
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
  // Chosen after packing: half the instructions. It rounds to nearest even, but numbers below 2^-126 become zero.
  static INLINE void store_choice(Condition kept, Condition zero, Word word, Vector other, uint16_t* to,
                                  int64_t count) {
    const __m256i relu = _mm512_maskz_cvtepi32_epi16(~_mm512_movepi32_mask((__m512i)zero), (__m512i)word);
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh((__m512)other);
    store((Packed)_mm256_mask_mov_epi16(rounded, _mm512_movepi32_mask((__m512i)kept), relu), to, count);
  }
#else
  static INLINE Word rounded(Vector value) {
    const Word u = (Word)value, nearest_even = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return value == value ? nearest_even : (u >> 16) | 0x40;
  }
#endif
};

struct Float16 : Narrow<Float16> {
  static INLINE Vector value(Word word) {
    const Word magnitude = (word & 0x7fff) << 13, sign = (word & 0x8000) << 16;
    const Word finite = (Word)((Vector)magnitude * 0x1p112f);  // exact, subnormal numbers too
    return (Vector)(sign | ((word & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000 : finite));
  }
  static INLINE Word rounded(Vector value) {
    const Word u = (Word)value, sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
    const Word normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const Word subnormal = (Word)((Vector)magnitude + 0.5f) - 0x3f000000;  // bits of 0.5f, whose last place is 2^-24
    const Word beyond = magnitude > 0x7f800000 ? Word{} + 0x7e00 : Word{} + 0x7c00;  // NaN, infinity
    return sign | (magnitude >= 0x47800000 ? beyond : magnitude < 0x38800000 ? subnormal : normal);
  }
};
