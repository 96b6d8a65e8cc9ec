#include "filters.h"

#include "runtime.h"

#include <algorithm>
#include <cmath>
#include <ctime>

// The methods of Python's types, and the functions that a template can call.

#define FILENAME "jinja-methods"

namespace jinja {

static void require_text(const value & val) {
    if (!is_val<value_string>(val)) {
        throw std::runtime_error("expected a text, not " + py_type(val));
    }
}

template <bool left, bool right>
static value method_strip(const func_args & args) {
    const auto given = py_arguments(args, 1, 0, {"chars"});
    const auto text  = args.get_pos(0)->val_str.str();
    if (!given[0] || given[0]->is_none()) {
        return text_value(py_strip(text, left, right), args.get_pos(0));
    }
    const auto chars = text_of(given[0], "");
    return text_value(py_strip(text, left, right, &chars), args.get_pos(0));
}

template <bool from_right>
static value method_split(const func_args & args) {
    const auto given = py_arguments(args, 1, 0, {"sep", "maxsplit"});
    const auto text  = args.get_pos(0)->val_str.str();
    const int64_t limit = int_of(given[1], -1);
    size_t left = limit < 0 ? SIZE_MAX : static_cast<size_t>(limit);
    std::vector<std::string> pieces;
    if (!given[0] || given[0]->is_none()) {
        std::vector<std::pair<size_t, size_t>> words; // where each begins and ends
        size_t at = 0;
        bool inside = false;
        for (const auto & ch : py_chars(text)) {
            const bool space = py_is_space(ch);
            if (!space && !inside) {
                words.push_back({at, at});
            }
            at += ch.size();
            if (!space) {
                words.back().second = at;
            }
            inside = !space;
        }
        const size_t n = words.size();
        const size_t cut = n > 0 ? std::min(left, n - 1) : 0; // how many splits
        if (from_right) {
            const size_t first = n - cut; // words[0, first) stay together
            if (n > 0) {
                const size_t start = left >= n ? words[0].first : 0;
                pieces.push_back(text.substr(start, words[first - 1].second - start));
            }
            for (size_t i = first; i < n; ++i) {
                pieces.push_back(text.substr(words[i].first, words[i].second - words[i].first));
            }
        } else {
            for (size_t i = 0; i < cut; ++i) {
                pieces.push_back(text.substr(words[i].first, words[i].second - words[i].first));
            }
            if (n > 0) {
                const size_t end = left >= n ? words[n - 1].second : text.size();
                pieces.push_back(text.substr(words[cut].first, end - words[cut].first));
            }
        }
    } else {
        const auto sep = text_of(given[0], "");
        if (sep.empty()) {
            throw std::runtime_error("empty separator");
        }
        size_t start = 0;
        size_t end   = text.size();
        while (left > 0) {
            const size_t at = from_right ? (end >= sep.size() ? text.rfind(sep, end - sep.size()) : std::string::npos) : text.find(sep, start);
            if (at == std::string::npos) {
                break;
            }
            spend(1);
            if (from_right) {
                pieces.push_back(text.substr(at + sep.size(), end - at - sep.size()));
                end = at;
            } else {
                pieces.push_back(text.substr(start, at - start));
                start = at + sep.size();
            }
            --left;
        }
        pieces.push_back(text.substr(start, end - start));
        if (from_right) {
            std::reverse(pieces.begin(), pieces.end());
        }
    }
    auto result = mk_val<value_array>();
    for (const auto & piece : pieces) {
        result->push_back(text_value(piece, args.get_pos(0)));
    }
    return result;
}

template <bool at_end>
static value method_starts(const func_args & args) {
    const value given = py_arguments(args, 1, 1, {"prefix"})[0];
    const auto  text  = args.get_pos(0)->val_str.str();
    const auto  options = is_val<value_tuple>(given) ? given->val_arr : std::vector<value>{given};
    for (const auto & option : options) {
        const auto part = text_of(option, "");
        if (part.size() <= text.size() && text.compare(at_end ? text.size() - part.size() : 0, part.size(), part) == 0) {
            return mk_val<value_bool>(true);
        }
    }
    return mk_val<value_bool>(false);
}

template <bool from_right, bool must_be>
static value method_find(const func_args & args) {
    const auto part = text_of(py_arguments(args, 1, 1, {"sub"})[0], "");
    const auto text = args.get_pos(0)->val_str.str();
    const size_t at = from_right ? text.rfind(part) : text.find(part);
    if (at == std::string::npos && must_be) {
        throw std::runtime_error("substring not found");
    }
    return mk_val<value_int>(at == std::string::npos ? -1 : static_cast<int64_t>(py_text_length(text.substr(0, at))));
}

static value method_count(const func_args & args) {
    const auto part = text_of(py_arguments(args, 1, 1, {"sub"})[0], "");
    const auto text = args.get_pos(0)->val_str.str();
    if (part.empty()) {
        return mk_val<value_int>(static_cast<int64_t>(py_text_length(text)) + 1);
    }
    int64_t n = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) {
        ++n;
    }
    return mk_val<value_int>(n);
}

