#pragma once

#include "value.h"

#include <cstdint>
#include <string>
#include <vector>

// What Python does with the values of a template. Templates are written for Jinja2, which leaves operators,
// comparisons, indices and texts to Python: a prompt that differs in a byte is another prompt.

namespace jinja {

// code points, of valid and of invalid UTF-8; the latter's bytes stay as they are
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
std::string py_text(const value & val); // the same without its parts
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
bool py_is_number(const value & val); // and a boolean, which is one for Python
bool py_is_integer(const value & val);

value py_binary(const std::string & op, const value & a, const value & b);
value py_negative(const value & val);
value py_compare(const std::string & op, const value & a, const value & b);

// Uses up generators.
std::vector<value> py_iterate(const value & val);
int64_t py_length(const value & val);

// None stands for what is left out.
value py_slice(const value & val, const value & start, const value & stop, const value & step);
value py_item(const value & val, const value & key);          // val[key]
value py_attribute(const value & val, const std::string & name); // val.name

// Arguments by place and by name, those left out as nullptr. The first `skip` belong to the caller.
std::vector<value> py_arguments(
    const func_args & args, size_t skip, size_t n_required, const std::vector<std::string> & names);

const func_builtins & builtin_filters();
const func_builtins & builtin_tests();
bool is_known_filter(const std::string & name); // to Jinja2
bool is_known_test(const std::string & name);

[[noreturn]] void not_supported(const std::string & what);

} // namespace jinja
