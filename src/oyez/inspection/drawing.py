"""Drawings of a topology and of a saga: Mermaid flowcharts and SVG pictures, as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape as markup

import msgspec

from oyez.inspection.form import escape, span
from oyez.inspection.plan import Plan, PlannedStep
from oyez.inspection.topology import Flow, Topology

# -- Mermaid ---------------------------------------------------------------------------------------


def mermaid(topology: Topology) -> str:
    """Return a flowchart: services as nodes, and arrows labelled with event types.

    Types without a publisher come from a dashed node, those without a handler go to one.
    """
    ids = {name: f"s{index}" for index, name in enumerate(topology.imported)}
    lines = ["flowchart LR"]
    lines += [f'  {identity}["{_mermaid(name)}"]' for name, identity in ids.items()]
    arrows: dict[tuple[str, str], list[str]] = {}
    for flow in topology.flows:
        sources = [ids[name] for name in flow.publishers] or ["outside"]
        targets = [ids[name] for name in dict.fromkeys(s for s, _ in flow.handlers)] or ["nobody"]
        for source in sources:
            for target in targets:
                arrows.setdefault((source, target), []).append(flow.type)
    ends = {end for pair in arrows for end in pair}
    if "outside" in ends:
        lines.append("  outside([unknown publisher]):::loose")
    if "nobody" in ends:
        lines.append("  nobody([no handler]):::loose")
    for (source, target), types in arrows.items():
        arrow = "-.->" if "outside" in (source, target) or "nobody" in (source, target) else "-->"
        lines.append(f'  {source} {arrow}|"{"<br>".join(map(_mermaid, types))}"| {target}')
    lines.append("  classDef loose stroke-dasharray: 4 3")
    return "\n".join(lines)


def saga_mermaid(plan: Plan) -> str:
    """Return a saga's steps as a Mermaid flowchart: what is asked, undone, and reached."""
    lines = ["flowchart LR", "  start([start])"]
    for step in plan.steps:
        name = step.name
        shape = f"{name}{{{{{name}}}}}" if step.pivot else f"{name}[{name}]"
        lines.append(f"  {shape}")
        lines += [f"  {before} --> {name}" for before in step.behind or ("start",)]
        if step.undo:
            lines.append(f"  {name} -. undo .-> {step.undo}[/{step.undo}/]")
    behind = {before for step in plan.steps for before in step.behind}
    for name in plan.ends:
        lines.append(f"  end_{name}([{name}])")
    last = [step.name for step in plan.steps if step.name not in behind]
    lines += [f"  {name} --> end_{plan.complete}" for name in last]
    if plan.undone:
        undos = [step.undo for step in plan.steps if step.undo]
        lines += [f"  {name} --> end_{plan.undone}" for name in undos]
    return "\n".join(lines) + "\n"


def _mermaid(text: str) -> str:
    return re.sub(r"[^\w ./-]", lambda match: f"#{ord(match[0])};", text)


# -- SVG -------------------------------------------------------------------------------------------

_ROW = 30
_GAP = 14
_LINE = 17
_CHAR = 7.3
_MARGIN = 24
_HEAD = 64
_COLOURS = 8
_STYLE = """
 svg { --paper:#fff; --ink:#1b1f24; --soft:#5b6470; --edge:#c6ccd4; --box:#f5f7f9;
  --c0:#0b6bcb; --c1:#9a4bd1; --c2:#0f8a5f; --c3:#b35c00; --c4:#c2255c; --c5:#4b6a00; --c6:#0b7a8a;
  --c7:#6b5b95; background:var(--paper) }
 @media (prefers-color-scheme: dark) { svg { --paper:#14171b; --ink:#e8ebef; --soft:#9aa4b0;
  --edge:#3a424c; --box:#1e2329; --c0:#6cb4ff; --c1:#cf9bff; --c2:#5fd3a5; --c3:#ffb061;
  --c4:#ff8fb3; --c5:#b7d96b; --c6:#63d0e0; --c7:#b9a9e6 } }
 text { font:13px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill:var(--ink) }
 .head { font-weight:600; fill:var(--soft) } .name { font-weight:600 } .soft { fill:var(--soft) }
 .paper { fill:var(--paper) }
 .box { fill:var(--box); stroke:var(--edge) } path.box { fill:none } .loose { stroke-dasharray:4 3 }
 .line { fill:none; stroke-width:1.6; opacity:.75 }
""" + "".join(
    f" .k{n} {{ stroke:var(--c{n}) }} .f{n} {{ fill:var(--c{n}) }}\n" for n in range(_COLOURS)
)


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is written behind a name of a drawing."""

    text: str
    trouble: bool = False
    """Whether it is drawn, with the lines that lead to it, as something that is wrong."""


class Notes(msgspec.Struct, frozen=True, kw_only=True):
    """The notes of a topology's picture that is part of a page."""

    publishers: Mapping[str, Note] = {}
    """By service."""
    services: Mapping[str, Note] = {}
    """By service that handles events."""
    handlers: Mapping[tuple[str, str], Note] = {}
    """By service and handler."""
    link: str = "#"
    """What the address of a service's link begins with, before its name."""


