"""The picture shows what the mask keeps and what the tiles are; the clock respects what the schedule says."""

import itertools
import re
import xml.etree.ElementTree as xml

import pytest

import attncc
from attncc.draw import clock, draw
from attncc.draw.mask import draw_mask, kept
from attncc.explain.work import Shape, example_inputs
from tests.runtime.specs import PLAIN

DOCUMENTS = PLAIN.replace(
    "mask causal", "tensor doc: i32[batch, seq_kv] in 0..4 sorted\n mask causal and doc[b, q_idx] == doc[b, kv_idx]"
)


@pytest.fixture(scope="module", params=["hopper", "ampere"])
def stages(request):
    return attncc.compile(PLAIN, target=request.param).stages()


def test_it_is_xml_with_the_name_of_the_spec(stages):
    root = xml.fromstring(draw(stages, Shape(1, 500, 700)))
    assert root.tag.endswith("svg")
    named = attncc.compile(PLAIN.replace("plain", "a_name")).stages()
    assert "a_name" in draw(named, Shape(1, 200, 200))


def test_kept_cells_are_the_masks(stages):
    shape = Shape(2, 20, 30)
    inputs = example_inputs(stages.attention, shape)
    shown = kept(stages.tile, shape, inputs, 1, 3, 1)
    assert shown.shape == (20, 30)
    assert all(shown[i, j] == (j <= i + 10) for i in range(20) for j in range(30))
    assert kept(stages.tile, shape, inputs, 0, 0, 7).shape == (3, 5)


def test_counts_are_those_of_the_classes(stages):
    shape = Shape(1, 1000, 1000)
    picture = draw_mask(stages.tile, shape, {}, 0, 0)
    rows, cols = -(-1000 // stages.tile.tile_m), -(-1000 // stages.tile.tile_n)
    assert sum(picture.counts.values()) == rows * cols and all(picture.counts.values())


@pytest.mark.parametrize("target", ["hopper", "ampere"])
@pytest.mark.parametrize("text", [PLAIN, DOCUMENTS], ids=["plain", "documents"])
def test_the_clock_runs_every_operation(text, target):
    stages = attncc.compile(text, target=target).stages()
    shape = (1, 1024, 1024)
    inputs = example_inputs(stages.attention, Shape(*shape))
    events = clock.run_clock(stages.schedule, stages.target, shape, inputs, {"b": 0, "h": 1, "q_tile": 2})
    lanes = {e.lane for e in events}
    groups = next(r.groups for r in stages.schedule.roles if r.rows_per_group)
    assert "copies" in lanes and len([n for n in lanes if re.search(r" \d$", n)]) == (groups if groups > 1 else 0)
    assert all(e.end > e.begin >= 0 for e in events)
    for lane in lanes - {"copies"}:
        mine = sorted((e.begin, e.end) for e in events if e.lane == lane)
        assert all(a[1] <= b[0] + 1e-6 for a, b in itertools.pairwise(mine)), "a lane does one thing at a time"
    products = [e for e in events if e.kind == clock.MMA]
    copies = [e for e in events if e.kind == clock.COPY]
    assert min(e.begin for e in products) > min(e.end for e in copies), "no product before the first copy has arrived"
