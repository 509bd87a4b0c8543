"""Names, folders and hub ids; the manifest and every way in which a file can be bad."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bridge import embedded, manifest, store
from bridge.errors import BridgeError, HubError, OptionError, UnknownModelError, WeightsError


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder with two models that share a file, and its manifest."""
    root = tmp_path / "weights"
    for name in ("emoji-xl/unet", "emoji-xl/text_encoder", "emoji-clip-2/text_encoder"):
        (root / name).mkdir(parents=True)
    (root / "emoji-xl/unet/model.safetensors").write_bytes(b"unet" * 100)
    (root / "emoji-xl/text_encoder/model.safetensors").write_bytes(b"text" * 100)
    (root / "emoji-xl/model_index.json").write_text("{}")
    index = {"weight_map": {"a": "../../emoji-xl/text_encoder/model.safetensors"}}
    (root / "emoji-clip-2/text_encoder/model.safetensors.index.json").write_text(json.dumps(index))
    (root / "README.md").write_text("not listed")
    (root / "emoji-xl/README.md").write_text("not listed")
    (root / "emoji-xl/.cache").write_text("not listed")
    manifest.write_manifest(root)
    monkeypatch.setenv("BRIDGE_WEIGHTS", str(root))
    return root


# ---------------------------------------------------------------- names


def test_an_embedded_name_is_its_folder(weights: Path) -> None:
    assert store.resolve("emoji-xl") == weights / "emoji-xl"


def test_weights_lie_in_the_clone_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRIDGE_WEIGHTS", raising=False)
    assert embedded.weights_dir() == Path(store.__file__).parent.parent / "weights"


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert store.resolve(tmp_path) == tmp_path
    assert store.resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("emoji-xxl", "'emoji-xl'"),
        ("emoji_clip_2", "'emoji-clip-2'"),
        ("EMOJI-LLAVA", "'emoji-llava'"),
        ("sdx", "'sdxl'"),
        ("sd-1.5", "'sd15'"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownModelError, match="did you mean") as caught:
        store.resolve(name)
    assert near in str(caught.value)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["zzzzqqq", "/no/such/folder", "./nowhere/at/all", "a\nb"])
def test_a_name_like_nothing_lists_what_exists(name: str) -> None:
    with pytest.raises(UnknownModelError, match="Embedded models: emoji-xl") as caught:
        store.resolve(name)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("model", [None, 3, "", "  ", b"emoji-xl", "a\0b", ["emoji-xl"]])
def test_what_is_no_name_at_all(model: object) -> None:
    with pytest.raises(UnknownModelError, match="model must be"):
        store.resolve(model)  # type: ignore[arg-type]


def test_a_single_file_checkpoint_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "v1-5.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UnknownModelError, match=r"is a file.*from_single_file"):
        store.resolve(path)


def test_a_path_object_is_never_a_hub_id() -> None:
    with pytest.raises(UnknownModelError, match="No model 'owner/name'"):
        store.resolve(Path("owner/name"))


def test_a_revision_needs_a_hub(tmp_path: Path, weights: Path) -> None:
    for model in (tmp_path, "emoji-xl"):
        with pytest.raises(OptionError, match="revision='main'"):
            store.resolve(model, revision="main")


# ---------------------------------------------------------------- hub


@pytest.mark.parametrize("model", ["owner/no-such-model", "sd15", "sd21", "sdxl"])
def test_a_hub_id_without_a_network(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    # Nothing listens on this port, so the connection is refused as without a network; the test
    # does not depend on whether the machine has one.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(HubError) as caught:
        store.resolve(model)
    assert sum(waits) < 15  # between its attempts
    message = str(caught.value)
    assert store.HUB_IDS.get(model, model) in message
    assert "hf download" in message and "pass that folder" in message
    assert "emoji-xl" in message
    assert (repr(model) in message) and ("If you meant a folder" in message) == ("/" in model)


def test_offline_mode_is_the_same_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="could not be fetched"):
        store.resolve("owner/no-such-model")


def test_a_malformed_hub_id() -> None:
    with pytest.raises(HubError, match="no valid hub id"):
        store.resolve("owner/two--dashes..")


def test_a_full_disk_is_not_a_missing_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(HubError, match=r"no room .* on the disk .* Make room, or set HF_HOME"):
        store.resolve("someone/something")


def test_pickles_are_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked = {}

    def listing_only(repo: str, **options: object) -> str:
        asked[repo] = options
        return str(tmp_path)

    # Only the transfer is replaced; the patterns are judged by the hub client's own filter.
    monkeypatch.setattr(huggingface_hub, "snapshot_download", listing_only)
    assert store.resolve("owner/name", revision="v1") == tmp_path
    options = asked["owner/name"]
    repository = [
        "model_index.json",
        "tokenizer/merges.txt",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder_3/model.fp16-00001-of-00002.safetensors",
        "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "model-00001-of-00002.safetensors",
        "v1-5-pruned.safetensors",
        "v1-5-pruned.ckpt",
        "optimizer.pt",
        "vae_decoder/model.onnx",
        "README.md",
    ]
    kept = filter_repo_objects(
        repository,
        allow_patterns=options["allow_patterns"],
        ignore_patterns=options["ignore_patterns"],
    )
    assert set(kept) == {
        "model_index.json",
        "tokenizer/merges.txt",
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "model-00001-of-00002.safetensors",
    }
    assert options["revision"] == "v1"


