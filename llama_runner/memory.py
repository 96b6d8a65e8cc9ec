"""Policies for what a conversation evicts when its context is full."""

from llama_runner.conversation.policies import (
    GcPolicy,
    Summarize,
    attention_sinks,
    oldest_turns,
    sliding_window,
    summarize,
    tool_results,
)

__all__ = [
    "GcPolicy",
    "Summarize",
    "attention_sinks",
    "oldest_turns",
    "sliding_window",
    "summarize",
    "tool_results",
]
