// Gumbel noise that matches jax.random.gumbel: Threefry-2x32 with 20 rounds (Salmon et al. 2011) over counters.
#pragma once

#include "simd.h"

namespace charjax {

struct Key {
  uint32_t first, second;
};

template <int by, class T>
CHARJAX_INLINE void mix(T& x, T& y) {
  x += y;
  y = ((y << by) | (y >> (32 - by))) ^ x;
}

// Encrypts one block of integers or of integer vectors.
template <class T>
CHARJAX_INLINE void threefry(Key key, T& x, T& y) {
  const uint32_t k0 = key.first, k1 = key.second, k2 = k0 ^ k1 ^ 0x1BD11BDAu;
  const auto odd_rounds = [&] { mix<13>(x, y), mix<15>(x, y), mix<26>(x, y), mix<6>(x, y); };
  const auto even_rounds = [&] { mix<17>(x, y), mix<29>(x, y), mix<16>(x, y), mix<24>(x, y); };
  x += k0, y += k1;
  odd_rounds();
  x += k1, y += k2 + 1;
  even_rounds();
  x += k2, y += k0 + 2;
  odd_rounds();
  x += k0, y += k1 + 3;
  even_rounds();
  x += k1, y += k2 + 4;
  odd_rounds();
  x += k2, y += k0 + 5;
}

// jax.random.fold_in.
inline Key fold_in(Key key, uint32_t number) {
  uint32_t x = 0, y = number;
  threefry(key, x, y);
  return {x, y};
}

// The natural logarithm of normal numbers, to a relative error of about 1e-7: the logf polynomial of Cephes (Moshier
// 1989).
CHARJAX_INLINE Vec log(Vec x) {
  // x = 2^exponent m, with m in [sqrt(1/2), sqrt(2)).
  const Bits above_root = reinterpret_cast<Bits>(x) - 0x3f3504f3u;
  const Vec exponent = __builtin_convertvector(reinterpret_cast<Ints>(above_root) >> 23, Vec);
  const Vec f = reinterpret_cast<Vec>((above_root & 0x007fffffu) + 0x3f3504f3u) - 1.0f, z = f * f;
  const Vec low = f * 3.3333331174e-1f - 0.5f, next = f * 2.0000714765e-1f - 2.4999993993e-1f;
  const Vec third = f * 1.4249322787e-1f - 1.6668057665e-1f, fourth = f * 1.1676998740e-1f - 1.2420140846e-1f;
  const Vec fifth = f * 7.0376836292e-2f - 1.1514610310e-1f;
  const Vec series = (((fifth * z + fourth) * z + third) * z + next) * z + low;
  // log(2) is split into two parts, such that an integer times the first part is exact.
  return exponent * 0.693359375f + (f + (series * z - exponent * 2.12194440e-4f));
}

// Elements v, v + 1, ... of jax.random.uniform(key, (V,), minval=tiny), where tiny is the smallest normal number.
CHARJAX_INLINE Vec uniform(Key key, uint32_t v) {
  static constexpr uint32_t LANES[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Bits x{}, y = load_any<Bits>(LANES) + v;
  threefry(key, x, y);
  const Vec least = broadcast(1.17549435e-38f), value = reinterpret_cast<Vec>(((x ^ y) >> 9) | 0x3f800000u) - 1.0f;
  return value > least ? value : least;
}

// Transforms these uniform numbers as jax.random.gumbel does.
CHARJAX_INLINE Vec gumbel(Vec uniform) {
  return -log(-log(uniform));
}

}  // namespace charjax
