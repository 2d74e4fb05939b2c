// The backward pass: computes dz step by step, and weight gradients per block of steps while its dz is in the cache.
#pragma once

#include <vector>

#include "packing.h"
#include "scratch.h"
#include "thread_team.h"

namespace charjax {

constexpr int BLOCK = 256;  // rows of dz (steps x sequences) per matrix product for the weight gradients

template <class E>
struct Backward {
  static constexpr int group = GROUP<E>;
  static constexpr bool two_layouts = group > 1;  // dz is stored twice, as a left and as a right operand
  Sizes n;
  const E* x;
  const int32_t* ids;
  const float *w_ih, *w_hh, *c0, *h0;
  const E *y, *saved_c, *saved_gates, *dy;
  const float *dc_last, *dh_last;
  E* dx;  // [B, T, D], or null for ids
  float *dw_ih, *dw_hh, *dbias, *dc0, *dh0;
  Scratch scratch;
  E *packed_ih, *packed_hh;

  // The workspace for one part of the rows.
  struct Workspace {
    float *dc, *dh;          // [rows][padded], [rows][hidden_outputs()]
    E *dz, *dz_pairs;        // [panel][k][TILE] and [panel][k / 2][TILE][2]; k runs over the block's steps and rows
    E* initial;              // [rows][H]: h0
    E *x, *h;                // [m / ROWS][k / GROUP][ROWS][GROUP]: transposed inputs and hidden states of the block
    float *sum_ih, *sum_hh;  // [panel][m][TILE]; with ids, sum_ih is [m][panel][TILE]
    float* sum_bias;         // [panel][TILE]
  };
  std::vector<Workspace> workspaces;

  int hidden_outputs() const { return round_up(n.H, TILE); }
  int inputs() const { return n.one_hot ? n.D : round_up(n.D, ROWS); }
  int rows_of(int part, int parts) const { return part_begin(n.B, parts, part + 1) - part_begin(n.B, parts, part); }
  int padded_rows(int rows) const { return round_up(rows, group); }
  int steps_per_block(int rows) const { return std::max(1, std::min(n.T, BLOCK / padded_rows(rows))); }
  // There are two more rows than are used, because panels a power of two apart would map to the same cache sets.
  size_t block(int rows) const { return static_cast<size_t>(steps_per_block(rows)) * padded_rows(rows) + 2; }

  void allocate(int parts) {
    const size_t gates = 4 * static_cast<size_t>(n.padded());
    packed_hh = scratch.allocate<E>(gates * hidden_outputs());
    packed_ih = n.one_hot ? nullptr : scratch.allocate<E>(gates * round_up(n.D, TILE));
    for (int part = 0; part < parts; ++part) {
      const int rows = rows_of(part, parts);
      const size_t k = block(rows);
      Workspace o;
      o.dc = scratch.allocate<float>(static_cast<size_t>(rows) * n.padded(), true);
      o.dh = scratch.allocate<float>(static_cast<size_t>(rows) * hidden_outputs(), true);
      o.dz = scratch.allocate<E>(k * gates, true);
      o.dz_pairs = two_layouts ? scratch.allocate<E>(k * gates, true) : o.dz;
      o.initial = scratch.allocate<E>(static_cast<size_t>(rows) * n.H);
      o.x = n.one_hot ? nullptr : scratch.allocate<E>(k * inputs(), true);
      o.h = scratch.allocate<E>(k * round_up(n.H, ROWS), true);
      o.sum_ih = scratch.allocate<float>(gates * inputs(), true);
      o.sum_hh = scratch.allocate<float>(gates * round_up(n.H, ROWS), true);
      o.sum_bias = scratch.allocate<float>(gates, true);
      workspaces.push_back(o);
    }
  }

  void pack() {
    pack_transposed<E>(w_hh, n.H, n, packed_hh);
    if (!n.one_hot) pack_transposed<E>(w_ih, n.D, n, packed_ih);
  }

  void run(int part, int parts) {
    const int first = part_begin(n.B, parts, part), rows = rows_of(part, parts);
    const Workspace& o = workspaces[part];
    for (int r = 0; r < rows; ++r) {
      const size_t at = static_cast<size_t>(first + r) * n.H;
      std::memcpy(o.dc + static_cast<size_t>(r) * n.padded(), dc_last + at, n.H * sizeof(float));
      std::memcpy(o.dh + static_cast<size_t>(r) * hidden_outputs(), dh_last + at, n.H * sizeof(float));
    }
    const int steps = steps_per_block(rows);
    for (int end = n.T; end > 0; end -= steps) {
      const int begin = std::max(0, end - steps);
      for (int t = end - 1; t >= begin; --t) {
        const int k = (t - begin) * padded_rows(rows);
        differentiate_gates(o, first, rows, t, k);
        for (int q = 0; q * TILE < n.H; ++q) for_tiles(rows, Hidden{*this, o, k, q});
        if (!n.one_hot)
          for (int q = 0; q * TILE < n.D; ++q) for_tiles(rows, Inputs{*this, o, first, t, k, q});
      }
      add_weight_gradients(o, first, rows, begin, end);
    }
    for (int r = 0; r < rows; ++r) {
      const size_t at = static_cast<size_t>(first + r) * n.H;
      std::memcpy(dc0 + at, o.dc + static_cast<size_t>(r) * n.padded(), n.H * sizeof(float));
      std::memcpy(dh0 + at, o.dh + static_cast<size_t>(r) * hidden_outputs(), n.H * sizeof(float));
    }
  }

