"""TensorFlow Datasets sets, prepared and read without TensorFlow."""

import json
import shutil
import struct
import subprocess
import sys
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import google_crc32c
import numpy as np
import pytest

from icl_jax.config import Config, UserError
from icl_jax.data import open_corpus
from icl_jax.data.text import tfds_prepare
from icl_jax.data.text.tfds_documents import TfdsDocuments, tfds_documents
from tests.waiting import LAST_RESORT_S

BUILDERS = """
import numpy as np
import tensorflow_datasets as tfds


class LocalStories(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.3")

    def _info(self):
        features = {"text": tfds.features.Text(), "title": tfds.features.Text(), "n": np.int64,
                    "words": tfds.features.Sequence(tfds.features.Text())}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 500), "test": self._generate_examples(500, 550)}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            text = " " if i == 7 else f"Story number {i}: the häuser of {i * i} <|bos|>"
            yield i, {"text": text, "title": f"title {i}", "n": i, "words": ["a", "b"]}


class Numbers(LocalStories):
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"n": np.int64}))


class Broken(LocalStories):
    def _generate_examples(self, start, stop):
        raise RuntimeError("the source is gone\\nand more")
        yield


class NeedsBeam(LocalStories):
    def _generate_examples(self, start, stop):
        import apache_beam_is_not_here
        yield


class NeedsTensorFlow(LocalStories):
    def _generate_examples(self, start, stop):
        raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
        yield
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for TFDS; the module ``icl_jax_test_builders`` can be imported while it is in use."""
    modules = tmp_path_factory.mktemp("modules")
    (modules / "icl_jax_test_builders.py").write_text(BUILDERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(modules)
        yield tmp_path_factory.mktemp("tfds")


def documents_of(name: str, data_dir: Path, *, field: str = "text", split: str = "train") -> TfdsDocuments:
    return tfds_documents(name, split=split, field=field, data_dir=str(data_dir))


@pytest.fixture(scope="module")
def prepared(data_dir: Path) -> Path:
    """The data_dir, with LocalStories prepared in it."""
    documents_of("icl_jax_test_builders.LocalStories", data_dir)
    return data_dir


def test_a_set_is_prepared_and_read_whole(prepared: Path) -> None:
    assert list(prepared.glob("local_stories/1.2.3/*.array_record*"))
    texts = list(documents_of("local_stories", prepared))
    assert sorted(texts) == sorted(f"Story number {i}: the häuser of {i * i} <|bos|>" for i in range(500) if i != 7)
    titles = list(documents_of("local_stories:1.2.3", prepared, field="title", split="test"))
    assert sorted(titles) == [f"title {i}" for i in range(500, 550)]
    both = documents_of("local_stories", prepared, field="title", split="train[:10%]+test")
    assert len(list(both)) == 100


def test_a_corpus_of_it_trains_without_tensorflow_in_a_process_without_the_builder(
    prepared: Path, checkout: Path, make_config: Callable[..., Config]
) -> None:
    fields = {"source": "tfds:local_stories", "data_dir": str(prepared), "held_out_rows": 5}
    program = (
        "import json, sys\nfrom icl_jax.config import *\nfrom icl_jax.data import *\n"
        "from icl_jax.data.corpora.tfds import TfdsOptions\nfields = json.loads(sys.argv[1])\n"
        "data = DataConfig(options=TfdsOptions(data_dir=fields.pop('data_dir')), **fields)\n"
        "config = Config(model=ModelConfig(vocab_size=300, n_ctx=19), data=data, probes=ProbeConfig(held_out_rows=1))\n"
        "with read_batches(open_corpus(config), seed=0, batch_size=4) as batches:\n"
        "    print(next(batches).tolist())\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program, json.dumps(fields)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout, timeout=LAST_RESORT_S)
    assert done.returncode == 0, done.stderr
    corpus = open_corpus(make_config(**fields))
    from icl_jax.data import row_ids

    np.testing.assert_array_equal(json.loads(done.stdout), corpus.rows(row_ids(0, 0, 4, corpus.n_rows)))
    assert "tensorflow" not in sys.modules
    # The 499 documents, and the <|bos|> in their text is text.
    assert corpus.store.manifest.n_documents == 499  # type: ignore[attr-defined]


def as_tfrecord(prepared: Path, to: Path) -> Path:
    """Copy a prepared set as TensorFlow would have written it by default, in two shards."""
    from array_record.python.array_record_module import ArrayRecordReader

    def crc(data: bytes) -> bytes:
        value = google_crc32c.value(data)
        return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    folder = to / "local_stories" / "1.2.3"
    shutil.copytree(prepared / "local_stories" / "1.2.3", folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        (old,) = folder.glob(f"local_stories-{split['name']}.array_record*")
        reader = ArrayRecordReader(str(old))
        records = reader.read(0, reader.num_records())
        reader.close()
        old.unlink()
        half = len(records) // 3
        split["shardLengths"] = [str(half), str(len(records) - half)]
        for i, part in enumerate((records[:half], records[half:])):
            new = folder / f"local_stories-{split['name']}.tfrecord-{i:05}-of-00002"
            lengths = [struct.pack("<Q", len(record)) for record in part]
            framed = [n + crc(n) + record + crc(record) for n, record in zip(lengths, part, strict=True)]
            new.write_bytes(b"".join(framed))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize("split", ["train", "train[10%:50%]", "test+train[150:200]"])
def test_a_set_in_tensorflows_own_format_reads_the_same(prepared: Path, tmp_path: Path, split: str) -> None:
    folder = as_tfrecord(prepared, tmp_path)
    texts = list(documents_of("local_stories", tmp_path, split=split))
    assert texts == list(documents_of("local_stories", prepared, split=split))
    shard = folder / "local_stories-train.tfrecord-00001-of-00002"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged TFRecord"):
        list(documents_of("local_stories", tmp_path))
    shard.unlink()
    with pytest.raises(UserError, match=r"local_stories-train.tfrecord.*: cannot read a shard"):
        documents_of("local_stories", tmp_path)


def test_identity_follows_field_split_and_files(prepared: Path, tmp_path: Path) -> None:
    as_tfrecord(prepared, tmp_path)
    found = [
        documents_of("local_stories", prepared),
        documents_of("local_stories", prepared, field="title"),
        documents_of("local_stories", prepared, split="test"),
        documents_of("local_stories", prepared, split="train[:50%]"),
        documents_of("local_stories", tmp_path),
    ]
    assert len({documents.identity for documents in found}) == len(found)
    assert documents_of("local_stories", prepared).identity == found[0].identity


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "local_storys",
            {},
            "'tfds:local_storys': must be a set of TensorFlow Datasets or one prepared in data.tfds.data_dir",
        ),
        ("tiny_shakespear", {}, "did you mean 'tiny_shakespeare'?"),
        ("local_stories:9.9.9", {}, "'tfds:local_stories:9.9.9': "),
        ("bad name", {}, "'tfds:bad name': Parsing builder name"),
        ("tiny_shakespeare:9.9.9", {}, "'tfds:tiny_shakespeare:9.9.9': Dataset tiny_shakespeare cannot be loaded at"),
        ("no_such_module.Builder", {}, "cannot import no_such_module.Builder: No module named 'no_such_module'"),
        ("icl_jax_test_builders.NoSuch", {}, "cannot import icl_jax_test_builders.NoSuch: "),
        (
            "local_stories",
            {"field": "txt"},
            "data.tfds.field = 'txt': must be a text feature of 'tfds:local_stories': 'text', 'title'",
        ),
        ("wikipedia/20230601.en", {"field": "body"}, "must be a text feature of .*: 'text', 'title'"),
        ("local_stories", {"field": "words"}, "data.tfds.field = 'words': must be a text feature"),
        ("icl_jax_test_builders.Numbers", {}, "data.tfds.field = 'text': must be a text feature of .*: it has none"),
        (
            "local_stories",
            {"split": "dev"},
            r"data.tfds.split = 'dev': Unknown split 'dev'. Should be one of ",
        ),
        ("local_stories", {"split": "train[:x]"}, r"data.tfds.split = 'train\[:x\]': "),
        ("icl_jax_test_builders.Broken", {}, "cannot be prepared: RuntimeError: the source is gone$"),
        ("icl_jax_test_builders.NeedsBeam", {}, "cannot be prepared: ModuleNotFoundError: .*apache_beam_is_not_here"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(prepared: Path, name: str, fields: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        documents_of(name, prepared, **fields)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["tiny_shakespeare", "icl_jax_test_builders.NeedsTensorFlow"])
def test_a_set_that_needs_tensorflow_says_so(prepared: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds_prepare.importlib.util, "find_spec", lambda _: None)
    message = r'needs TensorFlow to prepare: pip install "icl-jax\[tfds\]"'
    with pytest.raises(UserError, match=f"data.source = 'tfds:{name}': {message}"):
        documents_of(name, prepared)


def test_no_network_is_said_at_once(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, timeout: float) -> None:
        assert timeout <= 10
        raise urllib.error.URLError("name not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(UserError, match=r"'tfds:ag_news_subset': no network: drive.google.com: name not known"):
        documents_of("ag_news_subset", prepared, field="description")


def test_the_network_is_asked_only_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(request: Any, timeout: float) -> None:
        asked.append(request.full_url)
        raise urllib.error.HTTPError(request.full_url, 405, "no HEAD here", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    url = "https://example.invalid/a.zip"
    tfds_prepare.check_network(SimpleNamespace(url_infos={}, _data_dir_root=tmp_path), "x")
    assert asked == []
    (tmp_path / "downloads" / "extracted").mkdir(parents=True)
    tfds_prepare.check_network(SimpleNamespace(url_infos={url: None}, _data_dir_root=tmp_path), "x")
    assert asked == [url]
    (tmp_path / "downloads" / "a.zip").write_text("downloaded before")
    tfds_prepare.check_network(SimpleNamespace(url_infos={url: None}, _data_dir_root=tmp_path), "x")
    assert asked == [url]


def test_tensorflow_gets_a_process_of_its_own(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=len(commands) - 1, stdout="chatter\nValueError: no\n")

    builder = SimpleNamespace(url_infos={})
    monkeypatch.setattr(tfds_prepare, "uses_tensorflow", lambda _: True)
    monkeypatch.setattr(tfds_prepare.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(builder, "_data_dir_root", prepared, raising=False)
    tfds_prepare.prepare(builder, "x/y:1.0.0", "")
    assert commands == [[sys.executable, "-m", "icl_jax.data.text.tfds_prepare", "x/y:1.0.0", ""]]
    with pytest.raises(UserError, match=r"data.source = 'tfds:x': cannot be prepared: ValueError: no$"):
        tfds_prepare.prepare(builder, "x", "")


def test_the_process_says_why_it_failed(tmp_path: Path, checkout: Path) -> None:
    """Without TensorFlow it cannot load it, with TensorFlow it cannot find the set: one line either way."""
    command = [sys.executable, "-m", "icl_jax.data.text.tfds_prepare", "no_such_set", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout, timeout=LAST_RESORT_S)
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "tensorflow" in done.stdout.lower()
