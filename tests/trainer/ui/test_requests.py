"""What the page answers: who may ask, what is refused in a sentence, what it makes of files and settings."""

import html
import json
import os
import re
import socket
from urllib.parse import urlencode

import pytest
import tiny_exports
from fangyan.recipe import load_recipe
from fangyan.ui import app as app_module
from fangyan.ui import jobs, recipes, runs
from fangyan.ui.app import make_app
from fangyan.ui.choice import FORMAT_NAMES, SCHEME_NAMES
from starlette.testclient import TestClient
from ui_pages import treebank

TOKEN = "a-token"
ORIGIN = "http://127.0.0.1:8765"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that the page is of, with a file beside it that it must not show."""
    (tmp_path / "secret.conllu").write_text("a secret", encoding="utf-8")
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    (inner / "words.conllu").write_text(treebank(30), encoding="utf-8")
    return inner


@pytest.fixture
def stranger(folder):
    """A browser that has not been given the token."""
    with TestClient(make_app(TOKEN, 8765), base_url=ORIGIN, headers={"Accept": "text/html"}) as client:
        yield client


@pytest.fixture
def client(stranger):
    assert stranger.get(f"/?token={TOKEN}").status_code == 200
    return stranger


def mistake(answer):
    """The sentence in the page's alert."""
    found = re.search(r'<p class="mistake" role="alert"[^>]*>(.*?)</p>', answer.text, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", found[1])) if found else ""


def test_only_who_has_the_token_is_let_in(stranger):
    for path in ("/", "/?token=other", "/files", "/static/style.css", "/run/status?run=x"):
        answer = stranger.get(path)
        assert answer.status_code == 403
        assert "whole address that `fangyan ui` has printed" in answer.text
    assert stranger.post("/run/stop", data={"run": "x"}).status_code == 403
    entered = stranger.get(f"/?token={TOKEN}", follow_redirects=False)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    page = stranger.get("/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert TOKEN not in page.text


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Host", "evil.example:8765"),
        ("Host", "127.0.0.1:80"),
        ("Host", ""),
        ("Origin", "http://evil.example"),
        ("Origin", "http://127.0.0.1:8000"),
        ("Origin", "null"),
    ],
)
def test_requests_of_other_sites_are_refused(client, method, header, value):
    answer = client.request(method, "/files", headers={header: value})
    assert answer.status_code == 403
    assert f"{header} is {value!r}" in answer.text
    assert client.get("/files", headers={"Origin": ORIGIN}).status_code == 200


@pytest.mark.parametrize("name", ["../secret.conllu", "a/../../secret.conllu", "/etc/passwd", "link", "\0"])
@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", "/files", "at"),
        ("GET", "/data", "train"),
        ("GET", "/model", "train"),
        ("GET", "/recipe", "file"),
        ("GET", "/check", "file"),
        ("GET", "/run", "run"),
        ("GET", "/run/status", "run"),
        ("GET", "/run/report", "run"),
        ("POST", "/run/stop", "run"),
        ("POST", "/run/resume", "run"),
    ],
)
def test_nothing_outside_of_the_folder_is_read(client, folder, method, path, field, name):
    (folder / "link").symlink_to(folder.parent / "secret.conllu")
    given = {"params": {field: name}} if method == "GET" else {"data": {field: name}}
    answer = client.request(method, path, **given)
    assert answer.status_code == 422
    assert "not in the folder that the page was started in" in mistake(answer)
    assert "a secret" not in answer.text


def test_files_are_listed_without_hidden_ones_and_links_that_lead_outside(client, folder):
    (folder / ".hidden").write_text("x", encoding="utf-8")
    (folder / "link").symlink_to(folder.parent / "secret.conllu")
    (folder / "sub <b>").mkdir()
    page = client.get("/files").text
    assert "words.conllu" in page
    assert "sub &lt;b&gt;" in page
    assert ".hidden" not in page
    assert ">link<" not in page
    assert client.get("/static/../app.py").status_code == 404
    assert client.get("/static/%2e%2e/app.py").status_code == 404


def upload(client, name, content):
    headers = {"Accept": "application/json"}
    answer = client.post("/files", data={"at": "."}, files={"file": (name, content)}, headers=headers)
    return answer.status_code, answer.json()


