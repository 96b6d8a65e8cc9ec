# Vocab: text to token ids and back, without the GIL.
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.limits cimport INT_MAX, INT_MIN
from libc.string cimport memcpy
from libcpp.string cimport string
from libcpp.vector cimport vector

from llama_runner._llama_cpp.llama cimport (
    LLAMA_VOCAB_TYPE_NONE,
    llama_detokenize,
    llama_model_get_vocab,
    llama_token,
    llama_vocab,
    llama_vocab_bos,
    llama_vocab_eos,
    llama_vocab_eot,
    llama_vocab_get_add_bos,
    llama_vocab_is_control,
    llama_vocab_is_eog,
    llama_vocab_n_tokens,
    llama_vocab_nl,
    llama_vocab_pad,
    llama_vocab_type,
)
from llama_runner._llama_cpp.shim cimport append_piece, kThrew, tokenize

from operator import index as _index
from reprlib import repr as _shown


cdef object new_token_array(const llama_token * tokens, size_t n):
    """A numpy int32 array of its own memory, shape (n,)."""
    # numpy takes longer to import than the rest of the package together: only on first use.
    import numpy
    array = numpy.empty(n, dtype=numpy.int32)
    cdef int32_t[::1] view = array
    if n:
        memcpy(&view[0], tokens, n * sizeof(llama_token))
    return array


cdef int read_tokens(object source, vector[llama_token] & out) except -1:
    """Copy token ids from an int32 buffer (no Python per token) or any iterable of ints."""
    cdef const int32_t[::1] view
    cdef long long token
    # Bytes would pass for a sequence of integers, but who has bytes has text.
    if source is None or isinstance(source, (str, bytes, bytearray)):
        raise not_token_ids(source)
    try:
        view = source
    except (TypeError, ValueError, BufferError):
        pass
    else:
        out.resize(view.shape[0])
        if view.shape[0]:
            memcpy(out.data(), &view[0], view.shape[0] * sizeof(llama_token))
        return 0
    try:
        items = iter(source)
    except TypeError:
        raise not_token_ids(source) from None
    for item in items:
        try:
            if isinstance(item, bool):
                raise TypeError
            token = _index(item)
        except TypeError:
            raise TokenizationError(
                f"token ids must be integers (got {one_line(_shown(item))} of type "
                f"{type(item).__name__})"
            ) from None
        except OverflowError:
            token = -1
        out.push_back(<llama_token> token if INT_MIN <= token <= INT_MAX else -1)
    return 0


cdef object not_token_ids(object source):
    return TokenizationError(
        f"token ids must be a sequence of integers (got {type(source).__name__})"
    )


cdef int tokenize_into(const llama_vocab * vocab, const char * text, Py_ssize_t length,
                       bint add_special, bint parse_special,
                       vector[llama_token] & out) except -1:
    """Replace ``out`` with the tokens of UTF-8 text."""
    cdef string error
    cdef int32_t n
    if length > INT_MAX - 16:
        raise TokenizationError(f"the text has {length} bytes: tokenize it in parts below 2 GiB")
    # Never more tokens than bytes, but for a few special ones and a space prefix.
    out.resize(length + 16)
    with nogil:
        n = tokenize(vocab, text, <int32_t> length, out.data(), <int32_t> out.size(),
                     add_special, parse_special, error)
        if n < 0 and n != INT_MIN and n != kThrew:
            out.resize(-n)
            n = tokenize(vocab, text, <int32_t> length, out.data(), <int32_t> out.size(),
                         add_special, parse_special, error)
    if n < 0:
        raise TokenizationError(
            "llama.cpp cannot tokenize this text: "
            + (error.decode("utf-8", "replace") or "the result is too long")
        )
    out.resize(n)
    return 0


