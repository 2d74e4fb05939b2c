// The sizes of a layer, and its weights packed in the order in which the products read them.
#pragma once

#include <algorithm>

#include "gemm.h"

namespace charjax {

// B sequences of T steps, D inputs, H units in panels of W units, the last panel padded.
struct Sizes {
  int B, T, D, H;
  bool one_hot;  // inputs are ids, read as one-hot rows of D
  int panels() const { return round_up(H, W) / W; }
  int padded() const { return round_up(H, W); }
  int units(int panel) const { return std::min(W, H - panel * W); }
};

// Packs weights [K, 4H], gates i, f, g, o along the columns -> [panel][k / GROUP][gate][W][GROUP], padded with zeros.
template <class E>
void pack_by_gate(const float* w, int K, const Sizes& n, E* out) {
  constexpr int group = GROUP<E>;
  for (int p = 0; p < n.panels(); ++p)
    for (int k = 0; k < round_up(K, group); ++k) {
      E* to = out + (static_cast<size_t>(p) * round_up(K, group) + k / group * group) * TILE + k % group;
      for (int gate = 0; gate < 4; ++gate)
        for (int u = 0; u < W; ++u) {
          const bool inside = k < K && u < n.units(p);
          to[(gate * W + u) * group] =
              narrow<E>(inside ? w[static_cast<size_t>(k) * 4 * n.H + gate * n.H + p * W + u] : 0);
        }
    }
}

// Packs the transpose of weights [N, 4H], for products that sum over gates -> [n / TILE][k / GROUP][TILE][GROUP]; k is
// (panel, gate, unit), the order in which dz is stored.
template <class E>
void pack_transposed(const float* w, int N, const Sizes& n, E* out) {
  constexpr int group = GROUP<E>;
  const int K = 4 * n.padded();
  for (int q = 0; q * TILE < N; ++q)
    for (int p = 0; p < n.panels(); ++p)
      for (int gate = 0; gate < 4; ++gate) {
        E* to = out + (static_cast<size_t>(q) * K + p * TILE + gate * W) * TILE;
        for (int j = 0; j < TILE; ++j) {
          const bool row = q * TILE + j < N;
          const float* from = w + (row ? static_cast<size_t>(q * TILE + j) * 4 * n.H + gate * n.H + p * W : 0);
          for (int u = 0; u < W; ++u)
            to[(u / group * TILE + j) * group + u % group] = narrow<E>(row && u < n.units(p) ? from[u] : 0);
        }
      }
}

}  // namespace charjax
