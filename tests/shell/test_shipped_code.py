"""The code of the challenge's records: helpers beside the script, packed scripts, and what cannot be read."""

import base64
import lzma
import zlib

import pytest
from challenge_folder import verdicts, write_folder

from pgolf.audit.shipped_code import read_code

HELPERS = {
    "import": "from kernels import fast\n",
    "package": "import fused.ops\n",
    "name": "import torch\nkernel = load(__file__ + '/../fused/kernel.cu')\n",
    "exec": "exec(open(__file__.replace('train_gpt.py', 'kernels.py')).read())\n",
}


@pytest.mark.parametrize("way", HELPERS)
def test_p22_helpers_beside_the_script_are_counted(tmp_path, way):
    folder = write_folder(tmp_path / "record", script=HELPERS[way])
    (folder / "fused").mkdir()
    for name in ("kernels.py", "fused/ops.py", "fused/kernel.cu", "prepare_data.py"):
        (folder / name).write_text("# " + "x" * 1_000_000)
    used = {"import": "kernels.py", "package": "fused/ops.py", "name": "fused/kernel.cu", "exec": "kernels.py"}[way]
    assert list(read_code(folder).files) == ["train_gpt.py", used] and not read_code(folder).unread
    assert verdicts(folder)["B1", "bytes as shipped"] == "FAIL"


def test_helpers_of_helpers(tmp_path):
    folder = write_folder(tmp_path / "record", script="import one\n")
    (folder / "one.py").write_text("import two, train_gpt\n")
    (folder / "two.py").write_text("import one\n")
    assert sorted(read_code(folder).files) == ["one.py", "train_gpt.py", "two.py"]


def packed(source, how):
    """A script that carries another one, as the challenge's wrappers do."""
    filters = [{"id": lzma.FILTER_LZMA2}]
    text = {
        "lzma": base64.b85encode(lzma.compress(source)),
        "raw": base64.b85encode(lzma.compress(source, lzma.FORMAT_RAW, filters=filters)),
        "zlib": base64.b64encode(zlib.compress(source)),
        "unknown": base64.b85encode(bytes(byte ^ 85 for byte in zlib.compress(source))),
    }[how]
    return f'import lzma as L,base64 as B\nexec(L.decompress(B.b85decode("{text.decode()}")))\n'


@pytest.mark.parametrize("how", ["lzma", "raw", "zlib"])
def test_packed_scripts_are_followed(tmp_path, how):
    noise = "".join(f"value_{i} = {i * i * 7919 % 104729}\n" for i in range(400))
    folder = write_folder(tmp_path / "record", script=packed(f"{noise}import kernels\n".encode(), how))
    (folder / "kernels.py").write_text("# fast\n")
    code = read_code(folder)
    assert list(code.files) == ["train_gpt.py", "kernels.py"] and not code.unread


def test_source_that_cannot_be_read_is_unknown(tmp_path):
    noise = "".join(f"value_{i} = {i * i * 7919 % 104729}\n" for i in range(400)).encode()
    folder = write_folder(tmp_path / "record", script=packed(noise, "unknown"))
    assert read_code(folder).unread == ("train_gpt.py",)
    shown = verdicts(folder)
    assert shown["B1", "bytes as shipped"] == shown["C6", "settings that score a part"] == "UNKNOWN"
    large = write_folder(tmp_path / "large", script=packed(noise, "unknown"), model=16_000_000)
    assert verdicts(large)["B1", "bytes as shipped"] == "FAIL", "what could not be read would only add to it"


def test_statements_of_a_later_python_are_followed_and_unknown(tmp_path):
    folder = write_folder(tmp_path / "record", script="x = f'{', '.join(y)}' +\nif x:from kernels import fast\n")
    (folder / "kernels.py").write_text("# fast\n")
    code = read_code(folder)
    assert list(code.files) == ["train_gpt.py", "kernels.py"] and code.unread == ("train_gpt.py",)