def test_a_file_is_uploaded(client, folder):
    content = treebank(3).encode()
    expected = {"path": "new.conllu", "next": "/data?train=new.conllu"}
    assert upload(client, "new.conllu", content) == (200, expected)
    assert (folder / "new.conllu").read_bytes() == content
    assert upload(client, "new.conllu", content) == (200, expected)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("../up.conllu", b"x", "'../up.conllu': no name for a file"),
        (".bashrc", b"x", "'.bashrc': no name for a file"),
        ("x" * 201, b"x", "no name for a file"),
        ("empty.conllu", b"", "empty.conllu: the file is empty"),
        ("words.conllu", b"other", "words.conllu: another file has this name"),
    ],
)
def test_an_upload_that_is_refused(client, folder, name, content, sentence):
    before = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
    status, answer = upload(client, name, content)
    assert status == 422
    assert sentence in answer["error"]
    assert {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("says_its_length", [True, False])
def test_an_upload_that_is_too_large(folder, monkeypatch, says_its_length):
    monkeypatch.setattr(app_module, "MOST_UPLOADED", 1000)
    monkeypatch.setattr(app_module, "_AROUND", 1000)
    with TestClient(make_app(TOKEN, 8765), base_url=ORIGIN) as client:
        client.get(f"/?token={TOKEN}")
        body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + b"x" * 5000
        content = body if says_its_length else iter([body[:1500], body[1500:]])
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = client.post("/files", content=content, headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"].startswith("the file is larger than 1.0 kB, expected a smaller one")
    assert not (folder / "x").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"PK\x03\x04...", "bad.conllu: a ZIP archive, as Excel and Word write them"),
        ("é".encode("latin-1") * 10, "bad.conllu:1: byte 1 is not UTF-8"),
        (b"\n\n", "bad.conllu: empty, expected examples"),
        (b"1\ta\t_\tX\n", "bad.conllu:1: "),
    ],
)
def test_a_file_that_cannot_be_read_is_a_sentence(client, folder, content, sentence):
    (folder / "bad.conllu").write_bytes(content)
    answer = client.get("/data", params={"train": "bad.conllu"})
    assert answer.status_code == 422
    assert sentence in mistake(answer)
    assert "Traceback" not in answer.text


def test_what_was_guessed_is_shown_and_corrected(client, folder):
    page = client.get("/data", params={"train": "words.conllu"}).text
    assert "almost sure" in page
    assert "<bdi>dáppe</bdi><small><bdi>ADV</bdi></small>" in page
    answer = client.get("/data", params={"train": "words.conllu", "column": "xpos"})
    assert answer.status_code == 422
    assert "words.conllu:1: " in mistake(answer)
    answer = client.get("/data", params={"train": "words.conllu", "task": "causal_lm", "format": "text"})
    assert answer.status_code == 200
    assert "Write on: a language model reads more of a language.</strong>" in answer.text
    answer = client.get("/data", params={"train": "words.conllu", "task": "sequence_classification"})
    assert "format is conllu, which has no text and label" in mistake(answer)
    assert "not offered" in mistake(client.get("/data", params={"train": "words.conllu", "task": "x"}))


def test_columns_are_corrected(client, folder):
    rows = [f"{i} {word} N X{i % 2}\n" for i, word in enumerate(["a", "b", "c", "d", "e", "f"])]
    (folder / "four.conll").write_text("\n".join("".join(rows) for _ in range(4)), encoding="utf-8")
    params = {"train": "four.conll", "columns": ["token=2", "tag=4"], "scheme": "plain"}
    page = client.get("/data", params=params).text
    assert "<bdi>b</bdi><small><bdi>X1</bdi></small>" in page
    assert '<option value="tag=4" selected>column 4: X0</option>' in page
    records = [{"said": f"text {i}", "kind": "ab"[i % 2], "other": "x"} for i in range(40)]
    lines = "\n".join(map(json.dumps, records))
    (folder / "texts.jsonl").write_text(lines, encoding="utf-8")
    params = {
        "train": "texts.jsonl",
        "task": "sequence_classification",
        "columns": ["text=said", "label=kind"],
    }
    page = client.get("/data", params=params).text
    assert re.search(r"<dt>text</dt><dd[^>]*>text 1</dd>", page)
    assert re.search(r"<dt>label</dt><dd[^>]*>b</dd>", page)


def test_every_format_and_scheme_that_is_offered_exists():
    from typing import get_args

    from fangyan.data.formats import FORMATS
    from fangyan.tasks.token_classification.recognition import Wanted

    assert set(FORMAT_NAMES) <= set(FORMATS.members)
    assert set(SCHEME_NAMES) == set(get_args(Wanted))