static value method_replace(const func_args & args) {
    const auto given = py_arguments(args, 1, 2, {"old", "new", "count"});
    return text_value(replaced(args.get_pos(0)->val_str.str(), text_of(given[0], ""), text_of(given[1], ""), int_of(given[2], -1)),
                      args.get_pos(0));
}

static value method_join(const func_args & args) {
    const value given = py_arguments(args, 1, 1, {"iterable"})[0];
    const auto between = args.get_pos(0)->val_str.str();
    string text;
    bool is_first = true;
    for (const auto & item : py_iterate(given)) {
        require_text(item);
        spend_text(between.size(), text.length());
        text.append(is_first ? "" : between).append(item->val_str);
        is_first = false;
    }
    return mk_val<value_string>(text);
}

template <bool from_right>
static value method_partition(const func_args & args) {
    const auto sep  = text_of(py_arguments(args, 1, 1, {"sep"})[0], "");
    const auto text = args.get_pos(0)->val_str.str();
    if (sep.empty()) {
        throw std::runtime_error("empty separator");
    }
    const size_t at = from_right ? text.rfind(sep) : text.find(sep);
    std::vector<std::string> pieces = {text, "", ""};
    if (at != std::string::npos) {
        pieces = {text.substr(0, at), sep, text.substr(at + sep.size())};
    } else if (from_right) {
        pieces = {"", "", text};
    }
    std::vector<value> items;
    for (const auto & piece : pieces) {
        items.push_back(text_value(piece, args.get_pos(0)));
    }
    return mk_val<value_tuple>(items);
}

template <bool at_end>
static value method_remove(const func_args & args) {
    const auto part = text_of(py_arguments(args, 1, 1, {"prefix"})[0], "");
    auto text = args.get_pos(0)->val_str.str();
    if (part.size() <= text.size() && text.compare(at_end ? text.size() - part.size() : 0, part.size(), part) == 0) {
        text.erase(at_end ? text.size() - part.size() : 0, part.size());
    }
    return text_value(text, args.get_pos(0));
}

static value method_title(const func_args & args) {
    py_arguments(args, 1, 0, {});
    std::string text;
    bool inside = false;
    for (const auto & ch : py_chars(args.get_pos(0)->val_str.str())) {
        bool upper;
        text += inside ? py_lower(ch) : py_upper_first(ch);
        inside = py_is_cased(ch, upper);
    }
    return text_value(text, args.get_pos(0));
}

static value method_splitlines(const func_args & args) {
    const auto given = py_arguments(args, 1, 0, {"keepends"});
    auto result = mk_val<value_array>();
    for (const auto & line : py_splitlines(args.get_pos(0)->val_str.str(), truth_of(given[0], false))) {
        result->push_back(text_value(line, args.get_pos(0)));
    }
    return result;
}

template <bool (*test)(const std::string &)>
static value method_all(const func_args & args) {
    py_arguments(args, 1, 0, {});
    const auto chars = py_chars(args.get_pos(0)->val_str.str());
    return mk_val<value_bool>(!chars.empty() && std::all_of(chars.begin(), chars.end(), test));
}

static bool is_ascii_digit(const std::string & ch) {
    if (ch.size() > 1 && py_is_word(ch) && !py_is_alpha(ch)) {
        not_supported("'" + ch + "' as a digit");
    }
    return ch.size() == 1 && std::isdigit(static_cast<unsigned char>(ch[0]));
}

static bool is_alnum(const std::string & ch) {
    return py_is_alpha(ch) || is_ascii_digit(ch);
}

