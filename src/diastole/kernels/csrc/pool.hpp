// A small pool of threads for loops of a few microseconds to a few milliseconds.
//
// Workers look for work a bounded time and then sleep in the kernel, so a neighbour that takes a core away costs a
// wake-up and not a spinning war. Tasks are handed out one by one, so a slow core does less.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace diastole {

class Pool {
 public:
  static Pool& get();  // a child of fork() gets a new one

  int threads() const { return threads_; }
  void set_threads(int n);  // 1 or more, the caller's included

  // Calls f(i) for every i in [0, n), on any thread, in any order; returns when all are done.
  template <class F>
  void each(int n, const F& f) {
    if (n <= 0) return;
    if (n == 1 || threads_ == 1) {
      for (int i = 0; i < n; i++) f(i);
      return;
    }
    run(n, [](const void* context, int i) { (*static_cast<const F*>(context))(i); }, &f);
  }

  ~Pool();

 private:
  using Call = void (*)(const void*, int);
  void run(int n, Call call, const void* context);
  void work(uint32_t seen);
  void take();
  void start();
  void stop();

  int threads_ = 1;
  std::vector<std::thread> workers_;
  std::mutex turn_;  // one loop at a time
  // Written before the ticket that makes them visible; a thread reads them only while it holds an unfinished task.
  Call call_ = nullptr;
  const void* context_ = nullptr;
  std::atomic<bool> stopping_{false};
  alignas(64) std::atomic<uint32_t> epoch_{0};   // a new number: there may be work
  alignas(64) std::atomic<uint64_t> ticket_{0};  // tasks of this loop (high half), next task (low half)
  alignas(64) std::atomic<uint32_t> open_{0};    // tasks that are not done
};

}  // namespace diastole
