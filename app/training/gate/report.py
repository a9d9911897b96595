"""The gate's report as a page for people: the verdict in words, the figures as plots, some answers side by side.

One file that loads nothing and runs nothing: inline SVG, and one ``<style>`` whose hash (`STYLE_HASH`) a policy may name. Every
text on it, users' and models' above all, is escaped; it holds their words, so it lies in the run's folder only.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from app.training.folders import write_bytes
from app.training.gate.collect import Sample

SHOWN: Final = 8
_MOST_CHARACTERS: Final = 1200
_UNFIT: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_UNSHOWN: Final = "\N{REPLACEMENT CHARACTER}"

STYLE: Final = """
:root{color-scheme:light dark;--ink:#1a1d21;--soft:#5b636e;--line:#d8dce1;--paper:#fff;--card:#f5f6f8;--good:#1f7a3d;
--bad:#b3261e;--blue:#2458b8}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#9aa3ae;--line:#3a4149;--paper:#15181c;--card:#1e2227;
--good:#6fcf8b;--bad:#ff8a80;--blue:#8ab4f8}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1rem;font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25}
h2{font-size:1.15rem;margin:2rem 0 .5rem}
p{margin:.5rem 0}
.soft{color:var(--soft);font-size:.9rem}
.verdict{border-left:.4rem solid var(--line);background:var(--card);padding:.75rem 1rem;border-radius:.3rem;font-size:1.1rem}
.pass{border-color:var(--good)}.fail{border-color:var(--bad)}
.yes{color:var(--good);font-weight:600}.no{color:var(--bad);font-weight:600}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.4rem .6rem .4rem 0;border-bottom:1px solid var(--line)}
th{font-weight:600}th[scope],.yes,.no{white-space:nowrap}
figure{margin:.5rem 0;overflow-x:auto}
svg{max-width:100%;height:auto;display:block}
svg text{fill:var(--ink);font:12px system-ui,sans-serif}
.axis{stroke:var(--line)}.half{stroke:var(--soft);stroke-dasharray:4 3}.span{stroke:var(--blue);stroke-width:3}
.dot{fill:var(--blue)}.was{fill:none;stroke:var(--soft);stroke-width:2}.want{fill:none;stroke:var(--good);stroke-width:2}
.band{fill:var(--card);stroke:var(--line)}.bar{fill:var(--blue)}.out{fill:var(--bad)}
.sample{border:1px solid var(--line);border-radius:.3rem;padding:.5rem .75rem;margin:.75rem 0}
.three{display:grid;grid-template-columns:repeat(3,1fr);gap:.75rem}
.three pre,.sample>pre{margin:.2rem 0;white-space:pre-wrap;font:inherit}
@media(max-width:40rem){.three{grid-template-columns:1fr}td,th{display:block;border:0;padding:.1rem 0}
tr{display:block;padding:.5rem 0;border-bottom:1px solid var(--line)}thead{display:none}}
"""

STYLE_HASH: Final = "sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
"""For ``Content-Security-Policy: default-src 'none'; style-src '<this>'``; the page needs nothing else."""


def page(report: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """The whole page. ``report``: as `app.training.gate.judge` makes it."""
    passed = report["verdict"] == "pass"
    title = "This version may be promoted" if passed else "This version may not be promoted"
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="verdict {"pass" if passed else "fail"}">{_text(report["summary"])}</p>',
        _about(report),
        "<h2>Better on held-out feedback?</h2>",
        _primary(report),
        "<h2>Broken on the way?</h2>",
        _guards(report["guards"]),
        "<h2>Every check</h2>",
        _checks(report["checks"]),
        "<h2>What the tries cost</h2>",
        _attempts(report),
        "<h2>Answers side by side</h2>" if samples else "",
        *(_sample(each) for each in samples[:SHOWN]),
    ]
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
    return head + "\n".join(filter(None, parts)) + "\n</main>\n</body>\n</html>\n"


def write_page(path: Path, text: str) -> None:
    """Writes it whole or not at all, for us alone. Raises OSError."""
    write_bytes(path, text.encode("utf-8", "replace"))


def _text(value: object) -> str:
    """Any text as HTML: escaped, without characters that no page may hold, its direction kept to itself."""
    return f"<bdi>{escape(_UNFIT.sub(_UNSHOWN, str(value)))}</bdi>"


def _about(report: Mapping[str, Any]) -> str:
    sampled, versions = report["sampled"], report["versions"]
    return (
        f'<p class="soft">Run {_text(report["run"])}, method {_text(report["method"])}. '
        f"Candidate {_text(versions['candidate'])} against current {_text(versions['current'])}. "
        f"{sampled['judged_rows']} of {sampled['held_out_rows']} held-out rows were asked ({sampled['judged_groups']} of "
        f"{sampled['held_out_groups']} prompts, {sampled['people']} people; {sampled['not_comparable']} rows had no text to "
        f"compare, {sampled['skipped']} were skipped). Judged {_text(report['judged_at'])} in {report['seconds']} s.</p>"
    )


# --- plots: 640 wide, drawn with classes only, for a strict policy forbids style attributes


def _svg(height: float, label: str, body: Iterable[str]) -> str:
    size = f'viewBox="0 0 640 {height:.0f}" width="640" height="{height:.0f}"'
    return f'<figure><svg {size} role="img" aria-label="{escape(label)}">{"".join(body)}</svg></figure>'


def _at(share: float, left: float = 130, width: float = 480) -> float:
    return left + width * min(1.0, max(0.0, share))


def _primary(report: Mapping[str, Any]) -> str:
    gain = next((check for check in report["checks"] if check["name"] == "gain"), None)
    if gain is None or report["primary"] is None or gain["interval"] is None:
        return f"<p>{_text(gain['detail'] if gain else 'Nothing was compared.')}</p>"
    rows = [("all", gain["value"], gain["interval"])]
    rows += [(f"{name} ({each['units']})", each["rate"], None) for name, each in report["primary"].items()]
    body, height = [], 40 + 28 * len(rows)
    for share, name in ((0.0, "0 %"), (0.5, "50 %: no difference"), (1.0, "100 %")):
        line = "half" if share == 0.5 else "axis"
        body.append(f'<line class="{line}" x1="{_at(share):.1f}" x2="{_at(share):.1f}" y1="8" y2="{height - 24}"/>')
        body.append(f'<text x="{_at(share):.1f}" y="{height - 6}" text-anchor="middle">{name}</text>')
    for number, (name, value, span) in enumerate(rows):
        y = 22 + 28 * number
        body.append(f'<text x="0" y="{y + 4}">{escape(name)}</text>')
        if span is not None:
            body.append(f'<line class="span" x1="{_at(span[0]):.1f}" x2="{_at(span[1]):.1f}" y1="{y}" y2="{y}"/>')
        body.append(f'<circle class="dot" cx="{_at(value):.1f}" cy="{y}" r="5"/>')
    note = "How often the candidate wins a comparison, ties halved. The bar is the 95 % interval over people and prompts."
    return _svg(height, "Win rate of the candidate", body) + f'<p class="soft">{note}</p><p>{_text(gain["detail"])}</p>'


def _guards(bands: Sequence[Mapping[str, Any]]) -> str:
    shares = [band for band in bands if 0 <= band["old"] <= 1 and 0 <= band["new"] <= 1 and band["name"] not in _LEVELS]
    body, height = [], 36 + 24 * len(shares)
    for number, band in enumerate(shares):
        y = 16 + 24 * number
        low, high = _at(band["low"] or 0.0), _at(1.0 if band["high"] is None else band["high"])
        inside = (band["low"] or 0.0) <= band["new"] <= (1.0 if band["high"] is None else band["high"])
        body.append(f'<text x="0" y="{y + 4}">{escape(band["name"])}</text>')
        body.append(f'<rect class="band" x="{low:.1f}" y="{y - 8}" width="{max(high - low, 1):.1f}" height="16"/>')
        body.append(f'<circle class="was" cx="{_at(band["old"]):.1f}" cy="{y}" r="5"/>')
        if band["wanted"] is not None:
            body.append(f'<rect class="want" x="{_at(band["wanted"]) - 4:.1f}" y="{y - 4}" width="8" height="8"/>')
        body.append(f'<circle class="{"dot" if inside else "out"}" cx="{_at(band["new"]):.1f}" cy="{y}" r="4"/>')
    for share in (0.0, 0.5, 1.0):
        body.append(f'<text x="{_at(share):.1f}" y="{height - 4}" text-anchor="middle">{share:.0%}</text>')
    words = (
        "Share of answers with a property, on frozen prompts: ring before, dot now, green square in what people asked for. The "
        "box is what is allowed; a guard fails where the dot is outside and that is no chance."
    )
    rest = "".join(_level(band) for band in bands if band["name"] in _LEVELS)
    return _svg(height, "Guarded properties", body) + f'<p class="soft">{words}</p>{rest}'


_LEVELS: Final = ("length", "forgetting")


def _level(band: Mapping[str, Any]) -> str:
    ends = [f"{end:.2f}" if end is not None else "open" for end in (band["low"], band["high"])]
    wanted = "" if band["wanted"] is None else f", wanted {band['wanted']:.2f}"
    name = escape(band["name"])
    return f"<p>{name}: {band['old']:.2f} before, {band['new']:.2f} now{wanted}; allowed {ends[0]} to {ends[1]}.</p>"


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    head = '<thead><tr><th scope="col">check</th><th scope="col">result</th><th scope="col">why</th></tr></thead>'
    rows = (
        f'<tr><th scope="row">{_text(check["name"])}</th><td class="{"yes" if check["passed"] else "no"}">'
        f"{'passed' if check['passed'] else 'failed'}</td><td>{_text(check['detail'])}</td></tr>"
        for check in checks
    )
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _attempts(report: Mapping[str, Any]) -> str:
    attempt = report["attempt"]
    tries = [*(each["alpha"] for each in report["history"]), attempt["alpha"]][-20:]
    wide = 480 / max(10, len(tries))
    body = ['<line class="axis" x1="130" x2="610" y1="100" y2="100"/>', '<text x="0" y="20">allowed error</text>']
    for number, level in enumerate(tries):
        tall = max(1.0, 85 * level / tries[0]) if level <= tries[0] else 85.0
        x = 130 + wide * number
        body.append(f'<rect class="bar" x="{x + 2:.1f}" y="{100 - tall:.1f}" width="{wide - 4:.1f}" height="{tall:.1f}"/>')
    words = (
        f"Attempt {attempt['number']} on this held-out feedback. All attempts on the same feedback share an error of "
        f"{attempt['budget']:.1%}: this one may be wrong with {attempt['alpha']:.2%}. New feedback on new prompts starts anew."
    )
    return _svg(112, "Allowed error of each attempt", body) + f"<p>{words}</p>"


def _sample(sample: Sample) -> str:
    three = (("before", sample.old), ("now", sample.new), ("asked for", sample.wanted))
    columns = "".join(f'<div><div class="soft">{name}</div><pre>{_cut(text)}</pre></div>' for name, text in three)
    return f'<div class="sample"><pre>{_cut(sample.question)}</pre><div class="three">{columns}</div></div>'


def _cut(text: str) -> str:
    return _text(text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " …")
