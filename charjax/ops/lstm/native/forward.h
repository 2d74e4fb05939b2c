// The forward pass: each step computes the two products, the gates and the new state of a tile entirely in registers.
#pragma once

#include <utility>
#include <vector>

#include "packing.h"
#include "scratch.h"
#include "thread_team.h"

namespace charjax {

template <class E>
struct Forward {
  Sizes n;
  const E* x;          // [B, T, D], or
  const int32_t* ids;  // [B, T] instead
  const float *w_ih, *w_hh, *bias, *c0, *h0;
  E* y;                      // [B, T, H]
  float *c_last, *h_last;    // [B, H]
  E *saved_c, *saved_gates;  // [T, B, P * W] and [T, B, P * 4 * W] for the backward pass, or null
  Scratch scratch;
  E *packed_ih, *packed_hh;
  float* start;  // initial values of the sums: the bias [P][4][W] or, with ids, w_ih's rows plus the bias [D][P][4][W]

  void allocate(int parts) {
    const size_t gates = static_cast<size_t>(n.panels()) * TILE;
    packed_hh = scratch.allocate<E>(gates * round_up(n.H, GROUP<E>));
    packed_ih = n.one_hot ? nullptr : scratch.allocate<E>(gates * round_up(n.D, GROUP<E>));
    start = scratch.allocate<float>(gates * (n.one_hot ? n.D : 1));
    for (int part = 0; part < parts; ++part) {
      const size_t rows = part_begin(n.B, parts, part + 1) - part_begin(n.B, parts, part);
      workspaces.push_back({scratch.allocate<E>(rows * n.padded()), scratch.allocate<E>(rows * n.padded()),
                            scratch.allocate<float>(rows * n.padded()),
                            scratch.allocate<E>(rows * round_up(n.D, GROUP<E>))});
    }
  }

  void pack() {
    pack_by_gate<E>(w_hh, n.H, n, packed_hh);
    if (!n.one_hot) pack_by_gate<E>(w_ih, n.D, n, packed_ih);
    for (int row = 0; row < (n.one_hot ? n.D : 1); ++row)
      for (int p = 0; p < n.panels(); ++p)
        for (int gate = 0; gate < 4; ++gate) {
          const int column = gate * n.H + p * W;
          Vec value = load_some(bias + column, n.units(p));
          if (n.one_hot) {
            E rounded[W];
            store_as(rounded, load_some(w_ih + static_cast<size_t>(row) * 4 * n.H + column, n.units(p)));
            value += load_as_float(rounded);
          }
          store(start + (static_cast<size_t>(row) * n.panels() + p) * TILE + gate * W, value);
        }
  }

  // The workspace for one part of the rows: h before and after a step, c, and the inputs of the step.
  struct Workspace {
    E *h, *h_next;
    float* c;
    E* x;
  };
  std::vector<Workspace> workspaces;

  void run(int part, int parts) {
    const int first = part_begin(n.B, parts, part), rows = part_begin(n.B, parts, part + 1) - first;
    const size_t padded = n.padded();
    Workspace o = workspaces[part];
    for (int r = 0; r < rows; ++r)
      for (int u = 0; u < n.padded(); ++u) {
        const size_t at = static_cast<size_t>(first + r) * n.H + u;
        o.h[r * padded + u] = narrow<E>(u < n.H ? h0[at] : 0);
        o.c[r * padded + u] = u < n.H ? c0[at] : 0;
        if (n.T == 0 && u < n.H) h_last[at] = h0[at];
      }
    for (int t = 0; t < n.T; ++t) {
      if (!n.one_hot) gather_inputs(o, first, rows, t);
      for (int p = 0; p < n.panels(); ++p) for_tiles(rows, Step{*this, o, first, t, p});
      std::swap(o.h, o.h_next);
    }
    for (int r = 0; r < rows; ++r)
      std::memcpy(c_last + static_cast<size_t>(first + r) * n.H, o.c + r * padded, n.H * sizeof(float));
  }

  // Copies the rows of one step next to each other; in x, they are T * D apart, which caches handle poorly.
  void gather_inputs(const Workspace& o, int first, int rows, int t) {
    const int width = round_up(n.D, GROUP<E>);
    for (int r = 0; r < rows; ++r) {
      std::memcpy(o.x + static_cast<size_t>(r) * width, x + (static_cast<size_t>(first + r) * n.T + t) * n.D,
                  n.D * sizeof(E));
      for (int d = n.D; d < width; ++d) o.x[static_cast<size_t>(r) * width + d] = 0;
    }
  }

  struct Step {
    Forward& f;
    Workspace& o;
    int first, t, p;

    template <int R>
    __attribute__((noinline)) void run(int r0) const {
      const Sizes& n = f.n;
      const int padded = n.padded(), units = n.units(p);
      const int in = round_up(n.D, GROUP<E>), hidden = round_up(n.H, GROUP<E>);
      Tile<R> z;
      for (int r = 0; r < R; ++r) {
        const float* from = f.start + static_cast<size_t>(p) * TILE;
        Vec offset = Vec{};
        if (n.one_hot) {
          const int32_t id = f.ids[static_cast<size_t>(first + r0 + r) * n.T + t];
          if (id >= 0 && id < n.D)
            from += static_cast<size_t>(id) * n.panels() * TILE;
          else
            offset = broadcast(__builtin_nanf(""));
        }
#pragma GCC unroll 4
        for (int gate = 0; gate < 4; ++gate) z.v[r][gate] = load(from + gate * W) + offset;
      }
      if (!n.one_hot)
        multiply<E, R>(z, o.x + static_cast<size_t>(r0) * in, in, GROUP<E>,
                       f.packed_ih + static_cast<size_t>(p) * in * TILE, in / GROUP<E>);
      multiply<E, R>(z, o.h + static_cast<size_t>(r0) * padded, padded, GROUP<E>,
                     f.packed_hh + static_cast<size_t>(p) * hidden * TILE, hidden / GROUP<E>);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const size_t row = first + r0 + r;
        float* state = o.c + static_cast<size_t>(r0 + r) * padded + p * W;
        const Vec i = sigmoid(z.v[r][0]), forget = sigmoid(z.v[r][1]), g = tanh(z.v[r][2]), out = sigmoid(z.v[r][3]);
        const Vec c = forget * load(state) + i * g;
        const Vec h = out * tanh(c);
        store(state, c);
        store_as(o.h_next + static_cast<size_t>(r0 + r) * padded + p * W, h);
        store_some(f.y + (row * n.T + t) * n.H + p * W, h, units);
        if (t == n.T - 1) store_some(f.h_last + row * n.H + p * W, h, units);
        if (f.saved_gates != nullptr) {
          const size_t at = static_cast<size_t>(t) * n.B + row;
          store_as(f.saved_c + at * padded + p * W, c);
          E* gates = f.saved_gates + at * 4 * padded + p * TILE;
          store_as(gates, i);
          store_as(gates + W, forget);
          store_as(gates + 2 * W, g);
          store_as(gates + 3 * W, out);
        }
      }
    }
  };
};

}  // namespace charjax