  struct Dz {
    Vec v[4];
  };

  // Returns the dz (pre-activation gradient) of one panel and propagates dc to the preceding step.
  CHARJAX_INLINE Dz differentiate(const Workspace& o, size_t row, int r, int t, int p) {
    const int padded = n.padded(), units = n.units(p);
    const size_t at = static_cast<size_t>(t) * n.B + row;
    const E* gates = saved_gates + at * 4 * padded + p * TILE;
    const Vec i = load_as_float(gates), f = load_as_float(gates + W), g = load_as_float(gates + 2 * W),
              out = load_as_float(gates + 3 * W);
    const Vec c = load_as_float(saved_c + at * padded + p * W);
    const Vec before =
        t > 0 ? load_as_float(saved_c + (at - n.B) * padded + p * W) : load_some(c0 + row * n.H + p * W, units);
    const Vec dh = load(o.dh + static_cast<size_t>(r) * hidden_outputs() + p * W) +
                   load_some(dy + (row * n.T + t) * n.H + p * W, units);
    float* state = o.dc + static_cast<size_t>(r) * padded + p * W;
    const Vec tanh_c = tanh(c);
    const Vec dc = load(state) + dh * out * (1.0f - tanh_c * tanh_c);
    store(state, dc * f);
    return {{dc * g * i * (1.0f - i), dc * before * f * (1.0f - f), dc * i * (1.0f - g * g),
             dh * tanh_c * out * (1.0f - out)}};
  }

  // Goes row by row, so that the saved arrays are read in memory order.
  void differentiate_gates(const Workspace& o, int first, int rows, int t, int k) {
    const size_t stride = block_of(o) * TILE;
    for (int r = 0; r < rows; r += group) {
      const bool both = r + group <= rows;
      E* to = o.dz + static_cast<size_t>(k + r) * TILE;
      E* to_pairs = o.dz_pairs + static_cast<size_t>(k + r) * TILE;
      for (int p = 0; p < n.panels(); ++p, to += stride, to_pairs += stride) {
        const Dz even = differentiate(o, first + r, r, t, p);
        store_dz(o, even, first + r, t, p, to);
        if constexpr (two_layouts) {
          Dz odd = {};
          if (both) {
            odd = differentiate(o, first + r + 1, r + 1, t, p);
            store_dz(o, odd, first + r + 1, t, p, to + TILE);
          }
          for (int gate = 0; gate < 4; ++gate) store_pairs(to_pairs + gate * 2 * W, even.v[gate], odd.v[gate]);
        }
      }
    }
  }

  // Stores the dz of one row and panel, and adds it to the gradients of the bias and of the row of w_ih for the id.
  CHARJAX_INLINE void store_dz(const Workspace& o, const Dz& dz, size_t row, int t, int p, E* to) {
    const int32_t id = n.one_hot ? ids[row * n.T + t] : -1;
    float* chosen = id >= 0 && id < n.D ? o.sum_ih + (static_cast<size_t>(id) * n.panels() + p) * TILE : nullptr;
    float* bias = o.sum_bias + p * TILE;
    for (int gate = 0; gate < 4; ++gate, bias += W) {
      store_as(to + gate * W, dz.v[gate]);
      store(bias, load(bias) + dz.v[gate]);
      if (chosen != nullptr) store(chosen + gate * W, load(chosen + gate * W) + dz.v[gate]);
    }
  }

  size_t block_of(const Workspace& o) const {
    return block(rows_of(static_cast<int>(&o - workspaces.data()), static_cast<int>(workspaces.size())));
  }

  // Multiplies R rows of dz by TILE columns of transposed weights.
  template <int R>
  CHARJAX_INLINE Tile<R> times(const Workspace& o, int k, const E* matrix) {
    Tile<R> sums = {};
    const size_t panel = block_of(o) * TILE;
    const E* dz = o.dz + static_cast<size_t>(k) * TILE;
    for (int p = 0; p < n.panels(); ++p) {
      multiply<E, R>(sums, dz, TILE, group, matrix, TILE / group);
      dz += panel;
      matrix += TILE * TILE;
    }
    return sums;
  }

  struct Hidden {
    Backward& b;
    const Workspace& o;
    int k, q;
    template <int R>
    __attribute__((noinline)) void run(int r0) const {
      const Tile<R> dh = b.times<R>(o, k + r0, b.packed_hh + static_cast<size_t>(q) * 4 * b.n.padded() * TILE);
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < 4; ++j)
          store(o.dh + static_cast<size_t>(r0 + r) * b.hidden_outputs() + q * TILE + j * W, dh.v[r][j]);
    }
  };

