"""The sample of a corpus that the LM is warmed up on."""

from collections.abc import Mapping

from workflow_scripts.core.seeds import generator
from workflow_scripts.language_model.tokens import TokenizedExample


def warmup_sample(examples: Mapping[int, TokenizedExample], number: int, seed: int) -> list[TokenizedExample]:
    """Return `number` of `examples`, or all if there are fewer, in random order."""
    ids = sorted(examples)
    order = generator(seed, "warmup sample").permutation(len(ids))
    return [examples[ids[place]] for place in order[:number]]
