"""Hostfiles: what is a node, and mistakes in one sentence that names the line."""

import pytest
from fangyan.distributed.hostfile import Host, read_hostfile
from fangyan.errors import UserError


def test_read_hostfile_keeps_the_order(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(
        "\ufeff# two racks\nb slots=4\n\n  root@10.0.0.7\tslots=2 max_slots=8 # old\r\n", encoding="utf-8"
    )
    assert read_hostfile(path) == [Host("b", 4, f"{path}:2"), Host("root@10.0.0.7", 2, f"{path}:4")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# a slots=1\n", "hosts: no nodes, expected lines such as node1 slots=4"),
        ("a slots=1\na 2", "hosts:2: 'a 2', expected a name and its ranks, such as node1 slots=4"),
        ("a slots=two", "hosts:1: 'a slots=two', expected a name and its ranks"),
        ("a\n", "hosts:1: 'a', expected a name and its ranks"),
        ("a slots=0", "hosts:1: slots=0, expected 1 to 1024 ranks"),
        ("a slots=" + "9" * 5000, "expected 1 to 1024 ranks"),
        ("-oProxyCommand=x slots=1", "hosts:1: '-oProxyCommand=x', expected a host name"),
        ("a;reboot slots=1", "hosts:1: 'a;reboot', expected a host name"),
        ("方言 slots=1", "hosts:1: '方言', expected a host name"),
        (
            "a slots=1\nb slots=1\na slots=2",
            "hosts:3: a again, expected one line with all its slots (first in",
        ),
    ],
)
def test_read_hostfile_with_a_mistake(tmp_path, text, message):
    (tmp_path / "hosts").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_hostfile(tmp_path / "hosts")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_read_hostfile_that_is_not_text(tmp_path):
    (tmp_path / "hosts").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_hostfile(tmp_path / "hosts")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hostfile", "none"], "none: No such file or directory"),
        (["--hostfile", "hosts", "--seeds", "3"], "--hostfile is for one run"),
        (["--max-restarts", "1"], "--max-restarts: is for --hostfile"),
    ],
)
def test_train_with_options_that_do_not_fit(cli, arguments, message):
    (cli.folder / "hosts").write_text("a slots=1\n", encoding="utf-8")
    _, err = cli("train", "cantonese-pos", *arguments, code=2)
    assert message in err
    assert len(err.strip().splitlines()) == 1
