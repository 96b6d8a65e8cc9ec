# Uses: nothing
#
# Measures how deep a chat template is, before llama.cpp's parser recurses into it.
#
# The template is split as llama.cpp's lexer does it (files/common/jinja/lexer.cpp among the
# patches), which follows Jinja2: the end of a tag does not count inside brackets, nor a tag inside
# a raw block. For templates that the lexer refuses, an upper bound is enough.
from libc.string cimport memcmp, strlen
from libcpp.vector cimport vector


cdef struct TemplateShape:
    size_t nesting
    size_t operators


cdef struct TemplateTag:
    bint statement       # {% %}, not {{ }}
    const char * word    # the first word of the statement
    size_t word_size
    bint assigns
    size_t operators


def template_shape(bytes template):
    """Measure how deep a recursive parser goes for a chat template.

    Returns:
        (nesting, operators): how deep blocks and brackets are nested, and the largest number of
        operators in one tag. A chain such as ``a + b + c`` becomes a tree as deep as it is long.
    """
    cdef const char * source = template
    cdef size_t size = len(template)
    cdef TemplateShape shape
    with nogil:
        shape = shape_of(source, size)
    return shape.nesting, shape.operators


cdef TemplateShape shape_of(const char * source, size_t size) noexcept nogil:
    cdef TemplateShape shape
    cdef TemplateTag tag
    cdef vector[size_t] blocks  # depth of each open one: every elif is parsed as a nested if
    cdef size_t blocks_depth = 0
    cdef size_t at = 0
    cdef size_t after
    shape.nesting = shape.operators = 0
    while at + 1 < size:
        if source[at] != b"{" or source[at + 1] not in (b"%", b"{", b"#"):
            at += 1
            continue
        if source[at + 1] == b"#":
            at = end_of_comment(source, size, at)
            continue
        after = end_of_raw(source, size, at, b"raw")
        if after:
            at = end_of_raw_block(source, size, after)
            continue
        tag.statement = source[at + 1] == b"%"
        at = read_tag(source, size, at + 2, blocks_depth, &tag, &shape)
        if tag.statement:
            blocks_depth = follow_block(&tag, blocks, blocks_depth)
            shape.nesting = max(shape.nesting, blocks_depth)
    return shape


cdef size_t end_of_comment(const char * source, size_t size, size_t at) noexcept nogil:
    at += 2
    while at + 1 < size and not (source[at] == b"#" and source[at + 1] == b"}"):
        at += 1
    return at + 2


cdef size_t end_of_raw(const char * source, size_t size, size_t at,
                       const char * name) noexcept nogil:
    """Return the end of the tag at this place if it is {% raw %} or {% endraw %}, else 0."""
    cdef size_t length = strlen(name)
    if at + 2 > size or source[at] != b"{" or source[at + 1] != b"%":
        return 0
    at += 2
    if at < size and source[at] in (b"-", b"+"):
        at += 1
    at = skip_space(source, size, at)
    if at + length > size or memcmp(source + at, name, length) != 0:
        return 0
    at = skip_space(source, size, at + length)
    if at < size and source[at] in (b"-", b"+"):
        at += 1
    if at + 2 > size or source[at] != b"%" or source[at + 1] != b"}":
        return 0
    return at + 2


cdef size_t end_of_raw_block(const char * source, size_t size, size_t at) noexcept nogil:
    cdef size_t after
    while at + 1 < size:
        after = end_of_raw(source, size, at, b"endraw")
        if after:
            return after
        at += 1
    return size


cdef inline size_t skip_space(const char * source, size_t size, size_t at) noexcept nogil:
    # Space characters beyond ASCII are not known here. A raw block with one in its tag is not
    # recognised, and its content is measured as well.
    while at < size and (b"\t" <= source[at] <= b"\r" or b"\x1c" <= source[at] <= b" "):
        at += 1
    return at


