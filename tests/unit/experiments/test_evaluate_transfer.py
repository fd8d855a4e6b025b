"""What to do with an encoder, from LDS tables made by hand."""

import pyarrow as pa
import pytest

from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.experiments.evaluate_transfer import evaluate_transfer

TRAINED = ["airrep", "airrep_mean"]


def evaluated(tmp_path, away, leads, below=0.0):
    """LDS at home 0.5 for AirRep and 0.3 for TF-IDF, ceilings 0.8 there and 1.0 away."""
    lds = {("airrep", "home"): 0.5, ("tfidf", "home"): 0.3, ("airrep", "away"): away, ("tfidf", "away"): 0.3}
    rows = [
        {
            "method": m,
            "evaluation": e,
            "pooling": "p",
            "lds": v,
            "ci_low": v - below,
            "ci_high": v,
            "ceiling": {"home": 0.8}.get(e, 1.0),
        }
        for (m, e), v in lds.items()
    ]
    differences = [
        {"method_a": "airrep", "method_b": method, "evaluation": evaluation, "ci_low": low}
        for evaluation in ("home", "away")
        for method, low in leads.items()
    ]
    # How a blend compares with what it is made of says nothing about the encoder.
    differences += [{"method_a": "airrep+tfidf", "method_b": "tfidf", "evaluation": "away", "ci_low": -1.0}]
    write_table(tmp_path / "lds.parquet", pa.Table.from_pylist(rows))
    write_table(tmp_path / "differences.parquet", pa.Table.from_pylist(differences))
    paths = [tmp_path / name for name in ("lds.parquet", "differences.parquet", "table.parquet")]
    evaluate_transfer(*paths, evaluation="away", home="home", method="airrep", trained=TRAINED)
    return {row["method"]: row for row in read_table(tmp_path / "table.parquet").to_pylist()}


@pytest.mark.parametrize(
    ("away", "leads", "advice"),
    [
        (0.6, {"tfidf": -0.1, "untrained": -0.1}, "reuse"),  # 0.6 of 1.0 beside 0.5 of 0.8
        (0.4, {"tfidf": 0.02, "untrained": 0.1, "airrep_mean": -0.1}, "reuse"),
        (0.4, {"tfidf": -0.02, "untrained": 0.1}, "fine-tune"),
        (0.4, {"tfidf": -0.02, "untrained@joint": 0.1, "untrained+tfidf": -0.1}, "fine-tune"),
        (0.4, {"tfidf": -0.02, "untrained": -0.01}, "retrain"),
        (0.4, {"tfidf": -0.02}, "retrain"),
    ],
)
def test_advice(tmp_path, away, leads, advice):
    rows = evaluated(tmp_path, away, leads)
    assert rows["airrep"]["advice"] == advice
    assert rows["tfidf"]["advice"] is None
    assert rows["airrep"]["retained"] == pytest.approx((away / 1.0) / (0.5 / 0.8))
    assert rows["tfidf"]["lds_home"] == 0.3


@pytest.mark.parametrize(("lead", "advice"), [(-0.1, "retrain"), (0.1, "fine-tune")])
def test_an_lds_that_may_be_zero_is_no_evidence(tmp_path, lead, advice):
    row = evaluated(tmp_path, 0.6, {"tfidf": lead, "untrained": lead}, below=0.7)["airrep"]
    assert (row["advice"], row["retained"]) == (advice, None)
