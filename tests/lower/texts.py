"""Short texts for the tests of the lowering."""

from attncc.diagnostics import AttnError
from attncc.ir.attention import Attention
from attncc.lower import load

HEAD = "    heads q = 8, kv = 2\n    dim 64\n    dtype bf16\n"
TENSORS = "    tensor table: f32[h, 16]\n    tensor doc: i32[b, seq_kv]\n    tensor flags: bool[hkv]\n"


def attention(
    body: str = "", before: str = "", parameters: str = "n: int = 4, on: bool = false", **values
) -> Attention:
    """An attention of eight heads with the statements `body` and two tensors declared."""
    lines = "".join(f"    {line.strip()}\n" for line in body.splitlines() if line.strip())
    return load(f"{before}\nattention x({parameters}) {{\n{HEAD}{TENSORS}{lines}}}\n", **values)


def mask(text: str, **more):
    return attention(f"mask {text}", **more).mask


def bias(text: str, **more):
    """What a bias adds: the expression, without the scaled dot product."""
    return attention(f"bias {text}", **more).score.args[1]


def refusal(body: str, **more) -> str:
    """The rendered diagnostics of a body that is refused."""
    try:
        attention(body, **more)
    except AttnError as error:
        return str(error)
    raise AssertionError(f"accepted: {body}")
