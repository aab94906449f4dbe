"""Inputs with different tokenizers, brought to one vocabulary: rows of tokens, tokenizer files, chat templates."""

from stockpot.vocabulary._chat import TEMPLATES
from stockpot.vocabulary._source import Rearranged
from stockpot.vocabulary._tokenizer import Tokenizer, read_tokenizer
from stockpot.vocabulary._unify import Vocabulary, unify

__all__ = ["TEMPLATES", "Rearranged", "Tokenizer", "Vocabulary", "read_tokenizer", "unify"]