cdef class Vocab:
    """A model's vocabulary. Obtained from :attr:`Model.vocab`, and closed with the model."""

    def __init__(self):
        raise TypeError("a Vocab comes from Model.vocab")

    cdef const llama_vocab * alive(self) except NULL:
        self.model.alive()
        return self.ptr

    cdef int check_token(self, long long token) except -1:
        if not 0 <= token < self.n_tokens:
            raise TokenizationError(
                f"token id {token} is out of range: this vocabulary has ids 0 to "
                f"{self.n_tokens - 1}"
            )
        return 0

    def tokenize(self, text, *, bint add_special=True, bint parse_special=True):
        """Token ids of a text.

        Args:
            text: str, or bytes of UTF-8 (bytes that are not are tokenised as they are).
            add_special: Add BOS/EOS where the model wants them.
            parse_special: Read "<|im_end|>" and the like as one special token.

        Returns:
            numpy int32 array, shape (n,).

        Raises:
            TokenizationError: The text has lone surrogates or is too long.
        """
        cdef vector[llama_token] tokens
        self._tokenize_into(text, add_special, parse_special, tokens)
        return new_token_array(tokens.data(), tokens.size())

    cdef int _tokenize_into(self, text, bint add_special, bint parse_special,
                            vector[llama_token] & out) except -1:
        cdef shared_ptr[ModelBox] weights = self.model.alive()
        cdef const char * data
        cdef Py_ssize_t length
        if isinstance(text, str):
            try:
                data = PyUnicode_AsUTF8AndSize(text, &length)
            except UnicodeEncodeError as error:
                raise TokenizationError(
                    f"the text has a lone surrogate at index {error.start}: it is no Unicode text"
                ) from None
        elif isinstance(text, bytes):
            data = text
            length = len(text)
        else:
            raise TokenizationError(f"text must be str or bytes (got {type(text).__name__})")
        return tokenize_into(self.ptr, data, length, add_special, parse_special, out)

    def detokenize(self, tokens, *, bint remove_special=False, bint unparse_special=True):
        """The bytes that a run of token ids stands for (not always whole UTF-8).

        Args:
            tokens: int32 buffer or iterable of ints.
            remove_special: Leave out the BOS/EOS that tokenising added.
            unparse_special: Write special tokens as text instead of leaving them out.

        Raises:
            TokenizationError: An id out of range.
        """
        cdef vector[llama_token] ids
        cdef string text
        cdef int32_t n
        cdef size_t i
        cdef shared_ptr[ModelBox] weights = self.model.alive()
        read_tokens(tokens, ids)
        for i in range(ids.size()):
            self.check_token(ids[i])
        if ids.empty():
            return b""
        text.resize(ids.size() * 8 + 32)
        with nogil:
            n = llama_detokenize(self.ptr, ids.data(), <int32_t> ids.size(), &text[0],
                                 <int32_t> text.size(), remove_special, unparse_special)
            if n < 0:
                text.resize(-n)
                n = llama_detokenize(self.ptr, ids.data(), <int32_t> ids.size(), &text[0],
                                     <int32_t> text.size(), remove_special, unparse_special)
        return text.substr(0, n)

    def token_to_piece(self, token, *, bint special=True):
        """The bytes of one token; ``special=False`` gives b"" for a control token."""
        cdef string piece, error
        cdef shared_ptr[ModelBox] weights = self.model.alive()
        self.check_token(token)
        if append_piece(self.ptr, token, special, piece, error) != 0:
            raise TokenizationError(error.decode("utf-8", "replace"))
        return <bytes> piece

    def is_eog(self, token):
        """Does this token end a generation (EOS, EOT and their like)?"""
        self.check_token(token)
        return llama_vocab_is_eog(self.alive(), token)

    def is_control(self, token):
        """Is this a control token, which stands for no text?"""
        self.check_token(token)
        return llama_vocab_is_control(self.alive(), token)

    @property
    def add_bos(self):
        """Does tokenising with ``add_special`` begin with BOS?"""
        return llama_vocab_get_add_bos(self.alive())

    @property
    def bos(self):
        return optional_token(llama_vocab_bos(self.alive()))

    @property
    def eos(self):
        return optional_token(llama_vocab_eos(self.alive()))

    @property
    def eot(self):
        return optional_token(llama_vocab_eot(self.alive()))

    @property
    def nl(self):
        return optional_token(llama_vocab_nl(self.alive()))

    @property
    def pad(self):
        return optional_token(llama_vocab_pad(self.alive()))

    def __len__(self):
        return self.n_tokens


cdef object optional_token(llama_token token):
    return None if token < 0 else token


cdef Vocab _new_vocab(Model model):
    cdef Vocab vocab = Vocab.__new__(Vocab)
    vocab.model = model
    vocab.ptr = llama_model_get_vocab(model.alive().get().model)
    if llama_vocab_type(vocab.ptr) == LLAMA_VOCAB_TYPE_NONE:
        raise UnsupportedModelError("this model has no vocabulary: it cannot read or write text")
    vocab.n_tokens = llama_vocab_n_tokens(vocab.ptr)
    return vocab
