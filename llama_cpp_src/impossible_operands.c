// Handlers for the checks that the compiler puts into ggml.c: a null pointer or a zero divisor is a failed
// assertion instead of a signal.
//
// The compilers' own handlers are in a library that prints and ends the process. These use only the
// beginning of the data that they are called with, which is the same for GCC and Clang.
#include <stdint.h>

#include "ggml.h"

struct place {
    const char * file;
    uint32_t     line;
    uint32_t     column;
};

void __ubsan_handle_type_mismatch_v1_abort(struct place * use, uintptr_t pointer);
void __ubsan_handle_divrem_overflow_abort(struct place * use, uintptr_t left, uintptr_t right);

void __ubsan_handle_type_mismatch_v1_abort(struct place * use, uintptr_t pointer) {
    (void) pointer;
    ggml_abort(use->file, (int) use->line, "GGML_ASSERT(operand != NULL) failed");
}

void __ubsan_handle_divrem_overflow_abort(struct place * use, uintptr_t left, uintptr_t right) {
    (void) left;
    (void) right;
    ggml_abort(use->file, (int) use->line, "GGML_ASSERT(divisor != 0) failed");
}
