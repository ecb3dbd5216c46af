"""Malformed inputs, drawn by a generator of random numbers."""

import json

# What no field expects, as YAML. Some are right somewhere.
ODD_YAML = [
    "", "~", "null", "true", "no", "0", "-1", "1", "3", "1.5", "-0.0", "1e-3", "1e308", "1e309", "-1e400",
    ".nan", ".inf", "0x10", "0o17", "1_000", "007", "9" * 19, "9" * 40, "9" * 5000, "0x" + "f" * 5000,
    "1e" + "9" * 400, "12:30:45", "2026-01-01", "''", "' '", "x", "auto", "方言", "'a/b'", "..", ".", "~",
    "~/x", "'~nobody/x'", "/", "/dev/zero", "/dev/null", "/proc/self/mem", "''", "'\\0'", '"\\0"',
    '"\\ud800"', '"\\e[31m"', '"\\n"', "a" * 300, "a/" * 2000, "'" + "方" * 3000 + "'", "[]", "[[]]", "[1]",
    "[x]", "[x, x]", "[null]", "[{}]", "['']", "[0.9, 0.98]", "{}", "{a: 1}", "{name: x}", "{name: lora}",
    "{format: text}", "{token: 1, tag: 2}", "{token: 1, tag: 1}", "{tokens: a}", "{text: a}", "{x: x}",
    "{1: 2}", "{? [a] : b}", "[" * 3000, "{a: " * 3000, "&a [*a]", "&a {b: *a}", "*a",
    "!!python/object/apply:os.getcwd []", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "!!bool x",
    "!!int x", "!!float x", "!!timestamp x", "!!null x", "!!str 5", "!x y", "${oc.env:HOME}", "${x}", "???",
    "a: b: c", "@", "`", "%", "|", "> x", "- a", "? a", ": a", "#", "'", '"', "[", "}", "\t", "0-999999999",
    "0-3", "3-0", "-", "1/3", "0/0", "4/3", "90s", "15min", "0h", "999999h", "lora", "nf4", "sgd",
    "causal_lm", "jsonl", "conll", "bf16", "[none.conll]", "'*'", "'[a'", "'**/*'", "none.gz", "none.zst",
    "none.parquet",
]  # fmt: skip
ODD_TEXT = [
    "", " ", "\t", "\n", "\r", "\r\n", "\0", "\x1b[2J", "\x7f", "\x85", "\u2028", "\ufeff", "\u200b",
    "\u202e", "\ufffd", "\ufffe", "\u0301", "\U0001f468\u200d\U0001f469", "\U0010ffff", "食飯", "ngóh", "a",
    "O", "B-n", "I-n", "E-n", "S-", "-", "_", "#", "# x = y", "-DOCSTART-", "[SEP]", "[PAD]", "[UNK]",
    "<s>", "'", '"', '""', ",", "\\", "\\ud800", "{", "}", "[", "]", "[[", "null", "NaN", "Infinity",
    "1e999", "-", "9" * 5000, "[" * 3000, '{"a":' * 3000, "%mor:", "*CHI:", "@Begin", "\t%mor:\tn|", "\x15",
    "n|a^v|b", "1-2", "1.1", "0", "-1", "_ _ _", "a" * 5000, "方" * 3000, "a " * 2000, "\u0300" * 500,
]  # fmt: skip


def mutate(draw, text, pieces=ODD_TEXT):
    """Return a text with a few places changed."""
    for _ in range(draw.randint(1, 4)):
        place, end = sorted((draw.randint(0, len(text)), draw.randint(0, len(text))))
        end = min(end, place + 40)
        text = draw.choice(
            (
                text[:place] + draw.choice(pieces) + text[place:],
                text[:place] + text[end:],
                text[:place] + text[place:end] * draw.randint(2, 5) + text[end:],
                text[:place] + draw.choice(pieces) + text[end:],
                text[:place],
                text.replace(draw.choice(("\n", "\t", " ", ":", '"', "-", ",")), draw.choice(pieces)[:50]),
            )
        )
    return text


def mutate_bytes(draw, content):
    """Return bytes with a few of them changed, some not UTF-8."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 5)):
        place = draw.randint(0, len(content))
        content[place : place + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 4))
    return bytes(content)


def json_value(draw, depth=0):
    """Return JSON text of an odd value."""
    kind = draw.randint(0, 9 if depth < 3 else 5)
    if kind < 3:
        return json.dumps(draw.choice(ODD_TEXT), ensure_ascii=draw.random() < 0.5)
    if kind < 6:
        return draw.choice(
            ("null", "true", "5", "-1", "1.5", "1e999", "NaN", "9" * 5000, '"\\ud83d"', "[]", "{}")
        )
    parts = [json_value(draw, depth + 1) for _ in range(draw.randint(0, 4))]
    if kind < 8:
        return f"[{', '.join(parts)}]"
    keys = ("tokens", "tags", "text", "spans", "start", "end", "label", "x")
    return "{" + ", ".join(f'"{draw.choice(keys)}": {part}' for part in parts) + "}"
