# Uses: errors, signals, model, token_ids, tokenized
#
# Vocab: converts text to token ids and back, without the GIL.
from libcpp.string cimport string

from llama_runner._llama_cpp.llama cimport (
    LLAMA_VOCAB_TYPE_NONE,
    llama_model_get_vocab,
    llama_vocab,
    llama_vocab_bos,
    llama_vocab_eos,
    llama_vocab_eot,
    llama_vocab_fim_mid,
    llama_vocab_fim_pad,
    llama_vocab_fim_pre,
    llama_vocab_fim_rep,
    llama_vocab_fim_sep,
    llama_vocab_fim_suf,
    llama_vocab_get_add_bos,
    llama_vocab_get_add_eos,
    llama_vocab_is_control,
    llama_vocab_is_eog,
    llama_vocab_mask,
    llama_vocab_n_tokens,
    llama_vocab_nl,
    llama_vocab_pad,
    llama_vocab_sep,
    llama_vocab_type,
)
from llama_runner._llama_cpp.shim.detokenize cimport detokenize
from llama_runner._llama_cpp.shim.guard cimport append_piece


@cython.auto_pickle(False)
cdef class Vocab:
    """A model's vocabulary. It comes from :attr:`Model.vocab` and is closed with the model."""

    def __init__(self):
        raise TypeError("a Vocab comes from Model.vocab")

    cdef int _read_from(self, Model model) except -1:
        cdef shared_ptr[ModelBox] box = model.alive()
        self.model = model
        if llama_vocab_type(vocab_in(box)) == LLAMA_VOCAB_TYPE_NONE:
            raise UnsupportedModelError(
                "this model has no vocabulary: it cannot read or write text")
        self.n_tokens = llama_vocab_n_tokens(vocab_in(box))
        return 0

    cdef shared_ptr[ModelBox] alive(self) except *:
        return self.model.alive()

    cdef llama_token one_of_mine(self, object item) except -1:
        cdef llama_token token = read_token(item, None, self.n_tokens - 1)
        if not 0 <= token < self.n_tokens:
            raise no_such_token(token, None, self.n_tokens - 1)
        return token

    # ---- text to tokens ------------------------------------------------------------------------

    def tokenize(self, text, *, bint add_special=True, bint parse_special=True):
        """Return the token ids of a text.

        Args:
            text: A str, or any bytes-like object with UTF-8. Most vocabularies read each byte that
                is not valid UTF-8 as U+FFFD, as llama.cpp does.
            add_special: Add BOS/EOS if the model expects them.
            parse_special: Read the text of a special token, such as "<|im_end|>", as that token.

        Returns:
            numpy int32 array, shape (n,).

        Raises:
            TokenizationError: The text has lone surrogates, is too long, or cannot be written
                with this vocabulary.
        """
        cdef vector[llama_token] tokens
        self._tokenize_into(text, add_special, parse_special, tokens)
        return new_token_array(tokens.data(), tokens.size())

    def count_tokens(self, text, *, bint add_special=True, bint parse_special=True):
        """Return the number of tokens that :meth:`tokenize` would return."""
        cdef vector[llama_token] tokens
        self._tokenize_into(text, add_special, parse_special, tokens)
        return tokens.size()

    cdef int _tokenize_into(self, text, bint add_special, bint parse_special,
                            vector[llama_token] & out) except -1:
        cdef shared_ptr[ModelBox] box = self.alive()
        kept = immutable_text(text)
        cdef TextToTokenize native = text_to_tokenize(kept)
        cdef TokenizeOptions options = tokenize_options(add_special, parse_special)
        try:
            with nogil:
                box.get().tokenizer.tokenize(native, options, signal_check(), out)
        except LlamaRuntimeError as error:
            pass_on_interrupt(error)
            raise cannot_tokenize(error) from None
        return 0

    def tokenize_batch(self, texts, *, bint add_special=True, bint parse_special=True,
                       int n_threads=1):
        """Return a list with the token ids of each text, as :meth:`tokenize` returns them.

        Args:
            texts: Iterable of str or bytes; a single str or bytes is refused.
            add_special, parse_special: As for :meth:`tokenize`.
            n_threads: Number of threads to use, including the calling one.

        Raises:
            TokenizationError: As for :meth:`tokenize`, if it applies to any of the texts.
        """
        cdef shared_ptr[ModelBox] box = self.alive()
        cdef TokenizeOptions options = tokenize_options(add_special, parse_special)
        cdef list kept = texts_of(texts)
        cdef vector[TextToTokenize] natives
        cdef vector[vector[llama_token]] tokens
        cdef size_t threads = max(n_threads, 1)
        cdef size_t i
        natives.reserve(len(kept))
        for text in kept:
            natives.push_back(text_to_tokenize(text))
        try:
            with nogil:
                box.get().tokenizer.tokenize_all(
                    natives, options, threads, signal_check(), tokens)
        except LlamaRuntimeError as error:
            pass_on_interrupt(error)
            raise cannot_tokenize(error) from None
        return [new_token_array(tokens[i].data(), tokens[i].size()) for i in range(tokens.size())]

    def inside_control(self, text):
        """Return where to cut a text so that it no longer spells control tokens like "<|im_end|>".

        A control token of a single character cannot be cut.

        Args:
            text: str or bytes, as for :meth:`tokenize`.

        Returns:
            Byte offsets in the UTF-8 text, each after the first character of a control token.

        Raises:
            TokenizationError: The text has lone surrogates.
        """
        cdef shared_ptr[ModelBox] box = self.alive()
        kept = immutable_text(text)
        cdef TextToTokenize native = text_to_tokenize(kept)
        cdef vector[size_t] places
        with nogil:
            places = box.get().tokenizer.inside_control(native)
        return places

    def read(self, text, TokenizedText previous=None, *, bint add_special=True,
             bint parse_special=True):
        """Return a text with its tokens, from which a longer text can be tokenised faster.

        Args:
            text: str or bytes, as for :meth:`tokenize`.
            previous: The result of an earlier call. If its model and options are the same, the
                tokens of the beginning that both texts have in common are reused.
            add_special, parse_special: As for :meth:`tokenize`.

        Raises:
            TokenizationError: As for :meth:`tokenize`.
        """
        cdef shared_ptr[ModelBox] box = self.alive()
        cdef TokenizedText result = TokenizedText.__new__(TokenizedText)
        cdef KnownTokens nothing
        result.text = immutable_text(text)
        result.native = text_to_tokenize(result.text)
        result.options = tokenize_options(add_special, parse_special)
        result.model = self.model
        try:
            if previous is not None and previous.is_like(result):
                with nogil:
                    box.get().tokenizer.tokenize_after(
                        previous.native, previous.known, result.native, result.options,
                        signal_check(), result.known)
            else:
                with nogil:
                    box.get().tokenizer.tokenize_after(
                        result.native, nothing, result.native, result.options,
                        signal_check(), result.known)
        except LlamaRuntimeError as error:
            pass_on_interrupt(error)
            raise cannot_tokenize(error) from None
        return result

    # ---- tokens to text ------------------------------------------------------------------------

    def detokenize(self, tokens, *, bint remove_special=False, bint unparse_special=True,
                   bint strip_prefix=True):
        """Return the text of token ids as bytes, which may end inside a UTF-8 character.

        The tokens' pieces are joined as a generation streams them, without any clean-up.

        Args:
            tokens: Buffer of int32 (read without a copy) or int64, or iterable of ints.
            remove_special: Leave out the BOS/EOS that tokenising adds.
            unparse_special: Write special tokens as text instead of leaving them out.
            strip_prefix: Leave out the space that some vocabularies put before a text. Pass False
                if the tokens continue a text.

        Raises:
            TokenizationError: An id is out of range.
        """
        cdef shared_ptr[ModelBox] box = self.alive()
        cdef _TokenIds ids = token_ids(tokens, self.n_tokens - 1)
        cdef string text
        cdef int64_t wrong
        with nogil:
            wrong = detokenize(vocab_in(box), ids.data, ids.size, strip_prefix, remove_special,
                               unparse_special, text)
        if wrong >= 0:
            raise no_such_token(ids.data[wrong], wrong, self.n_tokens - 1)
        return <bytes> text

    def token_to_piece(self, token, *, bint special=True):
        """Return the bytes of one token; with ``special=False``, b"" for a control token."""
        cdef string piece, error
        cdef shared_ptr[ModelBox] box = self.alive()
        if append_piece(vocab_in(box), self.one_of_mine(token), special, piece, error) != 0:
            raise TokenizationError(error.decode("utf-8", "replace"))
        return <bytes> piece

    # ---- tokens with a meaning -----------------------------------------------------------------

    def is_eog(self, token):
        """Return whether this token ends a generation (EOS, EOT and similar tokens)."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return llama_vocab_is_eog(vocab_in(box), self.one_of_mine(token))

    def is_control(self, token):
        """Return whether this is a control token, which does not stand for text."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return llama_vocab_is_control(vocab_in(box), self.one_of_mine(token))

    @property
    def add_bos(self):
        """True if tokenising with ``add_special`` adds BOS at the beginning."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return llama_vocab_get_add_bos(vocab_in(box))

    @property
    def add_eos(self):
        """True if tokenising with ``add_special`` adds EOS at the end."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return llama_vocab_get_add_eos(vocab_in(box))

    @property
    def bos(self):
        """The token at the beginning of a text (BOS); None if the vocabulary does not have one."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return optional_token(llama_vocab_bos(vocab_in(box)))

    @property
    def eos(self):
        """The token at the end of a text (EOS), or None."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return optional_token(llama_vocab_eos(vocab_in(box)))

    @property
    def eot(self):
        """The token at the end of a turn (EOT), or None."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return optional_token(llama_vocab_eot(vocab_in(box)))

    @property
    def nl(self):
        """The token of a line break, or None."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return optional_token(llama_vocab_nl(vocab_in(box)))

    @property
    def pad(self):
        """The padding token, or None."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return optional_token(llama_vocab_pad(vocab_in(box)))

    @property
    def sep(self):
        """The token that separates two texts, or None."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return optional_token(llama_vocab_sep(vocab_in(box)))

    @property
    def mask(self):
        """The token that masks a word to guess, or None."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return optional_token(llama_vocab_mask(vocab_in(box)))

    @property
    def fim_pre(self):
        """Fill in the middle: the token before the text that precedes the gap, or None."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return optional_token(llama_vocab_fim_pre(vocab_in(box)))

    @property
    def fim_suf(self):
        """Fill in the middle: the token before the text that follows the gap, or None."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return optional_token(llama_vocab_fim_suf(vocab_in(box)))

    @property
    def fim_mid(self):
        """Fill in the middle: the token before the text that fills the gap, or None."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return optional_token(llama_vocab_fim_mid(vocab_in(box)))

    @property
    def fim_pad(self):
        """Fill in the middle: the padding token, or None."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return optional_token(llama_vocab_fim_pad(vocab_in(box)))

    @property
    def fim_rep(self):
        """Fill in the middle: the token before the name of a repository, or None."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return optional_token(llama_vocab_fim_rep(vocab_in(box)))

    @property
    def fim_sep(self):
        """Fill in the middle: the token between two files, or None."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return optional_token(llama_vocab_fim_sep(vocab_in(box)))

    def __len__(self):
        self.alive()
        return self.n_tokens

    def __repr__(self):
        state = " (closed)" if self.model.closed else ""
        return f"<Vocab of {self.model.path!r}, {self.n_tokens} tokens{state}>"


cdef list texts_of(object texts):
    """Return the texts in a form that other threads cannot change."""
    # Iterating over a single text would yield its characters.
    if isinstance(texts, (str, bytes, bytearray, memoryview)):
        raise TokenizationError(
            f"texts must be a list of texts (got {type(texts).__name__}): put it in a list")
    try:
        items = iter(texts)
    except TypeError:
        raise TokenizationError(
            f"texts must be a list of texts (got {type(texts).__name__})") from None
    return [immutable_text(text) for text in items]


cdef object optional_token(llama_token token):
    return None if token < 0 else token


cdef inline const llama_vocab * vocab_in(shared_ptr[ModelBox] & box) noexcept nogil:
    """Return the vocabulary. It is freed with the model: hold the box while using it."""
    return llama_model_get_vocab(box.get().model)
