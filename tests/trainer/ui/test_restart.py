"""A training outlives the page's server, and the next one finds it."""

import time
from contextlib import contextmanager

import httpx
from fangyan.ui.recipes import digest
from ui_pages import served

RECIPE = """name: kept
data: {format: conllu, train: sme-ud-train.conllu, dev: sme-ud-dev.conllu, column: upos}
model: {path: scratch, size: tiny}
train: {epochs: 10000, batch_tokens: 60, log_every: 1}
"""


@contextmanager
def opened(page):
    address = page.address.partition("/?")[0]
    with httpx.Client(base_url=address, follow_redirects=True, timeout=60) as client:
        assert client.get(page.address).status_code == 200
        yield client


def wait_for(client, condition, run="runs/kept"):
    deadline = time.monotonic() + 120
    while not condition(now := client.get("/run/status", params={"run": run}).json()):
        assert time.monotonic() < deadline, now
        time.sleep(0.2)
    return now


def start(client, file, text):
    fields = {"file": file, "text": text, "before": digest(text), "then": "start"}
    return client.post("/recipe", data=fields)


def test_a_running_training_is_found_after_the_server_was_killed_and_one_that_fails_says_why(corpus):
    (corpus.folder / "kept.yaml").write_text(RECIPE, encoding="utf-8")
    with served(corpus) as page, opened(page) as client:
        assert "kept" in start(client, "kept.yaml", RECIPE).text
        wait_for(client, lambda now: now["state"] == "running")
        page.kill()
    with served(corpus, page.port) as page, opened(page) as client:
        seen = wait_for(client, lambda now: now["step"] > 0)
        assert seen["state"] == "running"
        wait_for(client, lambda now: now["step"] > seen["step"])
        refused = start(client, "kept.yaml", RECIPE)
        assert refused.status_code == 422
        assert "runs/kept is being trained, expected one at a time" in refused.text
        assert client.post("/run/stop", data={"run": "runs/kept"}).status_code == 200
        now = wait_for(client, lambda now: now["state"] != "running")
        assert (now["state"], now["can_resume"]) == ("stopped", True)
        assert now["sentence"].startswith("Stopped as you asked, with a checkpoint.")
        assert (corpus.folder / "runs" / "kept" / "checkpoints" / "last" / "state.json").is_file()
        # The same server: one that fails.
        text = RECIPE.replace("kept", "none").replace("train: sme-ud-train", "train: none")
        (corpus.folder / "none.yaml").write_text(text, encoding="utf-8")
        start(client, "none.yaml", text)
        now = wait_for(client, lambda now: now["state"] != "running", "runs/none")
        assert (now["state"], now["can_resume"]) == ("failed", False)
        assert now["sentence"].startswith("none.conllu: no such file")
        assert now["sentence"] in client.get("/").text