# ---------------------------------------------------------------- manifest


def test_the_manifest_lists_model_files_only(weights: Path) -> None:
    files = manifest.read_manifest(weights)
    assert set(files) == {
        "emoji-xl/unet/model.safetensors",
        "emoji-xl/text_encoder/model.safetensors",
        "emoji-xl/model_index.json",
        "emoji-clip-2/text_encoder/model.safetensors.index.json",
    }
    assert files["emoji-xl/unet/model.safetensors"]["bytes"] == 400
    # Nothing half-written stays behind.
    assert sorted(p.name for p in weights.iterdir() if p.is_file()) == [
        "README.md",
        "manifest.json",
    ]


def test_a_missing_file(weights: Path) -> None:
    (weights / "emoji-xl/unet/model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"unet/model.safetensors.*it is missing.*git checkout"):
        store.resolve("emoji-xl")


def test_a_file_cut_short(weights: Path) -> None:
    (weights / "emoji-xl/unet/model.safetensors").write_bytes(b"unet")
    with pytest.raises(WeightsError, match="has 4 bytes where 400 were expected"):
        store.resolve("emoji-xl")


def test_a_file_with_one_byte_changed(weights: Path) -> None:
    store.resolve("emoji-xl")
    (weights / "emoji-xl/unet/model.safetensors").write_bytes(b"Unet" + b"unet" * 99)
    with pytest.raises(WeightsError, match=r"its sha256 is .* was expected"):
        store.resolve("emoji-xl")


def test_a_borrowed_file_is_checked_with_its_borrower(weights: Path) -> None:
    assert manifest.check_embedded("emoji-clip-2") == 2
    (weights / "emoji-xl/text_encoder/model.safetensors").write_bytes(b"Text" + b"text" * 99)
    with pytest.raises(WeightsError, match=r"emoji-xl/text_encoder/model.safetensors"):
        store.resolve("emoji-clip-2")


def test_only_what_is_wanted_is_hashed(weights: Path) -> None:
    (weights / "emoji-xl/unet/model.safetensors").write_bytes(b"Unet" + b"unet" * 99)
    assert store.resolve("emoji-xl", allow_patterns=["text_encoder/*"]).name == "emoji-xl"
    with pytest.raises(WeightsError):
        store.resolve("emoji-xl", allow_patterns=["unet/*"])


def test_an_unchanged_file_is_hashed_once_a_process(weights: Path) -> None:
    store.resolve("emoji-xl")
    before = manifest._sha256.cache_info().misses
    store.resolve("emoji-xl")
    assert manifest._sha256.cache_info().misses == before


def test_a_model_that_does_not_ship(weights: Path) -> None:
    with pytest.raises(WeightsError, match=r"no files of 'emoji-llava'.*emoji-clip-2, emoji-xl"):
        store.resolve("emoji-llava")


@pytest.mark.parametrize("content", [None, "{half", "[]", '{"files": 3}', '{"files": {"a": {}}}'])
def test_a_manifest_that_is_none(weights: Path, content: str | None) -> None:
    path = weights / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(WeightsError, match=r"manifest.json.*git checkout"):
        store.resolve("emoji-xl")


def test_an_index_that_is_none(weights: Path) -> None:
    index = weights / "emoji-clip-2/text_encoder/model.safetensors.index.json"
    index.write_text("{half")
    manifest.write_manifest(weights)
    with pytest.raises(WeightsError, match="it is no index"):
        store.resolve("emoji-clip-2")


def test_every_error_is_a_bridge_error() -> None:
    for kind in (HubError, OptionError, UnknownModelError, WeightsError):
        assert issubclass(kind, BridgeError)


# ---------------------------------------------------------------- command


def test_the_command_writes_and_checks(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (weights / "manifest.json").unlink()
    assert manifest.main(["write"]) == 0
    assert "4 files" in capsys.readouterr().out
    assert manifest.main(["check", "--weights", str(weights)]) == 0
    assert "emoji-clip-2: 2 files agree\nemoji-xl: 3 files agree" in capsys.readouterr().out
    (weights / "emoji-xl/model_index.json").unlink()
    (weights / "emoji-clip-2/text_encoder/model.safetensors.index.json").unlink()
    assert manifest.main(["check"]) == 1
    said = capsys.readouterr().err  # of every bad folder, not of the first alone
    assert "error: emoji-clip-2: Weights file" in said and "error: emoji-xl: Weights file" in said


def test_an_empty_folder_gets_no_manifest(tmp_path: Path) -> None:
    assert manifest.main(["write", "--weights", str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_store_loads_nothing_heavy() -> None:
    code = (
        "import sys, bridge.store, bridge.prompt; "
        "heavy = {'torch', 'transformers', 'diffusers', 'numpy', 'PIL', 'huggingface_hub'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    root = Path(store.__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
