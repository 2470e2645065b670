// Numpy arrays as arguments, seen through the buffer protocol.
//
// nanobind's own ndarray converts what does not fit: an output of another dtype would be a copy that nobody sees, and a
// pointer kept from one would dangle. Here nothing is converted; what does not fit raises ValueError and names the
// argument as soon as it is looked at.
#pragma once
#include <nanobind/nanobind.h>

#include <array>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

namespace diastole {

[[noreturn]] inline void fail(const std::string& what) { throw nanobind::value_error(what.c_str()); }

template <class T>
struct Dtype;
template <>
struct Dtype<float> {
  static constexpr const char *name = "float32", *codes = "f";
};
template <>
struct Dtype<double> {
  static constexpr const char *name = "float64", *codes = "d";
};
template <>
struct Dtype<uint8_t> {
  static constexpr const char *name = "uint8", *codes = "B";
};
template <>
struct Dtype<int8_t> {
  static constexpr const char *name = "int8", *codes = "b";
};
template <>
struct Dtype<int32_t> {
  static constexpr const char *name = "int32", *codes = "il";
};
template <>
struct Dtype<uint64_t> {
  static constexpr const char *name = "uint64", *codes = "LQ";
};
template <>
struct Dtype<int64_t> {
  static constexpr const char *name = "int64", *codes = "lq";
};

// An array of T with D axes (-1: any), held until the end of the call. `expect_*` names it and raises what is wrong.
template <class T, int D, bool WRITE>
class Array {
 public:
  using Pointer = std::conditional_t<WRITE, T*, const T*>;

  Array() = default;
  explicit Array(PyObject* object) noexcept { open(object); }
  Array(Array&& other) noexcept { *this = std::move(other); }
  Array& operator=(Array&& other) noexcept {
    std::swap(buffer_, other.buffer_);
    std::swap(problem_, other.problem_);
    std::swap(shape_, other.shape_);
    std::swap(strides_, other.strides_);
    return *this;
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() {
    if (buffer_.obj != nullptr) PyBuffer_Release(&buffer_);
  }

  const Array& named(const char* name) const {
    if (!problem_.empty()) fail(std::string(name) + " " + problem_);
    return *this;
  }
  Pointer data() const { return static_cast<T*>(fit().buffer_.buf); }
  size_t ndim() const { return static_cast<size_t>(fit().buffer_.ndim); }
  size_t shape(size_t axis) const { return static_cast<size_t>(fit().shape_[axis]); }
  ptrdiff_t stride(size_t axis) const { return fit().strides_[axis] / static_cast<ptrdiff_t>(sizeof(T)); }
  size_t size() const { return static_cast<size_t>(fit().buffer_.len) / sizeof(T); }

 private:
  static constexpr int kMostAxes = 4;
  const Array& fit() const { return named("an array"); }

  void open(PyObject* object) noexcept {
    const int flags = PyBUF_STRIDES | PyBUF_FORMAT | (WRITE ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, &buffer_, flags) != 0) {
      PyErr_Clear();
      buffer_ = {};
      problem_ = std::string("must be ") + (WRITE ? "a writable" : "an") + " array of " + Dtype<T>::name;
      return;
    }
    const char* format = buffer_.format == nullptr ? "B" : buffer_.format;
    if (*format == '@' || *format == '=' || *format == '<') format++;
    bool known = false;
    for (const char* code = Dtype<T>::codes; *code; code++) known |= *code == format[0];
    if (!known || format[1] != 0 || buffer_.itemsize != sizeof(T))
      problem_ = std::string("must be an array of ") + Dtype<T>::name;
    else if (buffer_.ndim > kMostAxes || (D >= 0 && buffer_.ndim != D))
      problem_ = "must have " + std::to_string(D) + " axes, not " + std::to_string(buffer_.ndim);
    else if (reinterpret_cast<uintptr_t>(buffer_.buf) % sizeof(T))
      problem_ = "must be aligned to its elements";
    if (!problem_.empty()) return;
    for (int i = 0; i < buffer_.ndim; i++) {
      shape_[static_cast<size_t>(i)] = buffer_.shape[i];
      strides_[static_cast<size_t>(i)] = buffer_.strides[i];
      if (buffer_.shape[i] > INT32_MAX && !(D == 1 && sizeof(T) == 1)) problem_ = "has an axis of more than 2^31-1";
      if (buffer_.strides[i] % static_cast<Py_ssize_t>(sizeof(T))) problem_ = "must be aligned to its elements";
    }
  }

  Py_buffer buffer_ = {};
  std::string problem_;
  std::array<Py_ssize_t, kMostAxes> shape_ = {}, strides_ = {};
};

}  // namespace diastole

NAMESPACE_BEGIN(NB_NAMESPACE)
NAMESPACE_BEGIN(detail)
template <class T, int D, bool WRITE>
struct type_caster<diastole::Array<T, D, WRITE>> {
  using Given = diastole::Array<T, D, WRITE>;
  NB_TYPE_CASTER(Given, const_name("numpy.ndarray"))
  bool from_python(handle source, uint8_t, cleanup_list*) noexcept {
    value = Given(source.ptr());
    return true;
  }
};
NAMESPACE_END(detail)
NAMESPACE_END(NB_NAMESPACE)