class SagaNotes(msgspec.Struct, frozen=True, kw_only=True):
    """The notes of a saga's picture that is part of a page."""

    start: Note | None = None
    steps: Mapping[str, Note] = {}
    """By step."""
    undos: Mapping[str, Note] = {}
    """Of what undoes a step, by the step."""
    ends: Mapping[str, Note] = {}


class _Box:
    """A box of the drawing, with the ends of its lines."""

    def __init__(self, lines: list[str], notes: Sequence[Note | None] = ()) -> None:
        self.lines = lines
        self.notes = [*notes, *[None] * (len(lines) - len(notes))]
        self.x = self.y = self.width = 0.0
        self.height = float(_ROW + _LINE * (len(lines) - 1))

    @property
    def middle(self) -> float:
        return self.y + self.height / 2

    @property
    def widest(self) -> float:
        return max(
            _width(line if note is None else f"{line} {note.text}")
            for line, note in zip(self.lines, self.notes, strict=True)
        )

    @property
    def in_trouble(self) -> bool:
        return any(note is not None and note.trouble for note in self.notes)

    def row(self, index: int) -> float:
        return self.y + _ROW / 2 + index * _LINE


def svg(topology: Topology, notes: Notes | None = None) -> str:
    """Return a picture: publishers to the left, event types in the middle, handlers right.

    Each service is on both sides, so lines run one way only. Types are grouped by publisher. With
    ``notes`` it is a part of a page: the page's style sheet has its colours, and services are
    links.
    """
    found = topology.flows
    publishers = list(dict.fromkeys(name for flow in found for name in flow.publishers))
    order = {name: index for index, name in enumerate(publishers)}
    ordered = sorted(
        found, key=lambda f: (order.get(f.publishers[0], 0) if f.publishers else 10**6, f.type)
    )
    left, middle, right = columns = _placed(ordered, publishers, notes or Notes())
    parts = _drawing(ordered, left, middle, right, order, None if notes is None else notes.link)
    for column, word in zip(columns, ("publishes", "event", "reacts"), strict=True):
        for box in list(column.values())[:1]:
            parts.append(f'<text class="head" x="{box.x:.0f}" y="46">{word}</text>')
    boxes = [box for column in columns for box in column.values()]
    label = f"Who publishes and who handles the events of {topology.system}"
    return _picture(topology.system, label, parts, boxes, styled=notes is None)


