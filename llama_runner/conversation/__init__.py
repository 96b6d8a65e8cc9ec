"""Conversations that live in the KV memory: their messages, their spans, and making room."""
