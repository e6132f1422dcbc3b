"""One encoder and its own head, trained alone: a baseline of MLA's Table 1.

`method.unimodal.modality` says which modality.
"""

from mla_cli.core.method import BaseMethod, Context
from mla_cli.errors import MlaError
from mla_cli.methods.late import Method as Late


class Method(Late):
    """`late` with one modality. Batches are drawn as if all took part, so it equals that part of `late`."""

    def __init__(self, context: Context, *, modality: str | None = None):
        choices = context.modalities
        if modality is None and len(choices) == 1:
            modality = choices[0]
        if modality not in choices:
            given = "is missing" if modality is None else f"must be one of {', '.join(choices)}, got {modality!r}"
            raise MlaError(f"`method.unimodal.modality` {given}", f"add `--set method.unimodal.modality={choices[0]}`")
        context.modalities = [modality]
        BaseMethod.__init__(self, context)
