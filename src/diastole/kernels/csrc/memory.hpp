// Memory on huge pages. A matrix that streams past once per token touches a new 4 KiB page every 100 ns: on ordinary
// pages the look-up of addresses, not the memory, then bounds a decode step.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace diastole {

// Zeroed memory of its own, on huge pages where the system has them, taken from it as it is touched.
class Block {
 public:
  explicit Block(size_t size);  // throws std::bad_alloc
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_;
  size_t size_;
  void* base_;
  size_t mapped_;
};

// A piece of a block, which lives as long as any of its pieces.
struct Piece {
  std::shared_ptr<Block> block;
  uint8_t* data;
};

// Zeroed, aligned to 64 bytes. Small pieces share blocks, so that they lie on huge pages too. Thread-safe.
Piece take(size_t size);

// Memory that grows and is kept; what it held is lost when it grows.
template <class T>
class Scratch {
 public:
  T* get(size_t n) {
    if (block_ == nullptr || n * sizeof(T) > size_) {
      size_ = n * sizeof(T) + n * sizeof(T) / 4;
      block_.reset();
      block_ = std::make_unique<Block>(size_);
    }
    return reinterpret_cast<T*>(block_->data());
  }

 private:
  std::unique_ptr<Block> block_;
  size_t size_ = 0;
};

}  // namespace diastole
