// Threads that share the pieces of one short phase after another.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace charjax {

// A phase has pieces 0 to n - 1 < 65536, each done once, by whoever comes first: a thread begins with those that were
// its own in the phases before, whose weights are in its cache, and goes on with the others'. Several are taken at once
// where they are short. The leader never waits for a thread that has not begun a piece, so that pools whose threads all
// lead go on.
class Team {
 public:
  // Calls lead(team), whose phases the pool's threads share.
  template <class Pool, class Lead>
  static void run(Pool& pool, int threads, const Lead& lead) {
    auto team = std::make_shared<Team>(threads);
    for (int thread = 1; thread < threads; ++thread)
      pool.Schedule(std::function<void()>([team, thread] { team->follow(thread); }));
    lead(*team);
    // A thread that comes late finds this, and touches nothing but the team.
    team->phase_.store(ENDED, std::memory_order_release);
  }

  explicit Team(int threads) : own_(threads) {}

  // Calls task(piece) for every piece, which reads so many bytes.
  template <class Task>
  void phase(int pieces, int bytes, const Task& task) {
    const int at_once = std::max(1, LEAST_BYTES / std::max(1, bytes));
    if (own_.size() == 1 || pieces <= at_once) {
      for (int piece = 0; piece < pieces; ++piece) task(piece);
      return;
    }
    const uint32_t number = ++number_;
    task_ = &task;
    at_once_.store(std::min(at_once, 65535), std::memory_order_relaxed);
    call_ = [](const void* of, int piece) { (*static_cast<const Task*>(of))(piece); };
    for (int thread = 0; thread < static_cast<int>(own_.size()); ++thread)
      own_[thread].next.store(ticket(number, begin_of(thread, pieces), begin_of(thread + 1, pieces)),
                              std::memory_order_release);
    phase_.store(number, std::memory_order_release);
    expected_ += pieces;
    work(0, number);
    for (int spins = 0; done_.load(std::memory_order_acquire) != expected_; ++spins) rest(spins);
  }

 private:
  static constexpr uint32_t ENDED = ~0u;
  // Handing a piece out takes as long as reading some thousand bytes.
  static constexpr int LEAST_BYTES = 1 << 15;
  struct alignas(64) Own {
    std::atomic<uint64_t> next{0};
  };

  // A phase's number, and which of a thread's own pieces come next and last: what was taken holds for its phase.
  static uint64_t ticket(uint32_t number, int next, int end) {
    return static_cast<uint64_t>(number) << 32 | static_cast<uint64_t>(end) << 16 | static_cast<uint64_t>(next);
  }
  int begin_of(int thread, int pieces) const {
    return static_cast<int>(static_cast<int64_t>(pieces) * thread / static_cast<int64_t>(own_.size()));
  }
  // One that waits for long gives its core away.
  static void rest(int spins) {
    if (spins % 4096 == 4095) {
      std::this_thread::yield();
    } else {
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
  }

  void follow(int thread) {
    uint32_t seen = 0;
    for (int spins = 0;; ++spins) {
      const uint32_t number = phase_.load(std::memory_order_acquire);
      if (number == ENDED) return;
      if (number == seen) {
        rest(spins);
        continue;
      }
      work(thread, number);
      seen = number;
      spins = 0;
    }
  }

  void work(int thread, uint32_t number) {
    const int threads = static_cast<int>(own_.size());
    for (int other = 0; other < threads; ++other) {
      const int whose = (thread + other) % threads;
      std::atomic<uint64_t>& next = own_[whose].next;
      uint64_t at = next.load(std::memory_order_acquire);
      while (at >> 32 == number) {
        const int first = at & 0xffff, end = at >> 16 & 0xffff,
                  count = std::min(at_once_.load(std::memory_order_relaxed), end - first);
        if (count <= 0) break;
        if (!next.compare_exchange_weak(at, at + count, std::memory_order_acq_rel)) continue;
        for (int piece = first; piece < first + count; ++piece) call_(task_, piece);
        done_.fetch_add(count, std::memory_order_acq_rel);
        at = next.load(std::memory_order_acquire);
      }
    }
  }

  const void* task_ = nullptr;
  void (*call_)(const void*, int) = nullptr;
  std::atomic<int> at_once_{1};
  std::vector<Own> own_;
  std::atomic<uint32_t> phase_{0};
  uint32_t number_ = 0;
  alignas(64) std::atomic<uint64_t> done_{0};
  uint64_t expected_ = 0;
};

}  // namespace charjax
