"""Opening a runner: check its options, find and check the file, then load model and context."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

# All modules that calls need are imported up front, even those that others import on demand:
# Python's import system takes an OSError raised by a signal handler for a missing file, and may
# lose other exceptions that a handler raises.
import numpy.ma  # noqa: F401

import llama_runner.loaders.checks.validate  # noqa: F401
from llama_runner._core import ChatTemplate, Context, Model
from llama_runner._support.hardware import thread_counts
from llama_runner.errors import ChatTemplateError, InvalidParameterError, ModelLoadError
from llama_runner.loaders.catalogue.resolve import checked_model
from llama_runner.loaders.checks.chat_template import check_chat_template
from llama_runner.loaders.checks.lora import bare_header
from llama_runner.loaders.estimate import fitting_n_ctx
from llama_runner.loaders.gguf.header import ModelPath, quoted
from llama_runner.loading.isolated import probe
from llama_runner.params import (
    ContextParams,
    GenerationParams,
    ModelParams,
    RunnerOptions,
    runner_params,
)

if TYPE_CHECKING:
    from llama_runner.loaders.gguf.info import GgufInfo

__all__ = ["Loading", "Opened", "Progress", "Validation", "open_beside", "open_runner"]

# Keywords of a runner that are not fields of its parameters; suggested for misspelled ones too.
_OTHERS = "chat_template", "progress", "validate", "isolated", "gc_policy"

Validation = Literal["full", "header", False]
Progress = Callable[[float], bool | None]


@dataclass(frozen=True, slots=True)
class Loading:
    """Options for loading a model, apart from its parameters."""

    chat_template: str | None = None
    progress: Progress | None = None
    validate: Validation = "full"
    isolated: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """The parts of a runner."""

    model: Model
    context: Context | None
    """None if only the vocabulary was loaded."""
    template: ChatTemplate | ChatTemplateError
    model_params: ModelParams
    context_params: ContextParams
    generation_params: GenerationParams
    """The defaults for calls."""
    header: GgufInfo | None
    """Architecture and tensors, with which adapters are compared. None if it was not read."""


def open_runner(model: ModelPath, options: RunnerOptions, loading: Loading) -> Opened:
    """Check and load a model and make its context; see :class:`LlamaRunner`."""
    model_params, context_params = runner_params(options, _OTHERS)
    generation_params = GenerationParams()
    n_threads = thread_counts(context_params.n_threads, context_params.n_threads_batch)
    _check_arguments(loading)
    chat_template = loading.chat_template
    with checked_model(model, loading.validate) as found:
        if found.metadata is not None:
            sampling = found.metadata.sampling.model_dump(exclude_none=True)
            generation_params = GenerationParams(**sampling)
            if chat_template is None:
                chat_template = found.metadata.chat_template
        if chat_template is not None:
            check_chat_template(chat_template)
        model_params = found.load_params(model_params)
        # With direct I/O, llama.cpp has to open the file itself.
        file = None if model_params.load_mode == "direct_io" else found.file
        if loading.isolated:
            probe(found.path, chat_template, model_params, context_params)
        n_ctx = 0
        if not model_params.vocab_only:
            n_ctx = fitting_n_ctx(found.path, found.info, model_params, context_params, file)
        try:
            loaded = Model(
                found.path,
                file=file,
                progress=loading.progress,
                fingerprint=found.fingerprint(),
                **model_params.model_dump(),
            )
        except ModelLoadError as error:
            if not (model_params.check_tensors and "invalid data" in (error.native or "")):
                raise
            raise ModelLoadError(
                f"the weights in {quoted(str(found.path), 200)} are damaged: fetch the file again",
                field="check_tensors",
                native=error.native,  # it names the tensor
            ) from None
    header = None if found.info is None else bare_header(found.info)
    context = None
    try:
        template = _chat_template(loaded, chat_template)
        if not model_params.vocab_only:
            context = _new_context(loaded, n_ctx, context_params, n_threads)
    except BaseException:
        loaded.close()
        raise
    return Opened(
        loaded, context, template, model_params, context_params, generation_params, header
    )


def open_beside(first: Opened, options: RunnerOptions, loading: Loading) -> Opened:
    """Make another context on weights that are already loaded; see :class:`LlamaRunner`."""
    model_params, context_params = runner_params(options, _OTHERS)
    n_threads = thread_counts(context_params.n_threads, context_params.n_threads_batch)
    _check_arguments(loading)
    usual = Loading()
    set_here = model_params.model_dump(exclude_unset=True) | {
        name: getattr(loading, name)
        for name in ("progress", "validate", "isolated")
        if getattr(loading, name) != getattr(usual, name)
    }
    for name, value in set_here.items():
        raise InvalidParameterError(
            f"{name}={value!r}: the other runner has already loaded the weights; leave it out",
            field=name,
        )
    template = first.template
    shared = first.model.share()
    try:
        if loading.chat_template is not None:
            check_chat_template(loading.chat_template)
            template = _chat_template(shared, loading.chat_template)
        context = None
        if first.context is not None:
            n_resident = min(first.context.weights_bytes, first.context.host_bytes)
            n_ctx = fitting_n_ctx(
                shared.path, None, first.model_params, context_params, n_resident=n_resident
            )
            context = _new_context(shared, n_ctx, context_params, n_threads)
    except BaseException:
        shared.close()
        raise
    return replace(
        first, model=shared, context=context, template=template, context_params=context_params
    )


def _check_arguments(loading: Loading) -> None:
    """Refuse wrong arguments now and not in the middle of loading."""
    progress, validate, isolated = loading.progress, loading.validate, loading.isolated
    if progress is not None and not callable(progress):
        raise InvalidParameterError(
            f"progress={progress!r}: must be a function that takes a fraction", field="progress"
        )
    if validate not in ("full", "header") and validate is not False:
        raise InvalidParameterError(
            f"validate={validate!r}: must be 'full', 'header' or False", field="validate"
        )
    if not isinstance(isolated, bool):
        raise InvalidParameterError(
            f"isolated={isolated!r}: must be True or False", field="isolated"
        )


def _new_context(
    model: Model, n_ctx: int, params: ContextParams, n_threads: tuple[int, int]
) -> Context:
    """Make a context.

    Args:
        model: Its weights.
        n_ctx: Its size, in tokens.
        params: How to make it otherwise.
        n_threads: The threads that decode, and those that fill in the prompt.
    """
    _warn_beyond_training(params, n_ctx, model.n_ctx_train)
    decode, batch = n_threads
    return Context(
        model, n_ctx=n_ctx, n_threads=decode, n_threads_batch=batch, **params.core_options()
    )


def _warn_beyond_training(params: ContextParams, n_ctx: int, trained: int) -> None:
    """Warn that a conversation may get longer than the model's trained context."""
    longest = n_ctx // params.n_seq_max if params.kv_layout == "streams" else n_ctx
    is_scaled = params.rope_freq_base is not None or params.rope_freq_scale is not None
    if 0 < trained < longest and not is_scaled:
        warnings.warn(
            f"n_ctx={n_ctx}: a conversation may have {longest:,} tokens, but the model was trained "
            f"with at most {trained:,}: beyond that its answers get worse, unless rope_freq_base "
            "or rope_freq_scale stretches its positions",
            UserWarning,
            stacklevel=5,  # the line that makes the runner
        )


def _chat_template(model: Model, source: str | None) -> ChatTemplate | ChatTemplateError:
    try:
        return ChatTemplate(model, source)
    except ChatTemplateError as error:
        if source is not None:
            raise
        return error.with_traceback(None)  # raw prompts need no template; messages raise this error
