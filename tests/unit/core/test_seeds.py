"""Seeds stay what they were: another value would draw other subsets under the same study."""

import pytest

from workflow_scripts.core.seeds import derive_seed, generator


@pytest.mark.parametrize(
    ("parts", "seed"),
    [
        ((0,), 3456079177858693020),
        ((42, "finetune", 3, 7), 6370057233870785417),
        ((1, "warmup sample"), 4073308412493162351),
    ],
)
def test_a_seed_is_pinned(parts, seed):
    assert derive_seed(*parts) == seed


def test_parts_are_kept_apart():
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert generator(1, "a").random() == generator(1, "a").random() != generator(1, "b").random()
