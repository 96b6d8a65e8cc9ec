#include "filters.h"

#include "runtime.h"
#include "unicode.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <map>
#include <set>

// The filters of Jinja2, for values of every type: most of them first make a text or a list of what they are
// given.

#define FILENAME "jinja-filters"

namespace jinja {

value text_value(const std::string & text, const value & like) {
    auto result = mk_val<value_string>(text);
    if (is_val<value_string>(like)) {
        result->val_str.mark_input_based_on(like->val_str);
    }
    return result;
}

static value generator(const std::vector<value> & items) {
    return mk_val<value_view>(items, value_view_t::generator);
}

bool truth_of(const value & given, bool otherwise) {
    return given ? py_truth(given) : otherwise;
}

int64_t int_of(const value & given, int64_t otherwise) {
    if (!given) {
        return otherwise;
    }
    if (!py_is_integer(given)) {
        throw std::runtime_error("expected an integer, not " + py_type(given));
    }
    return given->as_int();
}

std::string text_of(const value & given, const std::string & otherwise) {
    if (!given) {
        return otherwise;
    }
    if (!is_val<value_string>(given)) {
        throw std::runtime_error("expected a text, not " + py_type(given));
    }
    return given->as_string().str();
}

// The attribute "a.b.0" of a value, as filters name it; `otherwise` replaces an undefined one
static value attribute_of(value val, const value & attribute, const value & otherwise = nullptr) {
    const auto get = [&](const value & key) {
        val = py_item(val, key);
        if (otherwise && val->is_undefined()) {
            val = otherwise;
        }
    };
    if (!is_val<value_string>(attribute)) {
        get(attribute);
        return val;
    }
    const std::string path = attribute->as_string().str();
    for (size_t start = 0; start <= path.size();) {
        const size_t      end  = std::min(path.find('.', start), path.size());
        const std::string name = path.substr(start, end - start);
        const bool is_index = !name.empty() && name.size() < 18 && name.find_first_not_of("0123456789") == std::string::npos;
        get(is_index ? value(mk_val<value_int>(std::stoll(name))) : value(mk_val<value_string>(name)));
        start = end + 1;
    }
    return val;
}

// The key by which a value is compared: its attribute, in lower case unless case_sensitive is set.
static value sort_key(const value & item, const value & attribute, bool case_sensitive) {
    const bool by_attribute = attribute && !attribute->is_none();
    if (by_attribute && is_val<value_string>(attribute) && attribute->as_string().str().find(',') != std::string::npos) {
        not_supported("more than one attribute");
    }
    const value key = by_attribute ? attribute_of(item, attribute) : item;
    if (!case_sensitive && is_val<value_string>(key)) {
        return mk_val<value_string>(py_lower(key->as_string().str()));
    }
    return key;
}

// The indices of the items in sorted order
static std::vector<size_t> sorted(const std::vector<value> & keys, bool reverse) {
    std::vector<size_t> order(keys.size());
    for (size_t i = 0; i < order.size(); ++i) {
        order[i] = i;
        if (is_val<value_float>(keys[i]) && std::isnan(keys[i]->as_float())) {
            not_supported("sorting what is not a number");
        }
    }
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return reverse ? py_less(keys[b], keys[a]) : py_less(keys[a], keys[b]);
    });
    return order;
}

//
// filters
//

static value filter_abs(const func_args & args) {
    py_arguments(args, 1, 0, {});
    const value val = args.get_pos(0);
    if (is_val<value_float>(val)) {
        return mk_val<value_float>(std::fabs(val->as_float()));
    }
    return int_of(val, 0) < 0 ? py_negative(val) : value(mk_val<value_int>(int_of(val, 0)));
}

static value filter_batch(const func_args & args) {
    const auto given = py_arguments(args, 1, 1, {"linecount", "fill_with"});
    const int64_t size = int_of(given[0], 0);
    std::vector<value> groups;
    auto group = mk_val<value_array>();
    for (const auto & item : py_iterate(args.get_pos(0))) {
        if (static_cast<int64_t>(group->val_arr.size()) == size) {
            groups.push_back(group);
            group = mk_val<value_array>();
        }
        group->push_back(item);
    }
    if (!group->val_arr.empty()) {
        while (given[1] && !given[1]->is_none() && static_cast<int64_t>(group->val_arr.size()) < size) {
            group->push_back(given[1]);
        }
        groups.push_back(group);
    }
    return generator(groups);
}

