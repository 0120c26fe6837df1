"""Clusters and their names; labels, queues and how right a classifier is; texts that are nearly the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pathor1.curation import clusters
from pathor1.curation.near_texts import FEWEST_WORDS, Texts
from pathor1.curation.subfield_labels import is_held_out, measure, queue, read_labels, write_queue
from pathor1.errors import DataError, RecipeError

CLASSES = ("ihc", "fish", "other")


def clouds(sizes: tuple[int, ...], seed: int = 0) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(sizes), 8)) * 20
    points = np.concatenate([centre + rng.normal(size=(size, 8)) for centre, size in zip(centres, sizes, strict=True)])
    return [f"i{n:04d}" for n in range(len(points))], points


def test_clusters_are_found_numbered_by_size_and_the_same_in_any_order() -> None:
    ids, points = clouds((20, 60, 40))
    found = clusters.cluster(ids, points, seed=1)
    assert [found.labels[:20].tolist(), found.labels[20:80].tolist(), found.labels[80:].tolist()] == [
        [2] * 20,
        [0] * 60,
        [1] * 40,
    ]
    centre = points[:20].mean(axis=0)
    assert found.distances[3] == pytest.approx(np.linalg.norm(points[3] - centre))
    order = np.random.default_rng(5).permutation(len(ids))
    other = clusters.cluster([ids[place] for place in order], points[order], seed=1)
    assert other.labels.tolist() == found.labels[order].tolist()
    assert other.distances.tolist() == found.distances[order].tolist(), "to the last bit"


def test_items_that_are_no_three_things_make_no_clusters() -> None:
    with pytest.raises(DataError, match="5 items with fewer than 3 different embeddings"):
        clusters.cluster(list("abcde"), np.array([[1.0], [1.0], [2.0], [2.0], [1.0]]), seed=0)


def test_names_are_data_and_for_these_clusters_alone(tmp_path: Path) -> None:
    of = clusters.digest({"b": 1, "a": 0})
    assert of == clusters.digest({"a": 0, "b": 1}) != clusters.digest({"a": 1, "b": 0})
    path = tmp_path / "names.toml"
    text = clusters.blank(of, {("ihc", one): [f"caption\n{one}"] for one in range(3)})
    assert '# caption 1\n1 = ""' in text
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"\[ihc\] 0 is '', and not one of easy, medium, hard"):
        clusters.read_names(path, of, ["ihc"])
    path.write_text(
        text.replace('0 = ""', '0 = "hard"').replace('1 = ""', '1 = "easy"').replace('2 = ""', '2 = "easy"')
    )
    assert clusters.read_names(path, of, ["ihc"]) == {("ihc", 0): "hard", ("ihc", 1): "easy", ("ihc", 2): "easy"}
    with pytest.raises(RecipeError, match="its names are for other clusters"):
        clusters.read_names(path, "another", ["ihc"])
    with pytest.raises(RecipeError, match=r"\[fish\] 0 is None"):
        clusters.read_names(path, of, ["ihc", "fish"])
    path.write_text("[ihc")
    with pytest.raises(RecipeError, match="not TOML"):
        clusters.read_names(path, of, ["ihc"])
    with pytest.raises(RecipeError, match="cannot be read"):
        clusters.read_names(tmp_path / "none.toml", of, ["ihc"])


def test_labels_of_later_files_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("id,label\nx,ihc\ny,fish\n")
    second.write_text("\ufeffid;label;predicted\ny; IHC ;fish\nz;;ihc\nw;other;ihc\n", encoding="utf-8")
    assert read_labels([first, second], CLASSES) == {"x": "ihc", "y": "ihc", "w": "other"}
    second.write_text("id,label\ny,fsh\n")
    with pytest.raises(DataError, match=r"b\.csv, line 2: 'fsh' is none of ihc, fish, other"):
        read_labels([first, second], CLASSES)
    second.write_text("name,label\ny,ihc\n")
    with pytest.raises(DataError, match="needs the columns id and label, and has name, label"):
        read_labels([second], CLASSES)
    second.write_bytes(b"id,label\n\xff\xfe,ihc\n")
    with pytest.raises(DataError, match="not in UTF-8"):
        read_labels([second], CLASSES)


def test_accuracy_and_confusion_are_of_held_out_labels_alone() -> None:
    labels = {"a": "ihc", "b": "ihc", "c": "fish", "d": "fish", "e": "other"}
    predicted = {"a": "ihc", "b": "fish", "c": "fish", "d": "ihc", "e": "ihc"}
    found = measure(labels, predicted, ["a", "b", "c"], CLASSES)
    assert found.confusion == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert (found.accuracy, found.held_out) == (pytest.approx(2 / 3), 3)
    assert found.trained_on == {"ihc": 0, "fish": 1, "other": 1}
    assert found.table().splitlines()[1].split() == ["ihc", "1", "1", "0"]
    assert measure(labels, predicted, [], CLASSES).accuracy is None
    names = [f"{n}" for n in range(5000)]
    apart = {name for name in names if is_held_out(name, held_out=0.2, seed=0)}
    assert 0.17 < len(apart) / len(names) < 0.23


def test_the_queue_is_of_those_that_are_least_decided_and_have_no_label(tmp_path: Path) -> None:
    rows = [
        {"id": f"i{n}", "predicted": "ihc", "confidence": 0.5, "second": "fish", "margin": n / 10, "caption": "a\nb, c"}
        for n in (5, 1, 3, 0, 4)
    ]
    found = queue(rows, {"i0": "ihc"}, 3)
    assert [row["id"] for row in found] == ["i1", "i3", "i4"]
    write_queue(tmp_path / "q.csv", found)
    assert (tmp_path / "q.csv").read_text().splitlines()[1] == 'i1,,ihc,0.5000,fish,0.1000,"a b, c"'
    assert read_labels([tmp_path / "q.csv"], CLASSES) == {}, "nothing is filled in yet"


def test_texts_are_near_by_the_words_that_they_share() -> None:
    text = "Which diagnosis fits the large binucleated cells in a background of eosinophils and plasma cells best?"
    known = Texts(
        [
            ("b1", text),
            ("b0", "What is shown?"),
            ("b2", "Something else entirely about renal tubules and their casts."),
        ],
        0.8,
    )
    assert known.near(text.upper() + "!") == "b1"
    assert known.near(text.replace("best", "most")) == "b1"
    assert known.near(" ".join(text.split()[:8]) + " and now it goes on about other matters at length") is None
    assert known.near("What is shown?") is None, f"fewer than {FEWEST_WORDS} words are like others by chance"
    assert Texts([], 0.8).near(text) is None
