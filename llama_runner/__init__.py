"""Run GGUF language models inside a Python process, with explicit control of their memory."""

from __future__ import annotations

import os

# ggml would fork a debugger into this process when it aborts, and replace std::terminate.
# It reads this when the native module is loaded, so it must be there before.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
