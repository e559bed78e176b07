"""README.md of an exported folder: what the models are, how they open, the curve, the numbers, the config."""

from collections.abc import Iterator, Sequence

from icl_jax import __version__
from icl_jax.analysis.dataset import load_dataset, outdated
from icl_jax.config import Config, dump_config
from icl_jax.export.as_family import Form
from icl_jax.report.phase_table import phase_table
from icl_jax.report.reported_run import millions
from icl_jax.rundir import RunDir
from icl_jax.rundir.manifest import SnapshotEntry

PICTURE = "phase_change.png"
_SECTIONS = ("model", "data", "train", "optimizer")


def model_card(run: RunDir, form: Form, entries: Sequence[SnapshotEntry], *, has_picture: bool) -> str:
    """Markdown with the metadata that the hub reads."""
    return "\n".join(_lines(run, form, entries, has_picture)) + "\n"


def is_analyzed(run: RunDir) -> bool:
    """All of it as it is now."""
    path = run.path / "analysis.zarr"
    return path.exists() and outdated(run, load_dataset(path)) is None


def _lines(run: RunDir, form: Form, entries: Sequence[SnapshotEntry], has_picture: bool) -> Iterator[str]:
    name, last = run.path.name, entries[-1]
    model = run.config.model
    yield from ("---", "library_name: transformers", "pipeline_tag: text-generation")
    yield from ("tags: [in-context-learning, induction-heads, training-dynamics]", "---", f"# {name}", "")
    mlp = f"MLPs of {model.d_mlp}" if model.d_mlp else "attention only"
    shape = f"{model.n_layers} layers of {model.n_heads} heads, d_model {model.d_model}, {mlp}"
    sizes = f"{model.positions} positions, vocabulary {model.vocab_size:,}, context {model.n_ctx}"
    yield f"A transformer language model of research on in-context learning: {shape}, {sizes}."
    if run.imported is not None:
        yield f"Its weights are those of {run.imported['source']}, imported by icl_jax {__version__}."
    else:
        yield f"Trained by icl_jax {__version__} on the corpus `{run.config.data.source}`, run {run.run_id}."
    tokens = f", to {millions(last.tokens)} tokens" if last.tokens else ""
    yield f"Each of {len(entries)} snapshots is a folder `step{{N}}`: step {entries[0].step} to {last.step}{tokens}."
    yield from ("", "## Use", "", "```python", "from transformers import AutoModelForCausalLM", "")
    trust = ", trust_remote_code=True" if form.is_own else ""
    yield f'model = AutoModelForCausalLM.from_pretrained("step{last.step}"{trust})'
    yield from ("```", "")
    if form.is_own:
        yield "No class of transformers computes this; `modeling_icl_jax.py` does, and is all the code that runs."
    else:
        yield f"`{form.family.architecture}` computes it exactly: the file has the run's numbers, unchanged."
    yield "Rows of training began with `bos_token_id` of config.json."
    if (run.root / "tokenizer.json").exists():
        yield "Give it too: `add_special_tokens` does not. It also ends a document."
    else:
        yield "The corpus is one of token ids, so there is no tokenizer."
    if has_picture:
        yield from ("", "## Curve", "", f"![ICL score, heads and loss by position over training]({PICTURE})")
    if is_analyzed(run):
        numbers = phase_table(load_dataset(run.path / "analysis.zarr").load())
        yield from ("", "## Numbers", "", "```", *numbers, "```")
    yield from ("", "## Snapshots", "", "| step | tokens | SHA-256 of the parameters |", "|---|---|---|")
    yield from (f"| {entry.step} | {entry.tokens} | {entry.sha256} |" for entry in entries)
    yield from ("", "## Config", "", "```toml", *_config(run.config, is_imported=run.imported is not None), "```")


def _config(config: Config, *, is_imported: bool) -> list[str]:
    """The sections that say what was trained on what; of an imported run the model alone."""
    kept = _SECTIONS[:1] if is_imported else _SECTIONS
    lines, is_kept = [], False
    for line in dump_config(config).splitlines():
        if line.startswith("["):
            is_kept = line.strip("[]").split(".")[0] in kept
        if is_kept:
            lines.append(line)
    return lines[:-1] if lines and not lines[-1] else lines
