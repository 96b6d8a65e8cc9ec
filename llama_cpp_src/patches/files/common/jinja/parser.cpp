#include "lexer.h"
#include "runtime.h"
#include "parser.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define FILENAME "jinja-parser"

namespace jinja {

// Helper to check type without asserting (useful for logic)
template<typename T>
static bool is_type(const statement_ptr & ptr) {
    return dynamic_cast<const T*>(ptr.get()) != nullptr;
}

class parser {
    const std::vector<token> & tokens;
    size_t current = 0;

    std::string source; // for error reporting
    std::vector<signature *> signatures; // of the macros being parsed, outermost first

public:
    parser(const std::vector<token> & t, const std::string & src) : tokens(t), source(src) {}

    program parse() {
        statements body;
        while (current < tokens.size()) {
            body.push_back(parse_any());
        }
        return program(std::move(body));
    }

    // NOTE: start_pos is the token index, used for error reporting
    template<typename T, typename... Args>
    std::unique_ptr<T> mk_stmt(size_t start_pos, Args&&... args) {
        auto ptr = std::make_unique<T>(std::forward<Args>(args)...);
        ptr->pos = start_pos < tokens.size() ? tokens[start_pos].pos : source.size();
        return ptr;
    }

private:
    const token & peek(size_t offset = 0) const {
        if (current + offset >= tokens.size()) {
            static const token end_token{token::eof, "", 0};
            return end_token;
        }
        return tokens[current + offset];
    }

    [[noreturn]] void fail(const std::string & message) const {
        const size_t last = tokens.empty() ? 0 : tokens.back().pos;
        throw parser_exception("Parser Error: " + message, source, peek().t == token::eof ? last : peek().pos);
    }

    const token & next() {
        if (current >= tokens.size()) {
            fail("Unexpected EOF");
        }
        return tokens[current++];
    }

    bool is_symbol(const char * symbol, size_t offset = 0) const {
        return peek(offset).t == token::symbol && peek(offset).value == symbol;
    }

    bool is_identifier(const char * name, size_t offset = 0) const {
        return peek(offset).t == token::identifier && peek(offset).value == name;
    }

    bool skip_symbol(const char * symbol) {
        const bool found = is_symbol(symbol);
        current += found;
        return found;
    }

    bool skip_identifier(const char * name) {
        const bool found = is_identifier(name);
        current += found;
        return found;
    }

    void expect_symbol(const char * symbol) {
        if (!skip_symbol(symbol)) {
            fail(std::string("Expected ") + symbol + " (Got " + peek().value + ")");
        }
    }

    void expect(token::type type, const std::string & what) {
        if (peek().t != type) {
            fail("Expected " + what + " (Got " + peek().value + ")");
        }
        ++current;
    }

    std::string expect_name() {
        if (peek().t != token::identifier) {
            fail("Expected a name (Got " + peek().value + ")");
        }
        return next().value;
    }

    bool is_statement(std::initializer_list<const char *> names) const {
        return peek().t == token::open_statement &&
               std::any_of(names.begin(), names.end(), [&](const char * name) { return is_identifier(name, 1); });
    }

    // Parse up to one of these, which is not consumed.
    statements parse_until(std::initializer_list<const char *> names) {
        expect(token::close_statement, "%}");
        statements body;
        while (!is_statement(names)) {
            if (peek().t == token::eof) {
                fail(std::string("Unexpected EOF, expected ") + *(names.end() - 1));
            }
            body.push_back(parse_any());
        }
        return body;
    }

    // Parse up to this, which is consumed.
    statements parse_block(const char * end) {
        statements body = parse_until({end});
        current += 2;
        expect(token::close_statement, "%}");
        return body;
    }

