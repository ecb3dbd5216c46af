import pytest
from ui_pages import treebank


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, cli_in):
    """The command in a folder with a treebank of its own."""
    cli = cli_in(tmp_path_factory.mktemp("corpus"))
    for split, count in (("train", 60), ("dev", 10)):
        path = cli.folder / f"sme-ud-{split}.conllu"
        path.write_text(treebank(count), encoding="utf-8")
    return cli
