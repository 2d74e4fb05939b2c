// Generation: a stack of layers, its head and the sampling of characters, many steps in one call.
//
// A step reads the weights once, in memory order, whatever the number of sequences. The operands of a layer (the output
// of the layer below and its own h) are adjacent in memory, so one sum runs over both. Every sum is accumulated in the
// same order for one sequence as for a thousand, so a sequence does not depend on the rest of the batch.
#pragma once

#include "int8.h"
#include "packing.h"
#include "sampling.h"
#include "scratch.h"
#include "thread_team.h"

namespace charjax {

template <class E>
struct Generate {
  int B, T, L, H, V;
  const Weight<E>* kernels;  // per layer, then the head: [panel][k / GROUP][TILE][GROUP]; k runs over inputs, then h
  const float* start;    // layer 0's w_ih rows plus bias [V + 1][P][TILE], biases [L - 1][P][TILE], head's [VP][TILE]
  const float* scale;    // for int8: [L][P][TILE] and [VP][TILE]
  const float *c0, *h0;  // [L, B, H]
  // [B, T]: an id to read, SAMPLE to sample one, SKIP to skip the step, or RESET - id to read id from a zero state
  const int32_t* given;
  const uint32_t* keys;  // [B, 2]; step t takes its noise from fold_in(key, position + t)
  uint32_t position;
  const float *temperature, *top_p, *min_p;  // [B]
  const int32_t* top_k;                      // [B]
  int32_t* ids;                              // [B, T]
  float* all_logits;                         // [B, T, V], the logits for each character before it is read; or null
  float *c_last, *h_last;                    // [L, B, H]

  static constexpr int32_t SAMPLE = -1, SKIP = -2, RESET = -3;
  static constexpr int group = GROUP<E>;
  static constexpr int SAMPLE_BYTES = 64;  // the cost of one logit's noise, in bytes read in the same time
  Scratch scratch;
  float *c, *h;            // [L][B][padded]
  float *logits, *values;  // [B][columns()]
  int filtered_width;      // V if any row uses top-k, top-p or min-p, else 0
  int* order;              // [B][filtered_width]
  float* scaled;           // [B][filtered_width]
  E* operands;             // [2][L][B][2 padded]: h of the layer below, then own h, for this step and the next
  E* top;                  // [B][padded]: the head's operand

  int panels() const { return (H + W - 1) / W; }
  int padded() const { return panels() * W; }
  int head_panels() const { return (V + TILE - 1) / TILE; }
  int columns() const { return head_panels() * TILE; }
  size_t layer_size(int l) const { return static_cast<size_t>(padded()) * (l ? 2 : 1) * panels() * TILE; }
  size_t kernel_at(int l) const { return l ? layer_size(0) + (l - 1) * layer_size(1) : 0; }
  size_t bias_at(int l) const { return static_cast<size_t>(V + l) * panels() * TILE; }  // of l = 1 and above
  size_t scale_at(int l) const { return static_cast<size_t>(l) * panels() * TILE; }
  const Weight<E>* kernel(int l) const { return kernels + kernel_at(l); }
  const float* bias(int l) const { return start + bias_at(l); }

  // The number of elements of `kernels`, `start` and `scale`, over all layers and the head.
  int64_t kernel_size() const { return kernel_at(L) + static_cast<size_t>(padded()) * columns(); }
  int64_t start_size() const { return bias_at(L) + columns(); }
  int64_t scale_size() const { return SCALED<E> ? scale_at(L) + columns() : 0; }

  E* operand(int turn, int l, int b) const {
    return operands + ((static_cast<size_t>(turn) * L + l) * B + b) * 2 * padded();
  }

