"""What is asked of a run's model by :mod:`fangyan.analysis.probe`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fangyan.analysis.bootstrap import RESAMPLES, By
from fangyan.errors import UserError

Part = Literal["robustness", "groups", "calibration", "terms", "saliency"]
PARTS: tuple[Part, ...] = get_args(Part)
# Without being asked for.
DEFAULT: tuple[Part, ...] = ("robustness", "groups", "calibration")


@dataclass(frozen=True)
class Options:
    """What is asked, and how.

    Attributes:
        data: files of the run's format; by default the run's own test split, else its dev split.
        source: of which of several data sets they are, and the texts.
        parts: by default :data:`DEFAULT`, and those that have something to read below.
        group_by: columns of the files.
        mappings: files of other ways to write, for robustness.
        rate: share of the words with a slip of the keys.
        terms: a file of counterfactual pairs.
        texts: for saliency.
        store_temperature: keep the fitted temperature with the model.
        by: what is resampled for intervals.
        resamples: how many.
        seed: of all that is drawn.
    """

    data: Sequence[str] = ()
    source: str | None = None
    parts: Sequence[Part] = ()
    group_by: Sequence[str] = ()
    mappings: Sequence[Path] = ()
    rate: float = 0.1
    terms: Path | None = None
    texts: Sequence[str] = ()
    store_temperature: bool = False
    by: By = "auto"
    resamples: int = RESAMPLES
    seed: int = 0

    def chosen(self) -> list[Part]:
        """Return the parts to do, in order.

        Raises:
            UserError: for an option of a part that is not done, or a part without what it reads.
        """
        needs: dict[Part, dict[str, bool]] = {
            "robustness": {"--mapping": bool(self.mappings)},
            "groups": {"--group-by": bool(self.group_by)},
            "calibration": {"--store-temperature": self.store_temperature},
            "terms": {"--terms": self.terms is not None},
            "saliency": {"--saliency": bool(self.texts)},
        }
        given = [part for part in PARTS if part in self.parts or (not self.parts and part in DEFAULT)]
        for part, options in needs.items():
            for option, is_given in options.items():
                if self.parts and is_given and part not in given:
                    raise UserError(f"{option}: is for --part {part}, found --part {' '.join(self.parts)}")
                if is_given and part not in given:
                    given.append(part)
                if part in ("terms", "saliency") and part in given and not is_given:
                    raise UserError(f"--part {part}: needs {option}, found none")
        if self.group_by and not self.data:
            raise UserError("--group-by: needs --data, the files that have the column")
        return [part for part in PARTS if part in given]
