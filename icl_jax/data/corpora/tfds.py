"""The ``tfds:`` corpora: text sets of TensorFlow Datasets."""

from dataclasses import dataclass, field

from icl_jax.config import Config
from icl_jax.config.checks import check_types, require
from icl_jax.config.corpora import CorpusKind, Options
from icl_jax.config.sameness import FREE
from icl_jax.data.corpora.text import TextCorpus, open_text
from icl_jax.data.corpus import Progress

_field = field  # which the class below has one of


@dataclass(frozen=True, kw_only=True, slots=True)
class TfdsOptions(Options):
    """A text set of TensorFlow Datasets."""

    field: str = "text"
    """The text feature."""
    split: str = "train"
    """The split, TFDS slicing syntax allowed."""
    data_dir: str = _field(default="", metadata=FREE)
    """Folder of prepared sets; empty: TFDS's own default."""

    def __post_init__(self) -> None:
        check_types("data.tfds", self)
        for name in ("field", "split"):
            require(bool(getattr(self, name)), f"data.tfds.{name}", getattr(self, name), "must not be empty")


def open_corpus(config: Config, progress: Progress | None = None) -> TextCorpus:
    """The texts of a split, prepared and tokenized. Raises UserError as :func:`icl_jax.data.open_corpus` does."""
    from icl_jax.data.text.tfds_documents import tfds_documents  # TensorFlow Datasets takes half a second to import

    options = config.data.options_of(TfdsOptions)
    name = config.data.source.partition(":")[2]
    documents = tfds_documents(name, split=options.split, field=options.field, data_dir=options.data_dir)
    return open_text(documents, config, progress)


CORPUS = CorpusKind(open=open_corpus, options=TfdsOptions, argument="NAME[/CONFIG][:VERSION]")