    statement_ptr parse_any() {
        const size_t start_pos = current;
        switch (peek().t) {
            case token::text:
                return mk_stmt<text_statement>(start_pos, next().value);
            case token::open_statement:
                return parse_jinja_statement();
            case token::open_expression: {
                ++current;
                auto val = parse_tuple();
                expect(token::close_expression, "}}");
                const size_t at = tokens[start_pos].pos;
                auto print = mk_stmt<print_statement>(start_pos, std::move(val));
                print->pos = at;
                return print;
            }
            default:
                fail("Unexpected token");
        }
    }

    statement_ptr parse_jinja_statement() {
        ++current;
        const size_t start_pos = current;
        if (peek().t != token::identifier) {
            fail("Unknown statement");
        }
        const std::string name = next().value;
        statement_ptr result;
        if (name == "if") {
            return parse_if_statement(start_pos);
        } else if (name == "for") {
            return parse_for_statement(start_pos);
        } else if (name == "set") {
            return parse_set_statement(start_pos);
        } else if (name == "with") {
            return parse_with_statement(start_pos);
        } else if (name == "macro") {
            auto macro_name = parse_target_name();
            signature sig;
            auto body = parse_macro(sig, "endmacro");
            return mk_stmt<macro_statement>(start_pos, std::move(macro_name), std::move(sig), std::move(body));
        } else if (name == "call") {
            signature sig;
            if (is_symbol("(")) {
                parse_signature(sig);
            }
            auto call = parse_expression();
            if (!is_type<call_expression>(call)) {
                fail("Expected a call");
            }
            signatures.push_back(&sig);
            auto body = parse_block("endcall");
            signatures.pop_back();
            return mk_stmt<call_statement>(start_pos, std::move(call), std::move(sig), std::move(body));
        } else if (name == "filter") {
            statements filters;
            do {
                filters.push_back(parse_filter());
            } while (skip_symbol("|"));
            auto body = parse_block("endfilter");
            return mk_stmt<filter_statement>(start_pos, std::move(filters), std::move(body));
        } else if (name == "print") {
            result = mk_stmt<print_statement>(start_pos, parse_tuple());
        } else if (name == "break") {
            result = mk_stmt<break_statement>(start_pos);
        } else if (name == "continue") {
            result = mk_stmt<continue_statement>(start_pos);
        } else if (name == "generation" || name == "endgeneration") {
            // Ignore generation blocks (transformers-specific)
            // See https://github.com/huggingface/transformers/pull/30650 for more information.
            result = mk_stmt<noop_statement>(start_pos);
        } else {
            throw std::runtime_error("Unknown statement: " + name);
        }
        expect(token::close_statement, "%}");
        return result;
    }

    // ---- statements

    statement_ptr parse_if_statement(size_t start_pos) {
        auto test = parse_tuple(false);
        auto body = parse_until({"elif", "else", "endif"});
        statements alternate;
        ++current;
        const size_t    pos0 = current;
        const auto      word = next().value;
        if (word == "elif") {
            alternate.push_back(parse_if_statement(pos0)); // this also reads the endif
            return mk_stmt<if_statement>(start_pos, std::move(test), std::move(body), std::move(alternate));
        }
        if (word == "else") {
            alternate = parse_until({"endif"});
            current += 2;
        }
        expect(token::close_statement, "%}");
        return mk_stmt<if_statement>(start_pos, std::move(test), std::move(body), std::move(alternate));
    }

    statement_ptr parse_for_statement(size_t start_pos) {
        auto target = parse_target(false);
        if (!skip_identifier("in")) {
            fail("Expected 'in'");
        }
        auto iterable = parse_tuple(false, "recursive");
        statement_ptr test;
        if (skip_identifier("if")) {
            test = parse_expression();
        }
        const bool is_recursive = skip_identifier("recursive");
        auto body = parse_until({"else", "endfor"});
        statements otherwise;
        ++current;
        if (next().value == "else") {
            otherwise = parse_until({"endfor"});
            current += 2;
        }
        expect(token::close_statement, "%}");
        return mk_stmt<for_statement>(start_pos, std::move(target), std::move(iterable), std::move(test), is_recursive,
                                      std::move(body), std::move(otherwise));
    }

