"""Make the table of models: run every model of the test zoo that this environment has, or join such tables.

python docs/model_table.py --run > part      rows of this environment
python docs/model_table.py part1 part2       the page
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

RANKS = (1, 2, 3)
HEAD = """# Models

Stock from their wheels, with no code for any of them. Each was captured once, then run on a crystal with a vacancy, a
film in vacuum and a cell smaller than the cutoff, on 1, 2 and 3 ranks, and every output compared with the stock model.
The difference is relative to the largest value of the output (outputs below 1e-3 are taken as 1e-3). Made by
`make models`.

| model | package | outputs | precision | largest difference | capture s | operators | collectives | index spaces |
|---|---|---|---|---|---|---|---|---|"""

PACKAGES = {
    "MACE (MP-0 medium)": "mace-torch",
    "CHGNet 0.3.0": "chgnet",
    "TensorNet": "matgl",
    "M3GNet": "matgl",
    "SO3Net": "matgl",
    "CHGNet (matgl)": "matgl",
    "SevenNet-0": "sevenn",
    "NequIP": "nequip",
    "Allegro": "nequip-allegro",
    "eSEN": "fairchem-core",
}


def rows() -> list[str]:
    """One line of the table for each model whose package is installed."""
    import structures
    import zoo

    from distcompile.testing import check_model

    make = {
        "MACE (MP-0 medium)": lambda: zoo.mace("medium"),
        "CHGNet 0.3.0": zoo.chgnet,
        **{n: (lambda n=n: zoo.matgl(n)) for n in ("TensorNet", "M3GNet", "SO3Net")},
        "CHGNet (matgl)": lambda: zoo.matgl("CHGNet"),
        "SevenNet-0": zoo.sevennet,
        "NequIP": lambda: zoo.nequip("NequIP"),
        "Allegro": lambda: zoo.nequip("Allegro"),
        "eSEN": zoo.esen,
    }
    lines = []
    for name, package in PACKAGES.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        case = make[name]()
        first, *others = [case.graph(s()) for s in (structures.crystal, structures.film, structures.small_cell)]
        report = check_model(case.model, first, others, RANKS, model_kwargs=case.kwargs)
        outputs = len({d.output for d in report.differences})
        lines.append(
            f"| {name} | {package} {version} | {outputs} | {report.dtype} | {report.worst:.0e} | "
            f"{report.capture_seconds:.0f} | {report.operators} | {report.collectives} | {', '.join(report.spaces)} |"
        )
    return lines


if __name__ == "__main__":
    if sys.argv[1:] == ["--run"]:
        print("\n".join(rows()))
    else:
        parts = [line for path in sys.argv[1:] for line in Path(path).read_text().splitlines() if line.startswith("|")]
        print("\n".join([HEAD, *parts]))