  bool allocate() {
    const size_t states = static_cast<size_t>(L) * B * padded();
    c = scratch.allocate<float>(states, true), h = scratch.allocate<float>(states, true);
    logits = scratch.allocate<float>(static_cast<size_t>(B) * columns());
    values = scratch.allocate<float>(static_cast<size_t>(B) * columns());
    operands = scratch.allocate<E>(4 * states, true);
    top = scratch.allocate<E>(static_cast<size_t>(B) * padded(), true);
    filtered_width = 0;
    for (int b = 0; b < B; ++b)
      if (options(b).filters(V)) filtered_width = V;
    order = scratch.allocate<int>(static_cast<size_t>(B) * filtered_width);
    scaled = scratch.allocate<float>(static_cast<size_t>(B) * filtered_width);
    return scratch.ok();
  }

  SamplingOptions options(int b) const { return {temperature[b], top_k[b], top_p[b], min_p[b]}; }

  // Initializes the states and operands of the rows from c0 and h0; padded units have zero weights.
  void begin(int first, int rows) {
    for (int l = 0; l < L; ++l)
      for (int b = first; b < first + rows; ++b) {
        const size_t from = (static_cast<size_t>(l) * B + b) * H;
        float *c_row = state(c, l, b), *h_row = state(h, l, b);
        std::memcpy(c_row, c0 + from, H * sizeof(float));
        std::memcpy(h_row, h0 + from, H * sizeof(float));
        for (int p = 0; p < panels(); ++p) store_operand(load(h_row + p * W), 0, l, b, p);
      }
  }
  float* state(float* of, int l, int b) const { return of + (static_cast<size_t>(l) * B + b) * padded(); }

  // Stores h where the products read it: in the layer's own half for `turn` and, if it is the last layer, for the head.
  CHARJAX_INLINE void store_operand(Vec value, int turn, int l, int b, int p) const {
    store_state<E>(operand(turn, l, b) + padded() + p * W, value);
    if (l == L - 1) store_state<E>(top + static_cast<size_t>(b) * padded() + p * W, value);
  }