def write(client, **settings):
    given = {"train": "words.conllu", "model": "scratch", "name": "try", **settings}
    return client.post("/model", data=given, follow_redirects=False)


def test_settings_become_a_recipe(client, folder):
    answer = write(client, size="tiny", epochs="3", test="none", dev="words.conllu", scheme="plain")
    assert (answer.status_code, answer.headers["location"]) == (303, "/recipe?file=try.yaml")
    recipe = load_recipe("try.yaml")
    assert (recipe.model.path, recipe.model.size, recipe.train.epochs) == ("scratch", "tiny", 3)
    assert (recipe.data.train, recipe.data.dev, recipe.data.test) == ("words.conllu", "words.conllu", None)
    assert recipe.task.scheme == "plain"
    assert "# " in (folder / "try.yaml").read_text(encoding="utf-8").split("epochs: 3")[1]
    assert write(client).headers["location"] == "/recipe?file=try-2.yaml"
    answer = write(client, model="own", own_model="a/model", adapter="qlora", precision="bf16")
    recipe = load_recipe("try-3.yaml")
    assert (recipe.model.path, recipe.adaptation.name) == ("a/model", "lora")
    assert (recipe.adaptation.quantization, recipe.optimizer.lr) == ("nf4", 1e-3)
    assert recipe.engine.precision == "bf16"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": "many"}, "epochs: found 'many', expected a whole number"),
        ({"name": "a/b"}, "name: found 'a/b', expected up to 80 letters"),
        ({"model": "own"}, "model: missing, expected a folder, or a name on the hub"),
        ({"own_model": "a/model"}, "model: 'a/model' is named, but another is chosen"),
        ({"dev": "none.conllu"}, "dev: none.conllu: no such file"),
        ({"size": "huge"}, "size: input should be"),
    ],
)
def test_settings_with_a_mistake(client, folder, settings, sentence):
    answer = write(client, **settings)
    assert answer.status_code == 422
    assert sentence in mistake(answer)
    assert not list(folder.glob("*.yaml"))


RECIPE = """# mine
data:
  train: a.conll    # the file
  format: conll

train:
  epochs: 5         # as said
"""


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("train.epochs", 7, "  epochs: 7                         # as said\n"),
        ("train.log_every", 1, "  epochs: 5         # as said\n  log_every: 1\n"),
        ("model.size", "tiny", "\nmodel:\n  size: tiny\n"),
        ("data.test", None, "  format: conll\n  test: null\n\ntrain:"),
        ("adaptation", {"name": "lora", "rank": 4}, "\nadaptation:\n  name: lora\n  rank: 4\n"),
    ],
)
def test_a_field_is_changed_and_comments_stay(field, value, expected):
    changed = recipes.with_field(RECIPE, field, value)
    assert expected in changed
    assert changed.startswith("# mine\ndata:\n  train: a.conll    # the file\n")


def save(client, text, then="save"):
    before = recipes.digest(recipes.read("try.yaml"))
    return client.post("/recipe", data={"file": "try.yaml", "text": text, "before": before, "then": then})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("epochs: 3", "epochs: three"), "try.yaml: train.epochs: input should be a valid integer"),
        (("epochs: 3", "epoch: 3"), "try.yaml: train.epoch: unknown key"),
        (("epochs: 3", "epochs: [3"), "try.yaml:"),
        (("name: try", "name: try\nrun_dir: ../elsewhere"), "not in the folder"),
        (("name: try", "stages: []\nname: try"), "try.yaml: stages are for the terminal"),
    ],
)
@pytest.mark.parametrize("then", ["save", "check", "start"])
def test_a_broken_recipe_is_a_sentence_and_is_not_saved(client, folder, change, sentence, then):
    write(client, epochs="3")
    text = recipes.read("try.yaml")
    answer = save(client, text.replace(*change), then)
    assert answer.status_code == 422
    assert sentence in mistake(answer)
    assert html.escape(change[1].partition("\n")[0]) in answer.text  # what the user wrote is still there
    assert recipes.read("try.yaml") == text
    assert jobs.known() == []


