// What both passes share: sizes, scratch memory, packed weights, threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "products.h"

namespace charjax {

// B sequences of T steps, D inputs (of which integers choose one each), H units in P panels of W, the last one padded.
struct Sizes {
  int B, T, D, H;
  bool chooses_rows;
  int panels() const { return round_up(H, W) / W; }
  int padded() const { return round_up(H, W); }
  int units(int panel) const { return std::min(W, H - panel * W); }
};

// Memory for the length of one call. After the last `take`, `ok` says whether all of it was had.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    for (void* piece : pieces_) std::free(piece);
  }
  // n elements, zeroed where asked for.
  template <class E>
  E* take(size_t n, bool zeroed = false) {
    const size_t bytes = (n * sizeof(E) + 127) / 64 * 64;
    void* piece = std::aligned_alloc(64, bytes);
    if (piece == nullptr) {
      ok_ = false;
    } else {
      pieces_.push_back(piece);
      if (zeroed) std::memset(piece, 0, bytes);
    }
    return static_cast<E*>(piece);
  }
  bool ok() const { return ok_; }

 private:
  std::vector<void*> pieces_;
  bool ok_ = true;
};

// Weights [K, 4H], gates i, f, g, o along the columns -> [panel][k / PAIR][gate][W][PAIR], zeros where padded.
template <class E>
void pack_by_gate(const float* w, int K, const Sizes& n, E* out) {
  constexpr int pair = PAIR<E>;
  for (int p = 0; p < n.panels(); ++p)
    for (int k = 0; k < round_up(K, pair); ++k) {
      E* to = out + (static_cast<size_t>(p) * round_up(K, pair) + k / pair * pair) * TILE + k % pair;
      for (int gate = 0; gate < 4; ++gate)
        for (int u = 0; u < W; ++u) {
          const bool inside = k < K && u < n.units(p);
          to[(gate * W + u) * pair] =
              narrow<E>(inside ? w[static_cast<size_t>(k) * 4 * n.H + gate * n.H + p * W + u] : 0);
        }
    }
}

// The same weights [N, 4H] for products that sum over gates -> [n / TILE][k / PAIR][TILE][PAIR], where k runs over
// (panel, gate, unit) as the gates' gradients lie.
template <class E>
void pack_transposed(const float* w, int N, const Sizes& n, E* out) {
  constexpr int pair = PAIR<E>;
  const int K = 4 * n.padded();
  for (int q = 0; q * TILE < N; ++q)
    for (int p = 0; p < n.panels(); ++p)
      for (int gate = 0; gate < 4; ++gate) {
        E* to = out + (static_cast<size_t>(q) * K + p * TILE + gate * W) * TILE;
        for (int j = 0; j < TILE; ++j) {
          const bool row = q * TILE + j < N;
          const float* from = w + (row ? static_cast<size_t>(q * TILE + j) * 4 * n.H + gate * n.H + p * W : 0);
          for (int u = 0; u < W; ++u)
            to[(u / pair * TILE + j) * pair + u % pair] = narrow<E>(row && u < n.units(p) ? from[u] : 0);
        }
      }
}

// Runs task(part) for every part, on this thread and on as many of the pool's as come in time. This thread never waits
// for one that has not begun, so that pools whose threads all wait in here go on.
template <class Pool, class Task>
void run_parts(Pool& pool, int parts, const Task& task) {
  struct Shared {
    std::atomic<int> next{0};
    int finished = 0;
    std::mutex mutex;
    std::condition_variable all;
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, parts, &task] {
    for (int part; (part = shared->next.fetch_add(1)) < parts;) {
      task(part);
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (++shared->finished == parts) shared->all.notify_one();
    }
  };
  for (int i = 1; i < parts; ++i) pool.Schedule(std::function<void()>(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all.wait(lock, [&] { return shared->finished == parts; });
}

// The first row of each part of B rows, and B.
inline int part_begin(int B, int parts, int part) {
  return static_cast<int>(static_cast<int64_t>(B) * part / parts);
}

}  // namespace charjax