  // Resets a row to the zero state.
  void reset(int turn, int b) const {
    for (int l = 0; l < L; ++l) {
      std::fill_n(state(c, l, b), padded(), 0.0f);
      std::fill_n(state(h, l, b), padded(), 0.0f);
      for (int p = 0; p < panels(); ++p) store_operand(Vec{}, turn, l, b, p);
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

  // Sets the id of a row to the given one or a sampled one.
  void set_id(int b, int t) const {
    const size_t at = static_cast<size_t>(b) * T + t, row = static_cast<size_t>(b) * columns();
    const Key key{keys[2 * b], keys[2 * b + 1]};
    const size_t filtered = static_cast<size_t>(b) * filtered_width;
    const WorkSpace work{values + row, order + filtered, scaled + filtered};
    if (all_logits != nullptr) std::memcpy(all_logits + at * V, logits + row, V * sizeof(float));
    ids[at] = given[at] == SAMPLE  ? sample(logits + row, V, fold_in(key, position + t), options(b), work)
              : given[at] <= RESET ? RESET - given[at]
                                   : given[at];
  }

  // Runs all steps for some rows. `each(pieces, bytes, piece)` calls piece(n) for every n; `bytes` is the number of
  // bytes that one piece reads, or the equivalent amount of work.
  template <class Each>
  void run(int first, int rows, const Each& each) {
    begin(first, rows);
    const int64_t tiles = (rows + ROWS - 1) / ROWS;
    const int64_t layer_bytes = static_cast<int64_t>(padded()) * TILE * static_cast<int64_t>(sizeof(Weight<E>));
    int turn = 0;
    for (int t = 0; t < T; ++t) {
      if (!any(t, first, rows, [](int32_t id) { return id != SKIP; })) {
        for (int b = first; b < first + rows; ++b) ids[static_cast<size_t>(b) * T + t] = SKIP;
        continue;
      }
      for (int b = first; b < first + rows; ++b)
        if (given[static_cast<size_t>(b) * T + t] <= RESET) reset(turn, b);
      const bool samples = any(t, first, rows, [](int32_t id) { return id == SAMPLE; });
      if (samples || all_logits != nullptr)
        share(each, rows, head_panels(), tiles * layer_bytes, Head{*this, first, 0});
      each(rows, samples ? static_cast<int64_t>(columns()) * SAMPLE_BYTES : 1, [&](int r) { set_id(first + r, t); });
      for (int l = 0; l < L; ++l)
        share(each, rows, panels(), tiles * layer_bytes * (l ? 2 : 1), Step{*this, first, 0, t, turn, l});
      turn = 1 - turn;
    }
    finish(first, rows);
  }

  // Divides a product into panels or, for a single row, into pairs of panels.
  template <class Each, class Product>
  static void share(const Each& each, int rows, int panels, int64_t bytes, const Product& product) {
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
    int groups() const { return g.padded() / group; }

    template <int R>
    __attribute__((noinline)) void run(int r0) const {
      const Tile<R> z = times<R>(operand(r0), g.padded(), kernel(), groups(), [&](int) { return bias(); });
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) store_logits(z, r, r0 + r, p);
    }
    __attribute__((noinline)) void run_two() const {
      const Tile<2> z = times_two(operand(0), kernel(), static_cast<ptrdiff_t>(g.padded()) * TILE, groups(), bias());
      store_logits(z, 0, 0, p);
      store_logits(z, 1, 0, p + 1);
    }
    template <int R>
    CHARJAX_INLINE void store_logits(const Tile<R>& z, int of, int row, int p) const {
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
          times<R>(operand(r0), 2 * g.padded(), kernel(), width() / group, [&](int r) { return from(r0 + r, p); });
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) apply_gates(z, r, r0 + r, p);
    }
    __attribute__((noinline)) void run_two() const {
      const Tile<2> z =
          times_two(operand(0), kernel(), static_cast<ptrdiff_t>(width()) * TILE, width() / group, from(0, p));
      apply_gates(z, 0, 0, p);
      apply_gates(z, 1, 0, p + 1);
    }
    template <int R>
    CHARJAX_INLINE void apply_gates(const Tile<R>& z, int of, int row, int p) const {
      const int b = first + row;
      const float *scale = g.scale + (static_cast<size_t>(l) * g.panels() + p) * TILE, *offset = from(row, p);
      float *c_row = g.state(g.c, l, b) + p * W, *h_row = g.state(g.h, l, b) + p * W;
      const bool skip = g.given[static_cast<size_t>(b) * g.T + t] == SKIP;
      const Vec before = load(c_row);
      const Vec i = sigmoid(sum(z, of, 0, scale, offset)), forget = sigmoid(sum(z, of, 1, scale, offset)),
                in = tanh(sum(z, of, 2, scale, offset)), out = sigmoid(sum(z, of, 3, scale, offset));
      const Vec c = skip ? before : forget * before + i * in;
      const Vec h = skip ? load(h_row) : out * tanh(c);
      store(c_row, c);
      store(h_row, h);
      g.store_operand(h, 1 - turn, l, b, p);
      if (l + 1 < g.L) store_state<E>(g.operand(turn, l + 1, b) + p * W, h);
    }
  };

  // Multiplies R rows by a panel of TILE columns. from(r) points to the initial sums of row r; int8 sums start at zero.
  template <int R, class From>
  static CHARJAX_INLINE Tile<R> times(const E* a, ptrdiff_t stride, const Weight<E>* b, int groups, From from) {
    Tile<R> z = {};
    if constexpr (!SCALED<E>) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) z.v[r][j] = load(from(r) + j * W);
    }
    multiply(z, a, stride, group, b, groups);
    return z;
  }

  // Multiplies one row by two panels, whose initial values are adjacent.
  static CHARJAX_INLINE Tile<2> times_two(const E* a, const Weight<E>* b, ptrdiff_t panel_size, int groups,
                                          const float* from) {
    Tile<2> z = {};
    if constexpr (!SCALED<E>) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) z.v[j / 4][j % 4] = load(from + j * W);
    }
    multiply_by_panels<E, 2>(z, a, group, b, panel_size, groups);
    return z;
  }

  // Returns the final value of a vector of sums. A separate loop after the product would spill the tile to memory.
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