// Fill in '{}', '{0}' and '{name}'. A conversion or a format after the name is not supported.
static value method_format(const func_args & args) {
    const auto format = args.get_pos(0)->val_str.str();
    const bool is_input = args.get_pos(0)->val_str.all_parts_are_input();
    string text;
    size_t place = 1;
    for (size_t i = 0; i < format.size();) {
        const size_t next = std::min(format.find_first_of("{}", i), format.size());
        text.append(format.substr(i, next - i), is_input);
        if (next == format.size()) {
            break;
        }
        if (next + 1 < format.size() && format[next + 1] == format[next]) {
            text.append(std::string(1, format[next]), is_input);
            i = next + 2;
            continue;
        }
        const size_t end = format.find('}', next);
        if (format[next] == '}' || end == std::string::npos) {
            throw std::runtime_error("format: single '{' or '}' in the text");
        }
        const auto name = format.substr(next + 1, end - next - 1);
        value given;
        if (name.empty()) {
            given = args.get_pos(place++);
        } else if (name.find_first_not_of("0123456789") == std::string::npos && name.size() < 9 && place == 1) {
            given = args.get_pos(static_cast<size_t>(std::stoi(name)) + 1);
        } else if (name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_") == std::string::npos) {
            given = args.get_kwarg(name, nullptr);
        } else {
            not_supported("'{" + name + "}' in format()");
        }
        if (!given || is_val<value_kwarg>(given)) {
            throw std::runtime_error("format: no argument for '{" + name + "}'");
        }
        text.append(py_str(given));
        i = end + 1;
    }
    return mk_val<value_string>(text);
}

template <int side>
static value method_just(const func_args & args) {
    const auto given = py_arguments(args, 1, 1, {"width", "fillchar"});
    if (given[1]) {
        not_supported("fillchar");
    }
    const auto text = args.get_pos(0)->val_str.str();
    const int64_t width = int_of(given[0], 0);
    if (side == 0) {
        return text_value(padded(text, width), args.get_pos(0));
    }
    const int64_t missing = std::max<int64_t>(0, width - static_cast<int64_t>(py_text_length(text)));
    spend_text(static_cast<size_t>(missing));
    const std::string space(static_cast<size_t>(missing), ' ');
    return text_value(side < 0 ? text + space : space + text, args.get_pos(0));
}

const func_builtins & value_string_t::get_builtins() const {
    static const func_builtins & filters = builtin_filters();
    static const func_builtins methods = {
        {"capitalize", filters.at("capitalize")}, {"center", method_just<0>}, {"count", method_count},
        {"endswith", method_starts<true>}, {"find", method_find<false, false>}, {"format", method_format},
        {"index", method_find<false, true>}, {"isalnum", method_all<is_alnum>}, {"isalpha", method_all<py_is_alpha>},
        {"isdigit", method_all<is_ascii_digit>}, {"isnumeric", method_all<is_ascii_digit>},
        {"islower", builtin_tests().at("lower")}, {"isspace", method_all<py_is_space>}, {"isupper", builtin_tests().at("upper")},
        {"join", method_join}, {"ljust", method_just<-1>}, {"lower", filters.at("lower")},
        {"lstrip", method_strip<true, false>}, {"partition", method_partition<false>},
        {"removeprefix", method_remove<false>}, {"removesuffix", method_remove<true>}, {"replace", method_replace},
        {"rfind", method_find<true, false>}, {"rindex", method_find<true, true>}, {"rjust", method_just<1>},
        {"rpartition", method_partition<true>}, {"rsplit", method_split<true>}, {"rstrip", method_strip<false, true>},
        {"split", method_split<false>}, {"splitlines", method_splitlines}, {"startswith", method_starts<false>},
        {"strip", method_strip<true, true>}, {"title", method_title}, {"upper", filters.at("upper")},
    };
    return methods;
}

// transformers forbids append() and pop(), but templates that were written for other engines use them
const func_builtins & value_array_t::get_builtins() const {
    static const func_builtins tuple_methods = {
        {"count", [](const func_args & args) -> value {
            const value item = py_arguments(args, 1, 1, {"value"})[0];
            const auto & all = args.get_pos(0)->val_arr;
            return mk_val<value_int>(std::count_if(all.begin(), all.end(), [&](const value & one) { return py_equal(one, item); }));
        }},
        {"index", [](const func_args & args) -> value {
            const value item = py_arguments(args, 1, 1, {"value"})[0];
            const auto & all = args.get_pos(0)->val_arr;
            const auto found = std::find_if(all.begin(), all.end(), [&](const value & one) { return py_equal(one, item); });
            if (found == all.end()) {
                throw std::runtime_error("index: the item is not there");
            }
            return mk_val<value_int>(found - all.begin());
        }},
    };
    static const func_builtins methods = [] {
        func_builtins all = tuple_methods;
        all["append"] = [](const func_args & args) -> value {
            const value item = py_arguments(args, 1, 1, {"object"})[0];
            const_cast<value_array_t *>(cast_val<value_array>(args.get_pos(0)))->push_back(item);
            return mk_val<value_none>();
        };
        all["pop"] = [](const func_args & args) -> value {
            const int64_t index = int_of(py_arguments(args, 1, 0, {"index"})[0], -1);
            return const_cast<value_array_t *>(cast_val<value_array>(args.get_pos(0)))->pop_at(index);
        };
        return all;
    }();
    return is_immutable() ? tuple_methods : methods;
}