    statement_ptr parse_set_statement(size_t start_pos) {
        auto target = parse_target(true);
        statement_ptr val;
        statements body;
        statements filters;
        if (skip_symbol("=")) {
            val = parse_tuple();
            expect(token::close_statement, "%}");
        } else {
            while (skip_symbol("|")) {
                filters.push_back(parse_filter());
            }
            body = parse_block("endset");
        }
        return mk_stmt<set_statement>(start_pos, std::move(target), std::move(val), std::move(body), std::move(filters));
    }

    statement_ptr parse_with_statement(size_t start_pos) {
        statements targets;
        statements values;
        while (peek().t != token::close_statement) {
            if (!targets.empty()) {
                expect_symbol(",");
            }
            targets.push_back(parse_target(false));
            expect_symbol("=");
            values.push_back(parse_expression());
        }
        auto body = parse_block("endwith");
        return mk_stmt<with_statement>(start_pos, std::move(targets), std::move(values), std::move(body));
    }

    statements parse_macro(signature & sig, const char * end) {
        parse_signature(sig);
        signatures.push_back(&sig);
        auto body = parse_block(end);
        signatures.pop_back();
        return body;
    }

    void parse_signature(signature & sig) {
        expect_symbol("(");
        bool has_defaults = false;
        while (!is_symbol(")")) {
            if (!sig.args.empty()) {
                expect_symbol(",");
            }
            const size_t start_pos = current;
            auto name = parse_target_name();
            if (skip_symbol("=")) {
                name = mk_stmt<keyword_argument_expression>(start_pos, std::move(name), parse_expression());
                has_defaults = true;
            } else if (has_defaults) {
                fail("non-default argument follows default argument");
            }
            sig.args.push_back(std::move(name));
        }
        expect_symbol(")");
    }

    // The target of an assignment: a name, several names, or an attribute of a namespace

    statement_ptr parse_target_name() {
        const size_t start_pos = current;
        const auto   name      = expect_name();
        if (is_constant(name)) {
            fail("cannot assign to '" + name + "'");
        }
        return mk_stmt<identifier>(start_pos, name);
    }

    statement_ptr parse_target(bool with_namespace) {
        const size_t start_pos = current;
        statements targets;
        bool is_tuple = false;
        do {
            if (!targets.empty() && (is_identifier("in") || is_symbol("=") || is_symbol(")"))) {
                break;
            }
            if (skip_symbol("(")) {
                targets.push_back(parse_target(with_namespace));
                expect_symbol(")");
            } else {
                targets.push_back(parse_target_name());
                if (with_namespace && skip_symbol(".")) {
                    const size_t at = current;
                    auto attribute = mk_stmt<identifier>(at, expect_name());
                    targets.back() = mk_stmt<member_expression>(start_pos, std::move(targets.back()), std::move(attribute), false);
                }
            }
            is_tuple = is_tuple || is_symbol(",");
        } while (skip_symbol(","));
        return is_tuple ? statement_ptr(mk_stmt<tuple_literal>(start_pos, std::move(targets))) : std::move(targets[0]);
    }

    // ---- expressions, in the precedence of Jinja2: the first function is for the loosest operator

    bool is_tuple_end(const char * word) const {
        const auto t = peek().t;
        return t == token::close_statement || t == token::close_expression || is_symbol(")") || (word && is_identifier(word));
    }

    // One expression, or several separated by commas; with `in_parentheses` there may be none.
    statement_ptr parse_tuple(bool with_condition = true, const char * end_word = nullptr, bool in_parentheses = false) {
        const size_t start_pos = current;
        statements items;
        bool is_tuple = false;
        while (true) {
            if (!items.empty()) {
                expect_symbol(",");
            }
            if (is_tuple_end(end_word)) {
                break;
            }
            items.push_back(with_condition ? parse_expression() : parse_or());
            if (!is_symbol(",")) {
                break;
            }
            is_tuple = true;
        }
        if (!is_tuple && !items.empty()) {
            return std::move(items[0]);
        }
        if (!is_tuple && !in_parentheses) {
            if (peek().t == token::eof) {
                fail("Unexpected EOF");
            }
            fail("Expected an expression (Got " + peek().value + ")");
        }
        return mk_stmt<tuple_literal>(start_pos, std::move(items));
    }

