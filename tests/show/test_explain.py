"""What a user is told of a program, operator by operator."""

from __future__ import annotations

import re

from toys import Gnn, random_graph

import distcompile
from distcompile.passes import NAMES


def test_every_operator_names_the_pass_that_made_it() -> None:
    """Messages are made by the passes that insert them, operators of the model by the capture."""
    compiled = distcompile.compile(Gnn().eval(), random_graph(14, 1), validate=False)
    plain, detailed = compiled.explain(), compiled.explain(detail=True)
    assert detailed.startswith(plain.rstrip())
    lines = detailed[len(plain) :].strip().splitlines()[1:]
    found = [re.match(r" *(\S+) +(?:\w+\[.*\](?: partial)? +)?(\w+)(?: +\S|$)", line) for line in lines]
    assert all(found)
    made = {(m.group(1), m.group(2)) for m in found if m is not None}
    assert {"halo_exchange", "halo_gather"} & {operator for operator, _ in made}
    for operator, makers in {
        "halo_exchange": {"insert_halos"},
        "halo_reduce": {"insert_halos"},
        "halo_gather": {"narrow_halos"},
        "all_reduce": {"insert_all_reduces"},
        "all_reduces": {"bundle_all_reduces"},
        "mm": {"capture", "narrow_halos", "reassociate"},
    }.items():
        assert {maker for name, maker in made if name == operator} <= makers
    assert {maker for _, maker in made} <= {"capture", *NAMES}
    operators = sum(n.op == "call_function" for n in compiled.graph_module.graph.nodes)
    assert len(lines) == operators


def test_the_line_of_the_model_is_named() -> None:
    """Of an operator that a pass made for another one, too."""
    text = distcompile.compile(Gnn().eval(), random_graph(14, 1), validate=False).explain(detail=True)
    assert re.search(r"halo_\w+ .*toys\.py:\d+ \w+", text)
