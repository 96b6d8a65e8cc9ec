// llama.cpp's failed assertions, as C++ exceptions.
//
// ggml_abort() calls throw_assertion() on the thread that failed, and the exception passes through
// llama.cpp's code to guard.hpp. llama_cpp_src/patches/07-unwinding.patch says what cannot be left so.
#pragma once

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

namespace llama_runner {

// What ggml_abort() says, "FILE:LINE: GGML_ASSERT(CONDITION) failed", with a path inside of
// llama.cpp's tree. Not a std::string: there may be no memory for one.
struct AssertionText {
    char text[512];

    AssertionText(const char * kind, const char * message) noexcept {
        // CMakeLists.txt gives the tree this name; a compiler cache may put more before it.
        constexpr char kTree[] = "llama.cpp/";
        const char *   path    = message;
        while (const char * tree = std::strstr(path, kTree)) {
            path = tree + sizeof kTree - 1;
        }
        std::snprintf(text, sizeof text, "%s at %s", kind, path);
    }
};

class Assertion : public std::exception {
  public:
    explicit Assertion(const char * message) noexcept : text_("failed assertion", message) {}
    const char * what() const noexcept override { return text_.text; }

  private:
    AssertionText text_;
};

// An assertion that something could be allocated.
class AllocationAssertion : public std::bad_alloc {
  public:
    explicit AllocationAssertion(const char * message) noexcept : text_("no memory", message) {}
    const char * what() const noexcept override { return text_.text; }

  private:
    AssertionText text_;
};

// Conditions about memory name a pointer, and are looked at just after it could not be had.
[[noreturn]] inline void throw_assertion(const char * message) {
    const int  error         = errno;
    const bool about_pointer = std::strstr(message, "NULL") || std::strstr(message, "nullptr");
    if (std::strstr(message, "failed to allocate") || std::strstr(message, "mem_buffer")
        || (about_pointer && error == ENOMEM)) {
        throw AllocationAssertion(message);
    }
    throw Assertion(message);
}

}  // namespace llama_runner