  struct Inputs {
    Backward& b;
    const Workspace& o;
    int first, t, k, q;
    template <int R>
    __attribute__((noinline)) void run(int r0) const {
      const Tile<R> dx = b.times<R>(o, k + r0, b.packed_ih + static_cast<size_t>(q) * 4 * b.n.padded() * TILE);
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < 4; ++j) {
          const int column = q * TILE + j * W, some = std::min(W, b.n.D - column);
          E* to = b.dx + (static_cast<size_t>(first + r0 + r) * b.n.T + t) * b.n.D + column;
          if (some > 0) store_some(to, dx.v[r][j], some);
        }
    }
  };

  // Transposes the rows [..., width] of a block's steps -> [m / ROWS][k / GROUP][ROWS][GROUP].
  template <class Row>
  void transpose(E* out, int width, int rows, int steps, size_t stride, Row row_of) {
    for (int s = 0; s < steps; ++s)
      for (int r = 0; r < rows; ++r) {
        const size_t k = static_cast<size_t>(s) * padded_rows(rows) + r;
        const E* from = row_of(s, r);
        E* to = out + k / group * group * ROWS + k % group;
        int m = 0;
        for (; m + ROWS <= width; m += ROWS, to += stride * ROWS)
          for (int j = 0; j < ROWS; ++j) to[j * group] = from[m + j];
        for (int j = 0; m + j < width; ++j) to[j * group] = from[m + j];
      }
  }

  void add_weight_gradients(const Workspace& o, int first, int rows, int begin, int end) {
    const int steps = end - begin, groups = steps * padded_rows(rows) / group;
    const size_t stride = block_of(o);
    if (begin == 0)
      for (size_t at = 0; at < static_cast<size_t>(rows) * n.H; ++at)
        o.initial[at] = narrow<E>(h0[static_cast<size_t>(first) * n.H + at]);
    transpose(o.h, n.H, rows, steps, stride, [&](int s, int r) {
      return begin + s == 0 ? o.initial + static_cast<size_t>(r) * n.H
                            : y + (static_cast<size_t>(first + r) * n.T + begin + s - 1) * n.H;
    });
    if (!n.one_hot)
      transpose(o.x, n.D, rows, steps, stride,
                [&](int s, int r) { return x + (static_cast<size_t>(first + r) * n.T + begin + s) * n.D; });
    for (int p = 0; p < n.panels(); ++p) {
      const E* dz = o.dz_pairs + p * stride * TILE;
      add_products(o.h, n.H, dz, groups, stride, o.sum_hh, p);
      if (!n.one_hot) add_products(o.x, n.D, dz, groups, stride, o.sum_ih, p);
    }
  }

  __attribute__((noinline)) void add_products(const E* left, int width, const E* dz, int groups, size_t stride,
                                              float* sums, int p) {
    const int padded = round_up(width, ROWS);
    for (int m = 0; m < padded; m += ROWS) {
      float* at = sums + (static_cast<size_t>(p) * padded + m) * TILE;
      Tile<ROWS> tile;
      for (int r = 0; r < ROWS; ++r)
        for (int j = 0; j < 4; ++j) tile.v[r][j] = load(at + r * TILE + j * W);
      multiply<E, ROWS>(tile, left + m * stride, group, ROWS * group, dz, groups);
      for (int r = 0; r < ROWS; ++r)
        for (int j = 0; j < 4; ++j) store(at + r * TILE + j * W, tile.v[r][j]);
    }
  }

  // Sums over the parts in order, and stores the result in the layout of the weights.
  void finish() {
    const int panels = n.panels();
    for (int m = 0; m < n.D; ++m)
      unpack(dw_ih + static_cast<size_t>(m) * 4 * n.H, &Workspace::sum_ih, [&](int p) {
        return n.one_hot ? (static_cast<size_t>(m) * panels + p) * TILE
                         : (static_cast<size_t>(p) * inputs() + m) * TILE;
      });
    for (int m = 0; m < n.H; ++m)
      unpack(dw_hh + static_cast<size_t>(m) * 4 * n.H, &Workspace::sum_hh,
             [&](int p) { return (static_cast<size_t>(p) * round_up(n.H, ROWS) + m) * TILE; });
    unpack(dbias, &Workspace::sum_bias, [&](int p) { return static_cast<size_t>(p) * TILE; });
  }

  template <class At>
  void unpack(float* to, float* Workspace::* sums, At at) {
    for (int p = 0; p < n.panels(); ++p)
      for (int gate = 0; gate < 4; ++gate) {
        Vec sum = Vec{};
        for (const Workspace& o : workspaces) sum += load(o.*sums + at(p) + gate * W);
        store_some(to + gate * n.H + p * W, sum, n.units(p));
      }
  }
};

}  // namespace charjax