static value filter_slice(const func_args & args) {
    const auto given = py_arguments(args, 1, 1, {"slices", "fill_with"});
    const auto items = py_iterate(args.get_pos(0));
    const int64_t n = int_of(given[0], 0);
    if (n <= 0) {
        throw std::runtime_error("slice: the number of slices must be positive");
    }
    const size_t each  = items.size() / static_cast<size_t>(n);
    const size_t extra = items.size() % static_cast<size_t>(n);
    std::vector<value> slices;
    size_t at = 0;
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
        auto slice = mk_val<value_array>();
        for (size_t j = 0; j < each + (i < extra); ++j) {
            slice->push_back(items[at++]);
        }
        if (given[1] && !given[1]->is_none() && i >= extra) {
            slice->push_back(given[1]);
        }
        slices.push_back(slice);
    }
    return generator(slices);
}

std::string padded(const std::string & text, int64_t width) {
    const int64_t length = static_cast<int64_t>(py_text_length(text));
    if (width <= length) {
        return text;
    }
    const int64_t missing = width - length;
    spend_text(static_cast<size_t>(missing));
    const int64_t left = missing / 2 + (missing & width & 1);
    return std::string(static_cast<size_t>(left), ' ') + text + std::string(static_cast<size_t>(missing - left), ' ');
}

static value filter_center(const func_args & args) {
    const auto given = py_arguments(args, 1, 0, {"width"});
    return text_value(padded(py_text(args.get_pos(0)), int_of(given[0], 80)), args.get_pos(0));
}

static value filter_capitalize(const func_args & args) {
    py_arguments(args, 1, 0, {});
    const auto chars = py_chars(py_text(args.get_pos(0)));
    std::string text;
    for (size_t i = 0; i < chars.size(); ++i) {
        text += i == 0 ? py_upper_first(chars[i]) : py_lower(chars[i]);
    }
    return text_value(text, args.get_pos(0));
}

static value filter_title(const func_args & args) {
    py_arguments(args, 1, 0, {});
    std::string text;
    bool starts = true;
    for (const auto & ch : py_chars(py_text(args.get_pos(0)))) {
        const bool parts = ch == "-" || ch == "(" || ch == "{" || ch == "[" || ch == "<" || py_is_space(ch);
        text += parts ? ch : starts ? py_upper_first(ch) : py_lower(ch);
        starts = parts;
    }
    return text_value(text, args.get_pos(0));
}

static value filter_default(const func_args & args) {
    const auto  given = py_arguments(args, 1, 0, {"default_value", "boolean"});
    const value val   = args.get_pos(0);
    if (val->is_undefined() || (truth_of(given[1], false) && !py_truth(val))) {
        return given[0] ? given[0] : mk_val<value_string>("");
    }
    return val;
}

static value filter_dictsort(const func_args & args) {
    const auto given = py_arguments(args, 1, 0, {"case_sensitive", "by", "reverse"});
    const bool case_sensitive = truth_of(given[0], false);
    const auto by = text_of(given[1], "key");
    if (!is_val<value_object>(args.get_pos(0)) || (by != "key" && by != "value")) {
        throw std::runtime_error("dictsort: expected a mapping, and to sort by 'key' or 'value'");
    }
    const auto & pairs = args.get_pos(0)->as_ordered_object();
    std::vector<value> keys;
    for (const auto & [key, val] : pairs) {
        keys.push_back(sort_key(by == "key" ? key : val, nullptr, case_sensitive));
    }
    auto result = mk_val<value_array>();
    for (const size_t i : sorted(keys, truth_of(given[2], false))) {
        result->push_back(mk_val<value_tuple>(pairs[i]));
    }
    return result;
}

static value filter_escape(const func_args & args) {
    py_arguments(args, 1, 0, {});
    const value val = args.get_pos(0);
    if (is_val<value_string>(val) && cast_val<value_string>(val)->is_markup && args.func_name != "forceescape") {
        return val;
    }
    auto result = mk_val<value_string>(py_html_escape(py_text(val)));
    result->is_markup = true;
    return result;
}

static value filter_safe(const func_args & args) {
    py_arguments(args, 1, 0, {});
    auto result = mk_val<value_string>(py_str(args.get_pos(0)));
    result->is_markup = true;
    return result;
}

