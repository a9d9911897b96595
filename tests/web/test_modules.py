"""The pure modules: the event-stream parser and the Markdown parser, run by Node."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from tests.web.conftest import RunModule

EVENTS = "v.map((pieces) => { const p = new m.SseParser(); return pieces.flatMap((piece) => p.push(piece)); })"
PARSE = "v.map((text) => m.parse(text))"


def test_events_survive_every_cut(run_module: RunModule) -> None:
    stream = (
        '\ufeff: hello\r\nevent: delta\r\ndata: {"text":"añ\U0001f600"}\r\n\r\n'
        "id: 7\nretry: 1\ndata:one\ndata: two\n\nevent: done\rdata:  x\r\rdata: cut"
    )
    want = [
        {"event": "delta", "data": '{"text":"añ\U0001f600"}'},
        {"event": "message", "data": "one\ntwo"},
        {"event": "done", "data": " x"},
    ]
    cuts = [[stream[:at], stream[at:]] for at in range(len(stream) + 1)] + [list(stream)]
    for got in run_module("sse.js", EVENTS, cuts):
        assert got == want


def test_events_without_data_and_comments_are_nothing(run_module: RunModule) -> None:
    streams = [
        ["\n\n\n"],
        ["event: delta\n\n"],
        [":\n\n: x\n\n"],
        ["data\n\n"],
        ["nonsense: 1\n\n"],
        ["data: unfinished\n"],
        [""],
    ]
    assert run_module("sse.js", EVENTS, streams) == [[], [], [], [{"event": "message", "data": ""}], [], [], []]


def test_a_line_without_end_is_refused(run_module: RunModule) -> None:
    expression = """(() => { const p = new m.SseParser(); let n = 0;
        try { for (; n < 100; n++) p.push("x".repeat(100_000)); } catch (e) { return [e.name, n]; } })()"""
    name, pushed = run_module("sse.js", expression, None)
    assert name == "RangeError"
    assert pushed <= 41


def flat(nodes: list[dict[str, Any]]) -> str:
    """The inline nodes in a short notation."""
    marks = {"strong": "B", "em": "I", "strike": "S"}
    out = ""
    for node in nodes:
        if node["type"] == "text":
            out += node["text"]
        elif node["type"] == "break":
            out += "/"
        elif node["type"] == "code":
            out += f"C({node['text']})"
        elif node["type"] == "link":
            out += f"L[{node['href']}]({flat(node['children'])})"
        else:
            out += f"{marks[node['type']]}({flat(node['children'])})"
    return out


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("plain", "plain"),
        ("**b** and *i* and ***both***", "B(b) and I(i) and B(I(both))"),
        ("**b *c* d**", "B(b I(c) d)"),
        ("__b__ _i_ snake_case_name ~~s~~", "B(b) I(i) snake_case_name S(s)"),
        ("2 * 3 * 4 and a*b", "2 * 3 * 4 and a*b"),
        ("unclosed **bold and `code", "unclosed **bold and `code"),
        ("`a` ``b`c`` ` d `", "C(a) C(b`c) C(d)"),
        ("`**not bold**`", "C(**not bold**)"),
        (r"\*not\* \\ \a", "*not* \\ \\a"),
        ("one\ntwo", "one/two"),
        ("[t](https://a.example/x_(y))", "L[https://a.example/x_(y)](t)"),
        ("[**t**](http://a.example \"title\")", "L[http://a.example/](B(t))"),
        ("see https://a.example/p?q=1, or (http://b.example).", "see L[https://a.example/p?q=1](https://a.example/p?q=1), or (L[http://b.example/](http://b.example))."),
        ("![alt](https://a.example/x.png)", "L[https://a.example/x.png](alt)"),
        ("[x](javascript:alert(1))", "[x](javascript:alert(1))"),
        ("[x](JaVaScRiPt:alert(1)) [y](data:text/html,z)", "[x](JaVaScRiPt:alert(1)) [y](data:text/html,z)"),
        ("[z](//e.example) [w](/path)", "[z](//e.example) [w](/path)"),
        ("[x](\x01javascript:alert(1)) [y](vbscript:x)", "[x](\x01javascript:alert(1)) [y](vbscript:x)"),
        ("[z](file:///etc/passwd)", "[z](file:///etc/passwd)"),
        ("[https://good.example](https://evil.example)", "L[https://evil.example/](https://good.example)"),
        ("<b>x</b> &lt;", "<b>x</b> &lt;"),
    ],
)  # fmt: skip
def test_inline(run_module: RunModule, text: str, want: str) -> None:
    assert flat(run_module("markdown.js", "m.inline(v)", text)) == want


def test_blocks(run_module: RunModule) -> None:
    text = """# Title #
