// XLA custom calls for the CPU: an LSTM layer forward and backward, and generation.
//
// avx2.cc and the like include this file and differ only in the compiler flags that setup.py gives them.

#pragma once

#include <utility>

#include "backward.h"
#include "forward.h"
#include "generate.h"
#include "xla/ffi/api/ffi.h"

namespace charjax {
namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

constexpr int OWN_ROWS = 32;   // rows per thread from which each thread generates its own rows with all weights
constexpr int LEAST_ROWS = 8;  // per thread in training: with fewer, reading the weights dominates

template <class E>
const E* in(const Buffer& buffer) {
  return static_cast<const E*>(buffer.untyped_data());
}
template <class E>
E* out(Out& buffer) {
  return buffer->element_count() ? static_cast<E*>(buffer->untyped_data()) : nullptr;
}

// x is [B, T, D] or ids [B, T]; w_ih is [D, 4H].
Sizes sizes_of(const Buffer& x, const Buffer& w_ih) {
  const auto shape = x.dimensions(), weights = w_ih.dimensions();
  return {static_cast<int>(shape[0]), static_cast<int>(shape[1]), static_cast<int>(weights[0]),
          static_cast<int>(weights[1] / 4), x.element_type() == ffi::S32};
}

template <class Pass>
ffi::Error run(Pass& pass, ffi::ThreadPool& pool, int64_t threads) {
  const int parts = std::max<int>(1, std::min<int64_t>(threads, pass.n.B / LEAST_ROWS));
  pass.allocate(parts);
  if (!pass.scratch.ok())
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory in an LSTM layer: use a smaller batch");
  pass.pack();
  run_parts(pool, parts, [&](int part) { pass.run(part, parts); });
  return ffi::Error::Success();
}

template <class E>
ffi::Error forward(ffi::ThreadPool pool, int64_t threads, Buffer x, Buffer w_ih, Buffer w_hh, Buffer bias, Buffer c0,
                   Buffer h0, Out y, Out c_last, Out h_last, Out saved_c, Out saved_gates) {
  Forward<E> pass{};
  pass.n = sizes_of(x, w_ih);
  pass.x = pass.n.one_hot ? nullptr : in<E>(x);
  pass.ids = pass.n.one_hot ? in<int32_t>(x) : nullptr;
  pass.w_ih = in<float>(w_ih), pass.w_hh = in<float>(w_hh), pass.bias = in<float>(bias);
  pass.c0 = in<float>(c0), pass.h0 = in<float>(h0);
  pass.y = out<E>(y), pass.c_last = out<float>(c_last), pass.h_last = out<float>(h_last);
  pass.saved_c = out<E>(saved_c), pass.saved_gates = out<E>(saved_gates);
  return run(pass, pool, threads);
}

template <class E>
ffi::Error backward(ffi::ThreadPool pool, int64_t threads, Buffer x, Buffer w_ih, Buffer w_hh, Buffer c0, Buffer h0,
                    Buffer y, Buffer saved_c, Buffer saved_gates, Buffer dy, Buffer dc_last, Buffer dh_last, Out dx,
                    Out dw_ih, Out dw_hh, Out dbias, Out dc0, Out dh0) {
  Backward<E> pass{};
  pass.n = sizes_of(x, w_ih);
  pass.x = pass.n.one_hot ? nullptr : in<E>(x);
  pass.ids = pass.n.one_hot ? in<int32_t>(x) : nullptr;
  pass.w_ih = in<float>(w_ih), pass.w_hh = in<float>(w_hh);
  pass.c0 = in<float>(c0), pass.h0 = in<float>(h0);
  pass.y = in<E>(y), pass.saved_c = in<E>(saved_c), pass.saved_gates = in<E>(saved_gates), pass.dy = in<E>(dy);
  pass.dc_last = in<float>(dc_last), pass.dh_last = in<float>(dh_last);
  pass.dx = out<E>(dx), pass.dw_ih = out<float>(dw_ih), pass.dw_hh = out<float>(dw_hh);
  pass.dbias = out<float>(dbias), pass.dc0 = out<float>(dc0), pass.dh0 = out<float>(dh0);
  const ffi::Error error = run(pass, pool, threads);
  if (error.success()) pass.finish();
  return error;
}

template <class E>
ffi::Error generate(ffi::ThreadPool pool, int64_t threads, int64_t vocab_size, Buffer kernels, Buffer start,
                    Buffer scale, Buffer c0, Buffer h0, Buffer given, Buffer keys, Buffer position, Buffer temperature,
                    Buffer top_k, Buffer top_p, Buffer min_p, Out ids, Out c_last, Out h_last, Out logits) {
  Generate<E> g{};
  const auto carry = c0.dimensions(), steps = given.dimensions();
  g.L = static_cast<int>(carry[0]), g.B = static_cast<int>(carry[1]), g.H = static_cast<int>(carry[2]);
  g.T = static_cast<int>(steps[1]), g.V = static_cast<int>(vocab_size);
  g.kernels = in<Weight<E>>(kernels), g.start = in<float>(start), g.scale = in<float>(scale);
  g.c0 = in<float>(c0), g.h0 = in<float>(h0), g.given = in<int32_t>(given);
  g.keys = in<uint32_t>(keys), g.position = *in<uint32_t>(position);
  g.temperature = in<float>(temperature), g.top_k = in<int32_t>(top_k);
  g.top_p = in<float>(top_p), g.min_p = in<float>(min_p);
  g.ids = out<int32_t>(ids), g.all_logits = out<float>(logits), g.c_last = out<float>(c_last),
  g.h_last = out<float>(h_last);
  if (!g.allocate())
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "out of memory in generation: generate fewer sequences at once");
  const int parts = static_cast<int>(std::min<int64_t>(threads, g.B / OWN_ROWS));
  if (parts > 1) {
    const auto in_order = [](int pieces, int, const auto& piece) {
      for (int n = 0; n < pieces; ++n) piece(n);
    };
    run_parts(pool, parts, [&](int part) {
      const int first = part_begin(g.B, parts, part);
      g.run(first, part_begin(g.B, parts, part + 1) - first, in_order);
    });
  } else {
    ThreadTeam::run(pool, static_cast<int>(std::max<int64_t>(1, threads)), [&](ThreadTeam& team) {
      g.run(0, g.B, [&](int pieces, int bytes, const auto& piece) { team.phase(pieces, bytes, piece); });
    });
  }
  return ffi::Error::Success();
}

