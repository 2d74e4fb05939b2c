// The inner loop shared by all matrix products, and the layouts it reads.
//
// A matrix product sums over k. Its right operand is packed in panels of TILE columns, [k / GROUP][TILE][GROUP], so the
// loop reads memory in order. A tile of ROWS x TILE sums stays in registers from the first k to the last.
#pragma once

#include "simd.h"

namespace charjax {

template <int R>
struct Tile {
  Vec v[R][4];
};

// The number of terms of a sum that one instruction processes.
template <class E>
constexpr int GROUP = 1;
template <>
inline constexpr int GROUP<bf16> = 2;

// Multiply-accumulate for operands of type E: broadcasts GROUP<E> of them and multiplies by as many weights in each of
// W columns.
template <class E>
struct Mac;

template <>
struct Mac<float> {
  static CHARJAX_INLINE Vec weights(const float* p) { return load(p); }
  static CHARJAX_INLINE Vec spread(const float* p) { return broadcast(*p); }
  static CHARJAX_INLINE Vec add(Vec sum, Vec x, Vec w) { return sum + x * w; }
};

#if defined(__AVX512BF16__)
template <>
struct Mac<bf16> {
  static CHARJAX_INLINE __m512bh weights(const bf16* p) { return load_any<__m512bh>(p); }
  static CHARJAX_INLINE __m512bh spread(const bf16* p) {
    const __m512i all = _mm512_set1_epi32(static_cast<int>(four_bytes(p)));
    return load_any<__m512bh>(&all);
  }
  static CHARJAX_INLINE Vec add(Vec sum, __m512bh x, __m512bh w) {
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), x, w));
  }
};
#else
// Without bfloat16 instructions, pairs are widened to float.
template <>
struct Mac<bf16> {
  struct Pairs {
    Vec even, odd;
  };
  static CHARJAX_INLINE Pairs widen_pairs(Bits bits) {
    return {reinterpret_cast<Vec>(bits << 16), reinterpret_cast<Vec>(bits & 0xffff0000u)};
  }
  static CHARJAX_INLINE Pairs weights(const bf16* p) { return widen_pairs(load_any<Bits>(p)); }
  static CHARJAX_INLINE Pairs spread(const bf16* p) { return widen_pairs(four_bytes(p) - Bits{}); }
  static CHARJAX_INLINE Vec add(Vec sum, Pairs x, Pairs w) { return (sum + x.even * w.even) + x.odd * w.odd; }
};
#endif

// tile[r][:] += sum over k of a[r * row_stride + k * step] * b[k][:], where k counts groups of GROUP terms.
template <class E, int R, class Weight>
CHARJAX_INLINE void multiply(Tile<R>& tile, const E* a, ptrdiff_t row_stride, int step, const Weight* b, int groups) {
  constexpr int vector = GROUP<E> * W;
  for (int k = 0; k < groups; ++k) {
    const auto b0 = Mac<E>::weights(b), b1 = Mac<E>::weights(b + vector), b2 = Mac<E>::weights(b + 2 * vector),
               b3 = Mac<E>::weights(b + 3 * vector);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto x = Mac<E>::spread(a + r * row_stride);
      tile.v[r][0] = Mac<E>::add(tile.v[r][0], x, b0);
      tile.v[r][1] = Mac<E>::add(tile.v[r][1], x, b1);
      tile.v[r][2] = Mac<E>::add(tile.v[r][2], x, b2);
      tile.v[r][3] = Mac<E>::add(tile.v[r][3], x, b3);
    }
    a += step;
    b += 4 * vector;
  }
}

// Multiplies one row by N panels, `panel_size` weights apart: tile[n][:] += sum over k of a[k * step] * b[n][k][:].
//
// A single panel has too few independent sums to hide the latency of an addition.
template <class E, int N, class Weight>
CHARJAX_INLINE void multiply_by_panels(Tile<N>& tile, const E* a, int step, const Weight* b, ptrdiff_t panel_size,
                                       int groups) {
  constexpr int vector = GROUP<E> * W;
  for (int k = 0; k < groups; ++k) {
    const auto x = Mac<E>::spread(a);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        tile.v[n][j] = Mac<E>::add(tile.v[n][j], x, Mac<E>::weights(b + n * panel_size + j * vector));
    a += step;
    b += 4 * vector;
  }
}

// Calls f.run<R>(first row) for tiles that together cover `rows` rows; R <= ROWS is a compile-time constant.
template <int R = ROWS, class F>
inline void for_tiles(int rows, const F& f, int r = 0) {
  for (; r + R <= rows; r += R) f.template run<R>(r);
  if constexpr (R > 1) for_tiles<R - 1>(rows, f, r);
}

inline constexpr int round_up(int n, int multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace charjax
