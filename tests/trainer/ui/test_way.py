"""The whole way of somebody who does not program, in a browser: from a file to a tagged sentence."""

from urllib.parse import urlsplit

import pytest
from browser import open_browser, skip_without_browser
from ui_pages import served, treebank

pytestmark = skip_without_browser

WIDTHS = (390, 1280)
# Milliseconds that a command has, of which each imports for seconds.
PATIENCE = 120_000


class Visitor:
    """A browser's page that notes errors and requests, and looks at every page in both widths."""

    def __init__(self, browser, address):
        self.address = address
        self.errors, self.hosts = [], set()
        context = browser.new_context(viewport={"width": 390, "height": 844})
        context.set_default_timeout(30_000)
        self.page = context.new_page()
        self.page.on(
            "console", lambda message: self.errors.append(message.text) if message.type == "error" else None
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def look(self):
        """Check that nothing is wider than the screen and all fields have names; end in the phone's width."""
        for width in reversed(WIDTHS):
            self.page.set_viewport_size({"width": width, "height": 844})
            assert self.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), (
                self.page.url
            )
        for field in self.page.locator("input:not([type=hidden]), select, textarea").all():
            name = field.evaluate("field => field.labels?.[0]?.textContent.trim() || field.ariaLabel")
            assert name, field.evaluate("field => field.outerHTML")

    def press(self, name):
        """Press a button or a link by its name, with the keyboard."""
        found = self.page.get_by_role("button", name=name, exact=True).or_(
            self.page.get_by_role("link", name=name, exact=True)
        )
        found.focus()
        self.page.keyboard.press("Enter")


@pytest.fixture(scope="module")
def visitor(corpus):
    (corpus.folder / "sme-ud-train.conllu").rename(corpus.folder / "train.conllu")
    with served(corpus) as page, open_browser() as browser:
        visitor = Visitor(browser, page.address)
        yield visitor
    assert visitor.errors == []
    assert visitor.hosts == {f"127.0.0.1:{page.port}"}


def test_from_a_file_to_a_tagged_sentence(visitor, corpus, tmp_path):
    page = visitor.page
    page.goto(visitor.address)
    visitor.look()
    visitor.press("Train a new model")
    choose_files(visitor, tmp_path)
    choose_a_model(visitor)
    write_and_check(visitor)
    watch_stop_and_resume(visitor)
    page.get_by_label("A sentence").fill("mun lean odne 3")
    visitor.press("Ask the model")
    page.locator("#answer .token").first.wait_for(timeout=PATIENCE)
    tags = page.locator("#answer .token small").all_text_contents()
    assert tags == ["PRON", "AUX", "ADV", "NUM"]
    visitor.look()
    page.goto(visitor.address.partition("?")[0])
    card = page.locator(".run")
    assert card.locator(".state").text_content() == "Finished"
    assert "Best on dev: token accuracy" in card.text_content()
    visitor.look()


def choose_files(visitor, tmp_path):
    """Upload a file, be refused another of its name, and choose the one in the folder."""
    page = visitor.page
    visitor.look()
    other = tmp_path / "train.conllu"
    other.write_text(treebank(4), encoding="utf-8")
    page.set_input_files("#file", other)
    with page.expect_response("**/files") as refused:
        visitor.press("Copy it into the folder")
    assert refused.value.status == 422
    page.get_by_text("another file has this name").wait_for()
    visitor.errors.clear()  # of a request that is refused the browser says so
    page.get_by_role("link", name="train.conllu").click()
    page.get_by_role("heading", name="Is it read correctly?").wait_for()
    assert "almost sure" in page.content()
    page.get_by_text("Change how it is read").click()
    visitor.look()
    page.get_by_label("What the tags say").select_option("plain")
    visitor.press("Read it this way")
    assert page.get_by_label("What the tags say").input_value() == "plain"
    visitor.press("Yes, go on")


def choose_a_model(visitor):
    page = visitor.page
    page.get_by_text("More, if you know what you want").click()
    visitor.look()
    page.get_by_label("Name of the training").fill("words")
    page.get_by_label("How often it reads the file").fill("4")
    page.get_by_label("Size of a new tagger").select_option("tiny")
    page.get_by_label("Chooses the best moment").select_option("sme-ud-dev.conllu")
    visitor.press("Write the recipe")


def write_and_check(visitor):
    """Edit the recipe as text, wrongly at first, and check it."""
    page = visitor.page
    field = page.get_by_label("Recipe, in YAML")
    written = field.input_value()
    assert "scheme: plain" in written
    assert "dev: sme-ud-dev.conllu" in written
    field.fill(written.replace("epochs: 4", "epochs: eight"))
    visitor.press("Save")
    page.get_by_text("words.yaml: train.epochs: input should be a valid integer").wait_for()
    visitor.errors.clear()
    # Many small steps, each of which is seen.
    changed = written.replace("train:\n", "train:\n  log_every: 1\n").replace(
        "batch_tokens: 850", "batch_tokens: 40"
    )
    field.fill(changed)
    visitor.press("Save and check")
    page.get_by_text("Checking: the data is read").wait_for()
    page.get_by_text("Nothing stands in the way.").wait_for(timeout=PATIENCE)
    for fact in ("Time", "Memory", "60 examples"):
        assert page.get_by_text(fact, exact=True).count(), fact
    assert page.locator("#command").text_content() == "fangyan train words.yaml"
    visitor.look()


def watch_stop_and_resume(visitor):
    page = visitor.page
    visitor.press("Save and start training")
    page.get_by_text("You may close this page").wait_for()
    page.locator("#where", has_text=" of ").wait_for(timeout=PATIENCE)
    page.locator("#loss svg").wait_for()
    page.reload()
    assert page.locator("#state").text_content() == "Running"
    page.locator("#where", has_text=" left").wait_for()
    visitor.look()
    visitor.press("Stop")
    page.locator("#state.stopped").wait_for()
    assert page.locator("#sentence").text_content().startswith("Stopped as you asked, with a checkpoint.")
    visitor.look()
    visitor.press("Resume")
    page.locator("#state.finished").wait_for(timeout=PATIENCE)
    page.get_by_label("A sentence").wait_for()
    assert page.get_by_label("A sentence").input_value() == "mun lean dáppe 0"
    assert page.locator("#dev svg").get_attribute("aria-label").startswith("token accuracy: from ")


def test_pages_are_accessible(visitor):
    """By axe: names, roles, contrast and order of headings, on a phone, in light and dark."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    # axe is a script of another's, which the page's own policy would not let in.
    viewport = {"width": 390, "height": 844}
    context = visitor.page.context.browser.new_context(viewport=viewport, bypass_csp=True)
    page = context.new_page()
    page.goto(visitor.address)
    home = visitor.address.partition("?")[0]
    for path, schemes in {
        "": ["light"],
        "files": ["light"],
        "data?train=train.conllu&column=xpos": ["light", "dark"],
        "model?train=train.conllu": ["light"],
        "recipe?file=words.yaml": ["light"],
        "run?run=runs/words": ["light", "dark"],
    }.items():
        for scheme in schemes:
            page.emulate_media(color_scheme=scheme)
            page.goto(home + path)
            found = axe.Axe().run(page).response["violations"]
            assert [(path, scheme, each["id"], each["nodes"][0]["html"]) for each in found] == []
    context.close()
