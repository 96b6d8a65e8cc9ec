#include "python.h"

// The tests of Jinja2: what is written after `is`.

#define FILENAME "jinja-tests"

namespace jinja {

static func_handler type_test(bool (*test)(const value &)) {
    return [test](const func_args & args) -> value {
        py_arguments(args, 1, 0, {});
        return mk_val<value_bool>(test(args.get_pos(0)));
    };
}

static func_handler compare_test(const char * op) {
    return [op](const func_args & args) -> value {
        return py_compare(op, args.get_pos(0), py_arguments(args, 1, 1, {"other"})[0]);
    };
}

static func_handler remainder_test(int64_t expected) {
    return [expected](const func_args & args) -> value {
        py_arguments(args, 1, 0, {});
        const value two = mk_val<value_int>(2);
        return mk_val<value_bool>(py_equal(py_binary("%", args.get_pos(0), two), mk_val<value_int>(expected)));
    };
}

static func_handler case_test(bool is_upper) {
    return type_test(is_upper ? +[](const value & val) {
        bool any = false;
        for (const auto & ch : py_chars(py_text(val))) {
            bool upper;
            if (py_is_cased(ch, upper)) {
                any = true;
                if (!upper) {
                    return false;
                }
            }
        }
        return any;
    } : +[](const value & val) {
        bool any = false;
        for (const auto & ch : py_chars(py_text(val))) {
            bool upper;
            if (py_is_cased(ch, upper)) {
                any = true;
                if (upper) {
                    return false;
                }
            }
        }
        return any;
    });
}

const func_builtins & builtin_tests() {
    static const func_builtins tests = {
        {"boolean", type_test([](const value & val) { return is_val<value_bool>(val); })},
        {"callable", type_test([](const value & val) {
            return is_val<value_func>(val) || is_val<value_loop>(val) || val->is_undefined();
        })},
        {"defined", type_test([](const value & val) { return !val->is_undefined(); })},
        {"divisibleby", [](const func_args & args) -> value {
            const value num = py_arguments(args, 1, 1, {"num"})[0];
            return mk_val<value_bool>(py_equal(py_binary("%", args.get_pos(0), num), mk_val<value_int>(0)));
        }},
        {"eq", compare_test("==")}, {"==", compare_test("==")}, {"equalto", compare_test("==")},
        {"escaped", type_test([](const value & val) { return is_val<value_string>(val) && cast_val<value_string>(val)->is_markup; })},
        {"even", remainder_test(0)},
        {"false", type_test([](const value & val) { return is_val<value_bool>(val) && !val->as_bool(); })},
        {"filter", type_test([](const value & val) { return is_val<value_string>(val) && is_known_filter(val->as_string().str()); })},
        {"float", type_test([](const value & val) { return is_val<value_float>(val); })},
        {"ge", compare_test(">=")}, {"gt", compare_test(">")}, {"greaterthan", compare_test(">")},
        {"in", [](const func_args & args) -> value {
            return mk_val<value_bool>(py_contains(py_arguments(args, 1, 1, {"seq"})[0], args.get_pos(0)));
        }},
        {"integer", type_test([](const value & val) { return is_val<value_int>(val); })},
        {"iterable", type_test([](const value & val) {
            return is_val<value_array>(val) || is_val<value_object>(val) || is_val<value_string>(val) || is_val<value_loop>(val) ||
                   val->is_undefined();
        })},
        {"le", compare_test("<=")}, {"lower", case_test(false)}, {"lt", compare_test("<")}, {"lessthan", compare_test("<")},
        {"mapping", type_test([](const value & val) { return is_val<value_object>(val); })},
        {"ne", compare_test("!=")},
        {"none", type_test([](const value & val) { return val->is_none(); })},
        {"number", type_test(py_is_number)},
        {"odd", remainder_test(1)},
        {"sameas", [](const func_args & args) -> value {
            const value a = args.get_pos(0);
            const value b = py_arguments(args, 1, 1, {"other"})[0];
            const auto is_one_of_a_kind = [](const value & val) { return val->is_none() || is_val<value_bool>(val); };
            if (!is_one_of_a_kind(a) && !is_one_of_a_kind(b)) {
                not_supported("'sameas' for other values than true, false and none");
            }
            return mk_val<value_bool>(py_type(a) == py_type(b) && py_equal(a, b));
        }},
        {"sequence", type_test([](const value & val) {
            const bool is_view = is_val<value_view>(val) && cast_val<value_view>(val)->kind != value_view_t::range;
            return (is_val<value_array>(val) && !is_view) || is_val<value_object>(val) || is_val<value_string>(val) || val->is_undefined();
        })},
        {"string", type_test([](const value & val) { return is_val<value_string>(val); })},
        {"test", type_test([](const value & val) { return is_val<value_string>(val) && is_known_test(val->as_string().str()); })},
        {"true", type_test([](const value & val) { return is_val<value_bool>(val) && val->as_bool(); })},
        {"undefined", type_test([](const value & val) { return val->is_undefined(); })},
        {"upper", case_test(true)},
        {"!=", compare_test("!=")}, {"<", compare_test("<")}, {"<=", compare_test("<=")}, {">", compare_test(">")}, {">=", compare_test(">=")},
    };
    return tests;
}

bool is_known_test(const std::string & name) {
    return builtin_tests().count(name) != 0;
}

} // namespace jinja
