#include "pool.hpp"

#include <chrono>
#include <climits>
#include <new>
#include <pthread.h>
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

constexpr int kSpins = 4000;  // some tens of microseconds

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
  if (word.load() == value) std::this_thread::sleep_for(std::chrono::microseconds(50));
#endif
}

void wake_all(std::atomic<uint32_t>& word) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

// Waits until the word has another value.
void wait_change(std::atomic<uint32_t>& word, uint32_t value) {
  for (int i = 0; i < kSpins; i++) {
    if (word.load(std::memory_order_acquire) != value) return;
    relax();
  }
  while (word.load(std::memory_order_acquire) == value) sleep_while(word, value);
}

std::atomic<Pool*> current{nullptr};
std::mutex creating;

void forget_in_child() {
  current.store(nullptr);  // its threads did not survive the fork; the object is left alone
  new (&creating) std::mutex;
}

}  // namespace

Pool& Pool::get() {
  Pool* pool = current.load(std::memory_order_acquire);
  if (pool != nullptr) return *pool;
  std::lock_guard<std::mutex> lock(creating);
  if (current.load() == nullptr) {
    static std::once_flag once;
    std::call_once(once, [] { pthread_atfork(nullptr, nullptr, forget_in_child); });
    current.store(new Pool, std::memory_order_release);
  }
  return *current.load();
}

Pool::~Pool() { stop(); }

void Pool::set_threads(int n) {
  std::lock_guard<std::mutex> lock(turn_);
  if (n == threads_) return;
  stop();
  threads_ = n;
}

void Pool::start() {
  const uint32_t seen = epoch_.load();
  for (int i = static_cast<int>(workers_.size()) + 1; i < threads_; i++) {
    workers_.emplace_back([this, seen] { work(seen); });
  }
}

void Pool::stop() {
  stopping_.store(true);
  epoch_.fetch_add(1);
  wake_all(epoch_);
  for (auto& worker : workers_) worker.join();
  workers_.clear();
  stopping_.store(false);
}

// A ticket that is taken is a task that only this thread will do, so the loop it belongs to cannot end before. A thread
// that wakes late finds no tickets left, or those of a later loop: nobody ever waits for a sleeper.
void Pool::take() {
  for (;;) {
    const uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
    const uint32_t i = static_cast<uint32_t>(ticket);
    if (i >= static_cast<uint32_t>(ticket >> 32)) return;
    call_(context_, static_cast<int>(i));
    if (open_.fetch_sub(1, std::memory_order_acq_rel) == 1) wake_all(open_);
  }
}

void Pool::work(uint32_t seen) {
  for (;;) {
    wait_change(epoch_, seen);
    seen = epoch_.load(std::memory_order_acquire);
    if (stopping_.load()) return;
    take();
  }
}

void Pool::run(int n, Call call, const void* context) {
  std::lock_guard<std::mutex> lock(turn_);
  if (static_cast<int>(workers_.size()) + 1 < threads_) start();
  call_ = call;
  context_ = context;
  open_.store(static_cast<uint32_t>(n), std::memory_order_relaxed);
  ticket_.store(static_cast<uint64_t>(n) << 32, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  wake_all(epoch_);
  take();
  for (uint32_t left; (left = open_.load(std::memory_order_acquire)) != 0;) wait_change(open_, left);
}

}  // namespace diastole
