// Catches C++ exceptions.
//
// llama.cpp's C functions can throw. Inside the nogil decode loop a throw must become a return
// code: these wrappers catch it and keep its text. Everywhere else Cython's `except +` with
// set_python_error() turns the exception into one of the package's own.
#pragma once

#include <Python.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "process/assertion.hpp"
#include "llama.h"
#include "memory/memory.hpp"

namespace llama_runner {

// No llama.cpp function returns these.
constexpr int32_t kThrew    = -100;
constexpr int32_t kNoMemory = -99;  // it threw because there is no memory

// Python exception classes, filled in once when the module is imported.
struct PythonErrors {
    PyObject * out_of_memory = nullptr;
    PyObject * runtime       = nullptr;
    PyObject * decode        = nullptr;
    PyObject * model_load    = nullptr;
};

inline PythonErrors & python_errors() {
    static PythonErrors errors;
    return errors;
}

// Not PyErr_SetString(): a text that quotes the model's file need not be UTF-8.
inline void raise_python_error(PyObject * type, const char * text) {
    PyObject * message = PyUnicode_DecodeUTF8(text, (Py_ssize_t) strlen(text), "replace");
    if (message) {
        PyErr_SetObject(type, message);
        Py_DECREF(message);
    }
}

// Called with the GIL held, inside a catch block.
inline void set_python_error_or(PyObject * type_of_assertion) {
    if (PyErr_Occurred()) {
        return;  // what a signal handler raised
    }
    try {
        throw;
    } catch (const AllocationAssertion & error) {
        raise_python_error(python_errors().out_of_memory, error.what());
    } catch (const std::bad_alloc &) {
        raise_python_error(python_errors().out_of_memory, "llama.cpp ran out of memory");
    } catch (const Assertion & error) {
        raise_python_error(type_of_assertion, error.what());
    } catch (const std::exception & error) {
        raise_python_error(python_errors().runtime, error.what());
    } catch (...) {
        raise_python_error(python_errors().runtime, "llama.cpp threw an unknown exception");
    }
}

// The handlers of `except +`.
inline void set_python_error() { set_python_error_or(python_errors().decode); }
inline void set_load_error() { set_python_error_or(python_errors().model_load); }

inline void keep_text(std::string & error, const char * text) noexcept {
    try {
        error = text;
    } catch (...) {
    }
}

template <typename Call>
inline int32_t guarded(std::string & error, Call && call) noexcept {
    try {
        return call();
    } catch (const std::bad_alloc & caught) {
        keep_text(error, caught.what());
        return kNoMemory;
    } catch (const std::exception & caught) {
        keep_text(error, caught.what());
    } catch (...) {
    }
    return kThrew;
}

inline int32_t decode(llama_context * ctx, const llama_batch & batch, std::string & error) noexcept {
    return guarded(error, [&] { return llama_decode(ctx, batch); });
}

inline int32_t settle(llama_context * ctx, std::string & error) noexcept {
    return guarded(error, [&] {
        settle_memory(ctx);
        return 0;
    });
}

// Appends the text of one token to `out`; 0, kThrew or kNoMemory.
inline int32_t append_piece(
        const llama_vocab * vocab, llama_token token, bool special, std::string & out,
        std::string & error) noexcept {
    return guarded(error, [&] {
        char    piece[128];
        int32_t n = llama_token_to_piece(vocab, token, piece, sizeof piece, 0, special);
        if (n >= 0) {
            out.append(piece, n);
            return 0;
        }
        const size_t old_size = out.size();
        out.resize(old_size - n);
        llama_token_to_piece(vocab, token, &out[old_size], -n, 0, special);
        return 0;
    });
}

// Returns false if there is no memory for sorting.
inline bool apply_sampler(llama_sampler * sampler, llama_token_data_array * candidates) noexcept {
    std::string error;
    return guarded(error, [&] {
        llama_sampler_apply(sampler, candidates);
        return 0;
    }) == 0;
}

}  // namespace llama_runner