static value filter_first(const func_args & args) {
    py_arguments(args, 1, 0, {});
    const value val = args.get_pos(0);
    if (is_val<value_view>(val) && cast_val<value_view>(val)->kind == value_view_t::generator && !val->val_arr.empty()) {
        const_cast<value_view_t *>(cast_val<value_view>(val))->is_begun = true;
        return val->val_arr.front();
    }
    const auto items = py_iterate(val);
    return items.empty() ? value(mk_val<value_undefined>("No first item, sequence was empty.", true)) : items.front();
}

static value filter_last(const func_args & args) {
    py_arguments(args, 1, 0, {});
    const value val = args.get_pos(0);
    if (is_val<value_view>(val) && cast_val<value_view>(val)->kind == value_view_t::generator) {
        throw std::runtime_error("a generator is not reversible");
    }
    const auto items = py_iterate(val);
    return items.empty() ? value(mk_val<value_undefined>("No last item, sequence was empty.", true)) : items.back();
}

static value number_from(std::string text, int base, bool & ok) {
    ok = false;
    text = py_strip(text, true, true);
    std::string plain;
    for (size_t i = 0; i < text.size(); ++i) { // underscores between digits
        if (text[i] != '_') {
            plain += text[i];
        } else if (i == 0 || i + 1 == text.size() || !std::isalnum(static_cast<unsigned char>(text[i - 1])) ||
                   !std::isalnum(static_cast<unsigned char>(text[i + 1]))) {
            return nullptr;
        }
    }
    const char * start = plain.c_str();
    char *       end   = nullptr;
    for (const char c : plain) {
        if (static_cast<unsigned char>(c) >= 0x80) {
            not_supported("numbers in other digits");
        }
    }
    if (plain.empty() || std::isspace(static_cast<unsigned char>(plain[0]))) {
        return nullptr;
    }
    errno = 0;
    if (base >= 0) {
        const long long number = std::strtoll(start, &end, base);
        if (errno == ERANGE) {
            not_supported("integers of more than 64 bits");
        }
        ok = *end == '\0' && end != start;
        return mk_val<value_int>(number);
    }
    std::string lower = py_lower(plain);
    const double number = std::strtod(start, &end);
    ok = *end == '\0' && end != start && lower.find('x') == std::string::npos && lower.find("nan(") == std::string::npos;
    return mk_val<value_float>(number);
}

static value float_from(const value & val, bool & ok) {
    ok = py_is_number(val);
    if (ok) {
        return mk_val<value_float>(is_val<value_float>(val) ? val->as_float() : static_cast<double>(val->as_int()));
    }
    return is_val<value_string>(val) ? number_from(val->as_string().str(), -1, ok) : nullptr;
}

static value filter_float(const func_args & args) {
    const auto  given = py_arguments(args, 1, 0, {"default"});
    const value val   = args.get_pos(0);
    if (val->is_undefined()) {
        throw std::runtime_error(cast_val<value_undefined>(val)->message());
    }
    bool ok;
    const value number = float_from(val, ok);
    return ok ? number : given[0] ? given[0] : mk_val<value_float>(0.0);
}

static value filter_int(const func_args & args) {
    const auto  given = py_arguments(args, 1, 0, {"default", "base"});
    const value val   = args.get_pos(0);
    if (val->is_undefined()) {
        throw std::runtime_error(cast_val<value_undefined>(val)->message());
    }
    const int64_t base = int_of(given[1], 10);
    if (base != 10 && base != 16 && base != 8 && base != 2) {
        not_supported("integers with a base of " + std::to_string(base));
    }
    if (py_is_integer(val)) {
        return mk_val<value_int>(val->as_int());
    }
    bool ok = false;
    if (is_val<value_string>(val)) {
        const auto text = val->as_string().str();
        if (base == 2 || base == 8) {
            const auto digits = py_strip(text, true, true);
            if (digits.size() > 1 && !std::isdigit(static_cast<unsigned char>(digits[1]))) {
                not_supported("integers with a base of " + std::to_string(base) + " and a prefix");
            }
        }
        const value number = number_from(text, static_cast<int>(base), ok);
        if (ok) {
            return number;
        }
    }
    const value number = float_from(val, ok);
    if (ok && is_val<value_float>(val) && std::isinf(number->as_float())) {
        throw std::runtime_error("cannot convert float infinity to integer");
    }
    if (!ok || !std::isfinite(number->as_float())) {
        return given[0] ? given[0] : mk_val<value_int>(0);
    }
    if (std::fabs(number->as_float()) >= 9e18) {
        not_supported("integers of more than 64 bits");
    }
    return mk_val<value_int>(static_cast<int64_t>(number->as_float()));
}

