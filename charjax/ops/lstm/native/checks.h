// Checks that the buffers XLA passes to a custom call match what it reads and writes, before any pointer is used.
#pragma once

#include <algorithm>
#include <climits>
#include <exception>
#include <initializer_list>
#include <new>
#include <string>

#include "int8.h"
#include "xla/ffi/api/ffi.h"

namespace charjax {

// The element type of a buffer with elements of type E.
template <class E>
constexpr xla::ffi::DataType TYPE = xla::ffi::DataType::INVALID;
template <>
inline constexpr xla::ffi::DataType TYPE<float> = xla::ffi::DataType::F32;
template <>
inline constexpr xla::ffi::DataType TYPE<bf16> = xla::ffi::DataType::BF16;
template <>
inline constexpr xla::ffi::DataType TYPE<int8_t> = xla::ffi::DataType::S8;
template <>
inline constexpr xla::ffi::DataType TYPE<int32_t> = xla::ffi::DataType::S32;
template <>
inline constexpr xla::ffi::DataType TYPE<uint32_t> = xla::ffi::DataType::U32;

// Records the first mismatch.
class Checks {
 public:
  using Buffer = xla::ffi::AnyBuffer;
  // The limit for dimensions that are multiplied by the tile width in int arithmetic.
  static constexpr int64_t LARGEST = 1 << 24;

  void rank(const char* name, const Buffer& buffer, size_t rank) {
    if (buffer.dimensions().size() != rank) fail(std::string(name) + " does not have rank " + std::to_string(rank));
  }
  // Checks a dimension and returns it as an int.
  int dimension(const char* name, int64_t size, int64_t least = 0, int64_t largest = LARGEST) {
    if (size >= least && size <= largest) return static_cast<int>(size);
    fail(std::string(name) + " must be from " + std::to_string(least) + " to " + std::to_string(largest) + ", not " +
         std::to_string(size));
    return static_cast<int>(least);
  }
  template <class E>
  void expect(const char* name, const Buffer& buffer, std::initializer_list<int64_t> shape) {
    const auto found = buffer.dimensions();
    if (buffer.element_type() != TYPE<E>) fail(std::string(name) + " does not have the dtype that the kernel reads");
    if (!std::equal(found.begin(), found.end(), shape.begin(), shape.end())) {
      std::string text = std::string(name) + " does not have shape [";
      for (const int64_t size : shape) text += (text.back() == '[' ? "" : ", ") + std::to_string(size);
      fail(text + "]");
    }
  }
  template <class E>
  void expect(const char* name, xla::ffi::Result<Buffer>& buffer, std::initializer_list<int64_t> shape) {
    expect<E>(name, *buffer, shape);
  }
  void fail(const std::string& message) {
    if (message_.empty()) message_ = message;
  }
  bool ok() const { return message_.empty(); }
  xla::ffi::Error error() const {
    return xla::ffi::Error(xla::ffi::ErrorCode::kInvalidArgument, "charjax's LSTM kernel: " + message_);
  }

 private:
  std::string message_;
};

// Runs the body of a custom call and turns any exception into an error.
template <class Body>
xla::ffi::Error guarded(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return xla::ffi::Error(xla::ffi::ErrorCode::kResourceExhausted, "out of memory in charjax's LSTM kernel");
  } catch (const std::exception& error) {
    return xla::ffi::Error(xla::ffi::ErrorCode::kInternal, error.what());
  }
}

}  // namespace charjax
