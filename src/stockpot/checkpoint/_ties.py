"""Names of the two tensors that language models tie."""

HEADS = ("lm_head.weight", "embed_out.weight", "output.weight", "cls.predictions.decoder.weight", "decoder.weight")
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "shared.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
)
"""What the names of heads and of embeddings end with."""
