// A small pool of threads for loops of a few microseconds to a few milliseconds.
//
// Workers look for work a bounded time and then sleep in the kernel, so a neighbour that takes a core away costs a
// wake-up and not a spinning war. Each thread has a share of neighbouring tasks, the same in every loop of as many: what
// it wrote in one it finds in its own caches in the next. Who is done helps others, so a slow core does less.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace diastole {

class Pool {
 public:
  static Pool& get();  // a child of fork() gets a new one with as many threads

  int threads() const { return threads_.load(std::memory_order_relaxed); }
  void set_threads(int n);  // 1 or more, the caller's included; waits for loops that run

  // Calls f(i) for every i in [0, n), on any thread, in any order; returns when all are done. f must not throw.
  // share = false: all on the caller's thread, for loops that are not worth waking anybody.
  template <class F>
  void each(int n, const F& f, bool share = true) {
    if (share && n > 1 && threads() > 1) {
      run(n, [](const void* context, int i) { (*static_cast<const F*>(context))(i); }, &f);
    } else {
      for (int i = 0; i < n; i++) f(i);
    }
  }

 private:
  using Call = void (*)(const void*, int);
  // A word that threads wait on, and how many of them sleep: nobody sleeps, nobody is woken.
  struct alignas(64) Bell {
    std::atomic<uint32_t> word{0};
    std::atomic<uint32_t> sleepers{0};
    void wait_change(uint32_t value);  // until the word is another
    void ring();                       // after the word has changed
  };

  explicit Pool(int threads) : threads_(threads) {}
  void run(int n, Call call, const void* context);
  void work(int me, uint32_t seen);
  void take(int me);
  bool next(int of, bool first, int& i);
  void start();
  void stop();

  std::atomic<int> threads_;
  std::vector<std::thread> workers_;
  std::mutex turn_;  // one loop at a time
  // Written before the shares that make them visible; read only by who holds a task that is not done.
  Call call_ = nullptr;
  const void* context_ = nullptr;
  std::atomic<bool> stopping_{false};
  Bell epoch_;                                    // a new number: there may be work
  Bell open_;                                     // tasks that are not done
  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};  // tasks that nobody has taken: the first (high half), one behind the last (low half)
  };
  std::unique_ptr<Share[]> shares_;
  int count_ = 0;  // of shares, as long as there are workers
};

}  // namespace diastole
