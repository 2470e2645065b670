#include "pool.hpp"

#include <chrono>
#include <climits>
#include <new>
#include <system_error>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace diastole {
namespace {

constexpr auto kPatience = std::chrono::microseconds(50);  // of looking for work before sleeping

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  if (word.load() == value) std::this_thread::sleep_for(kPatience);
#endif
}

void wake_all(std::atomic<uint32_t>& word) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

std::atomic<Pool*> current{nullptr};
std::mutex creating;
int wanted_threads = 1;

void forget_in_child() {
  current.store(nullptr);  // its threads did not survive the fork; the object is left alone
  new (&creating) std::mutex;
}

}  // namespace

// Never destroyed: a daemon thread of Python may still be in a loop while the process ends.
Pool& Pool::get() {
  Pool* pool = current.load(std::memory_order_acquire);
  if (pool != nullptr) return *pool;
  std::lock_guard<std::mutex> lock(creating);
  if (current.load() == nullptr) {
#if defined(__unix__) || defined(__APPLE__)
    static const int registered = pthread_atfork(nullptr, nullptr, forget_in_child);
    (void)registered;
#endif
    current.store(new Pool(wanted_threads), std::memory_order_release);
  }
  return *current.load();
}

// Sequentially consistent on both sides: either the sleeper sees the new word, or who changed it sees the sleeper.
void Pool::Bell::wait_change(uint32_t value) {
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 32; i++) {
      if (word.load(std::memory_order_acquire) != value) return;
      relax();
    }
  } while (std::chrono::steady_clock::now() - start < kPatience);
  sleepers.fetch_add(1);
  while (word.load() == value) sleep_while(word, value);
  sleepers.fetch_sub(1);
}

void Pool::Bell::ring() {
  if (sleepers.load() != 0) wake_all(word);
}

void Pool::set_threads(int n) {
  std::lock_guard<std::mutex> lock(turn_);
  if (n == threads()) return;
  stop();
  threads_.store(n);
  wanted_threads = n;
}

void Pool::start() {
  const uint32_t seen = epoch_.word.load();
  if (workers_.empty()) shares_.reset(new Share[static_cast<size_t>(count_ = threads())]);
  try {
    for (int me; (me = static_cast<int>(workers_.size()) + 1) < threads();) workers_.emplace_back([this, me, seen] { work(me, seen); });
  } catch (const std::system_error&) {
    threads_.store(static_cast<int>(workers_.size()) + 1);  // the system gives no more: do with these
  }
}

void Pool::stop() {
  stopping_.store(true);
  epoch_.word.fetch_add(1);
  epoch_.ring();
  for (auto& worker : workers_) worker.join();
  workers_.clear();
  stopping_.store(false);
}

// A task that is taken is one that only this thread will do, so the loop it belongs to cannot end before. A thread that
// wakes late finds nothing left, or tasks of a later loop: nobody ever waits for a sleeper.
void Pool::take(int me) {
  for (int k = 0; k < count_; k++)
    for (int i; next((me + k) % count_, k == 0, i);) {
      call_(context_, i);
      if (open_.word.fetch_sub(1) == 1) open_.ring();
    }
}

// Takes the first task of a share, or the last; false: nothing is left of it.
bool Pool::next(int of, bool first, int& i) {
  std::atomic<uint64_t>& left = shares_[static_cast<size_t>(of)].left;
  for (uint64_t seen = left.load(std::memory_order_relaxed);;) {
    const uint32_t begin = static_cast<uint32_t>(seen >> 32), end = static_cast<uint32_t>(seen);
    if (begin >= end) return false;
    i = static_cast<int>(first ? begin : end - 1);
    const uint64_t rest = first ? seen + (uint64_t{1} << 32) : seen - 1;
    if (left.compare_exchange_weak(seen, rest, std::memory_order_acq_rel, std::memory_order_relaxed)) return true;
  }
}

void Pool::work(int me, uint32_t seen) {
  for (;;) {
    epoch_.wait_change(seen);
    seen = epoch_.word.load();
    if (stopping_.load()) return;
    take(me);
  }
}

void Pool::run(int n, Call call, const void* context) {
  std::lock_guard<std::mutex> lock(turn_);
  if (static_cast<int>(workers_.size()) + 1 < threads()) start();
  call_ = call;
  context_ = context;
  open_.word.store(static_cast<uint32_t>(n));
  for (int w = 0; w < count_; w++) {
    const auto edge = [&](int of) { return static_cast<uint64_t>(n) * static_cast<uint64_t>(of) / static_cast<uint64_t>(count_); };
    shares_[static_cast<size_t>(w)].left.store(edge(w) << 32 | edge(w + 1), std::memory_order_release);
  }
  epoch_.word.fetch_add(1);
  epoch_.ring();
  take(0);
  for (uint32_t left; (left = open_.word.load(std::memory_order_acquire)) != 0;) open_.wait_change(left);
}

}  // namespace diastole
