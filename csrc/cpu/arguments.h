// What bindings make of what Python passes: addresses and numbers of types.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "numbers.h"

namespace octavo {

using Address = uint64_t;

template <class T>
T* pointer_to(Address address) { return reinterpret_cast<T*>(static_cast<uintptr_t>(address)); }

inline Number number_type(int number) {
    if (number < 0 || number > 2) throw std::invalid_argument("no such number type: " + std::to_string(number));
    return static_cast<Number>(number);
}

inline Number cache_type(int number) {
    return number == static_cast<int>(Number::i8) ? Number::i8 : number_type(number);
}

// Rows or tokens of `each` numbers that are worth another thread: about 4 us of work.
inline int64_t rows_worth_a_thread(int64_t each) {
    constexpr int64_t numbers = 16384;
    return each >= numbers ? 1 : each < 1 ? numbers : numbers / each;
}

} // namespace octavo
