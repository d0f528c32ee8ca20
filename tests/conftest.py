"""Strict settings for every test, and the few fixtures that several modules share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]

# What was compiled once is kept for the next run, and for the programs that tests start.
COMPILED = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "compiled")
)
jax.config.update("jax_compilation_cache_dir", COMPILED)

# Before the first array: two CPU devices, no silent promotion of dtypes or ranks.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Programs in the background may be deaf to Ctrl-C; tests and the programs they start are not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before the package is imported: check every shape and dtype that a signature names. Where a float
# is asked for an int will do, as everywhere in Python (PEP 484).
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
install_import_hook("rmacjax", f"{__name__}.checked")

settings.register_profile("here", deadline=None, max_examples=30)
settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

SHARED = "RMACJAX_SHARED"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real photos and weights that lie beside the project, never in it."""
    folder = Path(os.environ.get(SHARED) or ROOT.parent / "shared")
    if not (folder / "weights").is_dir() or not (folder / "data").is_dir():
        pytest.skip(f"no real photos and weights in {folder}; set {SHARED} to their folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory) -> None:
    """What commands keep for the next time goes away with the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def programs_forgotten() -> Iterator[None]:
    """Let go of what a module compiled: each program is mapped memory, of which there is so much.

    Linux allows 65,530 mappings a process by default; without this, all tests together need more.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    """Return random numbers that are the same in every run."""
    return np.random.default_rng(20160502)


@pytest.fixture
def plain(monkeypatch, tmp_path_factory) -> None:
    """Commands show no colours in a wide terminal, and keep nothing in this user's cache."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("RMACJAX_TRACEBACK", raising=False)


@pytest.fixture
def file(tmp_path) -> Iterator[Path]:
    """A place for one file, which is gone after the test: networks are large."""
    path = tmp_path / "file"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def not_measured(request, monkeypatch) -> None:
    """How loud random networks are does not matter, and takes time to find out."""
    if "measured" not in request.fixturenames:
        from rmacjax.weights import conversion

        monkeypatch.setattr(conversion, "measure_activation_scale", lambda *_: 0.25)


@pytest.fixture
def measured() -> None:
    """For the test that wants to know."""