    statement_ptr parse_expression() {
        auto expr = parse_or();
        while (is_identifier("if")) {
            const size_t start_pos = current++;
            auto test = parse_or();
            statement_ptr otherwise;
            if (skip_identifier("else")) {
                otherwise = parse_expression();
            }
            expr = mk_stmt<ternary_expression>(start_pos, std::move(test), std::move(expr), std::move(otherwise));
        }
        return expr;
    }

    statement_ptr parse_or() {
        auto left = parse_and();
        while (is_identifier("or")) {
            const size_t start_pos = current;
            const auto   op        = next();
            left = mk_stmt<binary_expression>(start_pos, op, std::move(left), parse_and());
        }
        return left;
    }

    statement_ptr parse_and() {
        auto left = parse_not();
        while (is_identifier("and")) {
            const size_t start_pos = current;
            const auto   op        = next();
            left = mk_stmt<binary_expression>(start_pos, op, std::move(left), parse_not());
        }
        return left;
    }

    statement_ptr parse_not() {
        if (is_identifier("not")) {
            const size_t start_pos = current;
            const auto   op        = next();
            return mk_stmt<unary_expression>(start_pos, op, parse_not());
        }
        return parse_comparison();
    }

    statement_ptr parse_comparison() {
        const size_t start_pos = current;
        auto first = parse_sum();
        std::vector<std::pair<std::string, statement_ptr>> others;
        while (true) {
            std::string op;
            if (is_identifier("not") && is_identifier("in", 1)) {
                op = "not in";
                current += 2;
            } else if (is_identifier("in")) {
                op = next().value;
            } else if (is_symbol("==") || is_symbol("!=") || is_symbol("<") || is_symbol("<=") || is_symbol(">") || is_symbol(">=")) {
                op = next().value;
            } else {
                break;
            }
            auto right = parse_sum();
            others.emplace_back(op, std::move(right));
        }
        return others.empty() ? std::move(first) : mk_stmt<compare_expression>(start_pos, std::move(first), std::move(others));
    }

    statement_ptr parse_operators(std::initializer_list<const char *> symbols, statement_ptr (parser::*operand)()) {
        auto left = (this->*operand)();
        while (std::any_of(symbols.begin(), symbols.end(), [&](const char * symbol) { return is_symbol(symbol); })) {
            const size_t start_pos = current;
            const auto   op        = next();
            left = mk_stmt<binary_expression>(start_pos, op, std::move(left), (this->*operand)());
        }
        return left;
    }

    statement_ptr parse_sum() {
        return parse_operators({"+", "-"}, &parser::parse_concatenation);
    }

    statement_ptr parse_concatenation() {
        return parse_operators({"~"}, &parser::parse_product);
    }

    statement_ptr parse_product() {
        return parse_operators({"*", "/", "//", "%"}, &parser::parse_power);
    }

    statement_ptr parse_power() {
        return parse_operators({"**"}, &parser::parse_filtered);
    }

    statement_ptr parse_filtered() {
        return parse_filters_and_tests(parse_unary());
    }

    statement_ptr parse_unary() {
        if (is_symbol("-") || is_symbol("+")) {
            const size_t start_pos = current;
            const auto   op        = next();
            return mk_stmt<unary_expression>(start_pos, op, parse_unary());
        }
        auto operand = parse_primary_expression();
        return parse_postfix(std::move(operand));
    }

