#pragma once

#include "utils.h"

#include <stdexcept>
#include <string>
#include <vector>

namespace jinja {

struct token {
    enum type {
        eof, // end of source
        text, // The text between Jinja statements or expressions

        integer_literal, // e.g., 123
        float_literal, // e.g., 1.0
        string_literal, // 'string'
        identifier, // Variables, functions, statements, booleans, etc.
        symbol, // Operators, brackets, and what separates
        open_statement, // {%
        close_statement, // %}
        open_expression, // {{
        close_expression, // }}
    };
    type t;
    std::string value;
    size_t pos;
};

struct lexer_result {
    std::vector<token> tokens;
    std::string source;
};

struct lexer {
    // tokenize the source string into a list of tokens
    // may throw lexer_exception on error
    lexer_result tokenize(const std::string & source);
};

struct lexer_exception : public std::runtime_error {
    lexer_exception(const std::string & msg, const std::string & source, size_t pos)
        : std::runtime_error(fmt_error_with_source("lexer", msg, source, pos)) {}
};

} // namespace jinja
