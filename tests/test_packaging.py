"""What is built installs and runs away from the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, checkout], check=True)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with icl_jax installed from the wheel, without its dependencies."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, "--target", target, wheel], check=True)
    return target


def run(installed: Path, *command: str | Path) -> str:
    """Standard output of a command that finds the installed icl_jax before the checkout's."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, env=environment, cwd=installed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def config_names(checkout: Path) -> set[str]:
    return {path.name for path in (checkout / "configs").glob("*.toml")}


def config_files(checkout: Path) -> set[str]:
    """Configs and suites, as paths below configs/."""
    return {path.relative_to(checkout / "configs").as_posix() for path in (checkout / "configs").rglob("*.toml")}


def test_wheel_holds_package_and_configs_only(checkout: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
        metadata = archive.read(f"{about}/METADATA").decode()
    modules = {path.relative_to(checkout).as_posix() for path in (checkout / "icl_jax").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    prefix = "icl_jax/configs/"
    assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == config_files(checkout)
    assert "icl_jax/py.typed" in names
    launch = {name.rpartition("/")[2] for name in names if name.startswith("icl_jax/launch/")}
    assert launch == {path.name for path in (checkout / "launch").iterdir()}
    page = {name.rpartition("/")[2] for name in names if name.startswith("icl_jax/report/page/")}
    assert page == {"page.html", "page.css", "page.js"}
    assert {name.split("/")[0] for name in names} == {"icl_jax", about}
    assert "License-Expression: Apache-2.0" in metadata
    assert f"{about}/licenses/LICENSE" in names


def test_source_distribution_can_be_worked_in(checkout: Path, dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    top = {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt", "pyproject.toml", "tests/conftest.py"}
    assert names >= top
    assert "launch/slurm.sbatch" in names
    assert {name.removeprefix("configs/") for name in names if name.startswith("configs/")} == config_files(checkout)


def test_installed_configs_are_the_wheels(checkout: Path, installed: Path) -> None:
    code = "from icl_jax.config import builtin as b; print(b.builtin_config_path('smoke'), *b.builtin_config_names())"
    path, *names = run(installed, sys.executable, "-c", code).split()
    assert Path(path) == installed / "icl_jax" / "configs" / "smoke.toml"
    assert {f"{name}.toml" for name in names} == config_names(checkout)


def test_installed_launch_finds_its_templates(installed: Path) -> None:
    command = [installed / "bin" / "icl-jax", "launch", "smoke", "--on", "slurm", "--dry-run"]
    assert "#SBATCH --job-name=smoke" in run(installed, *command)


def test_installed_command_shows_its_verbs(installed: Path) -> None:
    help_text = run(installed, installed / "bin" / "icl-jax", "--help")
    assert "train" in help_text
    assert "verify" in help_text


def test_pins_are_names_and_versions_and_agree_with_the_extras(checkout: Path) -> None:
    lines = (checkout / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition(" ;")[0] for line in lines if line and not line.startswith("#")]
    assert all(pin.count("==") == 1 and "/" not in pin and not pin.startswith("-") for pin in pins)
    exact = {"tensorflow-cpu==2.21.0", "torch==2.13.0", "hatchling==1.33.0"}
    assert exact <= set(pins)
    project = (checkout / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'"{pin}"' in project for pin in exact)
