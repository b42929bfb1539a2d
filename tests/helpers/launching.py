"""Scripts under `accelerate launch`, all in the same processes: the client's half of launch_worker.py."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock

from hf_calib.paths import recipe_path


def start_launcher(config: str, *arguments, log: Path, processes: int | None = None) -> subprocess.Popen:
    """Start `accelerate launch` with one of the recipes' configurations, at a free port."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
    command += [str(recipe_path(f"accelerate_configs/{config}.yaml"))]
    command += ["--num_processes", str(processes)] if processes else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w") as file:
        return subprocess.Popen([*command, *map(str, arguments)], stdout=file, stderr=file, env=environment)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Launch:
    """
    Processes that were launched once, and run one script after the other. The test processes of a session share them.

    Args:
        folder (`Path`): Where jobs and results are exchanged; the same for all test processes of a session.
        processes (`int`): How many processes there are.
        owner (`int`): The process that they end with.
    """

    def __init__(self, folder: Path, processes: int, owner: int):
        self.folder, self.processes, self.owner = folder, processes, owner
        self.started = None
        folder.mkdir(exist_ok=True)

    def __call__(self, config, script, *arguments, cwd=None, module=False, timeout=300) -> subprocess.CompletedProcess:
        """Run a script, or a module, in all processes, as launched with a configuration of the recipes."""
        job = {"config": str(recipe_path(f"accelerate_configs/{config}.yaml")), "script": str(script)}
        job |= {"arguments": [str(a) for a in arguments], "module": module, "cwd": str(cwd or Path.cwd())}
        with FileLock(f"{self.folder}.lock"):
            place, pid = self._launched()
            number = len(list(place.glob("*.json")))
            unfinished = place / f"{number}.unfinished"
            unfinished.write_text(json.dumps(job))
            unfinished.rename(place / f"{number}.json")
            results = [place / f"{number}.{rank}.done" for rank in range(self.processes)]
            end = time.monotonic() + timeout
            while not all(result.exists() for result in results):
                failed = [result for result in results if result.exists() and json.loads(result.read_text())["status"]]
                if failed:  # the others may wait for it forever
                    end = min(end, time.monotonic() + 10)
                if time.monotonic() > end or not is_alive(pid):
                    (place / "ended").touch()
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                    self.started = None
                    errors = "".join(json.loads(result.read_text())["stderr"] for result in failed)
                    raise AssertionError(
                        f"{script} {arguments}: {errors[-6000:]}{(place / 'log').read_text()[-4000:]}"
                    )
                time.sleep(0.05)
        done = [json.loads(result.read_text()) for result in results]
        outputs = ("".join(process[name] for process in done) for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(job["arguments"], max(process["status"] for process in done), *outputs)

    def stop(self) -> None:
        """End the processes that this test process started."""
        if self.started is not None:
            with FileLock(f"{self.folder}.lock"):
                place = self._places()[-1]
                (place / "ended").touch()
                assert self.started.wait(timeout=60) == 0, (place / "log").read_text()[-4000:]

    def _places(self) -> list[Path]:
        return sorted(self.folder.iterdir(), key=lambda place: int(place.name))

    def _launched(self) -> tuple[Path, int]:
        """The folder and the launcher of the processes; started if there are none."""
        places = self._places()
        if not places or (places[-1] / "ended").exists():
            places.append(self.folder / f"{len(places)}")
            places[-1].mkdir()
            worker = Path(__file__).with_name("launch_worker.py")
            log = places[-1] / "log"
            config = "ddp" if importlib.util.find_spec("deepspeed") is None else "deepspeed_zero3"
            self.started = start_launcher(config, worker, places[-1], self.owner, log=log, processes=self.processes)
            (places[-1] / "pid").write_text(str(self.started.pid))
        return places[-1], int((places[-1] / "pid").read_text())
