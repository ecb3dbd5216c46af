"""A service as its users meet it: real processes, real sockets."""

import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import fangyan
import pytest
import tiny_exports
import uvicorn
from fangyan.errors import UserError
from fangyan.serving import app, server
from fangyan.serving.batching import Batcher

TEXTS = ["我食飯", "你今日去街飲茶", "佢"]
LIMITS = ["--max-texts", "5", "--max-characters", "40"]


class Service:
    """A running service, and what it answers."""

    def __init__(self, process, port):
        self.process, self.port = process, port

    def ask(self, method="GET", path="/health", body=None, headers=None):
        """Return status and body: from JSON where it is that."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, headers or {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read().decode()
        connection.close()
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.status, json.loads(content) if is_json else content

    def predict(self, texts, **options):
        return self.ask("POST", "/predict", json.dumps({"texts": texts, **options}))

    def stop(self, number):
        """Send a signal; return the exit code and what was written on standard error."""
        os.kill(self.process.pid, number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


def _address(file):
    return re.search(r" at http://127.0.0.1:(\d+)", file.read_text(encoding="utf-8"))


@contextmanager
def served(cli, folder, *options):
    process = cli.start("serve", str(folder), "--port", "0", *options)
    errors = Path(process._paths[0][1])
    deadline = time.monotonic() + 60
    while not (found := errors.exists() and _address(errors)):
        assert process.poll() is None, errors.read_text(encoding="utf-8")
        assert time.monotonic() < deadline
        time.sleep(0.02)
    service = Service(process, int(found[1]))
    try:
        yield service
    finally:
        if process.poll() is None:
            service.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def module_cli(tmp_path_factory, cli_in):
    return cli_in(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def tagger(module_cli):
    return tiny_exports.tagger(module_cli.folder / "tagger")


@pytest.fixture(scope="module")
def service(module_cli, tagger):
    with served(module_cli, tagger, *LIMITS) as service:
        yield service


def test_answers_are_those_of_predict(service, module_cli, tagger):
    out, _ = module_cli("predict", str(tagger), *TEXTS, "--json")
    expected = [json.loads(line) for line in out.splitlines()]
    assert service.predict(TEXTS) == (200, {"predictions": expected})


def test_clients_at_once_get_their_own_answers(service):
    texts = ["我食飯"[: i % 3 + 1] + "你佢去街"[i % 4 :] for i in range(60)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda text: service.predict([text]), texts))
    for text, (status, answer) in zip(texts, found, strict=True):
        assert status == 200
        assert "".join(answer["predictions"][0]["tokens"]) == text
    alone = [service.predict([text]) for text in texts[:12]]
    assert alone == found[:12]


def test_health_and_the_page_need_no_other_host(service):
    assert service.ask() == (200, {"status": "ok", "task": "token_classification", "waiting": 0})
    status, page = service.ask(path="/docs")
    assert status == 200
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(links) == 3
    assert [service.ask(path=link)[0] for link in links if not link.endswith(".png")] == [200, 200]
    status, schema = service.ask(path="/openapi.json")
    assert set(schema["paths"]) == {"/predict", "/health"}
    assert service.ask(path="/")[0] == 307


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ('{"texts": ["a", "b", "c", "d", "e", "f"]}', 413, "texts: 6, expected 5 at most"),
        (json.dumps({"texts": ["我" * 41]}), 413, "texts: 41 characters together, expected 40 at most"),
        ("x" * 20_000, 413, "the body is larger than 10,520 bytes, which no request within the limits needs"),
        ("{", 422, "the body is no JSON ("),
        ("{}", 422, 'texts: missing; expected JSON such as {"texts": ["…"]}'),
        ('{"texts": []}', 422, "texts: list should have at least 1 item"),
        ('{"texts": ["a", 5]}', 422, "texts.1: input should be a valid string, found 5"),
        ('{"texts": ["a"], "top_k": 5}', 422, "top_k: extra inputs are not permitted, found 5"),
        ('{"texts": ["é"]}'.encode("latin-1"), 422, "the body is no JSON in UTF-8 ('utf-8' codec can't"),
        ('{"texts": ' + "[" * 5000, 422, "the body is no JSON"),
        ('{"texts": ["a"], "%s": 5}' % ("k" * 5000), 422, f"{'k' * 80}: extra inputs are not permitted"),
        ('{"texts": ["a", "\\ud800"]}', 422, "texts.1: half a surrogate pair, expected Unicode text"),
        (
            '{"texts": ["a"], "temperature": 1.0}',
            422,
            "temperature: is for models that write text, found a tagger",
        ),
    ],
)
def test_requests_with_a_mistake(service, body, status, sentence):
    found, answer = service.ask("POST", "/predict", body)
    assert found == status
    assert list(answer) == ["error"]
    assert answer["error"].startswith(sentence)
    assert service.predict(["我"])[0] == 200


def test_a_body_without_a_length_is_limited_too(service):
    chunks = (b"x" * 1000 for _ in range(20))
    status, answer = service.ask("POST", "/predict", chunks)
    assert (status, list(answer)) == (413, ["error"])


def test_a_body_that_is_not_said_to_be_json(service):
    """No web page may have a browser send one to a service on its user's machine without asking first."""
    status, answer = service.ask("POST", "/predict", '{"texts": ["a"]}', {"Content-Type": "text/plain"})
    assert status == 422
    assert answer["error"].endswith("expected the header Content-Type: application/json")


