"""Specs of the gallery's made-up data: fields that no open data set gives. Light."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from medvlp_core import ComponentSpec, Contract, Field, Role, component, param

#: What may be seen on a phantom, in the order of its label vectors.
FINDINGS = ("nodule", "consolidation", "effusion")
#: The cells of a phantom's table.
CELLS = ("age", "weight", "heart_ratio", *(f"{name}_size" for name in FINDINGS))
#: The classes of a volume's voxels, as their prompts name them.
CLASSES = ("background", "a computed tomography of a lung", "a computed tomography of a lesion")
#: What a phantom has beside an image and a text, and may lack.
OPTIONAL = ("heatmap", "gaze", "prior", "table", "text")


@component("gallery.phantom", role=Role.DATA, build="medvlp_gallery.data:Phantoms")
@attrs.frozen(kw_only=True)
class PhantomSpec(ComponentSpec):
    """Made-up chests with fields for every system: heat maps, gaze, prior images, lung masks, tables, labels.

    Nothing of it comes from patients, and heat maps, gaze, masks, priors, tables and texts never do: with ``folder`` the pictures
    are real ones, on which findings are drawn. It shows that a system runs, not what it is worth.
    """

    folder: str | None = param(
        None, help="folder with PNG or JPEG radiographs to draw on; null = drawn chests instead", is_path=True
    )
    records: int = param(24, help="records for training; a third of it for validation", at_least=3)
    size: int = param(64, help="side of the image, pixels", at_least=16)
    absent: tuple[str, ...] = param((), help="fields that every third record lacks", one_of=OPTIONAL)

    def contract(self) -> Contract:
        """All fields; those that nothing needs are not read."""
        return Contract(
            fields={
                "heatmap": Field("B Hh Wh", kind="map", on="image"),
                "gaze": Field("B S Hg Wg", kind="map", on="image"),
                "sentences": Field("B S Ls", kind="text"),
                "labels": Field(("B", len(FINDINGS)), kind="vector"),
                "text_labels": Field(("B", len(FINDINGS)), kind="vector"),
                "prior": Field("B C H W", kind="image"),
                "lungs": Field("B Hm Wm", kind="mask", on="image"),
                "table": Field(("B", len(CELLS)), kind="vector"),
            }
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Whole records, and some that lack something."""
        return (cls(records=6, size=32), cls(records=6, size=32, absent=("prior", "gaze")))


@component("gallery.volumes", role=Role.DATA, build="medvlp_gallery.data:Volumes")
@attrs.frozen(kw_only=True)
class VolumesSpec(ComponentSpec):
    """Made-up volumes of a lung with a lesion, a mask of both, and a prompt for each class; most training volumes have no mask."""

    records: int = param(12, help="volumes for training; a third of it for validation", at_least=3)
    size: int = param(16, help="side of the volume, voxels", at_least=8)
    labelled_every: int = param(2, help="every how many-th volume has a mask; 1 = all", at_least=1)

    def contract(self) -> Contract:
        """A volume, its mask, and one prompt for each class, the same for all volumes."""
        return Contract(
            fields={
                "image": Field("B C D H W", kind="image"),
                "organs": Field("B Dm Hm Wm", kind="mask", on="image", dtype="int"),
                "prompts": Field((len(CLASSES), "Lp"), kind="text"),
            }
        )

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """A volume with a mask is among those for training."""
        if self.labelled_every > self.records:
            yield "labelled_every", f"none of {self.records} volumes would have a mask", f"at most {self.records}"

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Half and all with masks."""
        return (cls(records=6, size=8), cls(records=6, size=8, labelled_every=1))


SPECS: tuple[type[ComponentSpec], ...] = (PhantomSpec, VolumesSpec)
