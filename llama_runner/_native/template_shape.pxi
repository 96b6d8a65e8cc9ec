# How deep a chat template is, before llama.cpp's parser recurses into it.
#
# The template is taken apart as llama.cpp's own lexer does it, which differs from Jinja's in odd
# corners: any closing mark ends a tag, and a comment inside of a tag ends it, too.
from libc.string cimport memcmp, strlen
from libcpp.vector cimport vector


cdef struct Shape:
    size_t nesting
    size_t operators


cdef struct Tag:
    bint statement       # {% %}, not {{ }}
    const char * word    # that the statement begins with
    size_t word_size
    bint assigns
    size_t depth         # of brackets
    size_t operators


def template_shape(bytes template):
    """What a chat template asks of a parser that recurses.

    Returns:
        How deep blocks and brackets are nested, and the most operators in one tag: a chain such as
        ``a + b + c`` becomes a tree as deep as it is long.
    """
    cdef const char * source = template
    cdef size_t size = len(template)
    cdef Shape shape
    with nogil:
        shape = shape_of(source, size)
    return shape.nesting, shape.operators


cdef Shape shape_of(const char * source, size_t size) noexcept nogil:
    cdef Shape shape
    cdef Tag tag
    cdef vector[size_t] blocks  # of each open one, how deep it nests: every elif is an if in an if
    cdef size_t blocks_depth = 0
    cdef size_t curly = 0  # what the lexer thinks of {}; below zero, it is enormous
    cdef size_t at = 0
    shape.nesting = shape.operators = 0
    while at + 1 < size:
        if source[at] != b"{" or source[at + 1] not in (b"%", b"{", b"#"):
            at += 1
            continue
        if source[at + 1] == b"#":
            at = end_of_comment(source, size, at)
            continue
        tag.statement = source[at + 1] == b"%"
        if not tag.statement:
            curly = 0
        at = read_tag(source, size, at + 2, blocks_depth, &curly, &tag, &shape)
        if tag.statement:
            blocks_depth = follow_block(&tag, blocks, blocks_depth)
            shape.nesting = max(shape.nesting, blocks_depth)
    return shape


cdef size_t end_of_comment(const char * source, size_t size, size_t at) noexcept nogil:
    at += 2
    while at + 1 < size and not (source[at] == b"#" and source[at + 1] == b"}"):
        at += 1
    return at + 2


cdef size_t read_tag(const char * source, size_t size, size_t at, size_t blocks_depth,
                     size_t * curly, Tag * tag, Shape * shape) noexcept nogil:
    """Read what is between two marks; returns where the text after it starts."""
    cdef char c, following
    cdef size_t start
    tag.word = NULL
    tag.word_size = tag.depth = tag.operators = 0
    tag.assigns = False
    for _ in range(2):  # one belongs to the mark, and the lexer lets another one pass
        if at < size and source[at] == b"-":
            at += 1
    while at < size:
        c = source[at]
        following = source[at + 1] if at + 1 < size else 0
        if following == b"}" and (c == b"%" or (c == b"}" and curly[0] == 0)):
            return at + 2
        if c == b"-" and following == b"}" and at + 2 < size and source[at + 2] == b"}":
            return at + 3
        if c == b"{" and following == b"#":
            return at  # the comment's start
        start = at
        at += 1
        if c == b"'" or c == b'"':
            while at < size and source[at] != c:
                at += 2 if source[at] == b"\\" else 1
            at += 1
        elif is_digit(c):
            pass  # a word may follow at once, and is one
        elif is_word(c):
            while at < size and is_word(source[at]):
                at += 1
            if tag.statement and tag.word is NULL:
                tag.word, tag.word_size = source + start, at - start
            elif is_operator(source + start, at - start):
                tag.operators += 1
        elif c in (b"(", b"[", b"{"):
            if c == b"{" and following == b"{":
                curly[0] = 0
                at += 1
            elif c == b"{":
                curly[0] += 1
            tag.depth += 1
            tag.operators += 1
            shape.nesting = max(shape.nesting, blocks_depth + tag.depth)
        elif c in (b")", b"]", b"}"):
            if c == b"}":
                curly[0] -= 1
            if tag.depth:
                tag.depth -= 1
        elif c in (b"=", b"<", b">", b"!"):
            tag.operators += 1
            if following == b"=":
                at += 1
            elif c == b"=" and tag.depth == 0:
                tag.assigns = True
        elif c in (b"-", b"+", b"*", b"/", b"%", b"~", b"|", b"."):
            tag.operators += 1
        shape.operators = max(shape.operators, tag.operators)
    return at


cdef size_t follow_block(const Tag * tag, vector[size_t] & blocks, size_t depth) noexcept nogil:
    """Open or close the block that a statement stands for; returns how deep they are together."""
    if is_one_of(tag.word, tag.word_size, b"elif") and not blocks.empty():
        blocks[blocks.size() - 1] += 1
        return depth + 1
    if is_one_of(tag.word, tag.word_size, b"for if elif macro call filter set"):
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
    """Is the word one of the names, which have single spaces between them?"""
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
