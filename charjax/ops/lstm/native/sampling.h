// Sampling a character from logits: temperature, then top-k, top-p and min-p, as in charjax/generation/sampling.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "gemm.h"
#include "gumbel.h"

namespace charjax {

// The sampling options for one sequence. With top_k >= V, top_p > 1 and min_p = 0, no character is excluded.
struct SamplingOptions {
  float temperature;
  int32_t top_k;
  float top_p, min_p;
  bool filters(int V) const { return top_k < V || top_p <= 1 || min_p > 0; }
};

// Returns the index of the first maximum, or of the first NaN, like jnp.argmax; `values` is padded to whole vectors.
inline int argmax(const float* values, int V) {
  Vec most = broadcast(-std::numeric_limits<float>::infinity()), sum = Vec{};
  for (int v = 0; v < V; v += W) {
    const Vec value = load(values + v);
    most = value > most ? value : most;
    sum += value;  // NaN if any value is NaN, or if infinities of opposite signs are added
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

// The workspace of `sample`. `values` has room for V rounded up to W; the others have room for V and are used only for
// filtering.
struct WorkSpace {
  float* values;
  int* order;
  float* scaled;
};

// Returns the index of the largest value among the characters that top-k, top-p and min-p keep, or of the first NaN.
inline int argmax_of_kept(const float* logits, int V, const SamplingOptions& options, const WorkSpace& work) {
  const int kept = std::max(1, std::min(V, options.top_k));
  const float* values = work.values;
  int* order = work.order;
  float* scaled = work.scaled;
  for (int v = 0; v < V; ++v) {
    if (logits[v] != logits[v]) return v;
    order[v] = v;
  }
  const auto above = [&](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  std::partial_sort(order, order + kept, order + V, above);
  // Since the maximum is subtracted first, dividing by a small temperature cannot overflow.
  const float divisor = std::max(options.temperature, std::numeric_limits<float>::min());
  float total = 0;
  for (int n = 0; n < kept; ++n) total += scaled[n] = std::exp((logits[order[n]] - logits[order[0]]) / divisor);
  int best = order[0];
  float before = 0;
  for (int n = 0; n < kept; ++n) {
    // A character is kept if those before it sum to less than top_p, so the most likely one is always kept.
    if (!(before < options.top_p) || scaled[n] < options.min_p) break;
    before += scaled[n] / total;
    const int v = order[n];
    if (values[v] > values[best] || (values[v] == values[best] && v < best)) best = v;
  }
  return best;
}

// Samples with the noise of a key; `logits` has room for V rounded up to W.
inline int sample(const float* logits, int V, Key key, const SamplingOptions& options, const WorkSpace& work) {
  float* values = work.values;
  if (options.temperature == 0) {
    std::memcpy(values, logits, V * sizeof(float));
  } else {
    // Two loops, because the iterations of a single one would be too long for the CPU to overlap.
    for (int v = 0; v < V; v += W) store(values + v, uniform(key, v));
    for (int v = 0; v < V; v += W) store(values + v, load(logits + v) + gumbel(load(values + v)) * options.temperature);
  }
  for (int v = V; v < round_up(V, W); ++v) values[v] = -std::numeric_limits<float>::infinity();
  return options.filters(V) ? argmax_of_kept(logits, V, options, work) : argmax(values, V);
}

}  // namespace charjax
