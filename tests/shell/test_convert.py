"""What is no checkpoint of a script is refused before anything is read from it."""

import pytest
import torch

from modeling_pgolf.errors import FormatError
from pgolf.convert import read_checkpoint


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("page.md", b"# Title", "page.md is no checkpoint: give the .safetensors or the .pt"),
        ("old.pt", b"\x80\x04cos\nsystem\n", "old.pt is no checkpoint"),
        ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{", "cut.safetensors cannot be read"),
        ("none.pt", None, "there is no checkpoint .*none.pt"),
    ],
)
def test_no_checkpoint(tmp_path, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=complaint):
        read_checkpoint(tmp_path / name)


def test_more_than_tensors_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2), "steps": [1, 2]}, tmp_path / "state.pt")
    with pytest.raises(FormatError, match="does not hold a state dict of tensors"):
        read_checkpoint(tmp_path / "state.pt")
