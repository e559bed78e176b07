"""Snapshots of a run as a folder for the hub: `step{N}/` opens with `transformers`, README.md is the model card.

Neither torch nor transformers is imported here.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save

from icl_jax.config import UserError
from icl_jax.data.text.tokenizing import parse_tokenizer
from icl_jax.export.as_family import Form, form_of
from icl_jax.export.free_folder import free_folder
from icl_jax.export.model_card import PICTURE, is_analyzed, model_card
from icl_jax.report.figures.phase_change import FIGURE
from icl_jax.report.pictures import save_picture
from icl_jax.report.reported_run import open_runs
from icl_jax.rundir import RunDir
from icl_jax.rundir.files import reason
from icl_jax.rundir.manifest import SnapshotEntry

_HERE = epath.resource_path("icl_jax") / "export"
MODELING = "modeling_icl_jax.py"
ADAPTER = "transformer_lens_adapter.py"
_AUTO_MAP = {
    "AutoConfig": f"{MODELING.removesuffix('.py')}.IclJaxConfig",
    "AutoModelForCausalLM": f"{MODELING.removesuffix('.py')}.IclJaxForCausalLM",
}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    form: Form
    has_tokenizer: bool


def export_hub_folder(run: RunDir, out: str, entries: Sequence[SnapshotEntry]) -> Exported:
    """Write `out`, which must be new or empty; it appears whole.

    Raises UserError for a folder that holds something or cannot be written, and for a snapshot that is damaged.
    """
    folder, form, files = free_folder(out), form_of(run.config.model), _files_of_each(run)
    partial = folder.parent / f".{folder.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for entry in entries:
            _write_step(partial / f"step{entry.step}", run, entry, form, files)
        if form.is_own:
            for name in (MODELING, ADAPTER):
                (partial / name).write_text((_HERE / name).read_text())
        has_picture = is_analyzed(run) and save_picture(FIGURE, open_runs([str(run.path)]), partial / PICTURE)
        card = model_card(run, form, entries, has_picture=has_picture)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot write the export: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(folder, form, "tokenizer.json" in files)


def _files_of_each(run: RunDir) -> dict[str, str]:
    """The tokenizer's files, by name; none for a corpus of token ids."""
    tokenizer_json = run.read_tokenizer()
    if tokenizer_json is None:
        return {}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": run.config.model.n_ctx,
        "clean_up_tokenization_spaces": False,
    }
    bos_id = _bos_id(run)
    if bos_id is not None and (bos := parse_tokenizer(tokenizer_json).id_to_token(bos_id)):
        settings |= {"bos_token": bos, "eos_token": bos}
    return {"tokenizer.json": tokenizer_json, "tokenizer_config.json": json.dumps(settings, indent=1) + "\n"}


def _bos_id(run: RunDir) -> int | None:
    """What each row began with; in text it ends documents as well."""
    return run.load_held_out().bos_id if run.held_out_path.exists() else None


def _write_step(folder: Path, run: RunDir, entry: SnapshotEntry, form: Form, files: dict[str, str]) -> None:
    params = run.load_params(entry.step)
    folder.mkdir()
    bos_id = _bos_id(run)
    # Null where there is none: many classes have numbers by default.
    config = form.config | {"bos_token_id": bos_id, "eos_token_id": bos_id, "pad_token_id": None, "dtype": "float32"}
    if form.is_own:
        config["auto_map"] = _AUTO_MAP
        (folder / MODELING).write_text((_HERE / MODELING).read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    tensors = {name: np.asarray(array, order="C") for name, array in form.tensors(params).items()}
    metadata = {"format": "pt", "run_id": run.run_id, "step": str(entry.step), "sha256": entry.sha256}
    (folder / "model.safetensors").write_bytes(save(tensors, metadata=metadata))
