"""Several runs in one page: the numbers are those of ``compare``, and a file that is no report stays."""

import pytest
from browser import skip_without_browser
from fangyan.analysis.compare import compare
from fangyan.errors import UserError
from fangyan.reporting.comparison import write_comparison
from probed_runs import BY_NAME, TAGGER, run_folder
from report_outline import outline


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three untrained taggers, of which one has another learning rate."""
    folder = tmp_path_factory.mktemp("runs")
    faster = {"optimizer": {"lr": 0.5}}
    return [run_folder(TAGGER, folder, name, i, **(faster if i else {})) for i, name in enumerate("abc")]


@pytest.fixture(scope="module")
def page(runs):
    return write_comparison(runs, runs[0].parent / "comparison.html", lambda message: None)


def test_page_has_the_numbers_of_compare(runs, page):
    text = page.read_text(encoding="utf-8")
    for other in runs[1:]:
        found = compare(runs[0], other, say=lambda message: None).metrics["token_accuracy"]
        for part in (f"{found.right:.2f}", f"{found.difference:+.2f}", found.bounds, found.probability):
            assert f">{part.replace('<', '&lt;').replace('+', '+')}</td>" in text
    parts = outline(page)
    assert {"scores", "of-recipe", "errors"} <= set(parts.ids)
    assert text.count("optimizer.lr</th>") == 1
    for row in parts.data["data"]:
        assert len({tuple(labels) for labels in row["predicted"]}) > 1
        assert row["right_of"] == [labels == row["gold"] for labels in row["predicted"]]


@skip_without_browser
def test_page_says_who_is_right(page, show):
    shown = show(page, 390)
    assert shown.evaluate("document.documentElement.scrollWidth") == 390
    total = len(outline(page).data["data"])
    option = shown.locator("#who option").nth(1).get_attribute("value")
    shown.locator("#who").select_option(option)
    assert f"of {total:,} places" in shown.locator("#count").inner_text()


def test_only_reports_are_replaced(cli_in, runs, page):
    cli = cli_in(runs[0].parent)
    out, _ = cli("report", "a", "b")
    assert out == "comparison.html\n"
    notes = page.with_name("notes.html")
    notes.write_text("mine", encoding="utf-8")
    _, err = cli("report", "a", "b", "--output", "notes.html", code=2)
    assert err == "fangyan: --output notes.html: a file that is no report, expected another name\n"
    assert notes.read_text(encoding="utf-8") == "mine"
    out, err = cli("report", "a")
    assert out == "a/report.html\n"
    assert err == "fangyan: the model of a runs on the dev split, whose predictions were not kept\n"
    _, err = cli("report", "a")
    assert err == ""


def test_runs_of_other_tasks_are_refused(runs, tmp_path):
    other = run_folder(BY_NAME["one class"], tmp_path)
    with pytest.raises(UserError, match="expected models that are scored alike"):
        write_comparison([runs[0], other], tmp_path / "comparison.html")
