#include "python.h"

#include "runtime.h"
#include "unicode.h"

#include "../../src/unicode.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <unordered_map>

#define FILENAME "jinja-python"

namespace jinja {

void not_supported(const std::string & what) {
    throw std::runtime_error("not supported: " + what);
}

[[noreturn]] static void type_error(const std::string & message) {
    throw std::runtime_error(message);
}

static void require_defined(const value & val) {
    if (is_val<value_undefined>(val)) {
        type_error(cast_val<value_undefined>(val)->message());
    }
}

//
// text
//

std::vector<std::string> py_chars(const std::string & text) {
    spend_text(text.size());
    spend(static_cast<int64_t>(text.size() / 4)); // each of them is a text
    std::vector<std::string> chars;
    for (size_t pos = 0; pos < text.size();) {
        const auto   parsed = common_parse_utf8_codepoint(text, pos);
        const size_t size   = parsed.status == utf8_parse_result::SUCCESS ? parsed.bytes_consumed : 1;
        chars.push_back(text.substr(pos, size));
        pos += size;
    }
    return chars;
}

static uint32_t codepoint(const std::string & ch) {
    return common_parse_utf8_codepoint(ch, 0).codepoint;
}

static bool is_ascii(const std::string & text) {
    return std::all_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x80; });
}

static std::string joined(const std::vector<std::string> & chars) {
    std::string text;
    for (const auto & ch : chars) {
        text += ch;
    }
    return text;
}

size_t py_text_length(const std::string & text) {
    return is_ascii(text) ? text.size() : py_chars(text).size();
}

