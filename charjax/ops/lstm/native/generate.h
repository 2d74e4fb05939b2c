// Generation: a stack of layers, its head and the choice of a character, step by step, as one call for many steps.
//
// Each step's weights are read once, in the order in which they lie, whatever the number of texts; the operands of a
// layer, what comes from below and its own state, lie side by side, so that one sum runs over both. Every sum is added
// up in the same order for one text as for a thousand: a text does not depend on those beside it.
#pragma once

#include "choice.h"
#include "layer.h"
#include "team.h"

namespace charjax {

// Eight bits to a weight, with a scale for each column; hidden states, from -1 to 1, are stored as round(127 h) + 128.
using u8 = uint8_t;
template <>
inline constexpr int PAIR<u8> = 4;
template <class E>
constexpr bool SCALED = false;
template <>
inline constexpr bool SCALED<u8> = true;

// What multiplies with an operand: signed bytes with unsigned ones.
template <class E>
struct WeightOf {
  using type = E;
};
template <>
struct WeightOf<u8> {
  using type = int8_t;
};
template <class E>
using Weight = typename WeightOf<E>::type;

template <class E>
CHARJAX_INLINE void store_state(E* to, Vec h) {
  store_as(to, h);
}

#if defined(CHARJAX_INT8)
template <>
CHARJAX_INLINE void store_state<u8>(u8* to, Vec h) {
  const __m512i q = _mm512_cvtps_epi32(reinterpret_cast<__m512>(h * 127.0f + 128.0f));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(_mm512_max_epi32(q, _mm512_setzero_si512())));
}

// Sums of whole numbers, held as the bits of a tile's vectors.
template <int R>
struct Multiply<u8, R> {
  // The intrinsic's change of type makes GCC 12 keep every sum in memory.
  static CHARJAX_INLINE Vec add(Vec sum, __m512i x, __m512i y) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
    return sum;
  }
  static CHARJAX_INLINE void run(Tile<R>& tile, const u8* a, ptrdiff_t row_stride, int step, const int8_t* b,
                                 int groups) {
    for (int k = 0; k < groups; ++k) {
      const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 4 * W), b2 = _mm512_loadu_si512(b + 8 * W),
                    b3 = _mm512_loadu_si512(b + 12 * W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        int32_t four;
        std::memcpy(&four, a + r * row_stride, 4);
        const __m512i x = _mm512_set1_epi32(four);
        tile.v[r][0] = add(tile.v[r][0], x, b0);
        tile.v[r][1] = add(tile.v[r][1], x, b1);
        tile.v[r][2] = add(tile.v[r][2], x, b2);
        tile.v[r][3] = add(tile.v[r][3], x, b3);
      }
      a += step;
      b += 4 * TILE;
    }
  }
};
CHARJAX_INLINE Vec to_float(Vec whole) {
  return reinterpret_cast<Vec>(_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(whole)));
}
#endif

template <class E>
struct Generate {
  int B, T, L, H, V;
  const Weight<E>* kernels;  // per layer, then the head, [panel][k / PAIR][TILE][PAIR]; k over what comes in and h
  const float* start;    // layer 0's rows with its bias [V + 1][P][TILE], biases [L - 1][P][TILE], head's [VP][TILE]
  const float* scale;    // [L][P][TILE] and [VP][TILE] for bytes
  const float *c0, *h0;  // [L, B, H]
  const int32_t* given;  // [B, T]: an id to take, DRAW, or REST for a text that stands still
  const float* noise;    // [T, B, V], or null
  const float *temperature, *top_p, *min_p;
  const int32_t* top_k;    // all [B]
  int32_t* ids;            // [B, T]
  float *c_last, *h_last;  // [L, B, H]

  static constexpr int32_t DRAW = -1, REST = -2;
  static constexpr int pair = PAIR<E>;
  Scratch scratch;
  float *c, *h, *logits;  // [L][B][padded], and [B][columns()]
  E* operands;            // [2][L][B][2 padded]: from below and own, for this step and the next
  E* top;                 // [B][padded]
  bool resting;

