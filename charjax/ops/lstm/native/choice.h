// The choice of a character from its logits: temperature, then top-k, top-p and min-p, as charjax/choice.py has them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "noise.h"
#include "products.h"

namespace charjax {

// How one text's characters are chosen. V or more, infinity and zero leave all of them.
struct Choice {
  float temperature;
  int32_t top_k;
  float top_p, min_p;
  bool rules_out(int V) const { return top_k < V || top_p <= 1 || min_p > 0; }
};

// The first of the largest, or the first NaN, as jnp.argmax has it, of as many whole vectors as hold V.
inline int first_largest(const float* values, int V) {
  Vec most = broadcast(-std::numeric_limits<float>::infinity()), sum = Vec{};
  for (int v = 0; v < V; v += W) {
    const Vec value = load(values + v);
    most = value > most ? value : most;
    sum += value;  // NaN where there is one, or where infinities meet
  }
  float top = most[0], total = sum[0];
  for (int lane = 1; lane < W; ++lane) top = std::max(top, most[lane]), total += sum[lane];
  if (total != total)
    for (int v = 0; v < V; ++v)
      if (values[v] != values[v]) return v;
  for (int v = 0; v < V; ++v)
    if (values[v] == top) return v;
  return 0;
}

// The largest of the values that the logits leave.
inline int largest_of_kept(const float* logits, const float* values, int V, const Choice& how) {
  const int kept = std::min(V, how.top_k);
  std::vector<int> order(V);
  std::vector<float> scaled(kept);
  for (int v = 0; v < V; ++v) order[v] = v;
  const auto above = [&](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  std::partial_sort(order.begin(), order.begin() + kept, order.end(), above);
  // Less their maximum, logits cannot overflow when a small temperature divides them.
  const float divisor = std::max(how.temperature, std::numeric_limits<float>::min());
  float total = 0;
  for (int n = 0; n < kept; ++n) total += scaled[n] = std::exp((logits[order[n]] - logits[order[0]]) / divisor);
  int best = order[0];
  float before = 0;
  for (int n = 0; n < kept; ++n) {
    // A character stays while those before it do not yet hold top_p, so the likeliest one always does.
    if (!(before < how.top_p) || scaled[n] < how.min_p) break;
    before += scaled[n] / total;
    const int v = order[n];
    if (values[v] > values[best] || (values[v] == values[best] && v < best)) best = v;
  }
  return best;
}

// Chooses by the noise of a key; `values` is work space. Both have room for V rounded up to W.
inline int choose(const float* logits, float* values, int V, Key key, const Choice& how) {
  if (how.temperature == 0) {
    std::memcpy(values, logits, V * sizeof(float));
  } else {
    // One loop for both would be too long for a processor to work at several turns of it at once.
    for (int v = 0; v < V; v += W) store(values + v, uniform(key, v));
    for (int v = 0; v < V; v += W) store(values + v, load(logits + v) + gumbel(load(values + v)) * how.temperature);
  }
  for (int v = V; v < round_up(V, W); ++v) values[v] = -std::numeric_limits<float>::infinity();
  return how.rules_out(V) ? largest_of_kept(logits, values, V, how) : first_largest(values, V);
}

}  // namespace charjax
