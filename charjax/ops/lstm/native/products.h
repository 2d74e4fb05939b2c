// The one inner loop that all products share, and the layouts that feed it.
//
// A product sums over k. Its right operand lies in panels of TILE columns, [k / PAIR][TILE][PAIR], so that the loop
// reads memory in order. A tile of ROWS x TILE sums stays in registers from the first k to the last.
#pragma once

#include "vectors.h"

namespace charjax {

template <int R>
struct Tile {
  Vec v[R][4];
};

// tile[r][:] += sum over k of a[r * row_stride + k * step] * b[k][:], k counting groups of PAIR.
template <class E, int R>
CHARJAX_INLINE void multiply(Tile<R>& tile, const E* a, ptrdiff_t row_stride, int step, const E* b, int groups);

template <class E, int R>
struct Multiply;

template <int R>
struct Multiply<float, R> {
  static CHARJAX_INLINE void run(Tile<R>& tile, const float* a, ptrdiff_t row_stride, int step, const float* b,
                                 int groups) {
    for (int k = 0; k < groups; ++k) {
      const Vec b0 = load(b), b1 = load(b + W), b2 = load(b + 2 * W), b3 = load(b + 3 * W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec x = broadcast(a[r * row_stride]);
        tile.v[r][0] += x * b0;
        tile.v[r][1] += x * b1;
        tile.v[r][2] += x * b2;
        tile.v[r][3] += x * b3;
      }
      a += step;
      b += TILE;
    }
  }
};

#if defined(CHARJAX_BF16)
template <int R>
struct Multiply<bf16, R> {
  static CHARJAX_INLINE __m512bh pairs(const bf16* p) {
    __m512bh v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static CHARJAX_INLINE __m512bh one_pair(const bf16* p) {
    uint32_t bits;
    std::memcpy(&bits, p, 4);
    const __m512i all = _mm512_set1_epi32(static_cast<int>(bits));
    __m512bh v;
    std::memcpy(&v, &all, sizeof(v));
    return v;
  }
  static CHARJAX_INLINE Vec add(Vec sum, __m512bh x, __m512bh y) {
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), x, y));
  }
  static CHARJAX_INLINE void run(Tile<R>& tile, const bf16* a, ptrdiff_t row_stride, int step, const bf16* b,
                                 int groups) {
    for (int k = 0; k < groups; ++k) {
      const __m512bh b0 = pairs(b), b1 = pairs(b + 2 * W), b2 = pairs(b + 4 * W), b3 = pairs(b + 6 * W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512bh x = one_pair(a + r * row_stride);
        tile.v[r][0] = add(tile.v[r][0], x, b0);
        tile.v[r][1] = add(tile.v[r][1], x, b1);
        tile.v[r][2] = add(tile.v[r][2], x, b2);
        tile.v[r][3] = add(tile.v[r][3], x, b3);
      }
      a += step;
      b += 2 * TILE;
    }
  }
};
#endif

template <class E, int R>
CHARJAX_INLINE void multiply(Tile<R>& tile, const E* a, ptrdiff_t row_stride, int step, const E* b, int groups) {
  Multiply<E, R>::run(tile, a, row_stride, step, b, groups);
}

// Calls f.run<R>(first row) for tiles that cover `rows` rows; R <= ROWS is known to the compiler.
template <class F>
inline void for_tiles(int rows, F f) {
  int r = 0;
  for (; r + ROWS <= rows; r += ROWS) f.template run<ROWS>(r);
  switch (rows - r) {
#define CHARJAX_CASE(n)                           \
  case n:                                         \
    if constexpr (n < ROWS) f.template run<n>(r); \
    break;
    CHARJAX_CASE(1)
    CHARJAX_CASE(2)
    CHARJAX_CASE(3)
    CHARJAX_CASE(4)
    CHARJAX_CASE(5)
#undef CHARJAX_CASE
    default:
      break;
  }
}

inline constexpr int round_up(int n, int multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace charjax
