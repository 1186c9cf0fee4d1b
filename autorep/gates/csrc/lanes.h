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

template <class Value, class Signed, class Unsigned>
struct Lanes {
  static constexpr int64_t kCount = 64 / sizeof(Value);
  using Scalar = Value;
  using Integer = Signed;
  typedef Value Vector __attribute__((vector_size(64)));
  typedef Signed Condition __attribute__((vector_size(64)));
  typedef Unsigned Word __attribute__((vector_size(64)));
};
using Single = Lanes<float, int32_t, uint32_t>;
using Double = Lanes<double, int64_t, uint64_t>;

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
  using typename Base::Vector;
  using typename Base::Word;
  static INLINE Word load_word(const Raw* from, int64_t count) { return load<Word>(from, count); }
  static INLINE void store_word(Word word, Raw* to, int64_t count) { store(word, to, count); }
  static INLINE Vector value(Word word) { return (Vector)word; }
  static INLINE Word rounded(Vector value) { return (Word)value; }
};
using Float32 = Wide<Single, uint32_t>;
using Float64 = Wide<Double, uint64_t>;

struct Narrow : Single {
  using Element = uint16_t;
  typedef uint16_t Packed __attribute__((vector_size(32)));
#ifdef __AVX512F__  // GCC 12 makes ten instructions of what are single ones
  static INLINE Word load_word(const uint16_t* from, int64_t count) {
    return (Word)_mm512_cvtepu16_epi32((__m256i)load<Packed>(from, count));
  }
  static INLINE void store_word(Word word, uint16_t* to, int64_t count) {
    store((Packed)_mm512_cvtepi32_epi16((__m512i)word), to, count);
  }
#else
  static INLINE Word load_word(const uint16_t* from, int64_t count) {
    return __builtin_convertvector(load<Packed>(from, count), Word);
  }
  static INLINE void store_word(Word word, uint16_t* to, int64_t count) {
    store(__builtin_convertvector(word, Packed), to, count);
  }
#endif
};

struct Bfloat16 : Narrow {
  static INLINE Vector value(Word word) { return (Vector)(word << 16); }
#ifdef __AVX512BF16__  // the same to nearest even, but numbers below 2^-126 become zero
  static INLINE Word rounded(Vector value) {
    return (Word)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)value));
  }
#else
  static INLINE Word rounded(Vector value) {
    const Word u = (Word)value, nearest_even = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return value == value ? nearest_even : (u >> 16) | 0x40;
  }
#endif
};

struct Float16 : Narrow {
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
