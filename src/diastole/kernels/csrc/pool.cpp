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
  try {
    while (static_cast<int>(workers_.size()) + 1 < threads()) workers_.emplace_back([this, seen] { work(seen); });
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

// A ticket that is taken is a task that only this thread will do, so the loop it belongs to cannot end before. A thread
// that wakes late finds no tickets left, or those of a later loop: nobody ever waits for a sleeper.
void Pool::take() {
  for (;;) {
    const uint64_t ticket = tickets_.fetch_add(1, std::memory_order_acq_rel);
    const uint32_t i = static_cast<uint32_t>(ticket);
    if (i >= static_cast<uint32_t>(ticket >> 32)) return;
    call_(context_, static_cast<int>(i));
    if (open_.word.fetch_sub(1) == 1) open_.ring();
  }
}

void Pool::work(uint32_t seen) {
  for (;;) {
    epoch_.wait_change(seen);
    seen = epoch_.word.load();
    if (stopping_.load()) return;
    take();
  }
}

void Pool::run(int n, Call call, const void* context) {
  std::lock_guard<std::mutex> lock(turn_);
  if (static_cast<int>(workers_.size()) + 1 < threads()) start();
  call_ = call;
  context_ = context;
  open_.word.store(static_cast<uint32_t>(n));
  tickets_.store(static_cast<uint64_t>(n) << 32, std::memory_order_release);
  epoch_.word.fetch_add(1);
  epoch_.ring();
  take();
  for (uint32_t left; (left = open_.word.load(std::memory_order_acquire)) != 0;) open_.wait_change(left);
}

}  // namespace diastole