static value filter_indent(const func_args & args) {
    const auto  given = py_arguments(args, 1, 0, {"width", "first", "blank"});
    const value val   = args.get_pos(0);
    if (!is_val<value_string>(val)) {
        throw std::runtime_error("indent: expected a text, not " + py_type(val));
    }
    std::string indent;
    if (given[0] && is_val<value_string>(given[0])) {
        indent = given[0]->as_string().str();
    } else {
        const int64_t width = int_of(given[0], 4);
        if (width > 0) {
            spend_text(static_cast<size_t>(width));
            indent.assign(static_cast<size_t>(width), ' ');
        }
    }
    const bool blank = truth_of(given[2], false);
    std::string text = truth_of(given[1], false) ? indent : "";
    bool is_first = true;
    for (const auto & line : py_splitlines(val->as_string().str() + "\n")) {
        if (!is_first) {
            spend_text(indent.size(), text.size());
            text += "\n";
            text += blank || !line.empty() ? indent : "";
        }
        text += line;
        is_first = false;
    }
    return text_value(text, val);
}

static value filter_items(const func_args & args) {
    py_arguments(args, 1, 0, {});
    const value val = args.get_pos(0);
    std::vector<value> items;
    if (is_val<value_object>(val)) {
        for (const auto & pair : val->as_ordered_object()) {
            items.push_back(mk_val<value_tuple>(pair));
        }
    } else if (!val->is_undefined()) {
        throw std::runtime_error("items: can only get items of a mapping");
    }
    return generator(items);
}

static value filter_join(const func_args & args) {
    const auto given = py_arguments(args, 1, 0, {"d", "attribute"});
    const auto between = given[0] ? py_text(given[0]) : "";
    const bool by_attribute = given[1] && !given[1]->is_none();
    string text;
    bool is_first = true;
    for (const auto & item : py_iterate(args.get_pos(0))) {
        spend_text(between.size(), text.length());
        if (!is_first) {
            text.append(between);
        }
        text.append(py_str(by_attribute ? attribute_of(item, given[1]) : item));
        is_first = false;
    }
    return mk_val<value_string>(text);
}

static value filter_length(const func_args & args) {
    py_arguments(args, 1, 0, {});
    return mk_val<value_int>(py_length(args.get_pos(0)));
}

static value filter_list(const func_args & args) {
    py_arguments(args, 1, 0, {});
    return mk_val<value_array>(py_iterate(args.get_pos(0)));
}

template <std::string (*transform)(const std::string &)>
static value filter_text(const func_args & args) {
    py_arguments(args, 1, 0, {});
    return text_value(transform(py_text(args.get_pos(0))), args.get_pos(0));
}

// Find a filter or a test that is named as an argument: map('upper'), select('equalto', 1)
static func_handler named(const func_builtins & builtins, const value & name, const std::string & what) {
    const auto text  = text_of(name, "");
    const auto found = builtins.find(text);
    if (found == builtins.end()) {
        throw std::runtime_error("there is no " + what + " '" + text + "', or it is not supported");
    }
    return [text, handler = found->second](const func_args & given) {
        return value_func_t(text, handler).invoke(given);
    };
}

static func_args with_input(const func_args & args, size_t skip, const value & item) {
    func_args inner(args.ctx);
    inner.push_back(item);
    for (size_t i = skip; i < args.count(); ++i) {
        inner.push_back(args.get_args()[i]);
    }
    return inner;
}