    statement_ptr parse_postfix(statement_ptr object) {
        while (true) {
            const size_t start_pos = current;
            if (skip_symbol(".")) {
                const auto t = next();
                if (t.t != token::identifier && t.t != token::integer_literal) {
                    --current;
                    fail("Expected a name or a number");
                }
                const bool is_index = t.t == token::integer_literal;
                statement_ptr property;
                if (is_index) {
                    property = mk_stmt<integer_literal>(start_pos, to_integer(t));
                } else {
                    property = mk_stmt<identifier>(start_pos, t.value);
                }
                object = mk_stmt<member_expression>(start_pos, std::move(object), std::move(property), is_index);
            } else if (skip_symbol("[")) {
                auto property = parse_subscript();
                expect_symbol("]");
                object = mk_stmt<member_expression>(start_pos, std::move(object), std::move(property), true);
            } else if (is_symbol("(")) {
                auto args = parse_args();
                object = mk_stmt<call_expression>(start_pos, std::move(object), std::move(args));
            } else {
                return object;
            }
        }
    }

    statement_ptr parse_subscript() {
        const size_t start_pos = current;
        statements items;
        bool is_tuple = false;
        while (!is_symbol("]")) {
            if (!items.empty()) {
                expect_symbol(",");
                is_tuple = true;
                if (is_symbol("]")) {
                    break;
                }
            }
            items.push_back(parse_index_or_slice());
        }
        if (items.empty()) {
            fail("Expected an index");
        }
        if (is_tuple && std::any_of(items.begin(), items.end(), [](const statement_ptr & item) { return is_type<slice_expression>(item); })) {
            fail("not supported: a slice among others");
        }
        return is_tuple ? statement_ptr(mk_stmt<tuple_literal>(start_pos, std::move(items))) : std::move(items[0]);
    }

    statement_ptr parse_index_or_slice() {
        const size_t start_pos = current;
        const auto bound = [&]() -> statement_ptr {
            return is_symbol(":") || is_symbol("]") || is_symbol(",") ? nullptr : parse_expression();
        };
        auto start = bound();
        if (!skip_symbol(":")) {
            if (!start) {
                fail("Expected an index");
            }
            return start;
        }
        auto stop = bound();
        statement_ptr step;
        if (skip_symbol(":")) {
            step = bound();
        }
        return mk_stmt<slice_expression>(start_pos, std::move(start), std::move(stop), std::move(step));
    }

    statement_ptr parse_filters_and_tests(statement_ptr operand) {
        while (true) {
            const size_t start_pos = current;
            if (skip_symbol("|")) {
                operand = mk_stmt<filter_expression>(start_pos, std::move(operand), parse_filter());
            } else if (skip_identifier("is")) {
                const bool negate = skip_identifier("not");
                operand = mk_stmt<test_expression>(start_pos, std::move(operand), negate, parse_test());
            } else if (is_symbol("(")) {
                auto args = parse_args();
                operand = mk_stmt<call_expression>(start_pos, std::move(operand), std::move(args));
            } else {
                return operand;
            }
        }
    }

    // Parse the name of a filter or of a test, and its arguments.

    statement_ptr parse_dotted_name() {
        const size_t start_pos = current;
        auto name = expect_name();
        while (skip_symbol(".")) {
            name += "." + expect_name();
        }
        return mk_stmt<identifier>(start_pos, name);
    }

    statement_ptr parse_filter() {
        const size_t start_pos = current;
        auto name = parse_dotted_name();
        if (!is_symbol("(")) {
            return name;
        }
        return mk_stmt<call_expression>(start_pos, std::move(name), parse_args());
    }

    statement_ptr parse_test() {
        const size_t start_pos = current;
        auto name = parse_dotted_name();
        if (is_symbol("(")) {
            return mk_stmt<call_expression>(start_pos, std::move(name), parse_args());
        }
        const auto t = peek().t;
        const bool is_argument = t == token::string_literal || t == token::integer_literal || t == token::float_literal || is_symbol("[") || is_symbol("{") ||
            (t == token::identifier && !is_identifier("else") && !is_identifier("or") && !is_identifier("and"));
        if (!is_argument) {
            return name;
        }
        if (is_identifier("is")) {
            fail("You cannot chain multiple tests with is");
        }
        statements args;
        args.push_back(parse_postfix(parse_primary_expression()));
        return mk_stmt<call_expression>(start_pos, std::move(name), std::move(args));
    }

