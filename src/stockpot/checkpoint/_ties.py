"""Names of the two tensors that language models tie."""

HEADS = (
    "lm_head.weight",
    "embed_out.weight",
    "output.weight",
    "decoder.weight",
    "proj_out.weight",
    "vocab_projector.weight",
)
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "shared.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
    "backbone.embeddings.weight",
)
"""What the names of heads and of embeddings end with."""
