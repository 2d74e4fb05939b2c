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
#if defined(__AVX512VNNI__)
using Quantized = uint8_t;
template <>
inline constexpr int PAIR<Quantized> = 4;
#else
// In the 16 bits that they are multiplied in.
using Quantized = int16_t;
template <>
inline constexpr int PAIR<Quantized> = 2;
#endif
template <class E>
constexpr bool SCALED = false;
template <>
inline constexpr bool SCALED<Quantized> = true;

// What multiplies with an operand.
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

// Sums of whole numbers, held as the bits of a tile's vectors. A NaN becomes 0, far below -1.
#if defined(__AVX512VNNI__)
template <>
CHARJAX_INLINE void store_state<Quantized>(Quantized* to, Vec h) {
  const __m512i q = _mm512_cvtps_epi32(reinterpret_cast<__m512>(h * 127.0f + 128.0f));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(_mm512_max_epi32(q, _mm512_setzero_si512())));
}
template <>
struct Terms<Quantized> {
  static CHARJAX_INLINE __m512i weights(const int8_t* p) { return _mm512_loadu_si512(p); }
  static CHARJAX_INLINE __m512i spread(const uint8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  // The intrinsic's change of type makes GCC 12 keep every sum in memory.
  static CHARJAX_INLINE Vec add(Vec sum, __m512i x, __m512i w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
  }
};
CHARJAX_INLINE Vec to_float(Vec whole) {
  return reinterpret_cast<Vec>(_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(whole)));
}
#elif defined(__AVX2__)
template <>
CHARJAX_INLINE void store_state<Quantized>(Quantized* to, Vec h) {
  const __m256i q = _mm256_cvtps_epi32(reinterpret_cast<__m256>(h * 127.0f + 128.0f));
  const __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_max_epi16(narrow, _mm_setzero_si128()));
}
template <>
struct Terms<Quantized> {
  static CHARJAX_INLINE __m256i weights(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static CHARJAX_INLINE __m256i spread(const int16_t* p) {
    int32_t two;
    std::memcpy(&two, p, 4);
    return _mm256_set1_epi32(two);
  }
  static CHARJAX_INLINE Vec add(Vec sum, __m256i x, __m256i w) {
    return reinterpret_cast<Vec>(_mm256_add_epi32(reinterpret_cast<__m256i>(sum), _mm256_madd_epi16(x, w)));
  }
};
CHARJAX_INLINE Vec to_float(Vec whole) {
  return reinterpret_cast<Vec>(_mm256_cvtepi32_ps(reinterpret_cast<__m256i>(whole)));
}
// Sums, weights and products fill the registers: operands are spread anew for each vector of weights, and what GCC 12
// would keep in memory, the sums, is held by hand.
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
      const __m256i w = Terms<Quantized>::weights(b + j * 2 * W);
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
struct Terms<Quantized> {
  typedef int32_t Whole __attribute__((vector_size(4 * W), aligned(4), may_alias));
  struct Pairs {
    Whole even, odd;
  };
  static CHARJAX_INLINE Pairs weights(const int8_t* p) {
    Pairs pairs;
    for (int lane = 0; lane < W; ++lane) pairs.even[lane] = p[2 * lane], pairs.odd[lane] = p[2 * lane + 1];
    return pairs;
  }
  static CHARJAX_INLINE Pairs spread(const int16_t* p) { return {p[0] - Whole{}, p[1] - Whole{}}; }
  static CHARJAX_INLINE Vec add(Vec sum, Pairs x, Pairs w) {
    return reinterpret_cast<Vec>(reinterpret_cast<Whole>(sum) + x.even * w.even + x.odd * w.odd);
  }
};
CHARJAX_INLINE Vec to_float(Vec whole) {
  return __builtin_convertvector(reinterpret_cast<Terms<Quantized>::Whole>(whole), Vec);
}
#endif

template <class E>
struct Generate {
  int B, T, L, H, V;
  const Weight<E>* kernels;  // per layer, then the head, [panel][k / PAIR][TILE][PAIR]; k over what comes in and h
  const float* start;    // layer 0's rows with its bias [V + 1][P][TILE], biases [L - 1][P][TILE], head's [VP][TILE]
  const float* scale;    // [L][P][TILE] and [VP][TILE] for bytes
  const float *c0, *h0;  // [L, B, H]
  // [B, T]: an id to take, DRAW, REST for a text that stands still, or RESET - id to take in a text that begins anew
  const int32_t* given;
  const uint32_t* keys;  // [B, 2]; the noise of step t is that of a key with position + t folded in
  uint32_t position;
  const float *temperature, *top_p, *min_p;  // [B]
  const int32_t* top_k;                      // [B]
  int32_t* ids;                              // [B, T]
  float* all_logits;                         // [B, T, V], what was said of each character before it was read; or null
  float *c_last, *h_last;                    // [L, B, H]

