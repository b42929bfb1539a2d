"""The same over xet, the Hub's store for large files in chunks."""

import huggingface_hub
import numpy as np
from hub_server import serve
from huggingface_hub import HfApi
from loopback import TOKENS, use_hub
from transformers import AutoModelForCausalLM
from xet_hub import XetHandler

from hf_calib import load_calibrator
from hf_calib.cli.main import main


def test_a_checkpoint_of_several_megabytes_goes_and_comes_by_xet(example, tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(example.folder / "model")
    with serve(tmp_path / "root", TOKENS, handler=XetHandler) as server:
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
        large = example.folder / "model" / "extra.safetensors"
        large.write_bytes(np.random.default_rng(0).bytes(5 << 20))
        calibrator = example.folder / "calibration" / "calibrators" / "temperature"
        assert main(example.call("alice/xet", "--calibrator", str(calibrator))) == 0
        assert not [path for method, path, _ in server.requests if method == "PUT"]  # nothing by plain LFS
        assert any("xet-write-token" in path for _, path, _ in server.requests)
        fetched = AutoModelForCausalLM.from_pretrained("alice/xet")
        for name, weight in model.state_dict().items():
            assert fetched.state_dict()[name].equal(weight), name
        assert load_calibrator("alice/xet").method == "temperature"
        path = HfApi().hf_hub_download("alice/xet", "extra.safetensors")
        assert open(path, "rb").read() == large.read_bytes()
        assert any("xet-read-token" in path for _, path, _ in server.requests)
