"""The sample of a corpus that the LM is warmed up on."""

from collections.abc import Mapping

from workflow_scripts.core.seeds import generator
from workflow_scripts.language_model.tokens import TokenizedExample


def warmup_sample(examples: Mapping[int, TokenizedExample], number: int, seed: int) -> list[TokenizedExample]:
    """Return a random sample of examples, in random order.

    Parameters
    ----------
    examples: examples by id.
    number: size of the sample; all examples if there are fewer.
    seed: the study's seed.
    """
    ids = sorted(examples)
    order = generator(seed, "warmup sample").permutation(len(ids))
    return [examples[ids[place]] for place in order[:number]]
