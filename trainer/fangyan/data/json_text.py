"""JSON of users' files: plain values, or one sentence."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from fangyan.errors import UserError


class NotJson(UserError):
    """Report a text that is no JSON at all."""


def parse_json(text: str, source: str) -> Any:
    """Return the value of a JSON text.

    Args:
        text: of a line or a cell.
        source: ``file:line``, for messages.

    Raises:
        NotJson: if it is none.
        UserError: if it is nested too deep, or has what another reader would take for something else: a key
            twice, or half of a surrogate pair.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise NotJson(f"{source}: not JSON: {error.msg} at column {error.colno}") from None
    except UnicodeEncodeError:
        raise UserError(f"{source}: half of a surrogate pair (\\ud800 to \\udfff), expected text") from None
    except RecursionError:
        raise UserError(f"{source}: not JSON that can be read: values are nested too deep") from None
    except _Double as error:
        raise UserError(f"{source}: key {error.args[0][:60]!r} is there twice, expected it once") from None
    except ValueError:  # Python's, of a number
        raise UserError(f"{source}: a number of thousands of digits, expected shorter ones") from None
    return value


class _Double(ValueError):
    """Report that an object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _Double(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return value