    statements parse_args() {
        expect_symbol("(");
        statements args;
        bool has_names = false;
        while (!is_symbol(")")) {
            if (!args.empty()) {
                expect_symbol(",");
                if (is_symbol(")")) {
                    break;
                }
            }
            const size_t start_pos = current;
            if (is_symbol("*") || is_symbol("**")) {
                const bool is_mapping = next().value == "**";
                args.push_back(mk_stmt<spread_expression>(start_pos, parse_expression(), is_mapping));
                has_names = has_names || is_mapping;
            } else if (peek().t == token::identifier && is_symbol("=", 1)) {
                auto name = mk_stmt<identifier>(start_pos, next().value);
                ++current;
                args.push_back(mk_stmt<keyword_argument_expression>(start_pos, std::move(name), parse_expression()));
                has_names = true;
            } else if (has_names) {
                fail("invalid syntax for function call expression");
            } else {
                args.push_back(parse_expression());
            }
        }
        expect_symbol(")");
        return args;
    }

    static bool is_constant(const std::string & name) {
        return name == "true" || name == "True" || name == "false" || name == "False" || name == "none" || name == "None";
    }

    int64_t to_integer(const token & t) const {
        try {
            return std::stoll(t.value);
        } catch (const std::out_of_range &) {
            throw parser_exception("not supported: integers of more than 64 bits", source, t.pos);
        }
    }

    statement_ptr parse_primary_expression() {
        const size_t start_pos = current;
        const auto & t = next();
        switch (t.t) {
            case token::integer_literal:
                return mk_stmt<integer_literal>(start_pos, to_integer(t));
            case token::float_literal:
                return mk_stmt<float_literal>(start_pos, std::strtod(t.value.c_str(), nullptr));
            case token::string_literal: {
                std::string val = t.value;
                while (peek().t == token::string_literal) {
                    val += next().value;
                }
                return mk_stmt<string_literal>(start_pos, val);
            }
            case token::identifier:
                if (is_constant(t.value)) {
                    return mk_stmt<constant>(start_pos, t.value);
                }
                for (auto * sig : signatures) {
                    sig->uses_varargs = sig->uses_varargs || t.value == "varargs";
                    sig->uses_kwargs  = sig->uses_kwargs || t.value == "kwargs";
                    sig->uses_caller  = sig->uses_caller || t.value == "caller";
                }
                return mk_stmt<identifier>(start_pos, t.value);
            default:
                break;
        }
        --current;
        if (skip_symbol("(")) {
            auto expr = parse_tuple(true, nullptr, true);
            expect_symbol(")");
            return expr;
        }
        if (skip_symbol("[")) {
            statements vals;
            while (!is_symbol("]")) {
                if (!vals.empty()) {
                    expect_symbol(",");
                    if (is_symbol("]")) {
                        break;
                    }
                }
                vals.push_back(parse_expression());
            }
            expect_symbol("]");
            return mk_stmt<array_literal>(start_pos, std::move(vals));
        }
        if (skip_symbol("{")) {
            std::vector<std::pair<statement_ptr, statement_ptr>> pairs;
            while (!is_symbol("}")) {
                if (!pairs.empty()) {
                    expect_symbol(",");
                    if (is_symbol("}")) {
                        break;
                    }
                }
                auto key = parse_expression();
                expect_symbol(":");
                auto val = parse_expression();
                pairs.push_back({std::move(key), std::move(val)});
            }
            expect_symbol("}");
            return mk_stmt<object_literal>(start_pos, std::move(pairs));
        }
        fail("Unexpected token: " + peek().value);
    }
};

program parse_from_tokens(const lexer_result & lexer_res) {
    return parser(lexer_res.tokens, lexer_res.source).parse();
}

} // namespace jinja
