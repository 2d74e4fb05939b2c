// Sharing work among the threads of XLA's pool: as independent parts, or as one short phase after another.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace charjax {

// Submits a task to the pool. Returns false if there is no memory for it; the calling thread must then do without help.
template <class Pool, class Task>
bool schedule(Pool& pool, const Task& task) {
  try {
    pool.Schedule(std::function<void()>(task));
  } catch (const std::bad_alloc&) {
    return false;
  }
  return true;
}

// Calls task(part), which must not throw, for every part, on this thread and on any pool threads that become free in
// time. This thread never waits for a part that has not started, so there is no deadlock even if all pool threads are
// waiting in this function.
template <class Pool, class Task>
void run_parts(Pool& pool, int parts, const Task& task) {
  struct Shared {
    std::atomic<int> next{0};
    int finished = 0;
    std::mutex mutex;
    std::condition_variable all;
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, parts, &task] {
    for (int part; (part = shared->next.fetch_add(1)) < parts;) {
      task(part);
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (++shared->finished == parts) shared->all.notify_one();
    }
  };
  for (int i = 1; i < parts; ++i)
    if (!schedule(pool, work)) break;
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all.wait(lock, [&] { return shared->finished == parts; });
}

// The first of the B rows that belong to a part; B for part == parts.
inline int part_begin(int B, int parts, int part) {
  return static_cast<int>(static_cast<int64_t>(B) * part / parts);
}

// A team of threads that run phases together. A phase has pieces 0 to n - 1, each run once, by the first thread to take
// it. A thread starts with the pieces it ran in earlier phases, whose weights are in its cache, then helps the others;
// short pieces are taken several at a time. The leader never waits for a thread that has not taken a piece, so there is
// no deadlock even if all pool threads are leaders.
class ThreadTeam {
 public:
  // Calls lead(team); the threads of the pool share the phases that it runs.
  template <class Pool, class Lead>
  static void run(Pool& pool, int threads, const Lead& lead) {
    auto team = std::make_shared<ThreadTeam>(threads);
    const auto leader = std::this_thread::get_id();
    for (int thread = 1; thread < threads; ++thread) {
      // A full pool runs a task immediately on the calling thread, which would then follow itself forever.
      const auto follow = [team, thread, leader] {
        if (std::this_thread::get_id() != leader) team->follow(thread);
      };
      if (!schedule(pool, follow)) break;
    }
    lead(*team);
    // A thread that the pool starts late sees this and accesses only the team, which it keeps alive.
    team->phase_.store(ENDED, std::memory_order_release);
  }

  explicit ThreadTeam(int threads) : queues_(threads) {}

  // Calls task(piece) for every piece; `bytes` is the number of bytes that one piece reads.
  template <class Task>
  void phase(int pieces, int64_t bytes, const Task& task) {
    const int at_once = static_cast<int>(std::max<int64_t>(1, LEAST_BYTES / std::max<int64_t>(1, bytes)));
    if (queues_.size() == 1 || pieces <= at_once || pieces > MOST_PIECES) {
      for (int piece = 0; piece < pieces; ++piece) task(piece);
      return;
    }
    const uint32_t number = ++number_;
    task_ = &task;
    at_once_.store(std::min(at_once, MOST_PIECES), std::memory_order_relaxed);
    call_ = [](const void* of, int piece) { (*static_cast<const Task*>(of))(piece); };
    const int threads = static_cast<int>(queues_.size());
    for (int thread = 0; thread < threads; ++thread)
      queues_[thread].next.store(
          ticket(number, part_begin(pieces, threads, thread), part_begin(pieces, threads, thread + 1)),
          std::memory_order_release);
    phase_.store(number, std::memory_order_release);
    expected_ += pieces;
    work(0, number);
    for (int spins = 0; done_.load(std::memory_order_acquire) != expected_; ++spins) pause(spins);
  }

 private:
  static constexpr uint32_t ENDED = ~0u;
  static constexpr int MOST_PIECES = 65535;  // a ticket has 16 bits for a piece
  // Handing out a piece takes about as long as reading a few thousand bytes.
  static constexpr int LEAST_BYTES = 1 << 15;
  struct alignas(64) Queue {
    std::atomic<uint64_t> next{0};
  };

  // Packs the phase number with a thread's next piece and the end of its pieces, so that taking a piece of an old phase
  // fails.
  static uint64_t ticket(uint32_t number, int next, int end) {
    return static_cast<uint64_t>(number) << 32 | static_cast<uint64_t>(end) << 16 | static_cast<uint64_t>(next);
  }
  // Spins, yielding the core from time to time.
  static void pause(int spins) {
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
        pause(spins);
        continue;
      }
      work(thread, number);
      seen = number;
      spins = 0;
    }
  }

  void work(int thread, uint32_t number) {
    const int threads = static_cast<int>(queues_.size());
    for (int other = 0; other < threads; ++other) {
      const int owner = (thread + other) % threads;
      std::atomic<uint64_t>& next = queues_[owner].next;
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
  std::vector<Queue> queues_;
  std::atomic<uint32_t> phase_{0};
  uint32_t number_ = 0;
  alignas(64) std::atomic<uint64_t> done_{0};
  uint64_t expected_ = 0;
};

}  // namespace charjax
