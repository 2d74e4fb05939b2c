// The choice of a character from its logits: temperature, then top-k, top-p and min-p, as charjax/generate.py has them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "products.h"

namespace charjax {

// What rules characters out for one text; V or more, infinity and zero leave all of them.
struct Filter {
  int32_t top_k;
  float top_p, min_p;
  bool active(int V) const { return top_k < V || top_p <= 1 || min_p > 0; }
};

class Choice {
 public:
  explicit Choice(int V) : V_(V), values_(round_up(V, W)), order_(V), scaled_(V) {}

  // logits [V, rounded up to W]; noise [V] of the standard Gumbel distribution, or null for none.
  int choose(const float* logits, const float* noise, float temperature, const Filter& filter) {
    constexpr float lowest = -std::numeric_limits<float>::infinity();
    for (int v = 0; v < V_; v += W) {
      const Vec drawn = noise == nullptr ? Vec{} : load_some(noise + v, std::min(W, V_ - v)) * temperature;
      store(values_.data() + v, load(logits + v) + drawn);
    }
    std::fill(values_.begin() + V_, values_.end(), lowest);
    return filter.active(V_) ? largest_of_kept(logits, temperature, filter) : largest();
  }

 private:
  // The first of the largest, or the first NaN, as jnp.argmax has it.
  int largest() const {
    Vec most = broadcast(-std::numeric_limits<float>::infinity()), sum = Vec{};
    for (size_t v = 0; v < values_.size(); v += W) {
      const Vec value = load(values_.data() + v);
      most = value > most ? value : most;
      sum += value;  // NaN where there is one, or where infinities meet
    }
    float top = most[0], total = sum[0];
    for (int lane = 1; lane < W; ++lane) top = std::max(top, most[lane]), total += sum[lane];
    if (total != total)
      for (int v = 0; v < V_; ++v)
        if (values_[v] != values_[v]) return v;
    for (int v = 0; v < V_; ++v)
      if (values_[v] == top) return v;
    return 0;
  }

  int largest_of_kept(const float* logits, float temperature, const Filter& filter) {
    const int kept = std::min(V_, filter.top_k);
    for (int v = 0; v < V_; ++v) order_[v] = v;
    const auto above = [&](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
    std::partial_sort(order_.begin(), order_.begin() + kept, order_.end(), above);
    // Less their maximum, logits cannot overflow when a small temperature divides them.
    const float divisor = std::max(temperature, std::numeric_limits<float>::min());
    float total = 0;
    for (int n = 0; n < kept; ++n) total += scaled_[n] = std::exp((logits[order_[n]] - logits[order_[0]]) / divisor);
    int best = order_[0];
    float before = 0;
    for (int n = 0; n < kept; ++n) {
      // A character stays while those before it do not yet hold top_p, so the likeliest one always does.
      if (!(before < filter.top_p) || scaled_[n] < filter.min_p) break;
      before += scaled_[n] / total;
      const int v = order_[n];
      if (values_[v] > values_[best] || (values_[v] == values_[best] && v < best)) best = v;
    }
    return best;
  }

  int V_;
  std::vector<float> values_;
  std::vector<int> order_;
  std::vector<float> scaled_;
};

}  // namespace charjax