def saga_svg(plan: Plan, notes: SagaNotes | None = None) -> str:
    """Return a picture of a saga: its steps from left to right, in the order they can be asked.

    A solid line leads to what may follow when a step is done, a dashed one to the end after all
    was undone. With ``notes`` it is a part of a page, whose style sheet has its colours.
    """
    told = notes or SagaNotes()
    depths = plan.depths()
    columns = [{"": _Box(["start"], [told.start])}]
    for depth in range(max(depths.values(), default=0)):
        steps = [step for step in plan.steps if depths[step.name] == depth + 1]
        columns.append({step.name: _step_box(step, told) for step in steps})
    ends = {name: _Box([name], [told.ends.get(name)]) for name in plan.ends}
    x = float(_MARGIN)
    for column in (*columns, ends):
        _stack(column.values(), [])
        width = max((box.widest for box in column.values()), default=0) + 28
        for box in column.values():
            box.x, box.width = x, width
        x += width + 90
    boxes = {name: box for column in columns for name, box in column.items()}
    if plan.undone:  # below all steps, so that few lines to it pass behind one
        lowest = max(box.y + box.height for box in boxes.values())
        ends[plan.undone].y = max(ends[plan.undone].y, lowest)
    lines = _saga_lines(plan, boxes, ends)
    parts = [
        shape
        for box in (*boxes.values(), *ends.values())
        for shape in (
            _rectangle(box, " trouble" if box.in_trouble else ""),
            *(_words(box, n, text, "soft" if n else "name") for n, text in enumerate(box.lines)),
        )
    ]
    label = f"The steps of {plan.name}, what undoes them, and its ends"
    drawn = [*boxes.values(), *ends.values()]
    return _picture(plan.name, label, [*lines, *parts], drawn, styled=notes is None)


def _saga_lines(plan: Plan, boxes: Mapping[str, _Box], ends: Mapping[str, _Box]) -> list[str]:
    behind = {before for step in plan.steps for before in step.behind}
    lines: list[str] = []
    for step in plan.steps:
        box = boxes[step.name]
        lines += [
            _curve(boxes[before], box, box.row(0), "line k0") for before in step.behind or ("",)
        ]
        if step.name not in behind and plan.complete:
            end = ends[plan.complete]
            lines.append(_curve(box, end, end.row(0), "line k2"))
        if step.undo and plan.undone:
            end = ends[plan.undone]
            lines.append(_curve(box, end, end.row(0), "line k4 loose"))
    return lines


def _step_box(step: PlannedStep, notes: SagaNotes) -> _Box:
    lines = _about(step)
    beside: list[Note | None] = [None] * len(lines)
    beside[0] = notes.steps.get(step.name)
    if step.undo:
        beside[-1] = notes.undos.get(step.name)
    return _Box(lines, beside)


def _about(step: PlannedStep) -> list[str]:
    """Return the lines of a step's box."""
    lines = [step.name, f"within {span(step.within)}"]
    if step.pivot:
        lines.append("pivot: is never undone")
    if step.undo:
        lines.append(f"undo: {step.undo}")
    return lines


def _picture(
    name: str, label: str, parts: list[str], boxes: Sequence[_Box], *, styled: bool = True
) -> str:
    width = max((box.x + box.width for box in boxes), default=200) + _MARGIN
    height = max((box.y + box.height for box in boxes), default=_HEAD) + _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" role="{"img" if styled else "group"}" '
            f'aria-label="{markup(escape(label))}">',
            f"<style>{_STYLE}</style>" if styled else "",
            '<rect class="paper" width="100%" height="100%"/>',
            f'<text class="name" x="{_MARGIN}" y="24">{markup(escape(name))}</text>',
            *parts,
            "</svg>",
        ]
    )


def _placed(
    ordered: list[Flow], publishers: list[str], notes: Notes
) -> tuple[dict[str, _Box], dict[str, _Box], dict[str, _Box]]:
    """Return the boxes of the three columns, by name, with their positions."""
    reactions: dict[str, list[str]] = {}
    pull: dict[str, list[int]] = {}
    for index, flow in enumerate(ordered):
        for service, handler in flow.handlers:
            names = reactions.setdefault(service, [])
            if handler not in names:
                names.append(handler)
            pull.setdefault(service, []).append(index)
    left = {name: _Box([name], [notes.publishers.get(name)]) for name in publishers}
    middle = {flow.type: _Box([flow.type]) for flow in ordered}
    by_pull = sorted(reactions, key=lambda name: _mean(pull[name]))
    right = {
        name: _Box(
            [name, *reactions[name]],
            [
                notes.services.get(name),
                *(notes.handlers.get((name, each)) for each in reactions[name]),
            ],
        )
        for name in by_pull
    }
    x = float(_MARGIN)
    for column, gap in ((left, 120), (middle, 220), (right, 0)):
        width = max((box.widest for box in column.values()), default=0) + 28
        for box in column.values():
            box.x, box.width = x, width
        x += (width + gap) if column else 0
    # The longer column is stacked tightly; the other is levelled with it.
    spare = (_tall(right.values()) - _tall(middle.values())) / 2
    _stack(middle.values(), [], top=_HEAD + max(spare, 0.0))
    heights = [middle[flow.type].middle for flow in ordered]
    handled = [_mean([heights[index] for index in pull[name]]) for name in right]
    _stack(right.values(), handled if spare < 0 else [])
    published = [
        _mean([middle[flow.type].middle for flow in ordered if name in flow.publishers])
        for name in left
    ]
    _stack(left.values(), published)
    return left, middle, right


