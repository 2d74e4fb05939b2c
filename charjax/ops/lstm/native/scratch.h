// Temporary memory for one call of the kernel.
#pragma once

#include <cstdlib>
#include <cstring>
#include <vector>

namespace charjax {

// Owns the memory it hands out. After the last `allocate`, `ok` returns whether every allocation succeeded.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    for (void* block : blocks_) std::free(block);
  }
  // Allocates n elements, aligned to a cache line and zeroed on request.
  template <class E>
  E* allocate(size_t n, bool zeroed = false) {
    const size_t bytes = (n * sizeof(E) + 127) / 64 * 64;
    blocks_.reserve(blocks_.size() + 1);  // done first, so that nothing leaks if it throws
    void* block = std::aligned_alloc(64, bytes);
    if (block == nullptr) {
      ok_ = false;
    } else {
      blocks_.push_back(block);
      if (zeroed) std::memset(block, 0, bytes);
    }
    return static_cast<E*>(block);
  }
  bool ok() const { return ok_; }

 private:
  std::vector<void*> blocks_;
  bool ok_ = true;
};

}  // namespace charjax
