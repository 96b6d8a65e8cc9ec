"""``python -m llama_runner`` is ``llama-runner``."""

from __future__ import annotations

from llama_runner.cli import main

if __name__ == "__main__":
    main()