cdef size_t read_tag(const char * source, size_t size, size_t at, size_t blocks_depth,
                     TemplateTag * tag, TemplateShape * shape) noexcept nogil:
    """Read a tag up to its closing mark, and return where the text after it starts."""
    cdef char c, following, mark
    cdef size_t start
    cdef size_t depth = 0  # of brackets
    tag.word = NULL
    tag.word_size = tag.operators = 0
    tag.assigns = False
    if at < size and source[at] in (b"-", b"+"):
        at += 1
    while at < size:
        c = source[at]
        following = source[at + 1] if at + 1 < size else 0
        mark = b"%" if tag.statement else b"}"
        if depth == 0 and c == mark and following == b"}":
            return at + 2
        if depth == 0 and c in (b"-", b"+") and following == mark:
            if at + 2 < size and source[at + 2] == b"}":
                return at + 3
        start = at
        at += 1
        if c == b"'" or c == b'"':
            while at < size and source[at] != c:
                at += 2 if source[at] == b"\\" else 1
            at += 1
        elif is_digit(c):
            at = end_of_number(source, size, start)
        elif is_word(c):
            while at < size and is_word(source[at]):
                at += 1
            if tag.statement and tag.word is NULL:
                tag.word, tag.word_size = source + start, at - start
            elif is_operator(source + start, at - start):
                tag.operators += 1
        elif c in (b"(", b"[", b"{"):
            depth += 1
            tag.operators += 1
            shape.nesting = max(shape.nesting, blocks_depth + depth)
        elif c in (b")", b"]", b"}"):
            if depth:
                depth -= 1
        elif c in (b"=", b"<", b">", b"!"):
            tag.operators += 1
            if following == b"=":
                at += 1
            elif c == b"=" and depth == 0:
                tag.assigns = True
        elif c in (b"-", b"+", b"*", b"/", b"%", b"~", b"|", b"."):
            tag.operators += 1
            if following == c and c in (b"*", b"/"):
                at += 1
        shape.operators = max(shape.operators, tag.operators)
    return at


cdef size_t end_of_number(const char * source, size_t size, size_t at) noexcept nogil:
    """Return the end of digits and an exponent. A word may follow without a space.

    A decimal point counts as an operator, because it is one in ``a.1.2``.
    """
    cdef size_t exponent
    at = end_of_digits(source, size, at)
    exponent = at + 1
    if exponent < size and source[exponent] in (b"-", b"+"):
        exponent += 1
    if exponent < size and source[at] in (b"e", b"E") and is_digit(source[exponent]):
        at = end_of_digits(source, size, exponent)
    return at


cdef size_t end_of_digits(const char * source, size_t size, size_t at) noexcept nogil:
    while at < size and (is_digit(source[at]) or (
        source[at] == b"_" and at + 1 < size and is_digit(source[at + 1])
    )):
        at += 1
    return at


cdef size_t follow_block(const TemplateTag * tag, vector[size_t] & blocks,
                         size_t depth) noexcept nogil:
    """Open or close the block of a statement, and return the total depth of the open blocks."""
    if is_one_of(tag.word, tag.word_size, b"elif") and not blocks.empty():
        blocks[blocks.size() - 1] += 1
        return depth + 1
    if is_one_of(tag.word, tag.word_size, b"for if elif macro call filter set with"):
        if tag.assigns and is_one_of(tag.word, tag.word_size, b"set"):
            return depth
        blocks.push_back(1)
        return depth + 1
    if tag.word_size > 3 and memcmp(tag.word, b"end", 3) == 0 and not blocks.empty():
        depth -= blocks.back()
        blocks.pop_back()
    return depth


cdef inline bint is_operator(const char * word, size_t size) noexcept nogil:
    return is_one_of(word, size, b"not and or if else in is")


cdef bint is_one_of(const char * word, size_t size, const char * names) noexcept nogil:
    """Return whether the word is one of the names, which are separated by single spaces."""
    cdef size_t length
    cdef size_t rest = strlen(names)
    while rest:
        length = 0
        while length < rest and names[length] != b" ":
            length += 1
        if length == size and memcmp(names, word, size) == 0:
            return True
        names += min(rest, length + 1)
        rest -= min(rest, length + 1)
    return False


cdef inline bint is_digit(char c) noexcept nogil:
    return b"0" <= c <= b"9"


cdef inline bint is_word(char c) noexcept nogil:
    return is_digit(c) or b"a" <= c <= b"z" or b"A" <= c <= b"Z" or c == b"_"
