"""The packages' outer shape: names, exports, and what must not be shadowed."""

import importlib.util
import re
from pathlib import Path

import fangyan
import fangyan_kernels

ROOT = Path(__file__).parent.parent


def test_kernels_is_never_ours():
    """transformers imports Hugging Face's own package under that name."""
    spec = importlib.util.find_spec("kernels")
    assert spec is None or spec.origin is None or not Path(spec.origin).is_relative_to(ROOT)
    for folder in ("kernels", "trainer", "tests"):
        assert not (ROOT / folder / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_exports_exist():
    for package in (fangyan, fangyan_kernels):
        assert package.__all__ == sorted(package.__all__)
        for name in package.__all__:
            assert getattr(package, name) is not None


def test_kernels_do_not_import_the_trainer():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not re.search(
            r"^\s*(import|from)\s+fangyan\b", path.read_text(encoding="utf-8"), flags=re.M
        ), path


def test_distributions_share_one_version():
    assert fangyan.__version__ == fangyan_kernels.__version__
    requirements = (ROOT / "trainer" / "pyproject.toml").read_text(encoding="utf-8")
    (pinned,) = re.findall(r'"fangyan-kernels\[\w+\]==([^"]+)"', requirements)
    assert pinned == fangyan.__version__


def test_kernels_require_torch_and_triton_alone():
    """Whoever wants the ops installs no trainer: DeepSpeed, transformers and bitsandbytes stay out."""
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (required,) = re.findall(r"^dependencies = \[(.*?)^\]", settings, flags=re.M | re.S)
    assert re.findall(r'^ +"([\w-]+)', required, flags=re.M) == ["torch", "triton"]
