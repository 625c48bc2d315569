"""Notebooks as files: order of cells, tags, parameters that are read, outputs that nbval can compare."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import nbformat
import pytest

from panolib.lab.records import _Info
from panolib.load import load
from panolib.profiles import project_root

FOLDER = project_root() / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
DEFAULTS = {"profile": "cpu", "retrain": False}
CHECK, IGNORE = {"nbval-check-output", "keep_output"}, "nbval-ignore-output"
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|Users|work|tmp|usr|var|opt|mnt|data)/|\b[A-Z]:\\\\")
MAX_BYTES, MAX_CODE_CELLS, MAX_LINES = 1_000_000, 24, 16
NEW = re.compile(r"\bprovenance\.provenance\(")
TEACHING = {"15_method_in_plain_sight", "17_your_images"}
SECTIONS = {"## The method", "## Verdicts", "## Conclusion", "## Provenance"}
TABLE = re.compile(
    r"^(tables\.(shown?|show_seeds|instance_counts)\(|\w+\.set_index\("
    r"|readable\(|verdicts\.show\()",
    re.MULTILINE,
)

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_cells(path: Path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def names_read(source: str) -> set[str]:
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
    return {node.id for node in names if isinstance(node.ctx, ast.Load)}


def text_of(output) -> str:
    found = [output.get("text", "")] + [
        value for kind, value in output.get("data", {}).items() if kind.startswith("text/")
    ]
    return "\n".join("".join(part) for part in found)


def test_what_is_read_of_a_record_is_recorded(path):
    """Recorded runs may hold keys of earlier versions, so that only a new training would miss one."""
    source = "\n".join(cell.source for cell in code_cells(path))
    keys = set(re.findall(r"""info(?:\[|\.get\()"(\w+)\"""", source))
    assert keys <= set(_Info.__dataclass_fields__)


def test_valid_small_and_numbered(path):
    nbformat.validate(read(path))
    assert re.fullmatch(r"\d\d_[a-z_]+", path.stem)
    assert path.stat().st_size < MAX_BYTES
    assert len({cell["id"] for cell in read(path).cells}) == len(read(path).cells)


def test_study_knows_its_runs(path):
    assert path.stem in load("smoke").notebooks


def test_opens_with_title_question_and_target(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {path.stem[:2]} · ")
    assert re.search(r"\*[^*]+\?\*", first.source), "a question in italics"
    assert "thesis" in first.source


def test_order_of_cells(path):
    cells = code_cells(path)
    assert tags(cells[0]) == {"parameters"}
    assert "load(profile" in cells[1].source and "import" in cells[1].source
    headings = [cell.source.splitlines()[0] for cell in read(path).cells if cell.source.startswith("## ")]
    if path.stem in TEACHING:  # no question, so no verdict
        assert headings[0] == "## The method" and headings[-2:] == ["## Conclusion", "## Provenance"]
        assert NEW.search(cells[-1].source) and IGNORE in tags(cells[-1])
        return
    assert [heading for heading in headings if heading in SECTIONS] == [
        "## The method", "## Verdicts", "## Conclusion", "## Provenance"
    ]  # fmt: skip
    assert len(headings) > len(SECTIONS), "a question of its own between the method and the verdicts"
    assert any("verdicts.show(" in cell.source and tags(cell) >= CHECK for cell in cells)
    assert "print(" in cells[-2].source and tags(cells[-2]) >= CHECK
    assert NEW.search(cells[-1].source) and IGNORE in tags(cells[-1])


def test_each_code_cell_is_short_plain_python_under_a_sentence(path):
    cells = read(path).cells
    assert len(code_cells(path)) <= MAX_CODE_CELLS
    for before, cell in itertools.pairwise(cells):
        if cell.cell_type == "code" and "parameters" not in tags(cell):
            of_one_sentence = before.cell_type == "code" and before.source != cells[1].source
            assert before.cell_type == "markdown" or of_one_sentence, cell.source
            lines = cell.source.splitlines()
            statements = [line for line in lines if line and not line.startswith(("import ", "from "))]
            assert len(statements if cell == code_cells(path)[1] else lines) <= MAX_LINES, cell.source
            assert max(map(len, cell.source.splitlines())) <= 110, cell.source
        if cell.cell_type == "code":
            ast.parse(cell.source)                           # no magics


def test_parameters_are_literals_with_their_defaults(path):
    found = {}
    for node in ast.parse(code_cells(path)[0].source).body:
        assert isinstance(node, ast.Assign) and len(node.targets) == 1
        found[node.targets[0].id] = ast.literal_eval(node.value)
    assert found == DEFAULTS


def test_every_parameter_is_read_later(path):
    cells = code_cells(path)
    later = set().union(*(names_read(cell.source) for cell in cells[1:]))
    assert set(DEFAULTS) <= later


def test_no_branch_on_the_profile_and_no_typed_result(path):
    for cell in code_cells(path)[1:]:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Compare):
                assert "profile" not in names_read(ast.unparse(node)), cell.source
    for literal in ast.walk(ast.parse(code_cells(path)[-2].source)):
        if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
            assert not re.search(r"\d+\.\d", literal.value), literal.value


def test_tags_are_known_and_do_not_contradict(path):
    for cell in code_cells(path):
        found = tags(cell)
        assert found in (set(), {"parameters"}, CHECK, {IGNORE}), cell.source


def test_figures_are_saved_and_not_compared(path):
    with_figure = [cell for cell in code_cells(path)[2:] if re.search(r"\b(figures|plots)\.", cell.source)]
    assert with_figure
    for cell in with_figure:
        assert re.search(r"\b(figures|plots)\.save_figure\(", cell.source), cell.source
        assert IGNORE in tags(cell), cell.source


def test_no_absolute_path(path):
    for cell in read(path).cells:
        for text in (cell.source, *(text_of(output) for output in cell.get("outputs", ()))):
            assert not ABSOLUTE_PATH.search(text), text[:300]


def skip_if_never_executed(path):
    """A notebook whose cpu record is not made yet has no output at all; README says so."""
    if not any(cell.get("outputs") or cell.execution_count for cell in code_cells(path)):
        pytest.skip("its cpu record is not made yet")


def test_executed_in_order_without_error(path):
    skip_if_never_executed(path)
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1)), "executed from top to bottom, and only once"
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert not (output.output_type == "stream" and output.name == "stderr"), cell.source


def test_every_figure_is_shown(path):
    skip_if_never_executed(path)
    for cell in code_cells(path):
        if re.search(r"\bplots\.save_figure\(", cell.source):
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source


def test_every_table_and_check_cell_has_an_output_to_compare(path):
    skip_if_never_executed(path)
    wanted = [cell for cell in code_cells(path) if TABLE.search(cell.source) or tags(cell) >= CHECK]
    assert path.stem in TEACHING or any(TABLE.search(cell.source) for cell in wanted)
    for cell in wanted:
        assert any(text_of(output).strip() for output in cell.outputs), cell.source
