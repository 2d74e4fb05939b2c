// Measures how fast a step's weights can be read: sums a buffer of so many bytes again and again, so that it stays in
// whatever cache it fits in.
//
//   bandwidth BYTES THREADS SECONDS   prints the least and the median seconds per pass
//
// Each thread reads its own share, in vectors as wide as the CPU's, and waits for the others only between batches of
// passes: no step of a network could wait less.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr size_t kWidth = 64;
#else
constexpr size_t kWidth = 32;
#endif
// may_alias: the buffer has no type of its own.
typedef uint64_t Vector __attribute__((vector_size(kWidth), may_alias));
constexpr size_t kSums = 8;  // in flight at once: a single one would wait for each addition
constexpr size_t kBlock = kSums * kWidth;
constexpr double kBatchSeconds = 2e-3;

Vector pass(const char* begin, const char* end) {
  Vector sums[kSums] = {};
  for (const char* at = begin; at != end; at += kBlock) {
    const Vector* block = reinterpret_cast<const Vector*>(at);
#pragma GCC unroll 8
    for (size_t n = 0; n < kSums; ++n) sums[n] += block[n];
  }
  Vector total = {};
  for (const Vector& sum : sums) total += sum;
  return total;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Threads that start each batch of passes together.
class Readers {
 public:
  Readers(const char* buffer, size_t blocks, int threads) : done_(0), batch_(0), passes_(0) {
    for (int n = 0; n < threads; ++n) {
      const char* begin = buffer + kBlock * (blocks * n / threads);
      const char* end = buffer + kBlock * (blocks * (n + 1) / threads);
      if (n + 1 < threads) {
        threads_.emplace_back([this, begin, end] { follow(begin, end); });
      } else {
        begin_ = begin, end_ = end;
      }
    }
  }
  ~Readers() {
    passes_ = 0;
    ++batch_;
    for (std::thread& thread : threads_) thread.join();
  }
  // Returns the seconds until the last thread has made `passes` passes.
  double time(int64_t passes) {
    passes_ = passes;
    done_ = 0;
    const double start = now();
    ++batch_;
    read(begin_, end_, passes);
    while (done_ != threads_.size()) continue;
    return now() - start;
  }

 private:
  void follow(const char* begin, const char* end) {
    for (int64_t seen = 0;; ++seen) {
      while (batch_ == seen) continue;
      const int64_t passes = passes_;
      if (!passes) return;
      read(begin, end, passes);
      ++done_;
    }
  }
  static void read(const char* begin, const char* end, int64_t passes) {
    for (int64_t n = 0; n < passes; ++n) {
      Vector total = pass(begin, end);
      // Pretends to use the sum and to write the buffer, so that the compiler cannot leave out a pass.
      asm volatile("" : : "m"(total) : "memory");
    }
  }
  std::vector<std::thread> threads_;
  std::atomic<size_t> done_;
  std::atomic<int64_t> batch_, passes_;
  const char *begin_, *end_;
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return std::fprintf(stderr, "usage: bandwidth BYTES THREADS SECONDS\n"), 2;
  const size_t bytes = std::strtoull(arguments[1], nullptr, 10);
  const int threads = std::atoi(arguments[2]);
  const double seconds = std::atof(arguments[3]);
  // Whole blocks only; the times below are scaled to all bytes.
  const size_t blocks = std::max<size_t>(bytes / kBlock, threads), page = size_t{2} << 20;
  const size_t room = (blocks * kBlock + page - 1) / page * page;
  char* buffer = static_cast<char*>(std::aligned_alloc(page, room));
  if (!buffer) return std::fprintf(stderr, "no memory for %zu bytes\n", room), 1;
#ifdef __linux__
  madvise(buffer, room, MADV_HUGEPAGE);  // so that page faults and TLB misses take no time
#endif
  std::memset(buffer, 1, room);

  Readers readers(buffer, blocks, threads);
  int64_t passes = 1;
  while (readers.time(passes) < kBatchSeconds) passes *= 2;
  std::vector<double> taken;
  for (const double start = now(); taken.empty() || now() - start < seconds;) {
    taken.push_back(readers.time(passes) / passes * bytes / (blocks * kBlock));
  }
  std::sort(taken.begin(), taken.end());
  std::printf("%.6e %.6e\n", taken.front(), taken[taken.size() / 2]);
}
