// What the checks that the compiler puts into ggml.c call: a null pointer or a zero divisor is a failed
// assertion, not a signal.
//
// The compilers' own handlers are in a library that prints and ends the process. Of the data that
// they are called with, only the beginning is used, which GCC and Clang agree on.
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