def test_a_recipe_is_saved_unless_it_was_changed_elsewhere(client, folder):
    write(client, epochs="3")
    text = recipes.read("try.yaml")
    changed = text.replace("epochs: 3", "epochs: 4")
    assert save(client, changed.replace("\n", "\r\n")).status_code == 200
    assert recipes.read("try.yaml") == changed
    before = recipes.digest(text)
    answer = client.post("/recipe", data={"file": "try.yaml", "text": text, "before": before})
    assert "it was changed elsewhere meanwhile" in mistake(answer)
    assert recipes.read("try.yaml") == changed
    assert "try.yaml" in client.get("/").text
    answer = client.get("/recipe", params={"file": "words.conllu"})
    assert "no name for a recipe" in mistake(answer)


def test_what_is_no_run_is_a_sentence(client, folder):
    assert "runs/none: no such run" in mistake(client.get("/run", params={"run": "runs/none"}))
    assert "does not run" in mistake(client.post("/run/stop", data={"run": "runs/none"}))
    tiny_exports.tagged_run(folder / "runs" / "done")
    answer = client.post("/run/resume", data={"run": "runs/done"})
    assert "finished, expected a run that has stopped" in mistake(answer)
    answer = client.get("/run/report", params={"run": "runs/done"})
    assert "no report yet" in mistake(answer)


def test_a_report_reaches_nothing_of_the_page(client, folder):
    tiny_exports.tagged_run(folder / "runs" / "done")
    (folder / "runs" / "done" / "report.html").write_text("<script>1</script>", encoding="utf-8")
    assert "Read the report" in client.get("/run", params={"run": "runs/done"}).text
    answer = client.get("/run/report", params={"run": "runs/done"})
    assert answer.text == "<script>1</script>"
    assert answer.headers["content-security-policy"].startswith("sandbox allow-scripts")


@pytest.mark.parametrize(
    ("make", "texts", "expected"),
    [
        (tiny_exports.tagger, ["我食飯"], {"tokens": ["我", "食", "飯"]}),
        (tiny_exports.classifier, ["我食飯"], {"text": "我食飯"}),
        (lambda folder: tiny_exports.classifier(folder, pairs=True), ["我", "你"], {"text": "我\t你"}),
        (tiny_exports.writer, ["我食飯"], {"text": "我食飯"}),
    ],
)
def test_a_model_is_tried(client, folder, make, texts, expected):
    make(folder / "runs" / "done" / "model")
    (folder / "runs" / "done" / "recipe.yaml").write_text("data: {format: conll}\n", encoding="utf-8")
    body = urlencode([("run", "runs/done"), *(("text", text) for text in texts)])
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    answer = client.post("/run/try", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert {name: found[name] for name in expected} == expected
    for text in ("", " \n", "x" * 20_001):
        body = urlencode([("run", "runs/done"), ("text", text)])
        refused = client.post("/run/try", content=body, headers=headers)
        assert (refused.status_code, refused.json()["error"][:6]) == (422, "text: ")


def test_a_run_of_a_terminal_is_found_running(client, folder):
    run = folder / "runs" / "other"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: other\ntrain: {epochs: 4}\n", encoding="utf-8")
    lines = [
        {"kind": "train", "step": 1, "epoch": 0, "loss": 2.0},
        {"kind": "train", "step": 2, "epoch": 0, "loss": 1.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tra'
    (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    (run / "log.txt").write_text(
        "other: examples train 60; Model on 1 x cpu; 1,200 steps\n", encoding="utf-8"
    )
    holder = {"pid": os.getpid(), "host": socket.gethostname()}
    (run / ".lock").write_text(json.dumps(holder), encoding="utf-8")
    now = client.get("/run/status", params={"run": "runs/other"}).json()
    assert (now["state"], now["step"], now["total"], now["epochs"]) == ("running", 2, 1200, 4)
    assert now["loss"] == [[1, 2.0], [2, 1.0]]
    assert "Running" in client.get("/").text
    (run / ".lock").write_text(json.dumps(holder | {"host": "another"}), encoding="utf-8")
    assert client.get("/run/status", params={"run": "runs/other"}).json()["state"] == "stopped"


def test_the_time_left_is_of_the_steps_that_were_seen(tmp_path):
    paces = runs.Paces()
    assert paces.seconds_left(tmp_path, 10, 100, 50.0) is None
    assert paces.seconds_left(tmp_path, 20, 100, 55.0) == pytest.approx(40.0)
    assert paces.seconds_left(tmp_path, 5, 100, 60.0) is None  # it was started again
    assert runs.thinned([(i, float(i)) for i in range(10)], 5) == [(i, i - 0.5) for i in range(1, 10, 2)]