para
goes on
- one
- two
  - deep

- three
  more

3. c
4. d
```js title
let a = "<b>";

# not a title
```
> quoted
> - list

| a | b |
|---|:-:|
| 1 | **2** |
---
~~~
open to the end"""
    blocks = run_module("markdown.js", PARSE, [text])[0]
    assert [block["type"] for block in blocks] == [
        "heading",
        "paragraph",
        "list",
        "list",
        "code",
        "quote",
        "table",
        "rule",
        "code",
    ]
    title, paragraph, bullets, numbers, code, quote, table, _, unclosed = blocks
    assert (title["level"], flat(title["children"])) == (1, "Title")
    assert flat(paragraph["children"]) == "para/goes on"
    assert [[block["type"] for block in item] for item in bullets["items"]] == [
        ["paragraph"],
        ["paragraph", "list"],
        ["paragraph"],
    ]
    assert flat(bullets["items"][2][0]["children"]) == "three/more"
    assert (numbers["ordered"], numbers["start"], len(numbers["items"])) == (True, 3, 2)
    assert (code["language"], code["text"]) == ("js", 'let a = "<b>";\n\n# not a title')
    assert [block["type"] for block in quote["children"]] == ["paragraph", "list"]
    assert [[flat(cell) for cell in row] for row in [table["head"], *table["rows"]]] == [["a", "b"], ["1", "B(2)"]]
    assert unclosed["text"] == "open to the end"


def words(blocks: Any) -> str:
    """Every text in a tree, in order."""
    if isinstance(blocks, list):
        return "".join(words(block) for block in blocks)
    if isinstance(blocks, dict):
        return "".join(words(blocks[key]) for key in ("text", "children", "head", "rows", "items") if key in blocks)
    return str(blocks)


def test_random_input_never_fails_and_loses_no_text(run_module: RunModule) -> None:
    chance = random.Random(7)
    harmless = ["*", "**", "_", "`b", "\n", "\n\n", "- ", "1. ", "> ", "# ", "[", ")", "<i>", "  ", "~ ", "a", "ñ", "!", "    "]
    texts = ["".join(chance.choices(harmless, k=60)) for _ in range(1000)]
    for text, blocks in zip(texts, run_module("markdown.js", PARSE, texts), strict=True):
        assert words(blocks).count("ñ") == text.count("ñ"), text
    # With links, tables and fences too, where addresses and superfluous cells are rightly not shown.
    rough = [*harmless, "](", "http://a.b", "|", "|-|", "```", "\\", "![", "***", "~~"]
    texts = ["".join(chance.choices(rough, k=80)) for _ in range(2000)]
    assert len(run_module("markdown.js", PARSE, texts)) == len(texts)


def test_hostile_patterns_end(run_module: RunModule) -> None:
    """Each of these is quadratic or worse in a careless parser; the runner's time limit is the bound."""
    seeds = [
        "*a ",
        "[",
        "``a",
        "> ",
        "- ",
        "**a *b ",
        "[a](",
        "_a__b",
        "\n- a",
        "* a\n\n\n",
        "|",
        "[a](h",
        "   #",
        "`",
        "~~~\n",
        "a\n",
        "https://a",
        "<",
        "\\",
        "|a\n|-\n",
        "***a",
        "~~a ",
        "1. ",
        "#",
        "\n",
    ]
    texts = [seed * (100_000 // len(seed)) for seed in seeds]
    assert len(run_module("markdown.js", "v.map((text) => m.parse(text).length)", texts)) == len(seeds)


def test_growing_text_never_fails(run_module: RunModule) -> None:
    text = "# T\n\n- a **b** `c`\n  1. d\n\n```py\nx = 1\n```\n\n|a|b|\n|-|-|\n|1|2|\n\n> [q](https://a.example) end"
    parsed = run_module("markdown.js", PARSE, list(itertools.accumulate(text)))
    assert len(parsed) == len(text)
    assert all(parsed)
