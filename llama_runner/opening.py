"""Opening a runner: its options, the file that is meant, what of it is checked, and its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypedDict

from llama_runner._core import ChatTemplate, Context, Model
from llama_runner.errors import ChatTemplateError, InvalidParameterError
from llama_runner.params import (
    ContextParams,
    GenerationParams,
    KvLayout,
    KvType,
    LoadMode,
    ModelParams,
    SplitMode,
    refuse_unknown,
)
from llama_runner.system import thread_counts

if TYPE_CHECKING:
    from llama_runner.loaders.gguf import GgufInfo
    from llama_runner.loaders.header import ModelPath
    from llama_runner.loaders.metadata import ModelMetadata

__all__ = ["Opened", "Progress", "RunnerOptions", "Validation", "open_runner"]

Validation = Literal["full", "header", False]
Progress = Callable[[float], bool | None]


class RunnerOptions(TypedDict, total=False):
    """The keywords of LlamaRunner: the fields of ModelParams and ContextParams."""

    n_gpu_layers: int
    split_mode: SplitMode
    main_gpu: int
    load_mode: LoadMode
    repack: bool
    vocab_only: bool
    check_tensors: bool
    n_ctx: int | Literal["auto"]
    n_seq_max: int
    n_threads: int | None
    n_threads_batch: int | None
    n_batch: int
    n_ubatch: int
    flash_attention: Literal["auto"] | bool
    kv_type: KvType
    kv_layout: KvLayout
    swa_full: bool
    offload_kqv: bool
    gc_threshold: float
    parking_ram: int
    parking_disk: int
    parking_dir: str | None
    rope_freq_base: float | None
    rope_freq_scale: float | None


@dataclass(frozen=True, slots=True)
class Opened:
    """What a runner is made of."""

    model: Model
    context: Context | None
    """None with vocab_only."""
    template: ChatTemplate | ChatTemplateError
    model_params: ModelParams
    context_params: ContextParams
    generation_params: GenerationParams
    """What holds where a call says nothing else."""


def open_runner(
    model: ModelPath,
    options: RunnerOptions,
    *,
    chat_template: str | None,
    progress: Progress | None,
    validate: Validation,
    isolated: bool,
) -> Opened:
    """Check and load a model, and make its context; see :class:`LlamaRunner`."""
    refuse_unknown(options, ModelParams, ContextParams)
    for_context: dict[str, Any] = {
        k: v for k, v in options.items() if k in ContextParams.model_fields
    }
    for_model: dict[str, Any] = {k: v for k, v in options.items() if k not in for_context}
    model_params, context_params = ModelParams(**for_model), ContextParams(**for_context)
    generation_params = GenerationParams()
    n_threads, n_threads_batch = thread_counts(
        context_params.n_threads, context_params.n_threads_batch
    )

    path, metadata = _found(model, validate)
    if metadata is not None:
        chat_template = metadata.chat_template if chat_template is None else chat_template
        if metadata.n_gpu_layers is not None and "n_gpu_layers" not in options:
            model_params = model_params.merged(n_gpu_layers=metadata.n_gpu_layers)
        generation_params = GenerationParams(**metadata.sampling.model_dump(exclude_none=True))
    if chat_template is not None:
        from llama_runner.loaders.template_limits import check_chat_template

        check_chat_template(chat_template)
    with _checked(path, metadata, validate) as (path, info, file):
        if model_params.load_mode == "direct_io":
            file = None  # llama.cpp has to open it for that
        if isolated:
            from llama_runner._probe import probe

            probe(path, chat_template, model_params, context_params)
        n_ctx = 0
        if not model_params.vocab_only:
            from llama_runner.loaders.estimate import fitting_n_ctx

            n_ctx = fitting_n_ctx(path, info, model_params, context_params, file)
        loaded = Model(path, file=file, progress=progress, **model_params.model_dump())
    context = None
    try:
        template = _chat_template(loaded, chat_template)
        if not model_params.vocab_only:
            context = Context(
                loaded,
                n_ctx=n_ctx,
                n_threads=n_threads,
                n_threads_batch=n_threads_batch,
                **context_params.core_options(),
            )
    except BaseException:
        loaded.close()
        raise
    return Opened(loaded, context, template, model_params, context_params, generation_params)


def _found(model: ModelPath, validate: Validation) -> tuple[Path, ModelMetadata | None]:
    """The file that is meant, and its description where it has one."""
    from llama_runner.loaders import resolve_model

    if validate not in ("full", "header", False):
        raise InvalidParameterError(
            f"validate={validate!r}: must be 'full', 'header' or False", field="validate"
        )
    return resolve_model(model)


@contextmanager
def _checked(
    path: Path, metadata: ModelMetadata | None, validate: Validation
) -> Iterator[tuple[Path, GgufInfo | None, IO[bytes] | None]]:
    """The file to load, of a split model the first; its header, if read; and the file itself.

    The very file that was checked stays open to be loaded. The parts of a split model, which
    llama.cpp can only open itself, do not.
    """
    from llama_runner.loaders import validate_model
    from llama_runner.loaders.header import open_model

    if not validate:
        yield path, None, None
        return
    with open_model(path) as (file, _):
        info = validate_model(file, validate).info
        if metadata is not None:
            metadata.check(info)
        yield info.path, info, None if info.parts else file


def _chat_template(model: Model, source: str | None) -> ChatTemplate | ChatTemplateError:
    try:
        return ChatTemplate(model, source)
    except ChatTemplateError as error:
        if source is not None:
            raise
        return error.with_traceback(None)  # raw prompts work without one; messages say why