  static constexpr int32_t DRAW = -1, REST = -2, RESET = -3;
  static constexpr int pair = PAIR<E>;
  static constexpr int CHOICE_BYTES = 64;  // that are read while one logit is given its noise
  Scratch scratch;
  float *c, *h;            // [L][B][padded]
  float *logits, *values;  // [B][columns()]
  E* operands;             // [2][L][B][2 padded]: from below and own, for this step and the next
  E* top;                  // [B][padded]
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
    values = scratch.take<float>(static_cast<size_t>(B) * columns());
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

  // Puts a row before its first character.
  void empty(int turn, int b) const {
    for (int l = 0; l < L; ++l) {
      std::fill_n(state(c, l, b), padded(), 0.0f);
      std::fill_n(state(h, l, b), padded(), 0.0f);
      for (int p = 0; p < panels(); ++p) keep(Vec{}, turn, l, b, p);
    }
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

  // Takes what is given for a row, or draws it.
  void choose_for(int b, int t) const {
    const size_t at = static_cast<size_t>(b) * T + t, row = static_cast<size_t>(b) * columns();
    const Choice how{temperature[b], top_k[b], top_p[b], min_p[b]};
    const Key key{keys[2 * b], keys[2 * b + 1]};
    if (all_logits != nullptr) std::memcpy(all_logits + at * V, logits + row, V * sizeof(float));
    ids[at] = given[at] == DRAW    ? choose(logits + row, values + row, V, fold_in(key, position + t), how)
              : given[at] <= RESET ? RESET - given[at]
                                   : given[at];
  }

  // All steps for some rows; `each(pieces, bytes, piece)` calls piece(n) for every n, which reads so many bytes of
  // weights, or works as long.
  template <class Each>
  void run(int first, int rows, const Each& each) {
    begin(first, rows);
    const int tiles = (rows + ROWS - 1) / ROWS, layer_bytes = padded() * TILE * static_cast<int>(sizeof(Weight<E>));
    int turn = 0;
    for (int t = 0; t < T; ++t) {
      if (!any(t, first, rows, [](int32_t id) { return id != REST; })) {
        for (int b = first; b < first + rows; ++b) ids[static_cast<size_t>(b) * T + t] = REST;
        continue;
      }
      for (int b = first; b < first + rows; ++b)
        if (given[static_cast<size_t>(b) * T + t] <= RESET) empty(turn, b);
      const bool draws = any(t, first, rows, [](int32_t id) { return id == DRAW; });
      if (draws || all_logits != nullptr) share(each, rows, head_panels(), tiles * layer_bytes, Head{*this, first, 0});
      each(rows, draws ? columns() * CHOICE_BYTES : 1, [&](int r) { choose_for(first + r, t); });
      for (int l = 0; l < L; ++l)
        share(each, rows, panels(), tiles * layer_bytes * (l ? 2 : 1), Step{*this, first, 0, t, turn, l});
      turn = 1 - turn;
    }
    finish(first, rows);
  }

  // Shares the panels of a product out; those of a single text in twos.
  template <class Each, class Product>
  static void share(const Each& each, int rows, int panels, int bytes, const Product& product) {
    if (rows > 1)
      return each(panels, bytes, [&](int p) {
        Product one = product;
        one.p = p;
        for_tiles(rows, one);
      });
    each((panels + 1) / 2, 2 * bytes, [&](int two) {
      Product one = product;
      one.p = 2 * two;
      if (one.p + 1 < panels) {
        one.run_two();
      } else {
        one.template run<1>(0);
      }
    });
  }

  struct Head {
    const Generate& g;
    int first, p;
    const E* operand(int row) const { return g.top + static_cast<size_t>(first + row) * g.padded(); }
    const Weight<E>* kernel() const { return g.kernel(g.L) + static_cast<size_t>(p) * g.padded() * TILE; }
    const float* bias() const { return g.bias(g.L) + p * TILE; }
    int groups() const { return g.padded() / pair; }

    template <int R>
    __attribute__((noinline)) void run(int r0) const {
      const Tile<R> z = times<R>(operand(r0), g.padded(), kernel(), groups(), [&](int) { return bias(); });
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) keep(z, r, r0 + r, p);
    }
    __attribute__((noinline)) void run_two() const {
      const Tile<2> z = times_two(operand(0), kernel(), static_cast<ptrdiff_t>(g.padded()) * TILE, groups(), bias());
      keep(z, 0, 0, p);
      keep(z, 1, 0, p + 1);
    }
    template <int R>
    CHARJAX_INLINE void keep(const Tile<R>& z, int of, int row, int p) const {
      const float *bias = g.bias(g.L) + p * TILE, *scale = g.scale + (static_cast<size_t>(g.L) * g.panels() + p) * TILE;
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        store(g.logits + static_cast<size_t>(first + row) * g.columns() + p * TILE + j * W, sum(z, of, j, scale, bias));
    }
  };