def _drawing(
    ordered: list[Flow],
    left: Mapping[str, _Box],
    middle: Mapping[str, _Box],
    right: Mapping[str, _Box],
    order: Mapping[str, int],
    link: str | None,
) -> list[str]:
    lines: list[str] = []
    boxes: list[str] = []
    for flow in ordered:
        box = middle[flow.type]
        colour = order[flow.publishers[0]] % _COLOURS if flow.publishers else None
        line = "box" if colour is None else f"line k{colour}"
        lines += [_curve(left[name], box, box.middle, line) for name in flow.publishers]
        for service, handler in flow.handlers:
            end = right[service]
            row = end.lines.index(handler, 1)
            note = end.notes[row]
            bad = " trouble" if note is not None and note.trouble else ""
            lines.append(_curve(box, end, end.row(row), line + bad))
        loose = "" if flow.publishers and flow.handlers else " loose"
        boxes.append(_rectangle(box, loose))
        fill = "soft" if colour is None else f"f{colour}"
        boxes.append(_words(box, 0, flow.type, fill))
    for name, box in left.items():
        boxes.append(_rectangle(box, ""))
        words = _words(box, 0, name, f"name f{order[name] % _COLOURS}")
        boxes.append(_linked(words, name, link))
    for name, box in right.items():
        boxes.append(_rectangle(box, ""))
        for index, text in enumerate(box.lines):
            words = _words(box, index, text, "soft" if index else "name")
            boxes.append(words if index else _linked(words, name, link))
    return [*lines, *boxes]


def _curve(start: _Box, end: _Box, y2: float, kind: str) -> str:
    x1, y, x2 = start.x + start.width, start.middle, end.x
    bend = (x2 - x1) / 2
    return (
        f'<path class="{kind}" d="M{x1:.1f} {y:.1f}C{x1 + bend:.1f} {y:.1f} '
        f'{x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"/>'
    )


def _rectangle(box: _Box, extra: str) -> str:
    return (
        f'<rect class="box{extra}" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}" rx="6"/>'
    )


def _words(box: _Box, index: int, text: str, kind: str) -> str:
    y = box.y + 20 + index * _LINE
    note, figure = box.notes[index], ""
    if note is not None:
        trouble = " bad" if note.trouble else ""
        figure = f' <tspan class="figure{trouble}">{markup(escape(note.text))}</tspan>'
    words = markup(escape(text))
    return f'<text class="{kind}" x="{box.x + 14:.1f}" y="{y:.1f}">{words}{figure}</text>'


def _linked(words: str, name: str, link: str | None) -> str:
    """Return the words as a link to a service, in a picture that has links."""
    return words if link is None else f'<a href="{markup(link + name)}">{words}</a>'


def _stack(boxes: Iterable[_Box], wanted: list[float], top: float = _HEAD) -> None:
    """Stack boxes, each as near to its wanted height as the ones above allow."""
    y = top
    for index, box in enumerate(boxes):
        if wanted:
            y = max(y, wanted[index] - box.height / 2)
        box.y = y
        y += box.height + _GAP


def _tall(boxes: Iterable[_Box]) -> float:
    return sum(box.height + _GAP for box in boxes)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _width(text: str) -> float:
    return len(escape(text)) * _CHAR * 1.09
