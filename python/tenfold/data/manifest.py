"""What a prepared data set consists of, written beside it and checked before it is used."""

import dataclasses
import hashlib
import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from tenfold.data.images import CaptionedImages
from tenfold.errors import UserError

_PROSE = {"source", "licence", "attribution"}


@dataclass(frozen=True)
class ManifestFile:
    """A manifest as JSON; a subclass has the fields."""

    def to_json(self) -> str:
        """Indented JSON, one key a line."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest. Errors: UserError naming the file when it is missing or not a manifest."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: not a readable data manifest ({error})") from error

    def first_difference(self, found: Self, prose: Container[str]) -> tuple[str, Any, Any] | None:
        """The first field outside ``prose`` that differs: its name, what ``found`` has, what was wanted."""
        for field in dataclasses.fields(self):
            wanted, got = getattr(self, field.name), getattr(found, field.name)
            if wanted != got and field.name not in prose:
                return field.name, got, wanted
        return None


@dataclass(frozen=True)
class Manifest(ManifestFile):
    """Counts, shape, checksums, licence and source of one CaptionedImages."""

    source: str
    licence: str
    attribution: str
    count: int
    heldout: int
    groups: int
    height: int
    width: int
    images_sha256: str
    captions_sha256: str  # captions and names
    split_sha256: str  # groups, train and heldout

    @classmethod
    def of(cls, data: CaptionedImages) -> "Manifest":
        """Count and checksum ``data``; reads every pixel once."""
        count, height, width, _ = data.images.shape
        split = (data.groups, data.train, data.heldout)
        return cls(
            source=data.source,
            licence=data.licence,
            attribution=data.attribution,
            count=count,
            heldout=len(data.heldout),
            groups=len(np.unique(data.groups)),
            height=height,
            width=width,
            images_sha256=hashlib.sha256(np.ascontiguousarray(data.images).data).hexdigest(),
            captions_sha256=_sha256_json([data.captions, data.names]),
            split_sha256=_sha256_json([part.tolist() for part in split]),
        )

    def verify(self, data: CaptionedImages) -> None:
        """Check counts, shape and checksums; where the data lies may change, so the source is not compared.

        Errors: UserError naming the first field in which ``data`` is not what this manifest describes.
        """
        difference = self.first_difference(Manifest.of(data), _PROSE)
        if difference is not None:
            name, got, wanted = difference
            raise UserError(
                f"the data of {data.source} is not the data of the manifest: {name} is {got!r}, "
                f"the manifest says {wanted!r}; restore the pictures and captions or start a new run"
            )


def _sha256_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()
