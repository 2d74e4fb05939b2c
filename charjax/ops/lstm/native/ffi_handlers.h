// XLA custom calls for the CPU: the forward and backward passes of an LSTM layer, and generation.
//
// avx2.cc and the like include this file and differ only in the compiler flags that setup.py passes for them.

#pragma once

#include <utility>

#include "backward.h"
#include "checks.h"
#include "forward.h"
#include "generate.h"
#include "xla/ffi/api/ffi.h"

namespace charjax {
namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

constexpr int OWN_ROWS = 32;   // with this many rows per thread, each thread generates its own rows with all weights
constexpr int LEAST_ROWS = 8;  // minimum per thread in training; with fewer, reading the weights dominates

template <class E>
const E* in(const Buffer& buffer) {
  return static_cast<const E*>(buffer.untyped_data());
}
template <class E>
E* out(Out& buffer) {
  return buffer->element_count() ? static_cast<E*>(buffer->untyped_data()) : nullptr;
}

// x is [B, T, D] or ids [B, T]; w_ih is [D, 4H], w_hh [H, 4H].
template <class E>
Sizes sizes_of(Checks& checks, const Buffer& x, const Buffer& w_ih, const Buffer& w_hh, const Buffer& c0,
               const Buffer& h0) {
  const bool one_hot = x.element_type() == ffi::S32;
  checks.rank("x", x, one_hot ? 2 : 3), checks.rank("w_ih", w_ih, 2), checks.rank("w_hh", w_hh, 2);
  if (!checks.ok()) return {};
  const Sizes n = {checks.dimension("B", x.dimensions()[0]), checks.dimension("T", x.dimensions()[1], 0, INT_MAX),
                   checks.dimension("D", w_ih.dimensions()[0]), checks.dimension("H", w_hh.dimensions()[0]), one_hot};
  one_hot ? checks.expect<int32_t>("x", x, {n.B, n.T}) : checks.expect<E>("x", x, {n.B, n.T, n.D});
  checks.expect<float>("w_ih", w_ih, {n.D, 4 * n.H}), checks.expect<float>("w_hh", w_hh, {n.H, 4 * n.H});
  checks.expect<float>("c", c0, {n.B, n.H}), checks.expect<float>("h", h0, {n.B, n.H});
  return n;
}

template <class Pass>
ffi::Error run(Pass& pass, ffi::ThreadPool& pool, int64_t threads) {
  const int parts = std::max<int>(1, std::min<int64_t>(threads, pass.n.B / LEAST_ROWS));
  pass.allocate(parts);
  if (!pass.scratch.ok())
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory in an LSTM layer; use a smaller batch");
  pass.pack();
  run_parts(pool, parts, [&](int part) { pass.run(part, parts); });
  return ffi::Error::Success();
}

template <class E>
ffi::Error forward(ffi::ThreadPool pool, int64_t threads, Buffer x, Buffer w_ih, Buffer w_hh, Buffer bias, Buffer c0,
                   Buffer h0, Out y, Out c_last, Out h_last, Out saved_c, Out saved_gates) {
  return guarded([&] {
    Checks checks;
    Forward<E> pass{};
    const Sizes n = pass.n = sizes_of<E>(checks, x, w_ih, w_hh, c0, h0);
    checks.expect<float>("bias", bias, {4 * n.H});
    checks.expect<E>("y", y, {n.B, n.T, n.H});
    checks.expect<float>("the last c", c_last, {n.B, n.H}), checks.expect<float>("the last h", h_last, {n.B, n.H});
    checks.rank("saved c", *saved_c, 3);
    const int64_t saved = checks.ok() && saved_c->dimensions()[2] > 0 ? n.padded() : 0;
    checks.expect<E>("saved c", saved_c, {n.T, n.B, saved});
    checks.expect<E>("saved gates", saved_gates, {n.T, n.B, 4 * saved});
    if (!checks.ok()) return checks.error();
    pass.x = n.one_hot ? nullptr : in<E>(x);
    pass.ids = n.one_hot ? in<int32_t>(x) : nullptr;
    pass.w_ih = in<float>(w_ih), pass.w_hh = in<float>(w_hh), pass.bias = in<float>(bias);
    pass.c0 = in<float>(c0), pass.h0 = in<float>(h0);
    pass.y = out<E>(y), pass.c_last = out<float>(c_last), pass.h_last = out<float>(h_last);
    pass.saved_c = out<E>(saved_c), pass.saved_gates = out<E>(saved_gates);
    return run(pass, pool, threads);
  });
}

template <class E>
ffi::Error backward(ffi::ThreadPool pool, int64_t threads, Buffer x, Buffer w_ih, Buffer w_hh, Buffer c0, Buffer h0,
                    Buffer y, Buffer saved_c, Buffer saved_gates, Buffer dy, Buffer dc_last, Buffer dh_last, Out dx,
                    Out dw_ih, Out dw_hh, Out dbias, Out dc0, Out dh0) {
  return guarded([&] {
    Checks checks;
    Backward<E> pass{};
    const Sizes n = pass.n = sizes_of<E>(checks, x, w_ih, w_hh, c0, h0);
    checks.expect<E>("y", y, {n.B, n.T, n.H}), checks.expect<E>("dy", dy, {n.B, n.T, n.H});
    checks.expect<E>("saved c", saved_c, {n.T, n.B, n.padded()});
    checks.expect<E>("saved gates", saved_gates, {n.T, n.B, 4 * n.padded()});
    checks.expect<float>("dc", dc_last, {n.B, n.H}), checks.expect<float>("dh", dh_last, {n.B, n.H});
    n.one_hot ? checks.expect<E>("dx", dx, {0}) : checks.expect<E>("dx", dx, {n.B, n.T, n.D});
    checks.expect<float>("dw_ih", dw_ih, {n.D, 4 * n.H}), checks.expect<float>("dw_hh", dw_hh, {n.H, 4 * n.H});
    checks.expect<float>("dbias", dbias, {4 * n.H});
    checks.expect<float>("the first dc", dc0, {n.B, n.H}), checks.expect<float>("the first dh", dh0, {n.B, n.H});
    if (!checks.ok()) return checks.error();
    pass.x = n.one_hot ? nullptr : in<E>(x);
    pass.ids = n.one_hot ? in<int32_t>(x) : nullptr;
    pass.w_ih = in<float>(w_ih), pass.w_hh = in<float>(w_hh);
    pass.c0 = in<float>(c0), pass.h0 = in<float>(h0);
    pass.y = in<E>(y), pass.saved_c = in<E>(saved_c), pass.saved_gates = in<E>(saved_gates), pass.dy = in<E>(dy);
    pass.dc_last = in<float>(dc_last), pass.dh_last = in<float>(dh_last);
    pass.dx = out<E>(dx), pass.dw_ih = out<float>(dw_ih), pass.dw_hh = out<float>(dw_hh);
    pass.dbias = out<float>(dbias), pass.dc0 = out<float>(dc0), pass.dh0 = out<float>(dh0);
    const ffi::Error error = run(pass, pool, threads);
    if (error.success()) pass.finish();
    return error;
  });
}

template <class E>
ffi::Error run_generation(Generate<E>& g, ffi::ThreadPool& pool, int64_t threads) {
  if (!g.allocate())
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "out of memory in generation; generate fewer sequences at once");
  const int parts = static_cast<int>(std::min<int64_t>(threads, g.B / OWN_ROWS));
  if (parts > 1) {
    const auto in_order = [](int pieces, int64_t, const auto& piece) {
      for (int n = 0; n < pieces; ++n) piece(n);
    };
    run_parts(pool, parts, [&](int part) {
      const int first = part_begin(g.B, parts, part);
      g.run(first, part_begin(g.B, parts, part + 1) - first, in_order);
    });
  } else {
    ThreadTeam::run(pool, static_cast<int>(std::max<int64_t>(1, threads)), [&](ThreadTeam& team) {
      g.run(0, g.B, [&](int pieces, int64_t bytes, const auto& piece) { team.phase(pieces, bytes, piece); });
    });
  }
  return ffi::Error::Success();
}

