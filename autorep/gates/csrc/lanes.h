// Storage types (fp32, bf16, fp16, fp64) as vectors of lanes. `Word` holds stored bits in lanes as wide as a computed
// value, so that everything can be selected and rounded lane by lane. The vectors are those of GCC and Clang, spelled
// out because automatic vectorisation gave up on these loops. They are as wide as the processor's, because GCC 12 sends
// wider ones through the stack.

#pragma once

#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

#ifdef __AVX512F__
constexpr int kWidth = 64;  // bytes of a vector
#elif defined(__AVX__)
constexpr int kWidth = 32;
#else
constexpr int kWidth = 16;
#endif

// kMantissa and kBias are those of Value; kExp, kAtanh: terms of their series beyond which it rounds the same.
template <class Value, class Signed, class Unsigned, int kMantissa, int kBias, int kExp, int kAtanh>
struct Lanes {
  static constexpr int64_t kCount = kWidth / sizeof(Value);
  using Scalar = Value;
  using Integer = Signed;
  typedef Value Vector __attribute__((vector_size(kWidth)));
  typedef Signed Condition __attribute__((vector_size(kWidth)));
  typedef Unsigned Word __attribute__((vector_size(kWidth)));

  using Choice = Condition;
  static INLINE Choice choice(Condition condition) { return condition; }
  static INLINE Choice negative(Vector v) { return v < 0; }
  static INLINE Choice not_positive(Vector v) { return v <= 0; }
  static INLINE Vector zeroed(Choice zero, Vector v) { return zero ? Vector{} : v; }

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
    const Value lowest = -kBias * Value(0.69);  // below it the result is too small to change any gradient
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

// Of each format: `Stored` are lanes as they lie in memory, `Choice` says yes or no for each.
template <class Base, class Raw>
struct Wide : Base {
  using Element = Raw;
  using typename Base::Choice;
  using typename Base::Vector;
  using typename Base::Word;
  using Stored = Word;
  static INLINE Vector value(Stored stored) { return (Vector)stored; }
  static INLINE Stored chosen(Choice kept, Choice zero, Stored stored, Vector other) {
    return kept ? (zero ? Word{} : stored) : (Word)other;
  }
};
using Float32 = Wide<Single, uint32_t>;
using Float64 = Wide<Double, uint64_t>;

typedef uint16_t Packed __attribute__((vector_size(kWidth / 2)));
#ifdef __AVX512F__  // GCC 12 makes ten instructions of what are single ones
INLINE Single::Word widened(Packed packed) { return (Single::Word)_mm512_cvtepu16_epi32((__m256i)packed); }
INLINE Packed narrowed(Single::Word word) { return (Packed)_mm512_cvtepi32_epi16((__m512i)word); }
#elif defined(__AVX2__)
INLINE Single::Word widened(Packed packed) { return (Single::Word)_mm256_cvtepu16_epi32((__m128i)packed); }
INLINE Packed narrowed(Single::Word word) {  // words hold 16 bits, so nothing saturates
  const __m256i packed = _mm256_packus_epi32((__m256i)word, (__m256i)word);
  return (Packed)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
#else
INLINE Single::Word widened(Packed packed) { return __builtin_convertvector(packed, Single::Word); }
INLINE Packed narrowed(Single::Word word) { return __builtin_convertvector(word, Packed); }
#endif

template <class Format>
struct Narrow : Single {
  using Element = uint16_t;
  using Stored = Packed;
  static INLINE Vector value(Stored stored) { return Format::value_of(widened(stored)); }
  static INLINE Stored chosen(Choice kept, Choice zero, Stored stored, Vector other) {
    return narrowed(kept ? (zero ? Word{} : widened(stored)) : Format::rounded(other));
  }
};

struct Bfloat16 : Narrow<Bfloat16> {
  static INLINE Vector value_of(Word word) { return (Vector)(word << 16); }
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
  // In mask registers, and chosen after packing: half the instructions. Rounds to nearest even, but numbers below
  // 2^-126 become zero.
  using Choice = __mmask16;
  static INLINE Choice choice(Condition condition) { return _mm512_movepi32_mask((__m512i)condition); }
  static INLINE Choice negative(Vector v) { return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_LT_OQ); }
  static INLINE Choice not_positive(Vector v) { return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_LE_OQ); }
  static INLINE Vector zeroed(Choice zero, Vector v) { return (Vector)_mm512_maskz_mov_ps(~zero, (__m512)v); }
  static INLINE Stored chosen(Choice kept, Choice zero, Stored stored, Vector other) {
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh((__m512)other);
    return (Stored)_mm256_mask_mov_epi16(rounded, kept, _mm256_maskz_mov_epi16(~zero, (__m256i)stored));
  }
#else
  // Chosen before rounding, which what is stored already survives; so does NaN, unless all its low bits are set.
  static INLINE Stored chosen(Choice kept, Choice zero, Stored stored, Vector other) {
    const Word u = (Word)(kept ? (zero ? Vector{} : value(stored)) : other);
    return narrowed((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  }
#endif
};

struct Float16 : Narrow<Float16> {
  static INLINE Vector value_of(Word word) {
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