  int panels() const { return (H + W - 1) / W; }
  int padded() const { return panels() * W; }
  int head_panels() const { return (V + TILE - 1) / TILE; }
  int columns() const { return head_panels() * TILE; }
  size_t layer_size(int l) const { return static_cast<size_t>(padded()) * (l ? 2 : 1) * panels() * TILE; }
  const Weight<E>* kernel(int l) const { return kernels + (l ? layer_size(0) + (l - 1) * layer_size(1) : 0); }
  const float* bias(int l) const { return start + static_cast<size_t>(V + l) * panels() * TILE; }  // of l = 1 and above
  E* operand(int turn, int l, int b) const {
    return operands + ((static_cast<size_t>(turn) * L + l) * B + b) * 2 * padded();
  }

  bool take() {
    const size_t states = static_cast<size_t>(L) * B * padded();
    c = scratch.take<float>(states, true), h = scratch.take<float>(states, true);
    logits = scratch.take<float>(static_cast<size_t>(B) * columns());
    operands = scratch.take<E>(4 * states, true), top = scratch.take<E>(static_cast<size_t>(B) * padded(), true);
    return scratch.ok();
  }

  // A row's operand and state from its h; what a panel's units beyond H hold is multiplied with zeros.
  void begin(int first, int rows) {
    resting = false;
    for (int l = 0; l < L; ++l)
      for (int b = first; b < first + rows; ++b) {
        const size_t from = (static_cast<size_t>(l) * B + b) * H;
        float *c_row = state(c, l, b), *h_row = state(h, l, b);
        std::memcpy(c_row, c0 + from, H * sizeof(float));
        std::memcpy(h_row, h0 + from, H * sizeof(float));
        for (int p = 0; p < panels(); ++p) keep(load(h_row + p * W), 0, l, b, p);
      }
  }
  float* state(float* of, int l, int b) const { return of + (static_cast<size_t>(l) * B + b) * padded(); }

  // Puts h where it is multiplied: in the layer's own half for `turn`, and above the last layer for the head.
  CHARJAX_INLINE void keep(Vec value, int turn, int l, int b, int p) const {
    store_state<E>(operand(turn, l, b) + padded() + p * W, value);
    if (l == L - 1) store_state<E>(top + static_cast<size_t>(b) * padded() + p * W, value);
  }

  void finish(int first, int rows) {
    for (int l = 0; l < L; ++l)
      for (int b = first; b < first + rows; ++b) {
        const size_t to = (static_cast<size_t>(l) * B + b) * H;
        std::memcpy(c_last + to, state(c, l, b), H * sizeof(float));
        std::memcpy(h_last + to, state(h, l, b), H * sizeof(float));
      }
  }

  bool any(int t, int first, int rows, bool (*is)(int32_t)) const {
    for (int b = first; b < first + rows; ++b)
      if (is(given[static_cast<size_t>(b) * T + t])) return true;
    return false;
  }

  // All steps for some rows; `each(pieces, piece)` calls piece(n) for every n.
  template <class Each>
  void run(int first, int rows, const Each& each) {
    Choice choice(V);
    begin(first, rows);
    int turn = 0;
    for (int t = 0; t < T; ++t) {
      if (!any(t, first, rows, [](int32_t id) { return id != REST; })) {
        for (int b = first; b < first + rows; ++b) ids[static_cast<size_t>(b) * T + t] = REST;
        continue;
      }
      if (any(t, first, rows, [](int32_t id) { return id == DRAW; }))
        each(head_panels(), [&](int q) { for_tiles(rows, Head{*this, first, q}); });
      for (int b = first; b < first + rows; ++b) {
        const size_t at = static_cast<size_t>(b) * T + t;
        ids[at] = given[at];
        if (given[at] == DRAW)
          ids[at] = choice.choose(logits + static_cast<size_t>(b) * columns(),
                                  noise == nullptr ? nullptr : noise + (static_cast<size_t>(t) * B + b) * V,
                                  temperature[b], {top_k[b], top_p[b], min_p[b]});
      }
      for (int l = 0; l < L; ++l) each(panels(), [&](int p) { for_tiles(rows, Step{*this, first, t, turn, l, p}); });
      turn = 1 - turn;
    }
    finish(first, rows);
  }

