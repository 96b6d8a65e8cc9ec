"""Tokenising and detokenising, batches of token ids, and samplers."""

from llama_runner.tokens.batch import Batch, build_batch
from llama_runner.tokens.sampler import create_sampler
from llama_runner.tokens.tokenizer import Detokenizer, Tokenizer

__all__ = ["Batch", "Detokenizer", "Tokenizer", "build_batch", "create_sampler"]
