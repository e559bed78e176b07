"""The files that come with the package: ``icl-jax train repeats-2l`` works in any folder."""

from collections.abc import Callable
from pathlib import Path

from icl_jax.config.errors import UserError
from icl_jax.config.what_it_is import what_it_is


def packaged_folder(name: str) -> Path:
    """A folder of files that users read: a wheel holds it inside the package, a checkout has it beside the package."""
    inside, beside = (Path(__file__).parents[i] / name for i in (1, 2))
    return beside if beside.is_dir() and not inside.is_dir() else inside


def _config_files(bases: bool) -> dict[str, Path]:
    folders = [_folder(), _folder() / "bases"] if bases else [_folder()]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def builtin_config_names(*, bases: bool = False) -> list[str]:
    """Names of the configs that come with the package, sorted; a name is a file of configs/ without ``.toml``.

    With `bases` also those of configs/bases, which others extend and nobody trains.
    """
    return sorted(_config_files(bases))


def builtin_config_path(name: str, *, bases: bool = False) -> Path | None:
    """File of the built-in config of that name, or None if there is none."""
    return _config_files(bases).get(name)


def builtin_suite_names() -> list[str]:
    """Names of the suites that come with the package, sorted; a name is a file of configs/suites/ without ``.toml``."""
    return sorted(path.stem for path in (_folder() / "suites").glob("*.toml"))


def builtin_suite_path(name: str) -> Path | None:
    """File of the built-in suite of that name, or None if there is none."""
    return _folder() / "suites" / f"{name}.toml" if name in builtin_suite_names() else None


def config_file(name: str) -> Path:
    """The config that a command names: a file, or the name of one that comes with the package. Raises UserError."""
    return _file(name, builtin_config_path, "no such config file, and icl-jax comes with none of that name")


def suite_file(name: str) -> Path:
    """The suite that a command names: a file, or the name of one that comes with the package. Raises UserError."""
    names = ", ".join(builtin_suite_names())
    return _file(name, builtin_suite_path, f"no such suite; there are {names}, or give a TOML file")


def _file(name: str, builtin_path: Callable[[str], Path | None], missing: str) -> Path:
    """A folder of that name is no file: it does not hide what comes along."""
    path = Path(name)
    if path.is_file() or path.suffix == ".toml" or len(path.parts) != 1:
        return path
    found = builtin_path(name)
    if found is None:
        kind = what_it_is(path)
        raise UserError(f"{name}: is a {kind}, and no file: {missing}" if kind else f"{name}: {missing}")
    return found


def _folder() -> Path:
    return packaged_folder("configs")
