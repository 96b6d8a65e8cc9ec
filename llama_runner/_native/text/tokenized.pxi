# Uses: errors, model, token_ids
#
# Texts in the form that the tokenizer takes, and TokenizedText: a text with its tokens.
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize

from llama_runner._llama_cpp.shim.tokenizer cimport (
    KnownTokens,
    TextToTokenize,
    TokenizeOptions,
    common_prefix,
)


cdef object immutable_text(object text):
    """Return a str or bytes as it is, and a copy of the bytes of any other bytes-like object."""
    if isinstance(text, (str, bytes)):
        return text
    try:
        view = memoryview(text)
        if view.format in ("B", "b", "c"):
            return view.tobytes()
    except (TypeError, ValueError, BufferError):
        pass
    raise TokenizationError(f"text must be str or bytes (got {type(text).__name__})")


cdef TextToTokenize text_to_tokenize(object text) except *:
    """Return a view of the UTF-8 of an immutable_text(), valid as long as the text lives."""
    cdef TextToTokenize native = bytes_of_text(text)
    if native.size > INT_MAX:
        raise TokenizationError(
            f"the text has {native.size} bytes: tokenize it in parts below 2 GiB")
    native.valid = isinstance(text, str) or is_utf8(text)
    return native


cdef TextToTokenize bytes_of_text(object text) except *:
    cdef TextToTokenize native
    cdef Py_ssize_t size
    if isinstance(text, str):
        try:
            native.data = PyUnicode_AsUTF8AndSize(text, &size)
        except UnicodeEncodeError as error:
            raise TokenizationError(
                f"the text has a lone surrogate at index {error.start}: it is no Unicode text"
            ) from None
    else:
        native.data = PyBytes_AS_STRING(text)
        size = PyBytes_GET_SIZE(text)
    native.size = size
    return native


cdef bint is_utf8(object text):
    try:
        bytes.decode(text)
    except UnicodeDecodeError:
        return False
    return True


cdef TokenizeOptions tokenize_options(bint add_special, bint parse_special):
    cdef TokenizeOptions options
    options.add_special = add_special
    options.parse_special = parse_special
    return options


cdef object cannot_tokenize(error):
    return TokenizationError(f"cannot tokenize this text: {one_line(error)}")


cdef class TokenizedText:
    """A text and its tokens, made by :meth:`Vocab.read`. It is immutable."""

    cdef Model model
    cdef readonly object text  # keeps the UTF-8 alive that native points to
    cdef TextToTokenize native
    cdef TokenizeOptions options
    cdef KnownTokens known

    def __init__(self):
        raise TypeError("a TokenizedText comes from Vocab.read()")

    cdef bint is_like(self, TokenizedText other):
        return (self.model is other.model
                and self.options.add_special == other.options.add_special
                and self.options.parse_special == other.options.parse_special)

    @property
    def tokens(self):
        """The token ids, as a new numpy int32 array of shape (n,)."""
        return new_token_array(self.known.tokens.data(), self.known.tokens.size())

    @property
    def n_bytes(self):
        """Size of the text in bytes of UTF-8."""
        return self.native.size

    @property
    def n_reused(self):
        """Number of tokens that were reused from the previous text."""
        return self.known.n_reused

    def common_prefix(self, text):
        """Return the length of the common prefix of this text and another, in bytes of UTF-8."""
        kept = immutable_text(text)
        return common_prefix(self.native, bytes_of_text(kept))

    def __len__(self):
        return self.known.tokens.size()
