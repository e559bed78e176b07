"""What a family of models declares."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from icl_jax.config import ModelConfig, UserError

Arrays = dict[str, np.ndarray]
Fields = dict[str, Any]
"""Of a `ModelConfig`."""
Fold = Callable[[Arrays, ModelConfig, "Options"], None]
"""Changes arrays in place, whole: [layer, ...], float32; exact but for rounding."""


@dataclass(frozen=True)
class Layout:
    """How a file holds an array of ours, of one layer: the same numbers in another order, or among others."""

    read: Callable[[np.ndarray, ModelConfig], np.ndarray]
    """From the file's array to ours; it moves entries and changes none."""
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    """The file's, of ours."""

    def write(self, ours: np.ndarray, into: np.ndarray, model: ModelConfig) -> None:
        """Put the entries of ours where `read` takes them from."""
        into.reshape(-1)[self.read(np.arange(into.size).reshape(into.shape), model)] = ours


# Of config.json: what makes another model in training only, or none at all.
_HARMLESS = re.compile(
    r"_name_or_path|architectures|auto_map|transformers_version|(torch_)?dtype|use_cache|_commit_hash|id2label|label2id"
    r"|.*(dropout|pdrop)|layerdrop|.*init.*|pad_token_id|[bes]os_token_id|.*token_id|task_specific_params|summary_.*"
    r"|problem_type|return_dict|output_.*|gradient_checkpointing|pretraining_tp|model_type|tokenizer_class|.*_loss.*"
    r"|use_return_dict|_attn_implementation.*|attn_implementation|tf_legacy_loss|use_bfloat16|torchscript|prefix|finetuning_task"
    r"|is_decoder|chunk_size_feed_forward|.*_version|.*generation.*|min_length|max_length|do_sample|num_beams.*"
    r"|temperature|top_[kp]|typical_p|repetition_penalty|length_penalty|no_repeat_ngram_size|.*bad_words_ids|diversity_penalty"
    r"|num_return_sequences|early_stopping|remove_invalid_values|suppress_tokens|forced_.*|exponential_decay_length_penalty"
    r"|cross_attention_hidden_size|tie_encoder_decoder|tie_word_embeddings|pruned_heads|_sliding_window_pattern"
)  # fmt: skip


class Options:
    """The fields of a config.json, of which each must be read or be known to change nothing."""

    def __init__(self, raw: Mapping[str, Any], where: str, defaults: Mapping[str, Any]) -> None:
        self.where = where
        self._raw = dict(raw)
        self._defaults = dict(defaults)
        self._read: set[str] = set()
        self.dtype = np.dtype(np.float32)
        """That the embedding is saved in."""

    def replaced(self, **values: Any) -> "Options":
        """With other values; what is read of it counts as read here."""
        return self._changed(self._raw | values, self._defaults)

    def with_default(self, **values: Any) -> "Options":
        """With other defaults; what is read of it counts as read here."""
        return self._changed(self._raw, self._defaults | values)

    def _changed(self, raw: dict[str, Any], defaults: dict[str, Any]) -> "Options":
        other = Options(raw, self.where, defaults)
        other._read = self._read
        return other

    def get(self, *names: str) -> Any:
        """The first of these names that is given and not null, else the default of the last that has one."""
        self._read |= set(names)
        for name in names:
            if self._raw.get(name) is not None:
                return self._raw[name]
        for name in names:
            if name in self._defaults:
                return self._defaults[name]
        return None

    def has_default(self, *names: str) -> bool:
        """Whether the family knows one of these: others carry it from elsewhere."""
        return any(name in self._defaults for name in names)

    def number(self, *names: str) -> Any:
        """As `get`; raises UserError where it is no number."""
        value = self.get(*names)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{self.where}: {names[0]} = {value!r}: must be a number")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """Raise UserError by name unless the value is one of these: what is not represented is never ignored."""
        value = self.get(name)
        if value not in allowed:
            shown = " or ".join(repr(one) for one in allowed)
            raise UserError(f"{self.where}: {name} = {value!r}: not represented here, must be {shown}")

    def choice(self, name: str, choices: Mapping[str, str]) -> str:
        """What a word means. Raises UserError for one that is not known."""
        value = self.get(name)
        if value not in choices:
            known = ", ".join(choices)
            raise UserError(f"{self.where}: {name} = {value!r}: not represented here, must be one of {known}")
        return choices[value]

    def ignore(self, *names: str) -> None:
        """These change nothing."""
        self._read |= set(names)

    def ignore_all_but(self, *names: str) -> None:
        """Nothing else changes the model."""
        self._read |= self._raw.keys() - set(names)

    def check_all_read(self) -> None:
        """Raise UserError for an option that nothing has read: it may make another model. One that is off may stay."""
        for name, value in self._raw.items():
            is_off = value is None or value is False or value in ({}, [])
            if name not in self._read and not is_off and not _HARMLESS.fullmatch(name):
                allowed = "what it does to the model is not known; --ignore takes options that change nothing"
                raise UserError(f"{self.where}: unknown option {name} = {str(value)[:60]!r}: {allowed}")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Where a parameter lies in the files."""

    name: str
    """`{}` stands for the layer; no prefix of `Family.prefixes`."""
    layout: Layout | None = None
    """None: as it stands."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series of checkpoints that is known by the name of its repository or folder."""

    names: str
    """A pattern of shells, such as pythia-*."""
    tokens_per_step: int


@dataclass(frozen=True, kw_only=True)
class Family:
    """A line of `families.table`, declared in a file of its own."""

    name: str
    model_types: tuple[str, ...]
    """Of config.json."""
    defaults: Mapping[str, Any]
    """Of the options that config.json may lack, as `transformers` fills them in."""
    model: Callable[[Options], Fields]
    """Fields of the `ModelConfig`; n_ctx is the longest that the model takes."""
    parts: Mapping[str, Part]
    """Our parameters, and what is folded into them: names that end in _ (such as ln1_b_) are gone after `folds`."""
    folds: tuple[Fold, ...] = ()
    prefixes: tuple[str, ...] = ()
    """That tensors' names may have or not."""
    left_out: str = ""
    """Pattern of tensors that are no parameters: masks, tables."""
    norms_without_weights: Callable[[Options], bool] = lambda _options: False
    """They are 1 then."""
    config: Callable[[ModelConfig], dict[str, Any]] | None = None
    """The other way: config.json of a model of ours, exact where `model` reads the same out of it; None: no way."""
    architecture: str = ""
    """Class of `transformers`, where `config` is there."""
    series: tuple[Series, ...] = ()
