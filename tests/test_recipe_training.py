"""The base's training: its schedule, and batches that depend on the step alone."""

from random import Random

import gguf
import numpy as np
import pytest

from logo_local import config

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.recipe import corpus, export_gguf, tokenizer, train_base  # noqa: E402
from models.recipe.__main__ import SEED  # noqa: E402


def test_the_rate_goes_down_twice():
    first, late = train_base.STEPS, train_base.STEPS + train_base.LATE_STEPS
    assert train_base.rate(0) < 0.02
    assert train_base.rate(first // 3) == 1.0
    assert train_base.rate(first - 1) < 0.01
    assert train_base.rate(first) == 0.5
    assert 0 < train_base.rate(late - 1) < 0.01


@pytest.mark.parametrize("shares", [corpus.SHARES, corpus.LATE_SHARES])
def test_shares_leave_room_for_plain_text(shares):
    rng = Random(0)
    assert shares.keys() == corpus.SHARES.keys()
    plain = sum(len(corpus.base_document(rng, 0.5, shares)) == 1 for _ in range(2000))
    assert plain / 2000 == pytest.approx(1 - sum(shares.values()), abs=0.03)
    assert plain > 0


@pytest.mark.filterwarnings("ignore")  # of the libraries, about themselves
def test_the_shipped_base_can_be_trained_on(tmp_path):
    """The recipe still makes its tokenizer, and its weights come back as they were written."""
    published = config.demo_folder() / "logo-demo.gguf"
    tokenizer.train_tokenizer(tmp_path / "tokenizer", SEED)
    model = export_gguf.read_back(published, tokenizer.load_tokenizer(tmp_path / "tokenizer"))
    written = {t.name: t.data for t in gguf.GGUFReader(published).tensors}
    for name, array in export_gguf.tensors(model).items():
        np.testing.assert_array_equal(array, written[name].astype(np.float32), err_msg=name)
    tokenizer.train_tokenizer(tmp_path / "other", SEED + 1)
    with pytest.raises(ValueError, match="other tokens"):
        export_gguf.read_back(published, tokenizer.load_tokenizer(tmp_path / "other"))
