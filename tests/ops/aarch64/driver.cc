// Makes one call of the kernel without jaxlib: stands in for what the handlers use of XLA.
//
//   driver                                                    prints supported, panel and bytes at once
//   driver HANDLER POOL [ATTRIBUTE VALUE]... < call > results
//
// POOL says what becomes of a task: "threads" starts a thread for it, "late" runs it after the call, and "none" refuses
// it. A call is a list of int64: the number of arguments, the number of buffers, then dtype, size in bytes, rank and
// dimensions of each buffer; then the bytes of the arguments. The exit status is the error's code.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "xla/ffi/api/c_api.h"

extern "C" {
XLA_FFI_Handler charjax_lstm_forward_float32, charjax_lstm_backward_float32, charjax_lstm_generate_float32,
    charjax_lstm_generate_bfloat16, charjax_lstm_generate_int8;
int charjax_lstm_supported(), charjax_lstm_panel(), charjax_lstm_bytes_at_once();
}

struct XLA_FFI_Error {
  XLA_FFI_Error_Code code;
  std::string message;
};

// The pool.
struct XLA_FFI_ExecutionContext {
  std::string kind;
  std::vector<std::thread> threads;
  std::vector<std::function<void()>> late;

  XLA_FFI_Error* schedule(XLA_FFI_Task* task, void* data) {
    if (kind == "none") return new XLA_FFI_Error{XLA_FFI_Error_Code_UNIMPLEMENTED, "there is no pool"};
    if (kind == "threads") {
      threads.emplace_back(task, data);
    } else {
      late.push_back([=] { task(data); });
    }
    return nullptr;
  }
  void finish() {
    for (auto& thread : threads) thread.join();
    for (const auto& task : late) task();
  }
};

namespace {

const std::map<std::string, XLA_FFI_Handler*> HANDLERS = {
    {"forward_float32", charjax_lstm_forward_float32},   {"backward_float32", charjax_lstm_backward_float32},
    {"generate_float32", charjax_lstm_generate_float32}, {"generate_bfloat16", charjax_lstm_generate_bfloat16},
    {"generate_int8", charjax_lstm_generate_int8},
};

XLA_FFI_Api make_api() {
  XLA_FFI_Api api = {};
  api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
  api.XLA_FFI_Error_Create = [](XLA_FFI_Error_Create_Args* args) {
    return new XLA_FFI_Error{args->errc, args->message};
  };
  api.XLA_FFI_Error_GetMessage = [](XLA_FFI_Error_GetMessage_Args* args) {
    args->message = args->error->message.c_str();
  };
  api.XLA_FFI_Error_Destroy = [](XLA_FFI_Error_Destroy_Args* args) { delete args->error; };
  api.XLA_FFI_ThreadPool_Schedule = [](XLA_FFI_ThreadPool_Schedule_Args* args) {
    return args->ctx->schedule(args->task, args->data);
  };
  return api;
}

template <class T>
std::vector<T> read(int64_t n) {
  std::vector<T> values(n);
  if (std::fread(values.data(), sizeof(T), n, stdin) != values.size()) std::abort();
  return values;
}

struct Array {
  std::vector<int64_t> dimensions;
  std::vector<char> bytes;
  XLA_FFI_Buffer buffer;
};

// Reads all buffers; those after the arguments are results, of NaN until they are written.
std::vector<Array> read_arrays(int64_t arguments, int64_t count) {
  std::vector<Array> arrays(count);
  for (Array& array : arrays) {
    const auto head = read<int64_t>(3);
    array.dimensions = read<int64_t>(head[2]);
    array.bytes.resize(head[1], '\xff');
    array.buffer = {XLA_FFI_Buffer_STRUCT_SIZE, nullptr, static_cast<XLA_FFI_DataType>(head[0]),
                    array.bytes.data(),         head[2], array.dimensions.data()};
  }
  for (int64_t n = 0; n < arguments; ++n) {
    arrays[n].bytes = read<char>(arrays[n].bytes.size());
    arrays[n].buffer.data = arrays[n].bytes.data();
  }
  return arrays;
}

// The attributes of a call frame, sorted by name.
struct Attributes {
  std::map<std::string, int64_t> values;
  std::vector<XLA_FFI_AttrType> types;
  std::vector<XLA_FFI_ByteSpan> spans;
  std::vector<XLA_FFI_Scalar> scalars;
  std::vector<XLA_FFI_ByteSpan*> names;
  std::vector<void*> pointers;

  Attributes(int argc, char** argv) {
    for (int n = 0; n + 1 < argc; n += 2) values[argv[n]] = std::atoll(argv[n + 1]);
    for (auto& [name, value] : values) {
      spans.push_back({name.data(), name.size()});
      scalars.push_back({XLA_FFI_DataType_S64, &value});
    }
    types.resize(values.size(), XLA_FFI_AttrType_SCALAR);
    for (auto& span : spans) names.push_back(&span);
    for (auto& scalar : scalars) pointers.push_back(&scalar);
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::printf("%d %d %d\n", charjax_lstm_supported(), charjax_lstm_panel(), charjax_lstm_bytes_at_once());
    return 0;
  }
  const XLA_FFI_Api api = make_api();
  XLA_FFI_ExecutionContext pool{argv[2], {}, {}};
  Attributes attributes(argc - 3, argv + 3);
  const auto counts = read<int64_t>(2);
  auto arrays = read_arrays(counts[0], counts[1]);
  const int64_t results = counts[1] - counts[0];
  std::vector<void*> buffers;
  for (Array& array : arrays) buffers.push_back(&array.buffer);
  std::vector<XLA_FFI_ArgType> arg_types(counts[0], XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> ret_types(results, XLA_FFI_RetType_BUFFER);

  XLA_FFI_CallFrame frame = {};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &api, frame.ctx = &pool, frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, counts[0], arg_types.data(), buffers.data()};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, results, ret_types.data(), buffers.data() + counts[0]};
  frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE,
                 nullptr,
                 static_cast<int64_t>(attributes.values.size()),
                 attributes.types.data(),
                 attributes.names.data(),
                 attributes.pointers.data()};
  const XLA_FFI_Error* error = HANDLERS.at(argv[1])(&frame);
  pool.finish();
  if (error != nullptr) {
    std::fprintf(stderr, "%s\n", error->message.c_str());
    return error->code;
  }
  for (int64_t n = counts[0]; n < counts[1]; ++n)
    std::fwrite(arrays[n].bytes.data(), 1, arrays[n].bytes.size(), stdout);
  return 0;
}