  struct Step {
    const Generate& g;
    int first, p, t, turn, l;
    int width() const { return (l ? 2 : 1) * g.padded(); }
    const E* operand(int row) const { return g.operand(turn, l, first + row) + (l ? 0 : g.padded()); }
    const Weight<E>* kernel() const { return g.kernel(l) + static_cast<size_t>(p) * width() * TILE; }
    CHARJAX_INLINE const float* from(int row, int p) const {
      const int32_t id = g.ids[static_cast<size_t>(first + row) * g.T + t];
      const size_t of = l ? g.V + l : id >= 0 && id < g.V ? id : g.V;
      return g.start + (of * g.panels() + p) * TILE;
    }

    template <int R>
    __attribute__((noinline)) void run(int r0) const {
      const Tile<R> z =
          times<R>(operand(r0), 2 * g.padded(), kernel(), width() / pair, [&](int r) { return from(r0 + r, p); });
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) apply_gates(z, r, r0 + r, p);
    }
    __attribute__((noinline)) void run_two() const {
      const Tile<2> z =
          times_two(operand(0), kernel(), static_cast<ptrdiff_t>(width()) * TILE, width() / pair, from(0, p));
      apply_gates(z, 0, 0, p);
      apply_gates(z, 1, 0, p + 1);
    }
    template <int R>
    CHARJAX_INLINE void apply_gates(const Tile<R>& z, int of, int row, int p) const {
      const int b = first + row;
      const float *scale = g.scale + (static_cast<size_t>(l) * g.panels() + p) * TILE, *offset = from(row, p);
      float *c_row = g.state(g.c, l, b) + p * W, *h_row = g.state(g.h, l, b) + p * W;
      const bool rests = g.given[static_cast<size_t>(b) * g.T + t] == REST;
      const Vec before = load(c_row);
      const Vec i = sigmoid(sum(z, of, 0, scale, offset)), forget = sigmoid(sum(z, of, 1, scale, offset)),
                in = tanh(sum(z, of, 2, scale, offset)), out = sigmoid(sum(z, of, 3, scale, offset));
      const Vec c = rests ? before : forget * before + i * in;
      const Vec h = rests ? load(h_row) : out * tanh(c);
      store(c_row, c);
      store(h_row, h);
      g.keep(h, 1 - turn, l, b, p);
      if (l + 1 < g.L) store_state<E>(g.operand(turn, l + 1, b) + p * W, h);
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
    multiply(z, a, stride, pair, b, groups);
    return z;
  }

  // A row times two panels, which start from what lies side by side.
  static CHARJAX_INLINE Tile<2> times_two(const E* a, const Weight<E>* b, ptrdiff_t panel_size, int groups,
                                          const float* from) {
    Tile<2> z = {};
    if constexpr (!SCALED<E>) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) z.v[j / 4][j % 4] = load(from + j * W);
    }
    multiply_by_panels<E, 2>(z, a, pair, b, panel_size, groups);
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
