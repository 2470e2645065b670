#include "memory.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace diastole {
namespace {

constexpr size_t kHuge = size_t{2} << 20;
constexpr size_t kShared = size_t{64} << 20;  // of a block that pieces share
constexpr size_t kLine = 64;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

Block::Block(size_t size) : size_(size) {
  const size_t align = size >= kHuge ? kHuge : kLine, room = round_up(std::max(size, size_t{1}), align);
#if defined(__linux__)
  mapped_ = room + align;
  base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base_ == MAP_FAILED) throw std::bad_alloc();
  data_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(base_), align));
  if (size >= kHuge) madvise(data_, room, MADV_HUGEPAGE);
#else
  mapped_ = room;
  base_ = std::aligned_alloc(align, room);
  if (base_ == nullptr) throw std::bad_alloc();
  data_ = static_cast<uint8_t*>(base_);
  std::memset(data_, 0, room);
#endif
}

Block::~Block() {
#if defined(__linux__)
  munmap(base_, mapped_);
#else
  std::free(base_);
#endif
}

Piece take(size_t size) {
  if (size > kShared / 4) {
    auto own = std::make_shared<Block>(size);
    return {own, own->data()};
  }
  static std::mutex taking;
  static std::weak_ptr<Block> open;  // the pieces keep it
  static size_t used = 0;
  std::lock_guard<std::mutex> lock(taking);
  std::shared_ptr<Block> block = open.lock();
  if (block == nullptr || used + size > block->size()) {
    open = block = std::make_shared<Block>(kShared);
    used = 0;
  }
  uint8_t* data = block->data() + used;
  used += round_up(size, kLine);
  return {block, data};
}

}  // namespace diastole
