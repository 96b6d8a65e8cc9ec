#include "lexer.h"

#include "python.h"
#include "unicode.h"

#include <cctype>
#include <string>
#include <vector>

#define FILENAME "jinja-lexer"

namespace jinja {

// White space is removed as Jinja2 does with trim_blocks and lstrip_blocks: the newline after a statement or a
// comment, and the space before one on its line.
struct scanner {
    const std::string & source; // for error reporting
    const std::string   src;
    size_t              pos = 0;
    std::vector<token>  tokens;
    bool                at_line_start = true; // what was read last ended with a newline

    scanner(const std::string & source, std::string && src) : source(source), src(std::move(src)) {}

    [[noreturn]] void fail(const std::string & message, size_t where) const {
        throw lexer_exception(message, source, where);
    }

    bool at(const std::string & mark, size_t where) const {
        return src.compare(where, mark.size(), mark) == 0;
    }

    bool at(const std::string & mark) const {
        return at(mark, pos);
    }

    size_t char_size(size_t where) const {
        const auto parsed = common_parse_utf8_codepoint(src, where);
        return parsed.status == utf8_parse_result::SUCCESS ? parsed.bytes_consumed : 1;
    }

    size_t skip_space(size_t where) const {
        while (where < src.size()) {
            const size_t size = char_size(where);
            if (!py_is_space(src.substr(where, size))) {
                break;
            }
            where += size;
        }
        return where;
    }

    // Return whether `mark` closes a tag at `where`; the text after the tag begins at `next`.
    bool closes(const std::string & mark, size_t where, bool trims, size_t & next) const {
        if (at("-" + mark, where)) {
            next = skip_space(where + 1 + mark.size());
            return true;
        }
        if (trims && at("+" + mark, where)) {
            next = where + 1 + mark.size();
            return true;
        }
        if (at(mark, where)) {
            next = where + mark.size();
            next += trims && next < src.size() && src[next] == '\n';
            return true;
        }
        return false;
    }

    void go_to(size_t next) {
        at_line_start = src[next - 1] == '\n';
        pos = next;
    }

    // The text before a tag, without the white space that the tag removes.
    void push_text(size_t start, size_t end, char sign, bool is_expression) {
        std::string text = src.substr(start, end - start);
        if (sign == '-') {
            text = py_strip(text, false, true);
        } else if (sign != '+' && !is_expression) {
            const size_t line = text.rfind('\n') + 1; // 0 where there is none
            if ((line > 0 || at_line_start) && skip_space(start + line) >= end) {
                text.erase(line);
            }
        }
        if (!text.empty()) {
            tokens.push_back({token::text, text, start});
        }
    }

    char sign_at(size_t where) const {
        return where < src.size() && (src[where] == '-' || src[where] == '+') ? src[where] : '\0';
    }

    // {% raw %} or {% endraw %}, and what follows it
    bool is_raw(const std::string & name, size_t where, size_t & next) const {
        size_t after = where + 2;
        after = skip_space(after + (sign_at(after) != 0));
        if (!at("{%", where) || !at(name, after)) {
            return false;
        }
        return closes("%}", skip_space(after + name.size()), name == "endraw", next);
    }

    void read_raw(size_t start) {
        for (size_t end = src.find("{%", start); end != std::string::npos; end = src.find("{%", end + 1)) {
            size_t next;
            if (is_raw("endraw", end, next)) {
                push_text(start, end, sign_at(end + 2), false);
                go_to(next);
                return;
            }
        }
        fail("missing end of raw block", start);
    }

    void read_comment() {
        const size_t start = pos;
        for (size_t end = pos + 2; end < src.size(); ++end) {
            size_t next;
            if (src[end] != '#' && sign_at(end) == 0) {
                continue;
            }
            if (closes("#}", end, true, next)) {
                go_to(next);
                return;
            }
        }
        fail("missing end of comment tag", start);
    }

    std::string read_digits(bool (*is_digit)(char)) {
        std::string digits;
        while (pos < src.size() && (is_digit(src[pos]) || (src[pos] == '_' && !digits.empty() && pos + 1 < src.size() && is_digit(src[pos + 1])))) {
            if (src[pos] != '_') {
                digits += src[pos];
            }
            ++pos;
        }
        return digits;
    }

    static bool is_decimal(char c) {
        return c >= '0' && c <= '9';
    }

    void read_number() {
        const size_t start = pos;
        const char   base  = pos + 2 < src.size() && src[pos] == '0' ? static_cast<char>(std::tolower(static_cast<unsigned char>(src[pos + 1]))) : '\0';
        if (base == 'x' || base == 'o' || base == 'b') {
            fail("not supported: numbers in another base", start);
        }
        std::string number = read_digits(is_decimal);
        bool is_float = false;
        const bool after_dot = start > 0 && src[start - 1] == '.';
        if (!after_dot && pos + 1 < src.size() && src[pos] == '.' && is_decimal(src[pos + 1])) {
            ++pos;
            number += "." + read_digits(is_decimal);
            is_float = true;
        }
        size_t exponent = pos + 1;
        exponent += sign_at(exponent) != 0;
        if (!after_dot && pos < src.size() && (src[pos] == 'e' || src[pos] == 'E') && exponent < src.size() && is_decimal(src[exponent])) {
            number += src.substr(pos, exponent - pos);
            pos = exponent;
            number += read_digits(is_decimal);
            is_float = true;
        }
        if (!is_float && number.size() > 1 && number[0] == '0' && number.find_first_not_of('0') != std::string::npos) {
            fail("unexpected zero before a number", start);
        }
        tokens.push_back({is_float ? token::float_literal : token::integer_literal, number, start});
    }

