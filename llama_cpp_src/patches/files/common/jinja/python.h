#pragma once

#include "value.h"

#include <cstdint>
#include <string>
#include <vector>

// Operations on the values of a template with the results of Python. Templates are written for Jinja2, which
// leaves operators, comparisons, indices and texts to Python, and a prompt must not differ in a single byte.

namespace jinja {

// Split a text into code points; the bytes of invalid UTF-8 stay as they are.
std::vector<std::string> py_chars(const std::string & text);
size_t py_text_length(const std::string & text);
bool   py_is_space(const std::string & ch);
std::string py_upper(const std::string & text);
std::string py_lower(const std::string & text);
std::string py_upper_first(const std::string & ch); // as the first letter of a word
bool py_is_cased(const std::string & ch, bool & upper);
bool py_is_alpha(const std::string & ch);
bool py_is_word(const std::string & ch);
std::string py_strip(const std::string & text, bool left, bool right, const std::string * chars = nullptr);
std::vector<std::string> py_splitlines(const std::string & text, bool keep_ends = false);
std::string py_html_escape(const std::string & text);

std::string py_float_repr(double number);
string      py_str(const value & val);
std::string py_text(const value & val); // the same as one piece
std::string py_repr(const value & val);
std::string py_type(const value & val);

struct json_style {
    bool        pretty = false;
    std::string indent;
    std::string item_separator = ", ";
    std::string key_separator  = ": ";
    bool        sort_keys = false;
};
std::string py_json(const value & val, const json_style & style);

bool py_truth(const value & val);
bool py_equal(const value & a, const value & b);
bool py_less(const value & a, const value & b); // throws where Python does not order them
bool py_contains(const value & container, const value & item);
bool py_is_number(const value & val); // true for a boolean as well, which is a number in Python
bool py_is_integer(const value & val);

value py_binary(const std::string & op, const value & a, const value & b);
value py_negative(const value & val);
value py_compare(const std::string & op, const value & a, const value & b);

// The items of a value; a generator is used up by this.
std::vector<value> py_iterate(const value & val);
int64_t py_length(const value & val);

// Whatever is left out is given as none.
value py_slice(const value & val, const value & start, const value & stop, const value & step);
value py_item(const value & val, const value & key);          // val[key]
value py_attribute(const value & val, const std::string & name); // val.name

// Positional and named arguments in the order of `names`; one that is left out is nullptr. The first `skip`
// arguments are for the caller.
std::vector<value> py_arguments(
    const func_args & args, size_t skip, size_t n_required, const std::vector<std::string> & names);

const func_builtins & builtin_filters();
const func_builtins & builtin_tests();
bool is_known_filter(const std::string & name); // whether Jinja2 has it
bool is_known_test(const std::string & name);

[[noreturn]] void not_supported(const std::string & what);

} // namespace jinja
