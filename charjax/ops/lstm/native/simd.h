// SIMD vectors for the instruction set that this file is compiled for, operand formats, and tanh.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace charjax {

#define CHARJAX_INLINE inline __attribute__((always_inline))

// W floats per vector. A tile of accumulators is ROWS x 4 vectors, as many as fit in registers along with the operands.
#if defined(__AVX512F__)
constexpr int W = 16, ROWS = 6;
#elif defined(__AVX2__)
constexpr int W = 8, ROWS = 3;
#else
constexpr int W = 4, ROWS = 6;
#endif
constexpr int TILE = 4 * W;  // columns per tile: the four gates of W units, or 4 W outputs

typedef float Vec __attribute__((vector_size(4 * W)));
typedef uint32_t Bits __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));
typedef uint16_t Half __attribute__((vector_size(2 * W)));
typedef int16_t Shorts __attribute__((vector_size(2 * W)));

// Reads a vector from any address. A type with reduced alignment would not work, because templates drop that attribute.
template <class V>
CHARJAX_INLINE V load_any(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

CHARJAX_INLINE uint32_t four_bytes(const void* p) {
  uint32_t bits;
  std::memcpy(&bits, p, 4);
  return bits;
}
CHARJAX_INLINE Vec broadcast(float x) {
  return x - Vec{};
}
CHARJAX_INLINE Vec load(const float* p) {
  return load_any<Vec>(p);
}
CHARJAX_INLINE void store(float* p, Vec v) {
  std::memcpy(p, &v, sizeof(v));
}

// bfloat16: the upper half of a float's bits.
using bf16 = uint16_t;

CHARJAX_INLINE float widen(float x) {
  return x;
}
CHARJAX_INLINE float widen(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

template <class E>
CHARJAX_INLINE E narrow(float x);
template <>
CHARJAX_INLINE float narrow<float>(float x) {
  return x;
}
template <>
CHARJAX_INLINE bf16 narrow<bf16>(float x) {
  const uint32_t bits = four_bytes(&x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16>((bits >> 16) | 0x40u);  // NaN stays NaN
  return static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);                  // to nearest, ties to even
}

CHARJAX_INLINE Vec load_as_float(const float* p) {
  return load(p);
}
CHARJAX_INLINE void store_as(float* p, Vec v) {
  store(p, v);
}

#if defined(__AVX512BF16__)
#define CHARJAX_BF16 1
CHARJAX_INLINE Vec load_as_float(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return reinterpret_cast<Vec>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
CHARJAX_INLINE void store_as(bf16* p, Vec v) {
  const __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  std::memcpy(p, &half, sizeof(half));
}
// Interleaves two vectors, so that each 32-bit lane holds a pair (even, odd), as dot-product instructions expect.
CHARJAX_INLINE void store_pairs(bf16* p, Vec even, Vec odd) {
  bf16 low[W], high[W];
  store_as(low, even);
  store_as(high, odd);
  const __m512i lower = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(low)));
  const __m512i upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(high)));
  _mm512_storeu_si512(p, _mm512_or_si512(lower, _mm512_slli_epi32(upper, 16)));
}
#else
CHARJAX_INLINE Vec load_as_float(const bf16* p) {
  return reinterpret_cast<Vec>(__builtin_convertvector(load_any<Half>(p), Bits) << 16);
}
CHARJAX_INLINE void store_as(bf16* p, Vec v) {
  for (int lane = 0; lane < W; ++lane) p[lane] = narrow<bf16>(v[lane]);
}
#endif

// Loads or stores the first n <= W elements of a row; the memory after them belongs to other data.
template <class E>
CHARJAX_INLINE Vec load_some(const E* p, int n) {
  if (n == W) return load_as_float(p);
  float row[W] = {};
  for (int i = 0; i < n; ++i) row[i] = widen(p[i]);
  return load(row);
}
template <class E>
CHARJAX_INLINE void store_some(E* p, Vec v, int n) {
  if (n == W) return store_as(p, v);
  E row[W];
  store_as(row, v);
  std::memcpy(p, row, n * sizeof(E));
}

// x P(x^2) / Q(x^2), a minimax fit on [-9, 9] with a relative error of 2e-8, or 4e-7 in float arithmetic.
CHARJAX_INLINE Vec tanh(Vec x) {
  const Vec most = broadcast(9.0f);
  x = x > most ? most : x;  // comparisons with NaN are false, so NaN stays NaN
  x = x < -most ? -most : x;
  const Vec s = x * x;
  Vec p = s * 1.335467581e-08f + 2.060909397e-05f;
  Vec q = s * 7.776564607e-07f + 3.285636004e-04f;
  p = p * s + 3.495588857e-03f;
  q = q * s + 2.587698496e-02f;
  p = p * s + 1.338102625e-01f;
  q = q * s + 4.671434184e-01f;
  p = p * s + 1.0f;
  q = q * s + 1.0f;
#if defined(__AVX512F__)
  // One Newton step on a 14-bit reciprocal is faster than a division.
  const Vec r = reinterpret_cast<Vec>(_mm512_rcp14_ps(reinterpret_cast<__m512>(q)));
  return x * p * (r * (2.0f - q * r));
#else
  return x * p / q;
#endif
}
CHARJAX_INLINE Vec sigmoid(Vec x) {
  return tanh(x * 0.5f) * 0.5f + 0.5f;
}

}  // namespace charjax