def test_the_largest_request_that_the_limits_allow_is_answered(service):
    body = json.dumps({"texts": ["😀" * 40, *[""] * 4]})  # twelve bytes a character
    assert service.ask("POST", "/predict", body)[0] == 200


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_once_requests_in_flight_are_answered(cli, number, code):
    folder = tiny_exports.writer(cli.folder / "writer")
    with served(cli, folder) as service, ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(service.predict, ["我食"], max_new_tokens=50) for _ in range(3)]
        while service.ask()[1]["waiting"] < 3:
            time.sleep(0.01)
        found, err = service.stop(number)
        assert [answer.result()[0] for answer in answers] == [200] * 3
        assert answers[0].result()[1]["predictions"][0]["text"] == "我食"
    assert found == code
    assert len(err.splitlines()) == 1  # where it was


def test_whoever_is_not_answered_in_time_is_told_so(tagger, monkeypatch):
    """And the service ends, whatever the model still does."""
    leave = threading.Event()
    monkeypatch.setattr(app, "_LAST_SECONDS", 0.1)
    predictor = fangyan.load(tagger)
    predictor.stream = lambda *_, **__: leave.wait(60)
    batcher = Batcher(predictor, 8)
    service = app.make_app(batcher, "name", "task", app.Limits())
    config = uvicorn.Config(service, log_level="critical", timeout_graceful_shutdown=1)
    with server.listening("127.0.0.1", 0) as listener, ThreadPoolExecutor(2) as pool:
        listener.listen()
        running = uvicorn.Server(config)
        ended = pool.submit(running.run, sockets=[listener])
        answer = pool.submit(Service(None, listener.getsockname()[1]).predict, ["我"])
        deadline = time.monotonic() + 20
        while not batcher.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        running.should_exit = True
        assert answer.result(20) == (503, {"error": "the service ended before the model had answered"})
        ended.result(20)
    leave.set()


def test_a_port_that_another_takes_while_the_model_is_loaded(tagger, monkeypatch):
    """Two processes may bind a port as long as neither listens."""
    with server.listening("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(server, "load", lambda *_: other.listen() or fangyan.load(tagger))
        with pytest.raises(UserError, match=f"--port {port}: cannot be listened on .Address already in use"):
            server.serve(tagger, "127.0.0.1", port, None, 8, app.Limits())


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_an_address_for_others_is_said(capsys, host, is_open):
    with server.listening(host, 0) as listener:
        server._say_where(Path("run"), listener, host)
    said = f"--host {host}: everyone who reaches this machine there may use the model; there is no password"
    assert (said in capsys.readouterr().err) == is_open


def test_what_a_model_writes_is_limited(cli):
    folder = tiny_exports.writer(cli.folder / "writer")
    with served(cli, folder, "--max-new-tokens", "70") as service:
        status, answer = service.predict(["我食", "你"], max_new_tokens=35)
        assert status == 200
        assert [record["text"] for record in answer["predictions"]] == ["我食", "你"]
        assert service.predict(["我食", "你"], max_new_tokens=36) == (
            413,
            {"error": "max_new_tokens: 36 after each of 2 texts, expected 70 together at most"},
        )
        assert service.predict(["我", "你"])[1]["error"].startswith(
            "max_new_tokens: 64 after each of 2 texts"
        )
        assert service.predict(["我"], max_new_tokens=-1)[0] == 422
        assert service.predict(["我"], temperature=1e9)[0] == 422


def test_an_address_that_is_taken_and_one_of_elsewhere(cli, tagger):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        _, err = cli("serve", str(tagger), "--port", port, code=2)
    assert err == (
        f"fangyan: --host 127.0.0.1 --port {port}: cannot be listened on (Address already in use); expected "
        "an address of this machine, and a port that is free\n"
    )
    for host in ("no.such.host.invalid", "no..host"):
        _, err = cli("serve", str(tagger), "--host", host, code=2)
        assert err.startswith(f"fangyan: --host {host}: no address of this machine (")
    _, err = cli("serve", str(cli.folder / "none"), code=2)
    assert "none: no such run" in err