static value view_of(const value & val, const char * shown, value (*part)(const std::pair<value, value> &)) {
    std::vector<value> items;
    for (const auto & pair : val->as_ordered_object()) {
        items.push_back(part(pair));
    }
    return mk_val<value_view>(items, value_view_t::keys, shown);
}

const func_builtins & value_object_t::get_builtins() const {
    static const func_builtins methods = {
        {"copy", [](const func_args & args) -> value {
            py_arguments(args, 1, 0, {});
            value val = args.get_pos(0);
            return mk_val<value_object>(val);
        }},
        {"get", [](const func_args & args) -> value {
            const auto given = py_arguments(args, 1, 1, {"key", "default"});
            value none = given[1] ? given[1] : mk_val<value_none>();
            return args.get_pos(0)->at(given[0], none);
        }},
        {"items", [](const func_args & args) -> value {
            py_arguments(args, 1, 0, {});
            return view_of(args.get_pos(0), "dict_items", [](const std::pair<value, value> & pair) -> value {
                return mk_val<value_tuple>(pair);
            });
        }},
        {"keys", [](const func_args & args) -> value {
            py_arguments(args, 1, 0, {});
            return view_of(args.get_pos(0), "dict_keys", [](const std::pair<value, value> & pair) { return pair.first; });
        }},
        {"values", [](const func_args & args) -> value {
            py_arguments(args, 1, 0, {});
            return view_of(args.get_pos(0), "dict_values", [](const std::pair<value, value> & pair) { return pair.second; });
        }},
    };
    return methods;
}

//
// functions
//

static value function_dict(const func_args & args) {
    auto result = mk_val<value_object>();
    for (const auto & arg : args.get_args()) {
        if (is_val<value_kwarg>(arg)) {
            result->insert(cast_val<value_kwarg>(arg)->key, cast_val<value_kwarg>(arg)->val);
        } else if (&arg != &args.get_args().front()) {
            throw std::runtime_error("'" + args.func_name + "' takes one argument without a name");
        } else if (is_val<value_object>(arg)) {
            for (const auto & [key, val] : arg->as_ordered_object()) {
                result->insert(key, val);
            }
        } else {
            for (const auto & item : py_iterate(arg)) {
                const auto pair = py_iterate(item);
                if (pair.size() != 2) {
                    throw std::runtime_error("'" + args.func_name + "' takes a mapping, or pairs");
                }
                result->insert(pair[0], pair[1]);
            }
        }
    }
    return result;
}

static value function_range(const func_args & args) {
    const auto given = py_arguments(args, 0, 1, {"start", "stop", "step"});
    const int64_t start = given[1] ? int_of(given[0], 0) : 0;
    const int64_t stop  = given[1] ? int_of(given[1], 0) : int_of(given[0], 0);
    const int64_t step  = int_of(given[2], 1);
    if (step == 0) {
        throw std::runtime_error("range() arg 3 must not be zero");
    }
    const long double size = std::ceil((static_cast<long double>(stop) - static_cast<long double>(start)) / static_cast<long double>(step));
    require(size <= 100'000, "it makes too many values: a range has 100000 at most");
    std::vector<value> items;
    for (int64_t i = 0; static_cast<long double>(i) < size; ++i) {
        items.push_back(mk_val<value_int>(start + i * step));
    }
    auto shown = "range(" + std::to_string(start) + ", " + std::to_string(stop);
    shown += step == 1 ? ")" : ", " + std::to_string(step) + ")";
    return mk_val<value_view>(items, value_view_t::range, shown);
}

const func_builtins & global_builtins() {
    static const func_builtins functions = {
        {"dict", function_dict},
        {"namespace", [](const func_args & args) -> value {
            auto result = mk_val<value_namespace>();
            const value given = function_dict(args);
            for (const auto & [key, val] : given->as_ordered_object()) {
                result->attributes->insert(key, val);
            }
            return result;
        }},
        {"raise_exception", [](const func_args & args) -> value {
            const value message = py_arguments(args, 0, 1, {"message"})[0];
            throw raised_exception("Jinja Exception: " + py_text(message));
        }},
        {"range", function_range},
        {"strftime_now", [](const func_args & args) -> value {
            const auto format = text_of(py_arguments(args, 0, 1, {"format"})[0], "");
            if (format.find("%f") != std::string::npos) {
                not_supported("'%f' in strftime_now()");
            }
            char buf[500];
            const auto size = std::strftime(buf, sizeof(buf), format.c_str(), std::localtime(&args.ctx.current_time));
            if (size == 0 && !format.empty()) {
                throw std::runtime_error("strftime_now: failed to format the time");
            }
            return mk_val<value_string>(std::string(buf, size));
        }},
    };
    return functions;
}

} // namespace jinja
