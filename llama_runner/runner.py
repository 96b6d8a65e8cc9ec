"""LlamaRunner: a model, a context, and two ways to use them."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self, Unpack

from llama_runner._core import Context
from llama_runner.conversation.conversation import Conversation, ConversationSettings
from llama_runner.conversation.intake import Reuse
from llama_runner.conversation.policies import GcPolicyLike, resolve_policy
from llama_runner.conversation.session import Session
from llama_runner.conversation.transcript import Transcript
from llama_runner.errors import ClosedError, InvalidParameterError
from llama_runner.generation.generation import Generation
from llama_runner.generation.prompt_work import PromptWork
from llama_runner.generation.stream import Stream
from llama_runner.loaders.gguf.header import ModelPath
from llama_runner.loading.adapters import load_adapter
from llama_runner.loading.open import (
    Loading,
    Opened,
    Progress,
    Validation,
    open_beside,
    open_runner,
)
from llama_runner.params import (
    GenerationOptions,
    GenerationParams,
    RunnerOptions,
    generation_params,
)
from llama_runner.prompts.chat_format import ChatFormat
from llama_runner.prompts.messages import Message, Prompt
from llama_runner.prompts.prompt import Ids, Messages, read_prompt
from llama_runner.results import Completion, ContextInfo, GcReport
from llama_runner.tokens.tokenizer import Tokenizer
from llama_runner.tokens.types import Text, TokenIds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LlamaRunner"]


class LlamaRunner:
    """A GGUF model in this process, for programs that control its memory themselves.

    *Stateless* calls are independent and leave nothing in the KV memory. *Stateful* calls continue
    one conversation that stays there, so that only what is new is computed.

    A prompt is raw text (``str``), token ids, or a list of ``{"role", "content"}`` messages, which
    the model's chat template makes a text of. In stateful calls, messages that contain an
    assistant's answer, or begin with a system message, are the whole conversation. Others are added
    to it, and so are messages that begin with an assistant's or a tool's message. If the
    conversation ends with an answer, a leading assistant message replaces it: it is the same
    answer, parsed by the caller (for example as a tool call).

    Threads may share a runner: stateless calls are computed together, stateful ones take turns.

    ``tokenizer`` is the model's :class:`Tokenizer`; ``tokenizer.vocab`` has the special tokens.

    Args:
        model: Path of a GGUF file or of a JSON description of one, or the name of a pulled model.
            A description's chat template, ``n_gpu_layers`` and sampling values are used unless
            others are given.
            Or another runner: its weights serve this one as well, with a context of its own; they
            are freed with the last runner that uses them.
        chat_template: A Jinja template to use instead of the model's own.
        progress: Called with the fraction loaded, 0.0 to 1.0; returning False cancels the load.
        validate: What to check in the file first. "full" checks every value that could make
            llama.cpp fail, "header" the structure alone, False nothing.
        gc_policy: What to evict automatically when ``gc_threshold`` is exceeded, as for
            :meth:`gc_context`. If that is not enough, the oldest turns are evicted as well. An
            exception of the policy is raised by the call.
        isolated: First load the model and decode a token in a child process, so that a file that
            crashes llama.cpp raises an error. Takes as long as the loading itself.
        **options: Fields of :class:`ModelParams` and :class:`ContextParams`.

    Raises:
        InvalidParameterError: An option is unknown or out of range.
        ModelNotFoundError: There is no such file or name.
        FileReadError: The system does not let it be read.
        ModelMetadataError: The description is not valid, or contradicts the file.
        ModelValidationError: The file is not a sound GGUF file.
        ModelLoadError: llama.cpp refused it or crashed in the child, or ``progress`` cancelled.
        OutOfMemoryError: There is no memory for the weights, the context or the child.
    """

    def __init__(
        self,
        model: ModelPath | LlamaRunner,
        *,
        chat_template: str | None = None,
        progress: Progress | None = None,
        validate: Validation = "full",
        isolated: bool = False,
        gc_policy: GcPolicyLike = "oldest_turns",
        **options: Unpack[RunnerOptions],
    ) -> None:
        self._gc_policy = resolve_policy(gc_policy)
        loading = Loading(chat_template, progress, validate, isolated)
        if isinstance(model, LlamaRunner):
            opened = open_beside(model._opened, options, loading)
        else:
            opened = open_runner(model, options, loading)
        self._opened: Opened = opened
        self.model = opened.model
        self.model_params = opened.model_params
        self.context_params = opened.context_params
        self.generation_params = opened.generation_params
        self.tokenizer = Tokenizer(self.model.vocab)
        self._context = opened.context
        self._chat = ChatFormat(self.tokenizer, opened.template)
        self._session = None if self._context is None else self.session()

    # ---- stateless -----------------------------------------------------------------------------

    def generate_stateless(
        self,
        prompt: Prompt | Iterable[Message],
        max_tokens: int | None = None,
        params: GenerationParams | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> Completion:
        """Answer one prompt and leave nothing in the KV memory.

        Args:
            prompt: Text, token ids or messages.
            max_tokens: Most tokens to generate, -1 until the context is full. By default what
                ``params`` say, or 200.
            params: How to sample and when to stop. For what they do not set, the runner's defaults
                hold. ``overrides`` are changes to them.

        Raises:
            InvalidParameterError: A parameter is out of range, or the prompt is empty.
            TokenizationError: The prompt is not text, or has token ids that do not exist.
            ChatTemplateError: There is no chat template, or it refuses these messages.
            PromptTooLongError: The prompt does not fit the context.
            ContextFullError: Other requests leave no room in the KV memory.
            DecodeError: llama.cpp could not compute it, or a logit is not a number.
            OutOfMemoryError: There is not enough memory to compute it.
            UnsupportedModelError: The model was loaded with vocab_only.
            ClosedError, ForkedProcessError: The runner cannot be used any more, or not here.
        """
        return self._stateless(prompt, max_tokens, params, overrides).run()

    def stream_stateless(
        self,
        prompt: Prompt | Iterable[Message],
        max_tokens: int | None = None,
        params: GenerationParams | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> Stream:
        """Generate like :meth:`generate_stateless`, in chunks, from an iterator that can be closed.

        Raises:
            As :meth:`generate_stateless`. Errors of the computation come where the stream is read.
        """
        return Stream(self._stateless(prompt, max_tokens, params, overrides), lambda: None)

    def _stateless(
        self,
        prompt: Prompt | Iterable[Message],
        max_tokens: int | None,
        params: GenerationParams | None,
        overrides: GenerationOptions,
    ) -> Generation:
        work = PromptWork()
        context = self._alive_context()
        chosen = generation_params(max_tokens, params, overrides, self.generation_params)
        sequence = context.new_sequence()
        given = read_prompt(prompt, self._chat.template)
        stops: tuple[str, ...] = ()
        if isinstance(given, Messages):
            rendered = self._chat.render(given.messages)
            stops = rendered.stops
            sequence.append(self._chat.tokenize(rendered.data, previous=None)[0])
        elif isinstance(given, Ids):
            sequence.append(given.ids)
        elif given.text:
            sequence.append(
                self.tokenizer.tokenize_prompt(
                    given.text, add_special=chosen.add_special, parse_special=chosen.parse_special
                )
            )
        sequence.use_adapters(chosen.lora)
        generation = Generation(sequence, chosen, work, stops=stops, temporary=True)
        generation.check_adapters()
        return generation

    # ---- stateful ------------------------------------------------------------------------------

    def generate_stateful(
        self,
        prompt: Prompt | Iterable[Message],
        max_tokens: int | None = None,
        params: GenerationParams | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> Completion:
        """Continue the conversation in the KV memory; prompt and answer stay there.

        Above ``gc_threshold`` the oldest turns are evicted first. A call that raises leaves the
        conversation as it was. See :meth:`Session.generate`.

        Raises:
            ContextBusyError: A stream on the conversation is still open.
            ContextFullError: All that could make room is pinned.
            Others: As for :meth:`generate_stateless`.
        """
        session = self._alive_session()
        return session.generate(prompt, max_tokens, params, **overrides)

    def stream_stateful(
        self,
        prompt: Prompt | Iterable[Message],
        max_tokens: int | None = None,
        params: GenerationParams | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> Stream:
        """Generate like :meth:`generate_stateful`, in chunks. See :meth:`Session.stream`."""
        session = self._alive_session()
        return session.stream(prompt, max_tokens, params, **overrides)

    def get_context_info(self) -> ContextInfo:
        """Return what the conversation holds and what room is left; see :meth:`Session.info`."""
        return self._alive_session().info()

    def gc_context(
        self,
        target: float = 0.5,
        *,
        policy: GcPolicyLike = "oldest_turns",
        dry_run: bool = False,
        exact: bool = False,
    ) -> GcReport:
        """Evict spans until at most ``target`` of the context is used. See :meth:`Session.gc`."""
        return self._alive_session().gc(target, policy=policy, dry_run=dry_run, exact=exact)

    def clear_context(self) -> None:
        """Forget the conversation, and the texts that were kept tokenised."""
        self._alive_session().clear()
        self.tokenizer.forget()

    def session(
        self,
        system: str | None = None,
        name: str | None = None,
        *,
        reuse: Reuse = "prefix",
        gc_policy: GcPolicyLike | None = None,
    ) -> Session:
        """Begin another conversation beside the one of the stateful methods.

        There may be any number of them; up to ``n_seq_max`` are in the KV memory at once. An idle
        one is parked when another needs the room, and restored on use.

        Args:
            system: Text of a system message to begin with. It also stays if a whole conversation is
                given that has none.
            name: For people; a saved session keeps it.
            reuse: What to reuse of the memory for messages that are given whole, as chat front ends
                do. "prefix": the common beginning. "chunks": also what follows messages that were
                taken out or changed, such as a system message with the date. Its cached keys and
                values are moved, not recomputed, so they still reflect the old messages: results
                are approximate. Changed messages only in the unified layout, with ``n_seq_max``
                above 1.
            gc_policy: What to evict automatically; by default the runner's policy.

        Raises:
            InvalidParameterError: ``name`` is not printable text, ``system`` is not text, or
                ``reuse`` or ``gc_policy`` is unknown.
            ChatTemplateError: There is no chat template, or it refuses a system message.
            TokenizationError: The vocabulary cannot write the system message.
            PromptTooLongError: It does not fit the context.
        """
        transcript = Transcript(self._alive_context().new_sequence(), self._chat)
        settings = ConversationSettings(
            self.context_params.gc_threshold,
            reuse,
            self._gc_policy if gc_policy is None else resolve_policy(gc_policy),
        )
        conversation = Conversation(transcript, settings)
        session = Session(conversation, name=name, defaults=self.generation_params)
        if system is not None:
            session.append([{"role": "system", "content": system}])
            session.pin(0)  # the session's own, whatever conversation it is given
        return session

    # ---- adapters ------------------------------------------------------------------------------

    def load_lora(self, path: ModelPath, name: str | None = None) -> str:
        """Load a LoRA adapter; a generation uses it with ``lora={name: scale}``.

        Requests with different adapters or scales are not computed together: they take turns, the
        oldest first. A conversation that continues with other adapters is computed again.

        Args:
            path: A GGUF file of an adapter for this model.
            name: What to call it; by default the file's name without its ending.

        Returns:
            The name.

        Raises:
            ModelNotFoundError: There is no such file.
            FileReadError: The system does not let it be read.
            ModelValidationError: Not an adapter, or not one for this model.
            UnsupportedModelError: It is activated by tokens of the prompt (aLoRA).
            ModelLoadError: llama.cpp refused it, or cannot compute with it.
            InvalidParameterError: The name is taken, empty or not a string, or the path is not one.
        """
        return load_adapter(self._alive_context(), self._opened.header, path, name)

    def unload_lora(self, name: str) -> None:
        """Free an adapter's memory and its name.

        Conversations that were computed with it are computed again on their next use, with the
        adapters of that call.

        Raises:
            InvalidParameterError: There is no adapter of this name.
            ContextBusyError: Something is generated with it, or a stream with it is open.
        """
        context = self._alive_context()
        if not isinstance(name, str):
            raise InvalidParameterError(f"name={name!r}: must be a string", field="name")
        context.unload_adapter(name)

    # ---- text ----------------------------------------------------------------------------------

    def tokenize(
        self, text: Text, *, add_special: bool = True, parse_special: bool = True
    ) -> NDArray[np.int32]:
        """Return the token ids of a text. See :meth:`Tokenizer.tokenize`.

        The last few long texts, up to 8 MiB, are kept until :meth:`clear_context` or :meth:`close`,
        so that a text that has grown is not tokenised from its beginning.
        """
        return self.tokenizer.tokenize(text, add_special=add_special, parse_special=parse_special)

    def tokenize_batch(
        self, texts: Iterable[Text], *, add_special: bool = True, parse_special: bool = True
    ) -> list[NDArray[np.int32]]:
        """Tokenise many texts on all processors. See :meth:`Tokenizer.tokenize_batch`."""
        return self.tokenizer.tokenize_batch(
            texts, add_special=add_special, parse_special=parse_special
        )

    def count_tokens(
        self, text: Text, *, add_special: bool = True, parse_special: bool = True
    ) -> int:
        """Return how many tokens a text has. See :meth:`Tokenizer.count_tokens`."""
        return self.tokenizer.count_tokens(
            text, add_special=add_special, parse_special=parse_special
        )

    def detokenize(
        self, tokens: TokenIds, *, remove_special: bool = False, unparse_special: bool = True
    ) -> str:
        """Return the text of token ids. See :meth:`Tokenizer.detokenize`."""
        return self.tokenizer.detokenize(
            tokens, remove_special=remove_special, unparse_special=unparse_special
        )

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template in use; None if there is none."""
        return None if self._chat.template is None else self._chat.template.source

    # ---- lifetime ------------------------------------------------------------------------------

    def close(self) -> None:
        """Free context and weights. Calls still running in other threads end with ClosedError."""
        if self._context is not None:
            self._context.close()
        self.tokenizer.forget()
        self.model.close()

    @property
    def closed(self) -> bool:
        """Whether the runner was closed."""
        return self.model.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a LlamaRunner cannot be copied or pickled: create one in each process")

    def __repr__(self) -> str:
        return f"<LlamaRunner {self.model.path!r}{' (closed)' if self.closed else ''}>"

    def _alive_context(self) -> Context:
        if self._context is None:
            # Loaded with vocab_only: the core says what that means.
            return Context(self.model)
        if self.closed:
            raise ClosedError("this runner is closed: create another")
        self._context.check()
        return self._context

    def _alive_session(self) -> Session:
        self._alive_context()
        assert self._session is not None
        return self._session
