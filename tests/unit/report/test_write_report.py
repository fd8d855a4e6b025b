"""The report's content, its escaping and its size, on a small made-up run."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from pyarrow.csv import read_csv
from report_run import HOSTILE, METHOD_LDS, TOPICS, benchmarks_of, make_run

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.core.timing import Seconds, record_of
from workflow_scripts.evaluation.average import AVERAGE_SCHEMA
from workflow_scripts.report import results
from workflow_scripts.report.charts import cost_bars, linear_axis, training_curves
from workflow_scripts.report.corpus_profile import _roles
from workflow_scripts.report.explorer import json_for_html, visible
from workflow_scripts.report.formatting import decimal, duration, interval, share, size
from workflow_scripts.report.results import gather_results, method_name
from workflow_scripts.report.write_report import write_report
from workflow_scripts.study.config import load_study
from workflow_scripts.study.document_config import ROOT


class Page(HTMLParser):
    """What a browser would make of the page: its text, its scripts, every address it names."""

    def __init__(self, html: str):
        super().__init__()
        self.html, self.text, self.scripts, self.addresses = html, [], [], []
        self.tags: dict[str, int] = {}
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.inside = tag
        self.addresses += [value for name, value in attributes if name in ("href", "src", "action", "data")]
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    @property
    def explorer(self) -> dict:
        return json.loads(self.scripts[0])


def written(folder: Path, change: dict | None = None, **run) -> Page:
    return written_with(make_run(folder, **run) | (change or {}))


def written_with(arguments: dict) -> Page:
    write_report(**arguments)
    return Page(arguments["report"].read_text(encoding="utf-8"))


def test_page_shows_every_number_of_the_run(tmp_path):
    words = written(tmp_path).words
    assert (
        "AirRep predicts fine-tuning effects with LDS 0.63 [0.60, 0.66] on “heldout”, "
        "0.22 above TF-IDF, the next best method; the noise ceiling is 0.91." in words
    )
    assert "30 test examples, 100 fine-tuned subsets, agreement between seeds 0.70" in words
    assert "Random mean pooling −0.01 [−0.04, 0.02]" in words
    assert "+0.22 [+0.18, +0.26]" in words
    assert "best: 0.59 at step 400" in words
    assert "finetune_shard 3 6 min 41 s 5 min 20 s 1.3 x 80 %" in words
    assert "At least one job was running for 2 min 21 s; the plan said 2 min 0 s (1.2 x)." in words
    assert "6 the answer is empty rows 3, 9, 11, 12, 13, …" in words
    assert "response shortened 2.0 %" in words
    assert "0123456789abcdef" in words
    assert "subsets_per_fold: 16" in words


def test_page_asks_for_nothing_outside_itself(tmp_path):
    page = written(tmp_path, texts=HOSTILE)
    assert page.addresses
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"@import|url\(", page.html.partition("</style>")[0])


@pytest.mark.parametrize(
    ("other", "bounds", "words"),
    [
        (0.70, (-0.11, -0.03), "0.07 below TF-IDF, which does better"),
        (0.62, (-0.03, 0.05), "can't be told apart from TF-IDF at 0.62 (difference +0.01 [−0.03, +0.05])"),
        (0.50, (0.09, 0.17), "0.13 above TF-IDF, the next best method"),
    ],
)
def test_headline_says_whichever_way_it_came_out(tmp_path, other, bounds, words):
    assert bounds == pytest.approx((0.63 - other - 0.04, 0.63 - other + 0.04))
    assert words in written(tmp_path, lds={"airrep": 0.63, "tfidf": other, "random": 0.0}).words


def test_headline_has_the_untrained_encoder_as_a_sentence_has_it(tmp_path):
    words = written(tmp_path, lds={"airrep": 0.63, "untrained": 0.50}).words
    assert "0.13 above the untrained encoder" in words


def test_headline_compares_with_a_method_and_not_with_a_blend_of_ours(tmp_path):
    lds = {"airrep": 0.63, "tfidf": 0.50, "airrep+tfidf": 0.70, "airrep@small+tfidf": 0.69}
    page = written(tmp_path, lds=lds)
    assert "0.13 above TF-IDF" in page.words
    assert "AirRep + TF-IDF" in page.words


def test_headline_without_airrep_names_the_best_method(tmp_path):
    words = written(tmp_path, lds={"bm25": 0.2, "tfidf": 0.4}).words
    assert "TF-IDF predicts fine-tuning effects with LDS 0.40 [0.37, 0.43]" in words
    assert "is above by" not in words


def test_hostile_texts_stay_text(tmp_path):
    calm, hostile = written(tmp_path / "calm"), written(tmp_path / "hostile", texts=HOSTILE)
    assert len(hostile.scripts) == len(calm.scripts) == 2
    assert hostile.scripts[1] == calm.scripts[1]
    assert {"img", "iframe"}.isdisjoint(hostile.tags)
    texts = hostile.explorer["texts"]
    assert HOSTILE[0] in texts
    assert HOSTILE[2] in texts
    assert ["x" * 600, 100_000] in texts
    assert not set("<>&\u2028\u2029") & set(hostile.scripts[0])


def test_explorer_holds_each_text_once_and_the_ranked_lists(tmp_path):
    explorer = written(tmp_path, change={"tests": 4, "examples": 3}).explorer
    (evaluation,) = explorer["evaluations"]
    # airrep_mean has the scores of airrep, pooled otherwise, so it would show the same lists
    assert [method["key"] for method in evaluation["methods"]] == ["airrep", "untrained", "tfidf"]
    assert len(set(explorer["texts"])) == len(explorer["texts"])
    assert [explorer["corpora"]["test"][place][0] for place in evaluation["tests"]] == [0, 10, 19, 29]
    for lists in evaluation["scores"]["airrep"]:
        places, scores, firsts = lists["helpful"]
        assert len(places) == len(scores) == len(firsts) == 3
        assert scores == sorted(scores, reverse=True)
        assert lists["harmful"][1] == sorted(lists["harmful"][1])


def test_explorer_folds_examples_of_one_label_that_say_the_same(tmp_path):
    # Prompt, response and label of a row follow from these, so rows with the same texts come often.
    texts = ["The first of all answers.", "Another answer, the second.", "And the last of the three."]
    explorer = written(tmp_path, texts=texts).explorer
    (evaluation,) = explorer["evaluations"]
    rows = explorer["corpora"]["train"]
    for places, _, firsts in (lists[sign] for lists in evaluation["scores"]["airrep"] for sign in lists):
        # Label and response decide here, and a row without a label says the same as others without one.
        said = [(rows[place][2], rows[place][4]) for place in places]
        assert firsts == [said.index(one) for one in said]
        assert len(set(firsts)) < len(firsts)


def test_explorer_tells_where_an_example_comes_from(tmp_path):
    explorer = written(tmp_path).explorer
    example_id, source_row, label, prompt, response = explorer["corpora"]["train"][0]
    assert source_row == example_id + 1
    assert explorer["texts"][response].startswith(f"Answer {example_id}:")
    assert str(example_id) in explorer["texts"][prompt]
    assert label == -1 or explorer["labels"][label] in (TOPICS)


@pytest.mark.slow
def test_large_report_stays_below_15_megabytes(tmp_path):
    arguments = make_run(tmp_path, tests=1000, train=20_000, examples=50)
    write_report(**arguments)
    assert arguments["report"].stat().st_size < 15_000_000


def test_texts_are_cut_shorter_where_the_page_would_grow_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("workflow_scripts.report.write_report.EXPLORER_BYTES", 110_000)
    page = written(tmp_path)
    assert 160 <= page.explorer["characters"] < 600
    assert page.explorer["examples"] == 10
    assert len(page.scripts[0].encode()) <= 110_000
    assert f"cut at {page.explorer['characters']} characters (asked for: 600)" in page.words


def test_fewer_examples_are_shown_where_shorter_texts_do_not_suffice(tmp_path, monkeypatch):
    monkeypatch.setattr("workflow_scripts.report.write_report.EXPLORER_BYTES", 60_000)
    page = written(tmp_path)
    assert 1 <= page.explorer["examples"] < 10
    assert len(page.scripts[0].encode()) <= 60_000
    assert f"lists show {page.explorer['examples']} examples (asked for: 10)" in page.words


def test_report_without_benchmarks_and_scores_says_so(tmp_path):
    page = written(tmp_path, change={"benchmarks": str(tmp_path / "absent"), "scores": []})
    assert "No benchmark file was found" in page.words
    assert "Pick a test example" not in page.words


def test_the_average_over_evaluation_sets_stands_first_and_each_set_beside_it(tmp_path):
    run = make_run(tmp_path, evaluations=("flan", "alpaca"))
    names = ["airrep", "tfidf"]
    mean = {"pooling": ["attention", "mean"], "lds": [0.63, 0.41], "ci_low": [0.6, 0.38], "ci_high": [0.66, 0.44]}
    lead = {"lead": [None, 0.22], "lead_ci_low": [None, 0.18], "lead_ci_high": [None, 0.26]}
    values = {"method": names, "chosen": [None, None], **mean, **lead, "evaluations": [["flan", "alpaca"]] * 2}
    average = tmp_path / "evaluation" / "average_lds.parquet"
    write_table(average, pa.table({name: values[name] for name in AVERAGE_SCHEMA.names}, AVERAGE_SCHEMA))
    words = written_with(run | {"average": average}).words
    assert words.index("Average over 2 evaluation sets") < words.index("30 test examples")
    assert "Method Mean LDS [interval] AirRep is above by flan alpaca" in words
    assert "AirRep attention pooling 0.63 [0.60, 0.66] 0.63 0.63" in words
    assert "TF-IDF mean pooling 0.41 [0.38, 0.44] +0.22 [+0.18, +0.26] 0.41 0.41" in words
    assert "Average over" not in written_with(run).words


def test_a_study_without_lds_shows_its_explorer_and_claims_nothing(tmp_path):
    run = make_run(tmp_path)
    study = yaml.safe_load(run["config"].read_text())
    del study["targets"]
    study["evaluations"]["heldout"]["subsets"] = 0
    study |= {"encoder": {"model": "some/encoder"}, "scoring": {"methods": ["airrep", "tfidf"]}}
    run["config"].write_text(yaml.safe_dump(study))
    page = written_with(run | {"lds": None, "differences": None, "training": None, "tokens": [], "rejected_tokens": []})
    assert (
        "training examples for “heldout”, as AirRep and TF-IDF have it. How right that is was not measured"
        in page.words
    )
    assert "Pick a test example" in page.words
    assert "The encoder's training" not in page.words
    for address in page.addresses:
        assert f'id="{address.removeprefix("#")}"' in page.html


def test_report_without_a_plan_says_how_to_make_one(tmp_path):
    words = written(tmp_path, change={"plan": str(tmp_path / "absent")}).words
    assert "There was no plan of this study as it is: make plan makes one, before a run." in words
    assert "finetune_shard 3 6 min 41 s 80 %" in words


def test_tables_for_snakemakes_report_say_the_same(tmp_path):
    arguments = make_run(tmp_path)
    write_report(**arguments)
    lds, training, costs = (read_csv(arguments[f"{name}_table"]) for name in ("lds", "training", "costs"))
    assert lds.to_pylist() == read_table(arguments["lds"]).to_pylist()
    assert training["step"].to_pylist() == list(range(25, 401, 25))
    finetuning = costs.to_pylist()[0]
    assert (finetuning["stage"], finetuning["jobs"]) == ("finetune_shard", 3)
    assert (finetuning["seconds"], finetuning["planned_seconds"]) == (401.0, 320.0)


def test_time_is_stacked_by_what_it_goes_into_the_fastest_method_first(tmp_path):
    arguments = make_run(tmp_path)
    page = written_with(arguments)
    study = load_study(yaml.safe_load(arguments["config"].read_text()))
    (result,) = gather_results(arguments["lds"], arguments["differences"], study)
    costs = cost_bars(result)
    totals = [method.per_corpus.seconds for method in costs]
    assert totals == sorted(totals)
    assert {method.name: method.per_corpus.seconds for method in costs} == pytest.approx(
        {method_name(row.method): row.seconds for row in result.rows}
    )
    widths = []
    for method in costs:
        for bar in (method.per_corpus, method.once):
            starts = [start for _, _, start, _ in bar.parts]
            assert starts == pytest.approx([0, bar.parts[0][3]])
        widths.append(sum(width for *_, width in method.per_corpus.parts))
    assert max(widths) == pytest.approx(100)
    assert widths == pytest.approx([100 * total / totals[-1] for total in totals], abs=0.02)
    once = {method.name: method.once.seconds for method in costs}
    assert (once["AirRep"], once["TF-IDF"], once["Untrained encoder"]) == (900, 0, None)
    assert "AirRep 15 ms 5 ms" in page.words
    assert "15 min 0 s 0 s 15 min 0 s" in page.words


def test_start_up_of_a_stage_stands_beside_its_time(tmp_path):
    arguments = make_run(tmp_path)
    for path in (tmp_path / "benchmarks" / "finetune_shard").rglob("*.tsv"):
        record_of(path).write_text(json.dumps({**Seconds(5, 4).entries("start_up"), **Seconds(1, 1).entries("work")}))
    write_report(**arguments)
    costs = {row["stage"]: row["start_up_seconds"] for row in read_csv(arguments["costs_table"]).to_pylist()}
    assert costs["finetune_shard"] == 15
    # Without records, it isn't known.
    assert costs["embed_corpus"] is None


def test_validations_are_drawn_as_they_were_measured_and_losses_smoothed():
    losses, validations = [(0, 0.9), (50, 0.3), (100, 0.6)], [(0, 0.0), (50, 0.8), (100, 0.4)]
    loss, lds = training_curves(losses, validations)

    def heights(curve, values):
        return [100 - curve.y.place(value) for value in values]

    def drawn(points):
        return [float(point.partition(",")[2]) for point in points.split()]

    assert drawn(loss.raw) == pytest.approx(heights(loss, [0.9, 0.3, 0.6]), abs=0.01)
    assert drawn(loss.line) == pytest.approx(heights(loss, [0.6, 0.6, 0.45]), abs=0.01)
    assert (drawn(lds.line), lds.raw) == (pytest.approx(heights(lds, [0.0, 0.8, 0.4]), abs=0.01), "")
    assert lds.best[2] == "best: 0.80 at step 50"


def test_a_plan_of_some_stages_is_not_held_against_the_time_of_all(tmp_path):
    arguments = make_run(tmp_path)
    folder, config = tmp_path / "benchmarks", arguments["config"]
    (measured,) = benchmarks_of(config, "train_encoder")
    for stage in ("init_encoder", "check_leaks"):
        (path,) = benchmarks_of(config, stage)
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copy(folder / measured, folder / path)
    assert "the plan said 2 min 0 s, without check_leaks, init_encoder." in written_with(arguments).words


@pytest.mark.parametrize("other", [{"study": "0" * 16}, {"study": None}])
def test_a_plan_of_other_values_is_no_plan(tmp_path, other):
    arguments = make_run(tmp_path)
    plan = Path(arguments["plan"])
    plan.write_text(json.dumps(json.loads(plan.read_text(encoding="utf-8")) | other), encoding="utf-8")
    words = written_with(arguments).words
    assert "At least one job was running for 2 min 21 s" in words
    assert "the plan said" not in words


def test_a_pause_between_jobs_does_not_count_and_an_overlap_counts_once(tmp_path):
    # They took 130.5, 129.5 and 141 s: from 869.5 to 1,010, and from 4,859 to 5,000.
    arguments = make_run(tmp_path)
    for path in (tmp_path / "benchmarks").rglob("*.tsv"):
        os.utime(path, (1e9 + 950, 1e9 + 950))
    for path, end in zip(benchmarks_of(arguments["config"], "finetune_shard"), (1000, 1010, 5000), strict=False):
        os.utime(tmp_path / "benchmarks" / path, (1e9 + end, 1e9 + end))
    found = results.gather_costs(
        tmp_path / "benchmarks", Path("absent"), load_study(yaml.safe_load(arguments["config"].read_text()))
    )
    # The shorter jobs of other stages ended at 950: the encoder's began at 855.
    assert found.wall_seconds == pytest.approx((1010 - 855) + 141)


def test_evaluations_stand_in_the_order_of_the_config(tmp_path):
    words = written(tmp_path, evaluations=("second", "first")).words
    assert words.index("on “second”") < words.index("on “first”")


def test_same_inputs_give_the_same_bytes(tmp_path):
    assert written(tmp_path / "one").html == written(tmp_path / "two").html


def test_missing_corpus_is_named(tmp_path):
    arguments = make_run(tmp_path)
    arguments["corpora"].pop()
    with pytest.raises(StudyError, match=r"'heldout' needs the corpus 'test'.*test\.parquet"):
        write_report(**arguments)
    assert not arguments["report"].exists()


def test_damaged_provenance_is_named(tmp_path):
    arguments = make_run(tmp_path)
    arguments["provenance"].write_text("{")
    with pytest.raises(StudyError, match=r"provenance\.json is not JSON"):
        write_report(**arguments)


def test_numbers_in_words():
    assert decimal(-0.001) == "0.00"
    assert decimal(-0.314) == "−0.31"
    assert decimal(None) == decimal(float("nan")) == "–"
    assert interval(-0.2, 0.1, signed=True) == "[−0.20, +0.10]"
    assert interval(None, 0.1) == ""
    assert [duration(value) for value in (0, 0.02, 4.21, 59.7, 432, 7_300)] == [
        "0 s",
        "20 ms",
        "4.2 s",
        "60 s",
        "7 min 12 s",
        "2 h 1 min",
    ]
    assert [size(value) for value in (0, 768, 1536, 8e8, 5e15)] == ["0 B", "768 B", "1.5 kB", "800 MB", "5000 TB"]
    assert [share(part, 10_000) for part in (0, 1, 150, 5_000)] == ["0 %", "< 0.1 %", "1.5 %", "50 %"]


def test_control_characters_become_visible():
    assert visible("a\x00b\r\nc\td\x1be\x85f") == "a␀b\nc\td␛e�f"


def test_json_for_html_reads_back_the_same():
    for text in HOSTILE:
        encoded = json_for_html([text])
        assert json.loads(encoded) == [text]
        assert "<" not in encoded


def test_axis_holds_its_values_between_round_marks():
    axis = linear_axis(-0.04, 0.91)
    assert [tick.text for tick in axis.ticks] == ["−0.2", "0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert axis.place(0) == pytest.approx(16.67)
    assert [tick.text for tick in linear_axis(0, 2_000, 4).ticks] == ["0", "500", "1,000", "1,500", "2,000"]


def test_every_method_of_the_table_is_drawn(tmp_path):
    page = written(tmp_path)
    for name, lds in METHOD_LDS.items():
        shown = f"{lds:.2f}".replace("-", "−")
        assert re.search(rf"{re.escape(method_name(name))}[^\d−]*{shown} \[", page.words), name


def test_the_main_row_is_the_one_that_differences_are_taken_from(tmp_path):
    """The other pooling of AirRep may be the better one, or the one that it was trained with."""
    frame = pd.DataFrame({"method": ["airrep", "airrep", "tfidf"], "pooling": ["attention", "mean", "mean"]})
    known = {"lds": [0.30, 0.31, 0.29], "ci_low": 0.2, "ci_high": 0.4, "evaluation": "a", "ceiling": 0.9}
    frame = frame.assign(**known)
    pairs = {"method_a": ["airrep"] * 2, "pooling_a": ["attention"] * 2, "pooling_b": ["mean"] * 2}
    differences = pd.DataFrame({**pairs, "method_b": ["airrep", "tfidf"], "difference": [-0.01, 0.01]})
    leads = results._leads(differences.assign(ci_low=-0.05, ci_high=0.06), ("airrep", "attention"))
    main = results._main_row(frame, differences, "airrep", pooling="mean")
    assert main == ("airrep", "attention")
    assert leads["tfidf", "mean"].ci_low == -0.05
    assert results._main_row(frame, differences.iloc[:0], "airrep", pooling="mean") == ("airrep", "mean")
    assert results._main_row(frame.iloc[2:], differences.iloc[:0], "airrep", pooling="mean") is None
    assert results._main_row(frame, differences, None, pooling="mean") is None
    frame, differences = (table.replace("airrep", "airrep_mean") for table in (frame, differences))
    assert results._main_row(frame, differences, "airrep_mean", pooling="mean") == ("airrep_mean", "attention")


def test_a_corpus_that_an_lm_learns_from_is_used(tmp_path):
    values = yaml.safe_load((ROOT / "configs/smoke.yaml").read_text(encoding="utf-8"))
    values["corpora"]["general"] = {"source": "builtin:mini", "without": ["tests"]}
    values |= {"warmup": {"corpus": "general", "examples": 10}, "scoring": {"methods": ["tfidf"]}}
    assert _roles(load_study(values), "general") == []
    values["scoring"]["methods"] = ["logra_4"]
    study = load_study(values)
    assert _roles(study, "general") == ["warm-up of the LM"]
    assert "left out of general" in _roles(study, "tests")
    assert "pre-training of the base LM" in _roles(study, study.language_model.pretraining.corpus)
