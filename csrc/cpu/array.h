#pragma once
#include <cstddef>
#include <memory>

namespace wcf {

// Memory that is not written before it is used.
template <class T>
class Array {
 public:
  void resize(size_t size) { memory_.reset(new T[size]); }
  T* data() const { return memory_.get(); }
  T& operator[](size_t i) const { return memory_[i]; }

 private:
  std::unique_ptr<T[]> memory_;
};

}  // namespace wcf