bool py_is_space(const std::string & ch) {
    const uint32_t c = codepoint(ch);
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool py_is_alpha(const std::string & ch) {
    return unicode_cpt_flags_from_cpt(codepoint(ch)).is_letter;
}

bool py_is_word(const std::string & ch) {
    const auto flags = unicode_cpt_flags_from_cpt(codepoint(ch));
    return ch == "_" || flags.is_letter || flags.is_number;
}

[[noreturn]] static void no_case_for(const std::string & ch) {
    not_supported("upper and lower case of '" + ch + "'");
}

// The letters whose lower case is a given letter; the first one is its upper case in Unicode.
static const std::unordered_map<uint32_t, uint32_t> & uppercase() {
    static const auto table = [] {
        std::unordered_map<uint32_t, uint32_t> upper;
        for (uint32_t c = 0x80; c < 0x1f000; ++c) {
            const uint32_t lower = unicode_tolower(c);
            if (lower != c && c != 0x1e9e) { // the upper case of a sharp s is SS
                upper.emplace(lower, c);
            }
        }
        return upper;
    }();
    return table;
}

static bool is_between(uint32_t c, std::initializer_list<std::pair<uint32_t, uint32_t>> ranges) {
    return std::any_of(ranges.begin(), ranges.end(), [c](const auto & range) { return c >= range.first && c <= range.second; });
}

bool py_is_cased(const std::string & ch, bool & upper) {
    const uint32_t c     = codepoint(ch);
    const bool     lower = c < 0x80 ? c >= 'a' && c <= 'z' : uppercase().count(c) != 0;
    upper = c < 0x80 ? c >= 'A' && c <= 'Z' : unicode_tolower(c) != c;
    if (!upper && !lower && c >= 0x80 && unicode_cpt_flags_from_cpt(c).is_letter &&
            is_between(c, {{0x80, 0x58f}, {0x10a0, 0x10ff}, {0x1c80, 0x1fff}, {0x2070, 0x218f}, {0xa640, 0xa7ff}, {0xab30, 0xab6f}, {0xfb00, 0xfb17}})) {
        no_case_for(ch); // a letter without a counterpart may still have a case
    }
    return upper || lower;
}

static std::string upper_char(const std::string & ch) {
    if (ch.size() == 1) {
        return std::string(1, static_cast<char>(std::toupper(static_cast<unsigned char>(ch[0]))));
    }
    const uint32_t c     = codepoint(ch);
    const auto     found = uppercase().find(c);
    if (is_between(c, {{0xb5, 0xb5}, {0x131, 0x131}, {0x149, 0x149}, {0x17f, 0x17f}, {0x1c4, 0x1cc}, {0x1f0, 0x1f3}, {0x390, 0x390},
                       {0x3b0, 0x3b0}, {0x3c2, 0x3c2}, {0x3d0, 0x3d6}, {0x3f0, 0x3f5}, {0x587, 0x587}, {0x1c80, 0x1c8f},
                       {0x1e96, 0x1e9b}, {0x1f50, 0x1fff}, {0xfb00, 0xfb17}})) {
        no_case_for(ch); // its upper case is several letters, or not its counterpart
    }
    if (found != uppercase().end()) {
        return common_unicode_cpt_to_utf8(found->second);
    }
    if (unicode_cpt_flags_from_cpt(c).is_lowercase) {
        no_case_for(ch); // becomes two letters, or none
    }
    return ch;
}

static std::string lower_char(const std::string & ch) {
    if (ch.size() == 1) {
        return std::string(1, static_cast<char>(std::tolower(static_cast<unsigned char>(ch[0]))));
    }
    const uint32_t c = codepoint(ch);
    if (c == 0x130 || c == 0x3a3) {
        no_case_for(ch); // becomes two letters, or depends on its place
    }
    const uint32_t lower = unicode_tolower(c);
    return lower == c ? ch : common_unicode_cpt_to_utf8(lower);
}

std::string py_upper_first(const std::string & ch) {
    const uint32_t c = codepoint(ch);
    if ((c >= 0x1c4 && c <= 0x1cc) || (c >= 0x1f1 && c <= 0x1f3) || (c >= 0x10d0 && c <= 0x10ff)) {
        no_case_for(ch);
    }
    return upper_char(ch);
}

std::string py_upper(const std::string & text) {
    std::string result;
    for (const auto & ch : py_chars(text)) {
        result += upper_char(ch);
    }
    return result;
}

std::string py_lower(const std::string & text) {
    std::string result;
    for (const auto & ch : py_chars(text)) {
        result += lower_char(ch);
    }
    return result;
}

std::string py_strip(const std::string & text, bool left, bool right, const std::string * chars) {
    const auto all = py_chars(text);
    const auto set = chars ? py_chars(*chars) : std::vector<std::string>();
    spend(static_cast<int64_t>(set.size()));
    const auto goes = [&](const std::string & ch) {
        return chars ? std::find(set.begin(), set.end(), ch) != set.end() : py_is_space(ch);
    };
    size_t start = 0;
    size_t end   = all.size();
    size_t first = 0;
    size_t last  = text.size();
    while (left && start < end && goes(all[start])) {
        spend(static_cast<int64_t>(set.size() / 16));
        first += all[start++].size();
    }
    while (right && end > start && goes(all[end - 1])) {
        spend(static_cast<int64_t>(set.size() / 16));
        last -= all[--end].size();
    }
    return text.substr(first, last - first);
}

std::vector<std::string> py_splitlines(const std::string & text, bool keep_ends) {
    std::vector<std::string> lines;
    std::string              line;
    bool                     open = false;
    const auto               all  = py_chars(text);
    for (size_t i = 0; i < all.size(); ++i) {
        const uint32_t c    = codepoint(all[i]);
        const bool     ends = (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
        if (!ends) {
            line += all[i];
            open = true;
            continue;
        }
        if (keep_ends) {
            line += all[i];
        }
        if (c == '\r' && i + 1 < all.size() && all[i + 1] == "\n") {
            ++i;
            if (keep_ends) {
                line += '\n';
            }
        }
        lines.push_back(std::move(line));
        line.clear();
        open = false;
    }
    if (open) {
        lines.push_back(std::move(line));
    }
    return lines;
}

std::string py_html_escape(const std::string & text) {
    std::string result;
    for (const char c : text) {
        switch (c) {
            case '&':  result += "&amp;"; break;
            case '<':  result += "&lt;";  break;
            case '>':  result += "&gt;";  break;
            case '\'': result += "&#39;"; break;
            case '"':  result += "&#34;"; break;
            default:   result += c;
        }
    }
    spend_text(result.size());
    return result;
}

//
// values as text
//

std::string py_float_repr(double number) {
    if (std::isnan(number)) {
        return "nan";
    }
    if (std::isinf(number)) {
        return number < 0 ? "-inf" : "inf";
    }
    char buf[64];
    const auto        end  = std::to_chars(buf, buf + sizeof(buf), number, std::chars_format::scientific).ptr;
    const std::string text(buf, end);
    const size_t      e        = text.find('e');
    const int         exponent = std::stoi(text.substr(e + 1));
    std::string       digits   = text.substr(0, e);
    std::string       sign;
    if (digits[0] == '-') {
        sign = "-";
        digits.erase(0, 1);
    }
    digits.erase(std::remove(digits.begin(), digits.end(), '.'), digits.end());
    const int n = static_cast<int>(digits.size());
    if (exponent < -4 || exponent >= 16) {
        const int         size  = std::abs(exponent);
        const std::string power = (exponent < 0 ? "e-" : "e+") + std::string(size < 10 ? "0" : "") + std::to_string(size);
        return sign + digits.substr(0, 1) + (n > 1 ? "." + digits.substr(1) : "") + power;
    }
    if (exponent < 0) {
        return sign + "0." + std::string(-exponent - 1, '0') + digits;
    }
    if (n <= exponent + 1) {
        return sign + digits + std::string(exponent + 1 - n, '0') + ".0";
    }
    return sign + digits.substr(0, exponent + 1) + "." + digits.substr(exponent + 1);
}

static std::string text_repr(const std::string & text) {
    const char  quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
    std::string result(1, quote);
    char        buf[16];
    for (const auto & ch : py_chars(text)) {
        const uint32_t c = codepoint(ch);
        if (ch[0] == quote || ch[0] == '\\') {
            result += '\\';
            result += ch;
        } else if (ch == "\n") {
            result += "\\n";
        } else if (ch == "\r") {
            result += "\\r";
        } else if (ch == "\t") {
            result += "\\t";
        } else if (c < 0x20 || c == 0x7f) {
            snprintf(buf, sizeof(buf), "\\x%02x", c);
            result += buf;
        } else if (c < 0x7f) {
            result += ch;
        } else {
            const auto flags = unicode_cpt_flags_from_cpt(c);
            if (!flags.is_separator && !flags.is_control && !flags.is_undefined && flags.category_flag()) {
                result += ch;
            } else {
                snprintf(buf, sizeof(buf), c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
                result += buf;
            }
        }
    }
    result += quote;
    spend_text(result.size());
    return result;
}

static void write_repr(std::string & out, const value & val) {
    spend_text(16, out.size());
    if (is_val<value_string>(val)) {
        const auto text = text_repr(val->as_string().str());
        out += cast_val<value_string>(val)->is_markup ? "Markup(" + text + ")" : text;
    } else if (is_val<value_view>(val)) {
        const auto * view = cast_val<value_view>(val);
        if (view->kind == value_view_t::generator) {
            not_supported("a generator as text: add |list");
        }
        if (view->kind == value_view_t::range) {
            out += view->shown;
            return;
        }
        out += view->shown + "([";
        for (size_t i = 0; i < val->val_arr.size(); ++i) {
            out += i ? ", " : "";
            write_repr(out, val->val_arr[i]);
        }
        out += "])";
    } else if (is_val<value_array>(val)) {
        const bool is_tuple = is_val<value_tuple>(val);
        out += is_tuple ? "(" : "[";
        for (size_t i = 0; i < val->val_arr.size(); ++i) {
            out += i ? ", " : "";
            write_repr(out, val->val_arr[i]);
        }
        out += is_tuple && val->val_arr.size() == 1 ? "," : "";
        out += is_tuple ? ")" : "]";
    } else if (is_val<value_object>(val)) {
        out += "{";
        for (size_t i = 0; i < val->val_obj.size(); ++i) {
            out += i ? ", " : "";
            write_repr(out, val->val_obj[i].first);
            out += ": ";
            write_repr(out, val->val_obj[i].second);
        }
        out += "}";
    } else if (is_val<value_namespace>(val)) {
        out += "<Namespace ";
        write_repr(out, cast_val<value_namespace>(val)->attributes);
        out += ">";
    } else if (is_val<value_undefined>(val)) {
        out += "Undefined";
    } else if (is_val<value_func>(val) || is_val<value_loop>(val) || is_val<value_kwarg>(val)) {
        not_supported("a " + py_type(val) + " as text");
    } else {
        out += val->as_string().str();
    }
}

std::string py_repr(const value & val) {
    std::string out;
    write_repr(out, val);
    return out;
}

string py_str(const value & val) {
    if (is_val<value_string>(val)) {
        return val->val_str;
    }
    return is_val<value_undefined>(val) ? string() : string(py_repr(val));
}

std::string py_text(const value & val) {
    return py_str(val).str();
}

std::string py_type(const value & val) {
    if (is_val<value_view>(val)) {
        const auto * view = cast_val<value_view>(val);
        return view->kind == value_view_t::generator ? "generator" : view->kind == value_view_t::range ? "range" : view->shown;
    }
    return is_val<value_string>(val)    ? "str"
         : is_val<value_int>(val)       ? "int"
         : is_val<value_float>(val)     ? "float"
         : is_val<value_bool>(val)      ? "bool"
         : is_val<value_tuple>(val)     ? "tuple"
         : is_val<value_array>(val)     ? "list"
         : is_val<value_object>(val)    ? "dict"
         : is_val<value_none>(val)      ? "None"
         : is_val<value_undefined>(val) ? "undefined"
         : is_val<value_func>(val)      ? "function"
         : is_val<value_loop>(val)      ? "loop"
                                        : "namespace";
}

static void write_json_text(std::string & out, const std::string & text) {
    spend_text(text.size(), out.size());
    out += '"';
    for (const char c : text) {
        switch (c) {
            case '"':  out += "\\\""; break;
            case '\\': out += "\\\\"; break;
            case '\b': out += "\\b"; break;
            case '\f': out += "\\f"; break;
            case '\n': out += "\\n"; break;
            case '\r': out += "\\r"; break;
            case '\t': out += "\\t"; break;
            default:
                if (static_cast<unsigned char>(c) < 0x20) {
                    char buf[8];
                    snprintf(buf, sizeof(buf), "\\u%04x", static_cast<unsigned char>(c));
                    out += buf;
                } else {
                    out += c;
                }
        }
    }
    out += '"';
}

static std::string json_number(const value & val) {
    if (!is_val<value_float>(val)) {
        return std::to_string(val->as_int());
    }
    const double number = val->as_float();
    return std::isnan(number) ? "NaN" : std::isinf(number) ? (number < 0 ? "-Infinity" : "Infinity") : py_float_repr(number);
}

static std::string json_key(const value & key) {
    if (is_val<value_string>(key)) {
        return key->as_string().str();
    }
    if (is_val<value_bool>(key)) {
        return key->as_bool() ? "true" : "false";
    }
    if (is_val<value_none>(key)) {
        return "null";
    }
    if (py_is_number(key)) {
        return json_number(key);
    }
    type_error("keys must be str, int, float, bool or None, not " + py_type(key));
}

static void write_json(std::string & out, const value & val, const json_style & style, size_t level) {
    spend_text(style.item_separator.size() + style.key_separator.size() + (level + 1) * style.indent.size(), out.size());
    const auto new_line = [&](size_t n) {
        if (style.pretty) {
            out += '\n';
            for (size_t i = 0; i < n; ++i) {
                out += style.indent;
            }
        }
    };
    if (is_val<value_none>(val)) {
        out += "null";
    } else if (is_val<value_bool>(val)) {
        out += val->as_bool() ? "true" : "false";
    } else if (py_is_number(val)) {
        out += json_number(val);
    } else if (is_val<value_string>(val)) {
        write_json_text(out, val->as_string().str());
    } else if (is_val<value_array>(val) && !is_val<value_view>(val)) {
        out += '[';
        for (size_t i = 0; i < val->val_arr.size(); ++i) {
            out += i ? style.item_separator : "";
            new_line(level + 1);
            write_json(out, val->val_arr[i], style, level + 1);
        }
        if (!val->val_arr.empty()) {
            new_line(level);
        }
        out += ']';
    } else if (is_val<value_object>(val)) {
        auto pairs = val->val_obj;
        spend(static_cast<int64_t>(pairs.size()));
        if (style.sort_keys) {
            std::stable_sort(pairs.begin(), pairs.end(), [](const auto & a, const auto & b) { return py_less(a.first, b.first); });
        }
        out += '{';
        for (size_t i = 0; i < pairs.size(); ++i) {
            out += i ? style.item_separator : "";
            new_line(level + 1);
            write_json_text(out, json_key(pairs[i].first));
            out += style.key_separator;
            write_json(out, pairs[i].second, style, level + 1);
        }
        if (!pairs.empty()) {
            new_line(level);
        }
        out += '}';
    } else {
        type_error("a value of type " + py_type(val) + " is not JSON serializable");
    }
}

std::string py_json(const value & val, const json_style & style) {
    std::string out;
    write_json(out, val, style, 0);
    return out;
}

//
// comparisons
//

bool py_is_integer(const value & val) {
    return is_val<value_int>(val) || is_val<value_bool>(val);
}

bool py_is_number(const value & val) {
    return py_is_integer(val) || is_val<value_float>(val);
}

bool py_truth(const value & val) {
    if (is_val<value_func>(val) || is_val<value_loop>(val) || is_val<value_namespace>(val)) {
        return true;
    }
    return val->as_bool();
}

bool py_equal(const value & a, const value & b) {
    return a == b || *a == *b;
}

static bool number_less(const value & a, const value & b) {
    const auto exact = [](const value & val) {
        return is_val<value_float>(val) ? static_cast<long double>(val->as_float()) : static_cast<long double>(val->as_int());
    };
    return exact(a) < exact(b);
}

bool py_less(const value & a, const value & b) {
    spend(1);
    require_defined(a);
    require_defined(b);
    if (py_is_number(a) && py_is_number(b)) {
        return number_less(a, b);
    }
    if (is_val<value_string>(a) && is_val<value_string>(b)) {
        return a->as_string().str() < b->as_string().str();
    }
    const bool lists  = py_type(a) == "list" && py_type(b) == "list";
    const bool tuples = is_val<value_tuple>(a) && is_val<value_tuple>(b);
    if (lists || tuples) {
        for (size_t i = 0; i < std::min(a->val_arr.size(), b->val_arr.size()); ++i) {
            if (!py_equal(a->val_arr[i], b->val_arr[i])) {
                return py_less(a->val_arr[i], b->val_arr[i]);
            }
        }
        return a->val_arr.size() < b->val_arr.size();
    }
    type_error("'<' not supported between " + py_type(a) + " and " + py_type(b));
}

bool py_contains(const value & container, const value & item) {
    if (is_val<value_string>(container)) {
        require_defined(item);
        if (!is_val<value_string>(item)) {
            type_error("'in <string>' requires string as left operand, not " + py_type(item));
        }
        return container->as_string().str().find(item->as_string().str()) != std::string::npos;
    }
    if (is_val<value_object>(container)) {
        return container->has_key(item);
    }
    for (const auto & one : py_iterate(container)) {
        if (py_equal(one, item)) {
            return true;
        }
    }
    return false;
}

value py_compare(const std::string & op, const value & a, const value & b) {
    const auto unordered = [&] {
        return (is_val<value_float>(a) && std::isnan(a->as_float())) || (is_val<value_float>(b) && std::isnan(b->as_float()));
    };
    bool result;
    if (op == "==") {
        result = !unordered() && py_equal(a, b);
    } else if (op == "!=") {
        result = unordered() || !py_equal(a, b);
    } else if (op == "in") {
        result = py_contains(b, a);
    } else if (op == "not in") {
        result = !py_contains(b, a);
    } else if (op == "<") {
        result = py_less(a, b);
    } else if (op == ">") {
        result = py_less(b, a);
    } else if (op == "<=") {
        result = !py_less(b, a) && !unordered();
    } else {
        result = !py_less(a, b) && !unordered();
    }
    return mk_val<value_bool>(result);
}

//
// operators
//

[[noreturn]] static void too_large() {
    not_supported("integers of more than 64 bits");
}

static double as_double(const value & val) {
    return is_val<value_float>(val) ? val->as_float() : static_cast<double>(val->as_int());
}

static value int_power(int64_t base, int64_t exponent) {
    int64_t result = 1;
    for (; exponent > 0; exponent /= 2) {
        if (exponent % 2 && __builtin_mul_overflow(result, base, &result)) {
            too_large();
        }
        if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) {
            too_large();
        }
    }
    return mk_val<value_int>(result);
}

static value int_operation(const std::string & op, int64_t a, int64_t b) {
    int64_t result = 0;
    if ((op == "/" || op == "//" || op == "%") && b == 0) {
        type_error("division by zero");
    }
    if (op == "+" ? __builtin_add_overflow(a, b, &result)
      : op == "-" ? __builtin_sub_overflow(a, b, &result)
      : op == "*" ? __builtin_mul_overflow(a, b, &result) : false) {
        too_large();
    }
    if (op == "/") {
        constexpr int64_t exact = int64_t(1) << 53;
        if (a > exact || a < -exact || b > exact || b < -exact) {
            too_large();
        }
        return mk_val<value_float>(static_cast<double>(a) / static_cast<double>(b));
    }
    if (op == "//" || op == "%") {
        if (b == -1) { // the only quotient that may be too large
            return op == "%" ? mk_val<value_int>(0) : int_operation("-", 0, a);
        }
        int64_t quotient  = a / b;
        int64_t remainder = a % b;
        if (remainder != 0 && (remainder < 0) != (b < 0)) {
            quotient -= 1;
            remainder += b;
        }
        return mk_val<value_int>(op == "%" ? remainder : quotient);
    }
    if (op == "**") {
        if (b >= 0) {
            return int_power(a, b);
        }
        if (a == 0) {
            type_error("0.0 cannot be raised to a negative power");
        }
        return mk_val<value_float>(std::pow(static_cast<double>(a), static_cast<double>(b)));
    }
    return mk_val<value_int>(result);
}

static value float_operation(const std::string & op, double a, double b) {
    if ((op == "/" || op == "//" || op == "%") && b == 0) {
        type_error("float division by zero");
    }
    if (op == "+") {
        return mk_val<value_float>(a + b);
    }
    if (op == "-") {
        return mk_val<value_float>(a - b);
    }
    if (op == "*") {
        return mk_val<value_float>(a * b);
    }
    if (op == "/") {
        return mk_val<value_float>(a / b);
    }
    if (op == "**") {
        const double result = std::pow(a, b);
        if ((std::isnan(result) && !std::isnan(a) && !std::isnan(b)) || (std::isinf(result) && !std::isinf(a) && !std::isinf(b))) {
            not_supported("this power");
        }
        return mk_val<value_float>(result);
    }
    double remainder = std::fmod(a, b);
    double quotient  = (a - remainder) / b;
    if (remainder != 0) {
        if ((b < 0) != (remainder < 0)) {
            remainder += b;
            quotient -= 1;
        }
    } else {
        remainder = std::copysign(0.0, b);
    }
    if (op == "%") {
        return mk_val<value_float>(remainder);
    }
    double floor = std::copysign(0.0, a / b);
    if (quotient != 0) {
        floor = std::floor(quotient);
        floor += quotient - floor > 0.5 ? 1 : 0;
    }
    return mk_val<value_float>(floor);
}

static value repeated(const value & val, int64_t n) {
    if (is_val<value_string>(val)) {
        auto result = mk_val<value_string>();
        result->is_markup = cast_val<value_string>(val)->is_markup;
        if (val->val_str.length() > 0 && n > 0) {
            require(n <= INT32_MAX, "it makes too much text");
            spend_text(val->val_str.length() * static_cast<size_t>(n));
            for (int64_t i = 0; i < n; ++i) {
                result->val_str.append(val->val_str);
            }
        }
        return result;
    }
    auto result = mk_val<value_array>();
    for (int64_t i = 0; i < n && !val->val_arr.empty(); ++i) {
        for (const auto & item : val->val_arr) {
            result->push_back(item);
        }
    }
    return is_val<value_tuple>(val) ? value(mk_val<value_tuple>(result->as_array())) : value(result);
}

static value concatenated(const value & a, const value & b) {
    if (is_val<value_string>(a) && is_val<value_string>(b)) {
        const bool is_markup = cast_val<value_string>(a)->is_markup || cast_val<value_string>(b)->is_markup;
        const auto piece     = [&](const value & val) {
            return is_markup && !cast_val<value_string>(val)->is_markup ? string(py_html_escape(val->val_str.str())) : val->val_str;
        };
        auto result = mk_val<value_string>(piece(a).append(piece(b)));
        result->is_markup = is_markup;
        return result;
    }
    spend(static_cast<int64_t>(a->val_arr.size() + b->val_arr.size()));
    auto result = mk_val<value_array>();
    for (const auto & list : {a, b}) {
        for (const auto & item : list->val_arr) {
            result->push_back(item);
        }
    }
    return is_val<value_tuple>(a) ? value(mk_val<value_tuple>(result->as_array())) : value(result);
}

value py_binary(const std::string & op, const value & a, const value & b) {
    if (op == "~") {
        return mk_val<value_string>(py_str(a).append(py_str(b)));
    }
    require_defined(a);
    require_defined(b);
    if (py_is_integer(a) && py_is_integer(b)) {
        return int_operation(op, a->as_int(), b->as_int());
    }
    if (py_is_number(a) && py_is_number(b)) {
        return float_operation(op, as_double(a), as_double(b));
    }
    const auto kind_a = py_type(a);
    const auto kind_b = py_type(b);
    const auto is_sequence = [](const std::string & kind) { return kind == "str" || kind == "list" || kind == "tuple"; };
    if (op == "+" && kind_a == kind_b && is_sequence(kind_a)) {
        return concatenated(a, b);
    }
    if (op == "*" && is_sequence(kind_a) && py_is_integer(b)) {
        return repeated(a, b->as_int());
    }
    if (op == "*" && is_sequence(kind_b) && py_is_integer(a)) {
        return repeated(b, a->as_int());
    }
    if (op == "%" && kind_a == "str") {
        not_supported("the operator % of texts");
    }
    type_error("unsupported operand types for " + op + ": " + kind_a + " and " + kind_b);
}

value py_negative(const value & val) {
    require_defined(val);
    if (is_val<value_float>(val)) {
        return mk_val<value_float>(-val->as_float());
    }
    if (py_is_integer(val)) {
        return int_operation("-", 0, val->as_int());
    }
    type_error("bad operand type for unary -: " + py_type(val));
}

//
// items and attributes
//

std::vector<value> py_iterate(const value & val) {
    if (is_val<value_undefined>(val)) {
        return {};
    }
    std::vector<value> items;
    if (is_val<value_view>(val)) {
        auto * view = const_cast<value_view_t *>(cast_val<value_view>(val));
        spend(static_cast<int64_t>(view->val_arr.size()));
        if (view->kind == value_view_t::generator) {
            if (view->is_begun) {
                not_supported("going on with a generator that was left");
            }
            std::swap(items, view->val_arr);
            return items;
        }
    }
    if (is_val<value_array>(val)) {
        spend(static_cast<int64_t>(val->val_arr.size()));
        return val->val_arr;
    }
    if (is_val<value_object>(val)) {
        spend(static_cast<int64_t>(val->val_obj.size()));
        for (const auto & [key, item] : val->val_obj) {
            items.push_back(key);
        }
        return items;
    }
    if (is_val<value_string>(val)) {
        const bool is_input = val->val_str.all_parts_are_input();
        for (const auto & ch : py_chars(val->as_string().str())) {
            items.push_back(mk_val<value_string>(string(ch, is_input)));
        }
        return items;
    }
    type_error("a value of type " + py_type(val) + " is not iterable");
}

int64_t py_length(const value & val) {
    if (is_val<value_undefined>(val)) {
        return 0;
    }
    if (is_val<value_string>(val)) {
        return static_cast<int64_t>(py_text_length(val->as_string().str()));
    }
    if (is_val<value_object>(val)) {
        return static_cast<int64_t>(val->val_obj.size());
    }
    if (is_val<value_array>(val) && !(is_val<value_view>(val) && cast_val<value_view>(val)->kind == value_view_t::generator)) {
        return static_cast<int64_t>(val->val_arr.size());
    }
    type_error("a value of type " + py_type(val) + " has no length");
}

static value undefined_in(const value & val, const std::string & key) {
    return mk_val<value_undefined>("'" + py_type(val) + " object' has no attribute " + key, true);
}

value py_slice(const value & val, const value & start, const value & stop, const value & step) {
    require_defined(val);
    for (const auto & bound : {start, stop, step}) {
        if (!is_val<value_none>(bound) && !py_is_integer(bound)) {
            return undefined_in(val, "between bounds of type " + py_type(bound));
        }
    }
    const bool is_text = is_val<value_string>(val);
    if (py_type(val) == "range") {
        not_supported("a slice of a range");
    }
    if (!is_text && (!is_val<value_array>(val) || is_val<value_view>(val))) {
        return undefined_in(val, "that is a slice");
    }
    const int64_t by = is_val<value_none>(step) ? 1 : step->as_int();
    if (by == 0) {
        type_error("slice step cannot be zero");
    }
    const auto    chars  = is_text ? py_chars(val->as_string().str()) : std::vector<std::string>();
    const int64_t length = static_cast<int64_t>(is_text ? chars.size() : val->val_arr.size());
    const int64_t lowest  = by < 0 ? -1 : 0;
    const int64_t highest = by < 0 ? length - 1 : length;
    const auto    place   = [&](const value & bound, int64_t otherwise) {
        if (is_val<value_none>(bound)) {
            return otherwise;
        }
        const int64_t at = bound->as_int();
        return at < 0 ? (at < -length ? lowest : std::max(at + length, lowest)) : std::min(at, highest);
    };
    const int64_t first = place(start, by < 0 ? highest : lowest);
    const int64_t last  = place(stop, by < 0 ? lowest : highest);
    std::string text;
    auto        result = mk_val<value_array>();
    for (int64_t i = first; by < 0 ? i > last : i < last;) {
        if (is_text) {
            text += chars[static_cast<size_t>(i)];
        } else {
            result->push_back(val->val_arr[static_cast<size_t>(i)]);
        }
        if (__builtin_add_overflow(i, by, &i)) {
            break;
        }
    }
    spend(length / 16);
    if (is_text) {
        auto piece = mk_val<value_string>(text);
        piece->val_str.mark_input_based_on(val->val_str);
        piece->is_markup = cast_val<value_string>(val)->is_markup;
        return piece;
    }
    return is_val<value_tuple>(val) ? value(mk_val<value_tuple>(result->as_array())) : value(result);
}

// An attribute that Python's own objects have and these lack must not be taken for undefined.
static void require_no_python_attribute(const value & val, const std::string & name) {
    static const std::map<std::string, std::set<std::string>> names = {
        {"str", {"casefold", "encode", "expandtabs", "format_map", "isascii", "isdecimal", "isidentifier", "isprintable", "istitle",
                 "maketrans", "swapcase", "translate", "zfill"}},
        {"list", {"clear", "copy", "extend", "insert", "remove", "reverse", "sort"}},
        {"dict", {"clear", "fromkeys", "pop", "popitem", "setdefault", "update"}},
        {"int", {"as_integer_ratio", "bit_count", "bit_length", "conjugate", "denominator", "from_bytes", "imag", "is_integer",
                 "numerator", "real", "to_bytes"}},
        {"float", {"as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"}},
        {"range", {"count", "index", "start", "step", "stop"}},
        {"generator", {"close", "gi_code", "gi_frame", "gi_running", "gi_suspended", "gi_yieldfrom", "send", "throw"}},
    };
    const std::string kind  = is_val<value_bool>(val) ? "int" : py_type(val);
    const auto        found = names.find(kind);
    const bool        is_markup = is_val<value_string>(val) && cast_val<value_string>(val)->is_markup;
    const bool        is_view   = is_val<value_view>(val) && found == names.end();
    if (is_val<value_func>(val) || is_markup || is_view || (name.size() > 4 && name.compare(0, 2, "__") == 0) ||
            (found != names.end() && found->second.count(name))) {
        not_supported("'" + name + "' of a value of type " + py_type(val));
    }
}

static value method(const value & val, const std::string & name) {
    const bool is_markup = is_val<value_string>(val) && cast_val<value_string>(val)->is_markup;
    const auto & methods = val->get_builtins();
    const auto   found   = methods.find(name);
    if (found != methods.end() && !is_markup) {
        return mk_val<value_func>(name, found->second, val);
    }
    require_no_python_attribute(val, name);
    return nullptr;
}

value py_item(const value & val, const value & key) {
    require_defined(val);
    if (is_val<value_object>(val)) {
        if (key->is_immutable() && key->is_hashable() && !key->is_undefined()) {
            value none;
            const value & found = val->at(key, none);
            if (found) {
                return found;
            }
        }
    } else if (py_is_integer(key) && (is_val<value_string>(val) || is_val<value_array>(val))) {
        if (is_val<value_view>(val) && cast_val<value_view>(val)->kind != value_view_t::range) {
            return undefined_in(val, "here");
        }
        const auto    chars  = is_val<value_string>(val) ? py_chars(val->as_string().str()) : std::vector<std::string>();
        const int64_t length = static_cast<int64_t>(is_val<value_string>(val) ? chars.size() : val->val_arr.size());
        const int64_t index  = key->as_int() < 0 ? key->as_int() + length : key->as_int();
        if (index < 0 || index >= length) {
            return undefined_in(val, std::to_string(key->as_int()));
        }
        if (is_val<value_array>(val)) {
            return val->val_arr[static_cast<size_t>(index)];
        }
        auto piece = mk_val<value_string>(chars[static_cast<size_t>(index)]);
        piece->val_str.mark_input_based_on(val->val_str);
        piece->is_markup = cast_val<value_string>(val)->is_markup;
        return piece;
    }
    if (is_val<value_string>(key)) {
        const auto name = key->as_string().str();
        if (is_val<value_namespace>(val) || is_val<value_loop>(val)) {
            return py_attribute(val, name);
        }
        if (const auto found = method(val, name)) {
            return found;
        }
        return undefined_in(val, "'" + name + "'");
    }
    return undefined_in(val, "of type " + py_type(key));
}

value py_attribute(const value & val, const std::string & name) {
    require_defined(val);
    if (is_val<value_namespace>(val)) {
        value none;
        const value & found = cast_val<value_namespace>(val)->attributes->at(name, none);
        return found ? found : undefined_in(val, "'" + name + "'");
    }
    if (is_val<value_loop>(val)) {
        return const_cast<value_loop_t *>(cast_val<value_loop>(val))->attribute(name);
    }
    if (is_val<value_object>(val)) {
        const auto & methods = val->get_builtins();
        const auto   found   = methods.find(name);
        if (found != methods.end()) {
            return mk_val<value_func>(name, found->second, val);
        }
        value none;
        const value & item = val->at(name, none);
        static const std::set<std::string> mutators = {"clear", "fromkeys", "pop", "popitem", "setdefault", "update"};
        if (item && !mutators.count(name)) {
            return item;
        }
    }
    if (const auto found = method(val, name)) {
        return found;
    }
    return undefined_in(val, "'" + name + "'");
}

std::vector<value> py_arguments(
        const func_args & args, size_t skip, size_t n_required, const std::vector<std::string> & names) {
    std::vector<value> found(names.size());
    size_t place = 0;
    for (size_t i = skip; i < args.count(); ++i) {
        const value & arg = args.get_args()[i];
        size_t at = place;
        if (is_val<value_kwarg>(arg)) {
            at = static_cast<size_t>(std::find(names.begin(), names.end(), cast_val<value_kwarg>(arg)->key) - names.begin());
        } else {
            ++place;
        }
        if (at >= names.size() || found[at]) {
            type_error("'" + args.func_name + "' does not take these arguments");
        }
        found[at] = is_val<value_kwarg>(arg) ? cast_val<value_kwarg>(arg)->val : arg;
    }
    for (size_t i = 0; i < n_required; ++i) {
        if (!found[i]) {
            type_error("'" + args.func_name + "' misses the argument '" + names[i] + "'");
        }
    }
    return found;
}

} // namespace jinja
