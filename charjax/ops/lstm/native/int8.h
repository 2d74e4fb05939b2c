// Int8 weights with a scale per column. Hidden states, in [-1, 1], are stored as round(127 h) + 128.
#pragma once

#include "gemm.h"

namespace charjax {

#if defined(__AVX512VNNI__)
using Quantized = uint8_t;
template <>
inline constexpr int GROUP<Quantized> = 4;
#else
// Widened to 16 bits, as the multiplication requires.
using Quantized = int16_t;
template <>
inline constexpr int GROUP<Quantized> = 2;
#endif
template <class E>
constexpr bool SCALED = false;
template <>
inline constexpr bool SCALED<Quantized> = true;

// The type of the weights that an operand of type E is multiplied by.
template <class E>
struct WeightOf {
  using type = E;
};
template <>
struct WeightOf<Quantized> {
  using type = int8_t;
};
template <class E>
using Weight = typename WeightOf<E>::type;

template <class E>
CHARJAX_INLINE void store_state(E* to, Vec h) {
  store_as(to, h);
}

// Integer sums are stored as the bits of a tile's vectors. A NaN in h is stored as 0, which stands for -128 / 127.
#if defined(__AVX512F__)
CHARJAX_INLINE Vec to_float(Vec sum) {
  return reinterpret_cast<Vec>(_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(sum)));
}
#endif
#if defined(__AVX512VNNI__)
template <>
CHARJAX_INLINE void store_state<Quantized>(Quantized* to, Vec h) {
  const __m512i q = _mm512_cvtps_epi32(reinterpret_cast<__m512>(h * 127.0f + 128.0f));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(_mm512_max_epi32(q, _mm512_setzero_si512())));
}
template <>
struct Mac<Quantized> {
  static CHARJAX_INLINE __m512i weights(const int8_t* p) { return _mm512_loadu_si512(p); }
  static CHARJAX_INLINE __m512i spread(const uint8_t* p) { return _mm512_set1_epi32(static_cast<int>(four_bytes(p))); }
  // Assembly is used, because with the casts that the intrinsic needs, GCC 12 keeps every sum in memory.
  static CHARJAX_INLINE Vec add(Vec sum, __m512i x, __m512i w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
  }
};
#elif defined(__AVX512BW__)
template <>
CHARJAX_INLINE void store_state<Quantized>(Quantized* to, Vec h) {
  const __m512i q = _mm512_cvtps_epi32(reinterpret_cast<__m512>(h * 127.0f + 128.0f));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtsepi32_epi16(_mm512_max_epi32(q, _mm512_setzero_si512())));
}
template <>
struct Mac<Quantized> {
  static CHARJAX_INLINE __m512i weights(const int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static CHARJAX_INLINE __m512i spread(const int16_t* p) { return _mm512_set1_epi32(static_cast<int>(four_bytes(p))); }
  // Assembly is used for the same reason as above.
  static CHARJAX_INLINE Vec add(Vec sum, __m512i x, __m512i w) {
    __m512i products;
    asm("vpmaddwd %[w], %[x], %[products]\n\t"
        "vpaddd %[products], %[sum], %[sum]"
        : [sum] "+v"(sum), [products] "=&v"(products)
        : [x] "v"(x), [w] "v"(w));
    return sum;
  }
};
#elif defined(__AVX2__)
template <>
CHARJAX_INLINE void store_state<Quantized>(Quantized* to, Vec h) {
  const __m256i q = _mm256_cvtps_epi32(reinterpret_cast<__m256>(h * 127.0f + 128.0f));
  const __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_max_epi16(narrow, _mm_setzero_si128()));
}
template <>
struct Mac<Quantized> {
  static CHARJAX_INLINE __m256i weights(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static CHARJAX_INLINE __m256i spread(const int16_t* p) { return _mm256_set1_epi32(static_cast<int>(four_bytes(p))); }
  static CHARJAX_INLINE Vec add(Vec sum, __m256i x, __m256i w) {
    return reinterpret_cast<Vec>(_mm256_add_epi32(reinterpret_cast<__m256i>(sum), _mm256_madd_epi16(x, w)));
  }
};
CHARJAX_INLINE Vec to_float(Vec sum) {
  return reinterpret_cast<Vec>(_mm256_cvtepi32_ps(reinterpret_cast<__m256i>(sum)));
}
// Sums, weights and products fill the registers, so operands are broadcast again for each vector of weights, and
// assembly keeps the sums in registers, since GCC 12 would spill them.
CHARJAX_INLINE Vec add_spread(Vec sum, const int16_t* a, __m256i w) {
  __m256i products;
  asm("vpbroadcastd %[a], %[products]\n\t"
      "vpmaddwd %[w], %[products], %[products]\n\t"
      "vpaddd %[products], %[sum], %[sum]"
      : [sum] "+x"(sum), [products] "=&x"(products)
      : [a] "m"(*reinterpret_cast<const int16_t (*)[2]>(a)), [w] "x"(w));
  return sum;
}
template <int R>
CHARJAX_INLINE void multiply(Tile<R>& tile, const int16_t* a, ptrdiff_t row_stride, int step, const int8_t* b,
                             int groups) {
  for (int k = 0; k < groups; ++k) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m256i w = Mac<Quantized>::weights(b + j * 2 * W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) tile.v[r][j] = add_spread(tile.v[r][j], a + r * row_stride, w);
    }
    a += step;
    b += 2 * TILE;
  }
}
#else
template <>
CHARJAX_INLINE void store_state<Quantized>(Quantized* to, Vec h) {
  for (int lane = 0; lane < W; ++lane) {
    const float q = h[lane] * 127.0f + 128.5f;
    to[lane] = q >= 0 && q < 256 ? static_cast<int16_t>(q) : 0;
  }
}
template <>
struct Mac<Quantized> {
  struct Pairs {
    Ints even, odd;
  };
  static CHARJAX_INLINE Ints upper_bytes(Half pairs) {
    return __builtin_convertvector(reinterpret_cast<Shorts>(pairs) >> 8, Ints);
  }
  static CHARJAX_INLINE Pairs weights(const int8_t* p) {
    const Half pairs = load_any<Half>(p);
    return {upper_bytes(pairs << 8), upper_bytes(pairs)};
  }
  static CHARJAX_INLINE Pairs spread(const int16_t* p) { return {p[0] - Ints{}, p[1] - Ints{}}; }
  static CHARJAX_INLINE Vec add(Vec sum, Pairs x, Pairs w) {
    return reinterpret_cast<Vec>(reinterpret_cast<Ints>(sum) + x.even * w.even + x.odd * w.odd);
  }
};
CHARJAX_INLINE Vec to_float(Vec sum) {
  return __builtin_convertvector(reinterpret_cast<Ints>(sum), Vec);
}
#endif

}  // namespace charjax