  struct Head {
    const Generate& g;
    int first, q;
    template <int R>
    __attribute__((noinline)) void run(int r0) const {
      const int groups = g.padded() / pair;
      const float *bias = g.bias(g.L) + q * TILE, *scale = g.scale + (static_cast<size_t>(g.L) * g.panels() + q) * TILE;
      const Tile<R> z =
          times<R>(g.top + static_cast<size_t>(first + r0) * g.padded(), g.padded(),
                   g.kernel(g.L) + static_cast<size_t>(q) * g.padded() * TILE, groups, [&](int) { return bias; });
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
          store(g.logits + static_cast<size_t>(first + r0 + r) * g.columns() + q * TILE + j * W,
                sum(z, r, j, scale, bias));
    }
  };

  struct Step {
    const Generate& g;
    int first, t, turn, l, p;
    template <int R>
    __attribute__((noinline)) void run(int r0) const {
      const int width = (l ? 2 : 1) * g.padded();
      const E* a = g.operand(turn, l, first + r0) + (l ? 0 : g.padded());
      const float* scale = g.scale + (static_cast<size_t>(l) * g.panels() + p) * TILE;
      const auto from = [&](int r) {
        const int32_t id = g.ids[static_cast<size_t>(first + r0 + r) * g.T + t];
        const size_t row = l ? g.V + l : id >= 0 && id < g.V ? id : g.V;
        return g.start + (row * g.panels() + p) * TILE;
      };
      const Tile<R> z =
          times<R>(a, 2 * g.padded(), g.kernel(l) + static_cast<size_t>(p) * width * TILE, width / pair, from);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int b = first + r0 + r;
        float *c_row = g.state(g.c, l, b) + p * W, *h_row = g.state(g.h, l, b) + p * W;
        const bool rests = g.given[static_cast<size_t>(b) * g.T + t] == REST;
        const Vec before = load(c_row);
        const float* offset = from(r);
        const Vec i = sigmoid(sum(z, r, 0, scale, offset)), forget = sigmoid(sum(z, r, 1, scale, offset)),
                  in = tanh(sum(z, r, 2, scale, offset)), out = sigmoid(sum(z, r, 3, scale, offset));
        const Vec c = rests ? before : forget * before + i * in;
        const Vec h = rests ? load(h_row) : out * tanh(c);
        store(c_row, c);
        store(h_row, h);
        g.keep(h, 1 - turn, l, b, p);
        if (l + 1 < g.L) store_state<E>(g.operand(turn, l + 1, b) + p * W, h);
      }
    }
  };

  // R rows times a panel of TILE columns; `from(r)` gives what row r's sums start from, unless they are of bytes.
  template <int R, class From>
  static CHARJAX_INLINE Tile<R> times(const E* a, ptrdiff_t stride, const Weight<E>* b, int groups, From from) {
    Tile<R> z = {};
    if constexpr (!SCALED<E>) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) z.v[r][j] = load(from(r) + j * W);
    }
    Multiply<E, R>::run(z, a, stride, pair, b, groups);
    return z;
  }

  // A vector of sums from what `times` gave. In its own loop after the product it would put the tile into memory.
  template <int R>
  static CHARJAX_INLINE Vec sum(const Tile<R>& z, int r, int j, const float* scale, const float* from) {
    if constexpr (SCALED<E>) {
      return load(from + j * W) + load(scale + j * W) * to_float(z.v[r][j]);
    } else {
      return z.v[r][j];
    }
  }
};

}  // namespace charjax
