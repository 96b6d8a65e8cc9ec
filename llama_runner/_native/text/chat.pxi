# Uses: errors, signals, model
#
# ChatTemplate: turns messages into text in the format that the model was trained on.
import json as _json

from llama_runner._llama_cpp.llama cimport llama_model_chat_template
from llama_runner._llama_cpp.shim.chat cimport (
    ChatTemplates,
    apply_chat_template,
    chat_template_source,
    chat_templates,
)


cdef class ChatTemplate:
    """A model's chat template, rendered by llama.cpp's Jinja engine without the GIL.

    It is a copy and stays usable after the model is closed.

    Args:
        model: The model with the template and the BOS/EOS text to use.
        source: A Jinja template to use instead of the model's own.

    Raises:
        ChatTemplateError: The model has no template, or it does not parse.
    """

    def __init__(self, Model model not None, str source=None):
        cdef shared_ptr[ModelBox] weights = model.alive()
        cdef string text
        if source is not None:
            text = source.encode()
        elif llama_model_chat_template(weights.get().model, NULL) is NULL:
            raise ChatTemplateError(
                "this model has no chat template: give the prompt as text, or pass chat_template="
            )
        try:
            with nogil:
                self.native = chat_templates(weights.get().model, text, signal_check())
        except LlamaRuntimeError as error:
            pass_on_interrupt(error)
            raise ChatTemplateError(
                f"the chat template is no use: {template_error(error)}"
            ) from None

    @property
    def source(self):
        """The template's Jinja text."""
        return chat_template_source(self.native).decode("utf-8", "replace")

    def render(self, list messages, *, bint add_generation_prompt=True):
        """Render messages to text.

        Args:
            messages: Dicts with "role" and "content", as in OpenAI's API.
            add_generation_prompt: End with the text that begins an assistant message.

        Returns:
            (text, stops): the prompt, and strings that end the answer in this format.

        Raises:
            ChatTemplateError: The template refuses the messages.
        """
        cdef string request, answer
        try:
            request = b"[%b]" % b",".join([as_json(i, m) for i, m in enumerate(messages)])
            with nogil:
                answer = apply_chat_template(
                    self.native, request, add_generation_prompt, signal_check()
                )
        except LlamaRuntimeError as error:
            pass_on_interrupt(error)
            raise ChatTemplateError(
                f"the chat template refuses these messages: {template_error(error)}"
            ) from None
        found = _json.loads(answer)
        return found["prompt"], tuple(found["stops"])


cdef bytes as_json(size_t i, object message):
    """Return a message as JSON, in UTF-8; ``i`` is its index in the prompt."""
    try:
        return _json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        reason = f"is no text: it has a lone surrogate, {error.object[error.start]!a}"
    except RecursionError:
        reason = "is nested too deeply"
    except (TypeError, ValueError) as error:
        pass_on_interrupt(error)
        reason = str(error)
    raise ChatTemplateError(f"prompt[{i}]: {reason}", field="prompt")


cdef str template_error(object error):
    """Return what llama.cpp says about a template in one line, the cause first."""
    cdef str text = str(error)
    place, found, reason = text.partition("\nError: ")
    if found:
        place = place.partition(" at line ")[2].partition(" in source")[0]
        text = f"{reason.removeprefix('Jinja Exception: ')} (line {place})"
    else:
        # The lexer and the parser append an excerpt of the template and a line that points into it.
        text = text.removeprefix("lexer: ").removeprefix("parser: Parser Error: ")
        text, found, piece = text.partition("\n...")
        if found:
            text += f" near {piece.partition(chr(10))[0].removesuffix('...')!r}"
    return one_line(text)