template <class E>
ffi::Error generate(ffi::ThreadPool pool, int64_t threads, int64_t vocab_size, Buffer kernels, Buffer start,
                    Buffer scale, Buffer c0, Buffer h0, Buffer given, Buffer keys, Buffer position, Buffer temperature,
                    Buffer top_k, Buffer top_p, Buffer min_p, Out ids, Out c_last, Out h_last, Out logits) {
  return guarded([&] {
    Checks checks;
    Generate<E> g{};
    checks.rank("c", c0, 3), checks.rank("given", given, 2);
    if (!checks.ok()) return checks.error();
    const auto carry = c0.dimensions();
    g.L = checks.dimension("L", carry[0], 1), g.B = checks.dimension("B", carry[1]);
    g.H = checks.dimension("H", carry[2]), g.T = checks.dimension("T", given.dimensions()[1], 0, INT_MAX);
    g.V = checks.dimension("V", vocab_size, 1);
    checks.expect<Weight<E>>("kernels", kernels, {g.kernel_size()});
    checks.expect<float>("start", start, {g.start_size()}), checks.expect<float>("scale", scale, {g.scale_size()});
    checks.expect<float>("c", c0, {g.L, g.B, g.H}), checks.expect<float>("h", h0, {g.L, g.B, g.H});
    checks.expect<int32_t>("given", given, {g.B, g.T}), checks.expect<uint32_t>("keys", keys, {g.B, 2});
    checks.expect<uint32_t>("position", position, {}), checks.expect<float>("temperature", temperature, {g.B});
    checks.expect<int32_t>("top_k", top_k, {g.B}), checks.expect<float>("top_p", top_p, {g.B});
    checks.expect<float>("min_p", min_p, {g.B}), checks.expect<int32_t>("ids", ids, {g.B, g.T});
    checks.expect<float>("the last c", c_last, {g.L, g.B, g.H});
    checks.expect<float>("the last h", h_last, {g.L, g.B, g.H});
    const bool wanted = logits->dimensions().size() != 1;
    wanted ? checks.expect<float>("logits", logits, {g.B, g.T, g.V}) : checks.expect<float>("logits", logits, {0});
    if (!checks.ok()) return checks.error();
    g.kernels = in<Weight<E>>(kernels), g.start = in<float>(start), g.scale = in<float>(scale);
    g.c0 = in<float>(c0), g.h0 = in<float>(h0), g.given = in<int32_t>(given);
    g.keys = in<uint32_t>(keys), g.position = *in<uint32_t>(position);
    g.temperature = in<float>(temperature), g.top_k = in<int32_t>(top_k);
    g.top_p = in<float>(top_p), g.min_p = in<float>(min_p);
    g.ids = out<int32_t>(ids), g.all_logits = out<float>(logits), g.c_last = out<float>(c_last),
    g.h_last = out<float>(h_last);
    return run_generation(g, pool, threads);
  });
}

// Adds the given numbers of input and output buffers to the binding of a handler.
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

// Only these symbols are exported, because one process may load several of these libraries.
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

// The version of XLA's FFI that these calls are compiled for.
int charjax_ffi_version() {
  return 1000 * XLA_FFI_API_MAJOR + XLA_FFI_API_MINOR;
}

// The number of units per panel; the saved arrays are padded to a multiple of it.
int charjax_lstm_panel() {
  return charjax::W;
}

// The number of terms of a sum that one instruction processes with int8 weights.
int charjax_lstm_bytes_at_once() {
  return charjax::GROUP<charjax::Quantized>;
}

// Returns whether this CPU supports the instructions that this file is compiled for.
int charjax_lstm_supported() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(__AVX512BF16__)
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#elif defined(__AVX512F__)
  return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return 1;
#endif
#else
  return 1;
#endif
}
}

#pragma GCC visibility pop
