#pragma once

#include "python.h"

#include <cstdint>
#include <string>

// What the filters share with the methods.

namespace jinja {

// A text that counts as input where `like` does.
value text_value(const std::string & text, const value & like);

// An argument, or `otherwise` where it was left out. All but truth_of() throw if it is of another type.
bool        truth_of(const value & given, bool otherwise);
int64_t     int_of(const value & given, int64_t otherwise);
std::string text_of(const value & given, const std::string & otherwise);

// The text in the middle of `width` characters.
std::string padded(const std::string & text, int64_t width);

// The text with the first `count` places of `old` replaced, or with all of them if that is negative.
std::string replaced(const std::string & text, const std::string & old, const std::string & with, int64_t count);

} // namespace jinja
