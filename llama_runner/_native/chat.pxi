# ChatTemplate: messages to the text that the model was trained on.
import json as _json

from llama_runner._llama_cpp.llama cimport llama_model_chat_template
from llama_runner._llama_cpp.shim cimport (
    ChatTemplates,
    apply_chat_template,
    chat_template_source,
    chat_templates,
)


cdef class ChatTemplate:
    """A model's chat template, rendered by llama.cpp's Jinja engine without the GIL.

    A copy of what the model has: it outlives the model.

    Args:
        model: Whose template (and BOS/EOS text) to use.
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
            self.native = chat_templates(weights.get().model, text)
        except LlamaRuntimeError as error:
            raise ChatTemplateError(
                f"the chat template does not parse: {one_line(error)}"
            ) from None

    @property
    def source(self):
        """The template's Jinja text."""
        return chat_template_source(self.native).decode("utf-8", "replace")

    def render(self, list messages, *, bint add_generation_prompt=True):
        """Render messages to text.

        Args:
            messages: Dicts with "role" and "content", as in OpenAI's API.
            add_generation_prompt: End with what opens an assistant message.

        Returns:
            (text, stops): the prompt, and strings that end the answer in this format.

        Raises:
            ChatTemplateError: The template refuses these messages.
        """
        cdef string request, answer
        try:
            request = _json.dumps(
                {"messages": messages, "add_generation_prompt": add_generation_prompt},
                ensure_ascii=False,
            ).encode()
            with nogil:
                answer = apply_chat_template(self.native, request)
        except (LlamaRuntimeError, TypeError, ValueError) as error:
            raise ChatTemplateError(
                f"the chat template refuses these messages: {one_line(error)}"
            ) from None
        found = _json.loads(answer)
        return found["prompt"], tuple(found["stops"])


cdef str one_line(object error):
    return " ".join(str(error).split())
