"""The commands of the guide on publishing run as written, against the loopback Hub."""

import re
import shlex
from pathlib import Path

from hf_calib.cli.main import main


GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "publish.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [shlex.split(line) for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]


def test_commands_run_in_order(hub, example, monkeypatch):
    (example.folder / "model").rename(example.folder / "calibrated-model")
    monkeypatch.chdir(example.folder)
    calls = [command[1:] for command in COMMANDS if command[:1] == ["hf-calib"]]
    assert [call[0] for call in calls].count("push") >= 4 and ["verify"] in [call[:1] for call in calls]
    for call in calls:
        # the user of the loopback Hub is alice
        call = [re.sub(r"^org/", "alice/", part) for part in call]
        if call[0] == "verify" and "--dataset" not in call:
            call += ["--dataset", "test.parquet"]  # the example's questions are not on the Hub
        assert main([part if part != "200" else "50" for part in call]) == 0, call