static value filter_map(const func_args & args) {
    if (!py_truth(args.get_pos(0))) { // also none
        return generator({});
    }
    const auto items = py_iterate(args.get_pos(0));
    std::vector<value> result;
    if (args.count() > 1 && !is_val<value_kwarg>(args.get_pos(1))) {
        const auto filter = named(builtin_filters(), args.get_pos(1), "filter");
        for (const auto & item : items) {
            result.push_back(filter(with_input(args, 2, item)));
        }
        return generator(result);
    }
    value attribute;
    value otherwise;
    for (size_t i = 1; i < args.count(); ++i) {
        const auto * given = cast_val<value_kwarg>(args.get_pos(i));
        if (!given || (given->key != "attribute" && given->key != "default")) {
            throw std::runtime_error("map: expected a filter, or attribute=");
        }
        (given->key == "default" ? otherwise : attribute) = given->val;
    }
    if (!attribute) {
        throw std::runtime_error("map requires a filter argument");
    }
    if (otherwise && otherwise->is_none()) {
        otherwise = nullptr;
    }
    for (const auto & item : items) {
        result.push_back(attribute_of(item, attribute, otherwise));
    }
    return generator(result);
}

template <bool is_reject, bool by_attribute>
static value filter_select(const func_args & args) {
    const value input = args.get_pos(0);
    if (!py_truth(input)) { // also none
        return generator({});
    }
    const size_t first = by_attribute ? 2 : 1;
    const value attribute = by_attribute ? args.get_pos(1) : nullptr;
    if (attribute && is_val<value_kwarg>(attribute)) {
        throw std::runtime_error("Missing parameter for attribute name");
    }
    func_handler test;
    if (args.count() > first) {
        test = named(builtin_tests(), args.get_pos(first), "test");
    }
    std::vector<value> result;
    for (const auto & item : py_iterate(input)) {
        const value looked_at = by_attribute ? attribute_of(item, attribute) : item;
        const bool  is_chosen = test ? test(with_input(args, first + 1, looked_at))->as_bool() : py_truth(looked_at);
        if (is_chosen != is_reject) {
            result.push_back(item);
        }
    }
    return generator(result);
}

template <bool is_max>
static value filter_extreme(const func_args & args) {
    const auto given = py_arguments(args, 1, 0, {"case_sensitive", "attribute"});
    const auto items = py_iterate(args.get_pos(0));
    if (items.empty()) {
        return mk_val<value_undefined>("No aggregated item, sequence was empty.", true);
    }
    value best;
    value best_key;
    for (const auto & item : items) {
        const value key = sort_key(item, given[1], truth_of(given[0], false));
        if (!best || (is_max ? py_less(best_key, key) : py_less(key, best_key))) {
            best     = item;
            best_key = key;
        }
    }
    return best;
}

std::string replaced(const std::string & text, const std::string & old, const std::string & with, int64_t count) {
    if (count < 0) {
        count = INT64_MAX;
    }
    std::string result;
    if (old.empty()) {
        const auto chars = py_chars(text);
        const auto n     = static_cast<size_t>(std::min<int64_t>(count, static_cast<int64_t>(chars.size()) + 1));
        if (n > 0) {
            spend_text(with.size() * n, text.size());
        }
        for (size_t i = 0; i <= chars.size(); ++i) {
            result += i < n ? with : "";
            result += i < chars.size() ? chars[i] : "";
        }
        return result;
    }
    size_t start = 0;
    for (; count > 0; --count) {
        const size_t at = text.find(old, start);
        if (at == std::string::npos) {
            break;
        }
        spend_text(with.size(), result.size());
        result.append(text, start, at - start);
        result += with;
        start = at + old.size();
    }
    spend_text(text.size());
    return result.append(text, start, std::string::npos);
}

static value filter_replace(const func_args & args) {
    const auto given = py_arguments(args, 1, 2, {"old", "new", "count"});
    const int64_t count = given[2] && !given[2]->is_none() ? int_of(given[2], -1) : -1;
    return text_value(replaced(py_text(args.get_pos(0)), py_text(given[0]), py_text(given[1]), count), args.get_pos(0));
}

static value filter_reverse(const func_args & args) {
    py_arguments(args, 1, 0, {});
    const value val = args.get_pos(0);
    auto items = py_iterate(val);
    std::reverse(items.begin(), items.end());
    if (!is_val<value_string>(val)) {
        return generator(items);
    }
    std::string text;
    for (const auto & item : items) {
        text += item->val_str.str();
    }
    return text_value(text, val);
}

