"""metrics.jsonl and samples.txt: writing, truncation and reading back."""

import json
import math

import pytest
from helpers.progress import make_evaluation

from charjax.errors import UserError
from charjax.runs.logs import MetricsLog, SamplesLog, read_metrics


def test_metrics_are_one_json_object_per_line_in_the_documented_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append(make_evaluation())
        lines = path.read_text().splitlines()  # before closing: each line is flushed
        log.append(make_evaluation(500))
    assert len(lines) == 1
    values = json.loads(lines[0])
    assert list(values) == [
        "step",
        "epoch",
        "train_loss",
        "val_loss",
        "perplexity",
        "bits_per_char",
        "learning_rate",
        "grad_norm",
        "chars_per_second",
        "elapsed_seconds",
        "skipped_steps",
        "chars_seen",
    ]
    assert values["perplexity"] == pytest.approx(4)
    assert values["bits_per_char"] == pytest.approx(2)
    assert read_metrics(path) == [make_evaluation(), make_evaluation(500)]


def test_numbers_that_are_not_finite_become_null_and_come_back_as_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append(make_evaluation(train_loss=math.nan, val_loss=math.inf, chars_per_second=None))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    values = json.loads(path.read_text(), parse_constant=refuse)
    nulls = [name for name, value in values.items() if value is None]
    unknown = ["learning_rate", "grad_norm", "chars_per_second", "chars_seen"]
    assert nulls == ["train_loss", "val_loss", "perplexity", "bits_per_char", *unknown]
    (back,) = read_metrics(path)
    assert math.isnan(back.train_loss)
    assert math.isnan(back.val_loss)
    assert back.chars_per_second is None


def test_a_log_of_an_earlier_version_is_read(tmp_path):
    values = json.loads(make_evaluation().to_json())
    for name in ("learning_rate", "grad_norm", "chars_seen"):
        del values[name]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(values) + "\n")
    assert read_metrics(tmp_path / "metrics.jsonl") == [make_evaluation()]


def test_a_truncated_last_line_is_skipped_by_reading_and_dropped_by_appending(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append(make_evaluation(1))
        log.append(make_evaluation(2))
    path.write_bytes(path.read_bytes()[:-5])
    assert read_metrics(path) == [make_evaluation(1)]
    with MetricsLog(path) as log:
        log.append(make_evaluation(3))
    assert read_metrics(path) == [make_evaluation(1), make_evaluation(3)]


def test_a_log_continues_from_a_given_size(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        assert log.size == 0
        log.append(make_evaluation(1))
        size = log.size
        log.append(make_evaluation(2))
    assert size == len(make_evaluation(1).to_json()) + 1
    with MetricsLog(path, size=size) as log:
        assert log.size == size
        log.append(make_evaluation(3))
        assert log.size == path.stat().st_size
    assert read_metrics(path) == [make_evaluation(1), make_evaluation(3)]
    with MetricsLog(path, size=0) as log:
        assert log.size == 0
    assert read_metrics(path) == []


def test_a_size_beyond_the_end_keeps_the_file_as_it_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append(make_evaluation(1))
    before = path.read_bytes()
    with MetricsLog(path, size=10_000):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Expecting"),
        ("[1]", "not a JSON object"),
        ('{"step": null}', "step is None"),
        ('{"step": 1}', "is missing"),
        (make_evaluation().to_json().replace("83.25", '"fast"'), "elapsed_seconds is 'fast'"),
        ("\x80", "."),
    ],
)
def test_a_line_that_is_not_an_evaluation_is_named(tmp_path, line, why):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([make_evaluation().to_json().encode(), line.encode("latin-1"), b"{}", b""]))
    with pytest.raises(UserError, match=rf"metrics\.jsonl line 2 is not an evaluation .*{why}"):
        read_metrics(path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/metrics\.jsonl"):
        MetricsLog(tmp_path / "none" / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_samples_have_a_heading_and_the_unchanged_text(tmp_path):
    path = tmp_path / "samples.txt"
    with SamplesLog(path) as log:
        log.append(make_evaluation(), "Ay me!\r\nπ [x]")
        size = log.size
        log.append(make_evaluation(500), "later")
    with SamplesLog(path, size=size) as log:
        log.append(make_evaluation(750), "again \udc80")
    heading = "=== step {}, epoch {}, validation loss 1.3863 nats per character ===\n{}\n\n"
    expected = heading.format(250, "1.00", "Ay me!\r\nπ [x]") + heading.format(750, "3.00", "again \\udc80")
    assert path.read_bytes() == expected.encode()