// Adds so many input and output buffers to the binding of a handler.
template <int inputs, int outputs, class Binding>
auto add_buffers(Binding binding) {
  if constexpr (inputs > 0) {
    return add_buffers<inputs - 1, outputs>(std::move(binding).template Arg<Buffer>());
  } else if constexpr (outputs > 1) {
    return add_buffers<0, outputs - 1>(std::move(binding).template Ret<Buffer>());
  } else {
    return std::move(binding).template Ret<Buffer>();  // a binding cannot be moved, only extended
  }
}

auto bind_threads() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int64_t>("threads");
}
auto bind_forward() {
  return add_buffers<6, 5>(bind_threads());
}
auto bind_backward() {
  return add_buffers<11, 6>(bind_threads());
}
auto bind_generate() {
  return add_buffers<12, 4>(bind_threads().Attr<int64_t>("vocab_size"));
}

}  // namespace

// Only these symbols are exported: one process loads several of these libraries.
#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(charjax_lstm_forward_float32, forward<float>, bind_forward());
XLA_FFI_DEFINE_HANDLER_SYMBOL(charjax_lstm_backward_float32, backward<float>, bind_backward());
XLA_FFI_DEFINE_HANDLER_SYMBOL(charjax_lstm_generate_float32, generate<float>, bind_generate());
XLA_FFI_DEFINE_HANDLER_SYMBOL(charjax_lstm_generate_bfloat16, generate<bf16>, bind_generate());
XLA_FFI_DEFINE_HANDLER_SYMBOL(charjax_lstm_generate_int8, generate<Quantized>, bind_generate());
#if defined(CHARJAX_BF16)
XLA_FFI_DEFINE_HANDLER_SYMBOL(charjax_lstm_forward_bfloat16, forward<bf16>, bind_forward());
XLA_FFI_DEFINE_HANDLER_SYMBOL(charjax_lstm_backward_bfloat16, backward<bf16>, bind_backward());
#endif

}  // namespace charjax

extern "C" {

// Units per panel; the saved arrays are padded to a multiple of it.
int charjax_lstm_panel() {
  return charjax::W;
}

// Terms of a sum that one instruction takes of int8 weights.
int charjax_lstm_bytes_at_once() {
  return charjax::GROUP<charjax::Quantized>;
}

// Whether this CPU has the instructions that this file is compiled for.
int charjax_lstm_supported() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(__AVX512BF16__)
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#elif defined(__AVX512F__)
  return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#else
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#else
  return 1;
#endif
}
}

#pragma GCC visibility pop
