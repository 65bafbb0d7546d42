"""Compare kdctool with a folder of golden data, whatever its sizes and seeds.

python tests/golden/check.py DIR [--json]: exit 0 when all that was compared holds, 5 when anything fails, 2 when
there is nothing to compare. A case that is not covered is listed as such, never as passed.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # its own files, and a checkout that is not installed

import golden_data  # noqa: E402
import golden_finetune  # noqa: E402
import golden_masks  # noqa: E402
import golden_metrics  # noqa: E402
import golden_pretrain  # noqa: E402
import torch  # noqa: E402
from golden_case import Case, read_case  # noqa: E402

COVERED: dict[str, Callable[[Case], None]] = {
    **golden_pretrain.CASES,
    **golden_finetune.CASES,
    **golden_masks.CASES,
    **golden_data.CASES,
    **golden_metrics.CASES,
}

OK, USAGE, FAILS = 0, 2, 5


def check(folder: Path, show: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Verdict of every case of the folder; `show` gets a line per comparison."""
    verdicts: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        if "case" not in about:
            continue  # weights
        name = about["case"]
        if name not in COVERED:
            verdicts[name] = {"status": "not_covered", "compared": 0, "worst": None}
            show(f"\n{name}: not covered\n")
            continue
        verdicts[name] = one(name, path, show)
    return verdicts


def one(name: str, path: Path, show: Callable[[str], None]) -> dict[str, Any]:
    """Verdict of one case. An error on the way is a failure of the case, not of the others."""
    show(f"\n{name}\n")
    try:
        case = read_case(path)
        torch.manual_seed(0)
        COVERED[name](case)
    except Exception as error:  # whatever goes wrong, the other cases are still worth knowing
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        show(f"  stopped by {cause}\n")
        return {
            "status": "fails",
            "compared": 0,
            "worst": {"tensor": cause, "max_abs_diff": sys.float_info.max, "tolerance": 0.0},
        }
    for row in case.rows:
        holds = "holds" if row.holds else "FAILS"
        show(f"  {holds}  {row.max_abs_diff:10.3g} <= {row.tolerance:<8.3g} {row.tensor}\n")
    if left := case.leftover():
        show(f"  not compared: {', '.join(left)}\n")
    return case.verdict()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args(arguments)
    verdicts = check(options.folder, (lambda line: None) if options.json else sys.stdout.write)
    if not verdicts:
        print(f"{options.folder} holds no golden case (a NAME.json with a 'case' field)", file=sys.stderr)
        return USAGE
    if options.json:
        print(json.dumps({"cases": verdicts}))
    else:
        print()
        for name, verdict in verdicts.items():
            worst = verdict["worst"]
            tail = f"worst {worst['tensor']}: {worst['max_abs_diff']:.3g} of {worst['tolerance']:.3g}" if worst else ""
            print(f"{name:30s} {verdict['status']:12s} {verdict['compared']:4d} compared  {tail}")
    return FAILS if any(verdict["status"] == "fails" for verdict in verdicts.values()) else OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
