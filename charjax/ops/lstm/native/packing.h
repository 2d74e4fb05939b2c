// The sizes of a layer, and packing its weights in the order in which the products read them.
#pragma once

#include <algorithm>
#include <cstring>

#include "gemm.h"

namespace charjax {

// B sequences of T steps, D inputs, H units in panels of W units, the last panel padded.
struct Sizes {
  int B, T, D, H;
  bool one_hot;  // inputs are ids, which act as one-hot rows of width D
  int panels() const { return round_up(H, W) / W; }
  int padded() const { return round_up(H, W); }
  int units(int panel) const { return std::min(W, H - panel * W); }
};

// Packs weights [K, 4H], with gates i, f, g, o along the columns -> [panel][k / GROUP][gate][W][GROUP], zero-padded.
template <class E>
void pack_by_gate(const float* w, int K, const Sizes& n, E* out) {
  constexpr int group = GROUP<E>;
  const size_t row = 4 * static_cast<size_t>(n.H), panel = static_cast<size_t>(round_up(K, group)) * TILE;
  for (int k = 0; k < K; k += group)
    for (int p = 0; p < n.panels(); ++p)
      for (int gate = 0; gate < 4; ++gate) {
        const float* from = w + k * row + gate * n.H + p * W;
        E* to = out + p * panel + static_cast<size_t>(k) * TILE + gate * W * group;
        const Vec even = load_some(from, n.units(p));
        if constexpr (group == 1)
          store_as(to, even);
        else
          store_pairs(to, even, k + 1 < K ? load_some(from + row, n.units(p)) : Vec{});
      }
}

// Packs the transpose of weights [N, 4H], for products that sum over gates -> [n / TILE][k / GROUP][TILE][GROUP], where
// k runs over (panel, gate, unit), the order in which dz is stored.
template <class E>
void pack_transposed(const float* w, int N, const Sizes& n, E* out) {
  constexpr int group = GROUP<E>;
  static_assert(group * sizeof(E) == sizeof(uint32_t));
  const int K = 4 * n.padded();
  E rows[TILE][W];
  for (int q = 0; q * TILE < N; ++q)
    for (int p = 0; p < n.panels(); ++p)
      for (int gate = 0; gate < 4; ++gate) {
        for (int j = 0; j < TILE; ++j) {
          const bool row = q * TILE + j < N;
          const float* from = w + (row ? static_cast<size_t>(q * TILE + j) * 4 * n.H + gate * n.H + p * W : 0);
          store_as(rows[j], row ? load_some(from, n.units(p)) : Vec{});
        }
        E* to = out + (static_cast<size_t>(q) * K + p * TILE + gate * W) * TILE;
        for (int u = 0; u < W; u += group)
          for (int j = 0; j < TILE; ++j, to += group) std::memcpy(to, rows[j] + u, sizeof(uint32_t));
      }
}

}  // namespace charjax
