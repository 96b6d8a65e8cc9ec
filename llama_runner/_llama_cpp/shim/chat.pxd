from libcpp cimport bool
from libcpp.string cimport string

from llama_runner._llama_cpp.llama cimport llama_model, set_python_error
from llama_runner._llama_cpp.shim.interrupt cimport CheckSignals

cdef extern from "chat/chat.hpp" namespace "llama_runner" nogil:
    cdef cppclass ChatTemplates:
        ChatTemplates()
        bool operator bool()
    ChatTemplates chat_templates(
        const llama_model * model, const string & override_source,
        CheckSignals check_signals) except +set_python_error
    string chat_template_source(const ChatTemplates & templates) except +set_python_error
    string apply_chat_template(
        const ChatTemplates & templates, const string & messages,
        bint add_generation_prompt,
        CheckSignals check_signals) except +set_python_error
