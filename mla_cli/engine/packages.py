"""The versions of packages that a run's numbers rest on, without importing any of them."""

import platform
from importlib import metadata

from mla_cli.schema import Recipe

PACKAGES = ("mla-cli", "torch", "torchvision", "torchaudio", "numpy", "pandas", "pyarrow", "safetensors")
LIBRARIES = ("timm", "transformers")  # of encoders that have their name; recorded where a recipe uses them


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions, without importing anything."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def packages_of(recipe: Recipe) -> tuple[str, ...]:
    """What a run's numbers rest on: `PACKAGES`, and those of the extra `hf` that its encoders or features use."""
    makers = {"tokenizer", "extractor"}  # by the `tokens` of a text, by the `kind` of a sound
    used = {section.name for section in recipe.encoders.values()}
    if any(getattr(spec, "tokens", spec.kind) in makers for spec in recipe.features.values()):
        used.add("transformers")
    return (*PACKAGES, *(name for name in LIBRARIES if name in used))