static value filter_round(const func_args & args) {
    const auto given = py_arguments(args, 1, 0, {"precision", "method"});
    const value   val       = args.get_pos(0);
    const int64_t precision = int_of(given[0], 0);
    const auto    method    = text_of(given[1], "common");
    if (!py_is_number(val) || (method != "common" && method != "ceil" && method != "floor")) {
        throw std::runtime_error("round: expected a number, and one of the methods common, ceil and floor");
    }
    if (precision < 0 || precision > 15) {
        not_supported("rounding to " + std::to_string(precision) + " places");
    }
    const double number = is_val<value_float>(val) ? val->as_float() : static_cast<double>(val->as_int());
    if (method == "common" && is_val<value_float>(val)) {
        char buf[400];
        snprintf(buf, sizeof(buf), "%.*f", static_cast<int>(precision), number);
        return mk_val<value_float>(std::isfinite(number) ? std::strtod(buf, nullptr) : number);
    }
    if (method == "common") {
        return mk_val<value_int>(val->as_int());
    }
    const double power  = std::pow(10.0, static_cast<double>(precision));
    const double scaled = number * power;
    if (!std::isfinite(scaled) || std::fabs(scaled) > 9e15) {
        not_supported("rounding large numbers");
    }
    return mk_val<value_float>((method == "ceil" ? std::ceil(scaled) + 0.0 : std::floor(scaled) + 0.0) / power);
}

static value filter_sort(const func_args & args) {
    const auto given = py_arguments(args, 1, 0, {"reverse", "case_sensitive", "attribute"});
    const auto items = py_iterate(args.get_pos(0));
    std::vector<value> keys;
    for (const auto & item : items) {
        keys.push_back(sort_key(item, given[2], truth_of(given[1], false)));
    }
    auto result = mk_val<value_array>();
    for (const size_t i : sorted(keys, truth_of(given[0], false))) {
        result->push_back(items[i]);
    }
    return result;
}

static value filter_string(const func_args & args) {
    py_arguments(args, 1, 0, {});
    const value val = args.get_pos(0);
    if (args.ctx.is_get_stats) {
        value_t::stats_t::mark_used(const_cast<value &>(val), true);
    }
    return is_val<value_string>(val) ? val : value(mk_val<value_string>(py_str(val)));
}

static value filter_sum(const func_args & args) {
    const auto given = py_arguments(args, 1, 0, {"attribute", "start"});
    value total = given[1] ? given[1] : mk_val<value_int>(0);
    if (is_val<value_string>(total)) {
        throw std::runtime_error("sum: cannot add up texts");
    }
    const bool by_attribute = given[0] && !given[0]->is_none();
    for (const auto & item : py_iterate(args.get_pos(0))) {
        const value added = by_attribute ? attribute_of(item, given[0]) : item;
        if (is_val<value_float>(total) || is_val<value_float>(added)) {
            not_supported("the sum of floats"); // Python's is compensated since 3.12
        }
        total = py_binary("+", total, added);
    }
    return total;
}

static value filter_trim(const func_args & args) {
    const auto given = py_arguments(args, 1, 0, {"chars"});
    const auto text  = py_text(args.get_pos(0));
    if (!given[0] || given[0]->is_none()) {
        return text_value(py_strip(text, true, true), args.get_pos(0));
    }
    const auto chars = text_of(given[0], "");
    return text_value(py_strip(text, true, true, &chars), args.get_pos(0));
}

static value filter_truncate(const func_args & args) {
    const auto given  = py_arguments(args, 1, 0, {"length", "killwords", "end", "leeway"});
    const auto chars  = py_chars(text_of(args.get_pos(0), ""));
    const auto end    = text_of(given[2], "...");
    const int64_t length = int_of(given[0], 255);
    const int64_t leeway = given[3] && !given[3]->is_none() ? int_of(given[3], 5) : 5;
    const int64_t kept   = length - static_cast<int64_t>(py_text_length(end));
    if (kept < 0 || leeway < 0) {
        throw std::runtime_error("truncate: the length must be that of the end at least");
    }
    if (static_cast<int64_t>(chars.size()) <= length || static_cast<int64_t>(chars.size()) - leeway <= length) {
        return args.get_pos(0);
    }
    std::string text;
    for (int64_t i = 0; i < kept; ++i) {
        text += chars[static_cast<size_t>(i)];
    }
    if (!truth_of(given[1], false)) {
        text = text.substr(0, text.rfind(' '));
    }
    return text_value(text + end, args.get_pos(0));
}

