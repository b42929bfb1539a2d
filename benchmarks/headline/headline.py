"""The headline: every way to calibrate a model, on equal terms. What is compared stands in a YAML file.

    # worlds whose truth is known, each seed another
    python benchmarks/headline/headline.py --config benchmarks/headline/headline_world.yaml --output_dir headline-world

    # SmolLM2 on real questions; with a local model folder and files, and two of the seeds
    python benchmarks/headline/headline.py --config benchmarks/headline/headline_smollm2.yaml \\
        --output_dir headline-smollm2
    python benchmarks/headline/headline.py --config benchmarks/headline/headline_smollm2.yaml \\
        --output_dir headline-smollm2 \\
        --set models.SmolLM2-135M.path=./smollm2 datasets.ARC-Easy.train=arc_easy_train.parquet seeds=[0,1]

    # what is there to do, and how long it takes by what has been measured; a few of the methods; the tables again
    python benchmarks/headline/headline.py --config ... --output_dir ... --dry_run
    python benchmarks/headline/headline.py --config ... --output_dir ... --only "as is" TS TS-IR RCFT
    python benchmarks/headline/headline.py --config ... --output_dir ... --report_only

A method gets a number of labelled questions of one source, the same for all, and is tested on the questions of every
source. The same command goes on where an earlier run stopped: a stage is done again only if something that it is made
of has changed. One that fails is reported, and left out of the tables. Several runs may share a folder if they have
different seeds and the untrained model's answers are there (`--only "as is"` first). Writes report.md, cells.md,
results.json and figures; prints tables and, last, one line of JSON: every bar, and whether it is met.
"""

import argparse
import json
import logging
import sys
from collections import Counter, defaultdict
from pathlib import Path

from headline_config import read_config
from headline_plan import Plan
from headline_report import print_rows, write_report
from headline_stages import Stage


def print_plan(stages: list[Stage], output_dir: Path) -> None:
    """How many stages of each kind are done and to do, and what the others took."""
    seconds = defaultdict(list)
    for marker in output_dir.rglob("stage.json"):
        stage = json.loads(marker.read_text())
        seconds[stage["kind"]].append(stage["seconds"])
    kinds, done = Counter(stage.kind for stage in stages), Counter(stage.kind for stage in stages if stage.done)
    rows, total, unknown = [["stages", "done", "to do", "seconds each", "to do, minutes"]], 0.0, 0
    for kind, count in kinds.items():
        todo, known = count - done[kind], seconds[kind]
        each = sum(known) / len(known) if known else 0.0
        total += todo * each
        unknown += 0 if known else todo
        rows.append(
            [
                kind,
                str(done[kind]),
                str(todo),
                f"{each:.1f}" if known else "?",
                f"{todo * each / 60:.1f}" if known else "?",
            ]
        )
    rows.append(["all", str(sum(done.values())), str(sum((kinds - done).values())), "", f"{total / 60:.1f}"])
    print_rows("Plan", rows)
    print(
        f"{total / 60:.1f} minutes by what has been measured here"
        + f", and {unknown} stages of unknown length" * (unknown > 0)
    )


def work(stages: list[Stage], output_dir: Path) -> set[Stage]:
    """
    Do what is not done. A stage that fails (a method that cannot be applied to some questions, say) keeps only those
    from being
    done that build on it; they are returned. A stage stands behind those that it needs.
    """
    failed = set()
    for number, stage in enumerate(stages, 1):
        if failed.intersection(stage.needs):
            failed.add(stage)
        elif not stage.done:
            print(f"[{number}/{len(stages)}] {stage.kind}: {stage.folder.relative_to(output_dir)}", file=sys.stderr)
            try:
                stage.make()
            except (ValueError, OSError, RuntimeError) as error:
                print(f"{stage.folder}: {error}", file=sys.stderr)
                failed.add(stage)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=Path, required=True, help="YAML file; see headline_config.py for what it may say"
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change the configuration"
    )
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="these methods alone")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    parser.add_argument("--report_only", action="store_true", help="report on what has been measured")
    args = parser.parse_args()
    try:
        config = read_config(args.config, args.set)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if unknown := set(args.only or ()) - set(config.methods):
        parser.error(f"--only {', '.join(unknown)}: there are {', '.join(config.methods)}")

    logging.getLogger("transformers").setLevel(logging.ERROR)
    plan = Plan(config, args.output_dir.resolve())
    cells = plan.cells(args.only)
    comparisons = plan.comparisons(cells)
    last = [stage for found in (*cells.values(), *comparisons.values()) for stage in found.values()]
    stages = list(dict.fromkeys(stage for end in last for stage in end.chain()))
    if args.dry_run:
        return print_plan(stages, plan.output_dir)
    failed = set() if args.report_only else work(stages, plan.output_dir)

    def read(found: dict[str, Stage], name: str) -> dict:
        return {key: json.loads((stage.folder / name).read_text()) for key, stage in found.items() if stage.done}

    results = {place: read(found, "measures.json") for place, found in cells.items()}
    differences = {place: read(found, "differences.json") for place, found in comparisons.items()}
    missing = sum(not stage.done for found in cells.values() for stage in found.values())
    differences = {place: found for place, found in differences.items() if len(found) == len(config.baselines)}
    write_report(config, plan.output_dir, results, differences, missing)
    if failed:
        sys.exit(f"{len(failed)} stages could not be done: why stands above. The same command tries them again.")


if __name__ == "__main__":
    main()