    uint32_t read_code(size_t n_digits, bool is_octal) {
        uint32_t code = 0;
        size_t   n    = 0;
        for (; n < n_digits && pos < src.size(); ++n, ++pos) {
            const char c = src[pos];
            if (is_octal ? c < '0' || c > '7' : !std::isxdigit(static_cast<unsigned char>(c))) {
                break;
            }
            code = code * (is_octal ? 8 : 16) + static_cast<uint32_t>(is_decimal(c) ? c - '0' : std::tolower(c) - 'a' + 10);
        }
        if (!is_octal && n < n_digits) {
            fail("truncated escape", pos);
        }
        if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) {
            fail("not supported: an escape that is no character", pos);
        }
        return code;
    }

    void read_string() {
        const size_t start = pos;
        const char   quote = src[pos++];
        std::string  text;
        while (pos < src.size() && src[pos] != quote) {
            if (src[pos] != '\\') {
                text += src[pos++];
                continue;
            }
            if (++pos >= src.size()) {
                break;
            }
            const char c = src[pos++];
            switch (c) {
                case '\n': break;
                case '\\': text += '\\'; break;
                case '\'': text += '\''; break;
                case '"':  text += '"'; break;
                case 'a':  text += '\a'; break;
                case 'b':  text += '\b'; break;
                case 'f':  text += '\f'; break;
                case 'n':  text += '\n'; break;
                case 'r':  text += '\r'; break;
                case 't':  text += '\t'; break;
                case 'v':  text += '\v'; break;
                case 'x':  text += common_unicode_cpt_to_utf8(read_code(2, false)); break;
                case 'u':  text += common_unicode_cpt_to_utf8(read_code(4, false)); break;
                case 'U':  text += common_unicode_cpt_to_utf8(read_code(8, false)); break;
                case 'N':  fail("not supported: names of characters", pos);
                default:
                    if (c >= '0' && c <= '7') {
                        --pos;
                        text += common_unicode_cpt_to_utf8(read_code(3, true));
                    } else if (static_cast<unsigned char>(c) >= 0x80) {
                        fail("not supported: this character after a backslash", pos);
                    } else {
                        text += '\\';
                        text += c;
                    }
            }
        }
        if (pos >= src.size()) {
            fail("unexpected end of input in a string", start);
        }
        ++pos;
        tokens.push_back({token::string_literal, text, start});
    }

    void read_tag(bool is_expression) {
        tokens.push_back({is_expression ? token::open_expression : token::open_statement, src.substr(pos, 2), pos});
        pos += 2;
        pos += sign_at(pos) != 0;
        std::string brackets; // the open ones: within them nothing closes a tag
        while (true) {
            pos = skip_space(pos);
            if (pos >= src.size()) {
                fail("Unexpected EOF", tokens.back().pos);
            }
            size_t next;
            if (brackets.empty() && (is_expression ? closes("}}", pos, false, next) : closes("%}", pos, true, next))) {
                tokens.push_back({is_expression ? token::close_expression : token::close_statement, is_expression ? "}}" : "%}", pos});
                go_to(next);
                return;
            }
            read_token(brackets);
        }
    }

    void read_token(std::string & brackets) {
        const char   c     = src[pos];
        const size_t start = pos;
        if (is_decimal(c)) {
            read_number();
            return;
        }
        if (c == '\'' || c == '"') {
            read_string();
            return;
        }
        if (std::isalpha(static_cast<unsigned char>(c)) || c == '_') {
            while (pos < src.size() && (std::isalnum(static_cast<unsigned char>(src[pos])) || src[pos] == '_')) {
                ++pos;
            }
            tokens.push_back({token::identifier, src.substr(start, pos - start), start});
            return;
        }
        for (const char * symbol : {"//", "**", "==", "!=", ">=", "<="}) {
            if (at(symbol)) {
                tokens.push_back({token::symbol, symbol, start});
                pos += 2;
                return;
            }
        }
        const std::string symbols = "+-/*%~[](){}<>=.:|,";
        if (c == '\0' || symbols.find(c) == std::string::npos) {
            fail("unexpected character: " + src.substr(pos, char_size(pos)), pos);
        }
        if (c == '(' || c == '[' || c == '{') {
            brackets += c == '(' ? ')' : c == '[' ? ']' : '}';
        } else if (c == ')' || c == ']' || c == '}') {
            if (brackets.empty() || brackets.back() != c) {
                fail(std::string("unexpected '") + c + "'", pos);
            }
            brackets.pop_back();
        }
        tokens.push_back({token::symbol, std::string(1, c), start});
        ++pos;
    }

    void run() {
        while (pos < src.size()) {
            const size_t start = pos;
            while (pos < src.size() && !at("{%") && !at("{{") && !at("{#")) {
                ++pos;
            }
            if (pos == src.size()) {
                tokens.push_back({token::text, src.substr(start), start});
                return;
            }
            const bool is_expression = at("{{");
            push_text(start, pos, sign_at(pos + 2), is_expression);
            size_t next;
            if (is_raw("raw", pos, next)) {
                go_to(next);
                read_raw(pos);
            } else if (at("{#")) {
                read_comment();
            } else {
                read_tag(is_expression);
            }
        }
    }
};

lexer_result lexer::tokenize(const std::string & source) {
    // Each kind of newline becomes "\n", and the last newline of a template is not part of it.
    std::string src;
    for (size_t i = 0; i < source.size(); ++i) {
        if (source[i] != '\r') {
            src += source[i];
        } else if (i + 1 == source.size() || source[i + 1] != '\n') {
            src += '\n';
        }
    }
    if (!src.empty() && src.back() == '\n') {
        src.pop_back();
    }
    std::string copy = src;
    scanner scan(source, std::move(src));
    scan.run();
    return {std::move(scan.tokens), copy};
}

} // namespace jinja