static value filter_unique(const func_args & args) {
    const auto given = py_arguments(args, 1, 0, {"case_sensitive", "attribute"});
    auto seen = mk_val<value_object>();
    std::vector<value> result;
    for (const auto & item : py_iterate(args.get_pos(0))) {
        const value key = sort_key(item, given[1], truth_of(given[0], false));
        if (!seen->has_key(key)) {
            seen->insert(key, item);
            result.push_back(item);
        }
    }
    return generator(result);
}

static value filter_wordcount(const func_args & args) {
    py_arguments(args, 1, 0, {});
    int64_t n = 0;
    bool inside = false;
    for (const auto & ch : py_chars(py_text(args.get_pos(0)))) {
        n += !inside && py_is_word(ch);
        inside = py_is_word(ch);
    }
    return mk_val<value_int>(n);
}

static std::string ascii_only(const std::string & json) {
    std::string result;
    char buf[16];
    for (const auto & ch : py_chars(json)) {
        const uint32_t c = common_parse_utf8_codepoint(ch, 0).codepoint;
        if (ch.size() == 1) {
            result += ch;
        } else if (c < 0x10000) {
            snprintf(buf, sizeof(buf), "\\u%04x", c);
            result += buf;
        } else {
            snprintf(buf, sizeof(buf), "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10), 0xdc00 + ((c - 0x10000) & 0x3ff));
            result += buf;
        }
    }
    return result;
}

static value filter_tojson(const func_args & args) {
    const auto  given = py_arguments(args, 1, 0, {"ensure_ascii", "indent", "separators", "sort_keys"});
    const value val   = args.get_pos(0);
    if (args.ctx.is_get_stats) {
        value_t::stats_t::mark_used(const_cast<value &>(val), true);
    }
    json_style style;
    if (given[1] && !given[1]->is_none()) {
        style.pretty = true;
        style.item_separator = ",";
        if (is_val<value_string>(given[1])) {
            style.indent = given[1]->as_string().str();
        } else {
            const int64_t width = int_of(given[1], 0);
            if (width > 0) {
                spend_text(static_cast<size_t>(width));
                style.indent.assign(static_cast<size_t>(width), ' ');
            }
        }
    }
    if (given[2] && !given[2]->is_none()) {
        const auto both = py_iterate(given[2]);
        if (both.size() != 2) {
            throw std::runtime_error("tojson: expected two separators");
        }
        style.item_separator = text_of(both[0], "");
        style.key_separator  = text_of(both[1], "");
    }
    style.sort_keys = truth_of(given[3], false);
    const auto json = py_json(val, style);
    return mk_val<value_string>(truth_of(given[0], false) ? ascii_only(json) : json);
}

const func_builtins & builtin_filters() {
    static const func_builtins filters = {
        {"abs", filter_abs}, {"batch", filter_batch}, {"capitalize", filter_capitalize}, {"center", filter_center},
        {"count", filter_length}, {"d", filter_default}, {"default", filter_default}, {"dictsort", filter_dictsort},
        {"e", filter_escape}, {"escape", filter_escape}, {"first", filter_first}, {"float", filter_float},
        {"forceescape", filter_escape}, {"indent", filter_indent}, {"int", filter_int}, {"items", filter_items},
        {"join", filter_join}, {"last", filter_last}, {"length", filter_length}, {"list", filter_list},
        {"lower", filter_text<py_lower>}, {"map", filter_map}, {"max", filter_extreme<true>},
        {"min", filter_extreme<false>}, {"reject", filter_select<true, false>},
        {"rejectattr", filter_select<true, true>}, {"replace", filter_replace}, {"reverse", filter_reverse},
        {"round", filter_round}, {"safe", filter_safe}, {"select", filter_select<false, false>},
        {"selectattr", filter_select<false, true>}, {"slice", filter_slice}, {"sort", filter_sort},
        {"string", filter_string}, {"sum", filter_sum}, {"title", filter_title}, {"tojson", filter_tojson},
        {"trim", filter_trim}, {"truncate", filter_truncate}, {"unique", filter_unique},
        {"upper", filter_text<py_upper>}, {"wordcount", filter_wordcount},
    };
    return filters;
}

bool is_known_filter(const std::string & name) {
    static const std::set<std::string> others = {
        "attr", "filesizeformat", "format", "groupby", "pprint", "random", "striptags", "urlencode", "urlize", "wordwrap",
        "xmlattr",
    };
    return builtin_filters().count(name) || others.count(name);
}

} // namespace jinja
