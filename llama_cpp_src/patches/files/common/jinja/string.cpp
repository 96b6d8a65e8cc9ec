#include "jinja/string.h"
#include "jinja/value.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace jinja {

//
// string
//

void string::mark_input() {
    for (auto & part : parts) {
        part.is_input = true;
    }
}

std::string string::str() const {
    spend_text(length());
    if (parts.size() == 1) {
        return parts[0].val;
    }
    std::ostringstream oss;
    for (const auto & part : parts) {
        oss << part.val;
    }
    return oss.str();
}

size_t string::length() const {
    size_t len = 0;
    for (const auto & part : parts) {
        len += part.val.length();
    }
    return len;
}

void string::hash_update(hasher & hash) const noexcept {
    for (const auto & part : parts) {
        hash.update(part.val.data(), part.val.length());
    }
}

bool string::all_parts_are_input() const {
    for (const auto & part : parts) {
        if (!part.is_input) {
            return false;
        }
    }
    return true;
}

// mark this string as input if other has ALL parts as input
void string::mark_input_based_on(const string & other) {
    if (other.all_parts_are_input()) {
        for (auto & part : parts) {
            part.is_input = true;
        }
    }
}

string & string::append(const string & other) {
    for (const auto & part : other.parts) {
        append(part.val, part.is_input);
    }
    return *this;
}

string & string::append(const std::string & text, bool is_input) {
    pay(text.size());
    if (!parts.empty() && parts.back().is_input == is_input) {
        parts.back().val += text;
    } else {
        parts.push_back({is_input, text});
    }
    return *this;
}

bool string::equals(const string & other) const {
    if (length() != other.length()) {
        return false;
    }
    spend_text(length());
    if (parts.size() == 1 && other.parts.size() == 1) {
        return parts[0].val == other.parts[0].val;
    }
    return str() == other.str();
}

} // namespace jinja
