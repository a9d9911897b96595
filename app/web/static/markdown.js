// Markdown as models write it: text to a plain tree (`parse`), tree to DOM nodes (`render`). Never a string of HTML:
// whatever is not understood stays text. Linear time on any input; links only to http and https; nothing is fetched.

const MAX_DEPTH = 6;
const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const ITEM = /^( {0,40})([-*+]|\d{1,9}[.)])( {1,4}|$)(.*)$/;
const DELIMITER_CELL = /^:?-+:?$/;

/** Blocks: heading, paragraph, code, list, quote, table, rule. */
export function parse(text, depth = 0) {
  return parseLines(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), depth);
}

function parseLines(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      at += 1;
      continue;
    }
    const taken = takeFence(lines, at) ?? takeHeading(lines, at) ?? takeRule(lines, at) ?? takeTable(lines, at)
      ?? (depth < MAX_DEPTH ? takeQuote(lines, at, depth) ?? takeList(lines, at, depth) : null)
      ?? takeParagraph(lines, at);
    blocks.push(taken.block);
    at = taken.next;
  }
  return blocks;
}

function takeFence(lines, at) {
  const open = FENCE.exec(lines[at]);
  if (!open || (open[1][0] === "`" && open[2].includes("`"))) return null;
  const body = [];
  let next = at + 1;
  for (; next < lines.length; next++) {
    const line = lines[next].trim();
    if (line.length >= open[1].length && line === open[1][0].repeat(line.length)) return { block: code(open, body), next: next + 1 };
    body.push(lines[next]);
  }
  return { block: code(open, body), next };
}

function code(open, body) {
  return { type: "code", language: open[2].trim().split(/\s/)[0].slice(0, 30), text: body.join("\n") };
}

function takeHeading(lines, at) {
  const match = /^ {0,3}(#{1,6}) (.*)$/.exec(lines[at]);
  if (!match) return null;
  let text = match[2].trim();
  while (text.endsWith("#")) text = text.slice(0, -1);
  return { block: { type: "heading", level: match[1].length, children: inline(text.trim()) }, next: at + 1 };
}

function isRule(line) {
  const packed = line.replaceAll(" ", "");
  return packed.length >= 3 && "-*_".includes(packed[0]) && packed === packed[0].repeat(packed.length);
}

function takeRule(lines, at) {
  return isRule(lines[at]) ? { block: { type: "rule" }, next: at + 1 } : null;
}

function cells(line) {
  let text = line.trim();
  if (text.startsWith("|")) text = text.slice(1);
  if (text.endsWith("|")) text = text.slice(0, -1);
  return text.split("|").map((cell) => cell.trim());
}

function takeTable(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !lines[at + 1].includes("-")) return null;
  const head = cells(lines[at]);
  const marks = cells(lines[at + 1]);
  if (head.length !== marks.length || head.length > 30 || !marks.every((mark) => DELIMITER_CELL.test(mark))) return null;
  const rows = [];
  let next = at + 2;
  for (; next < lines.length && lines[next].includes("|"); next++) rows.push(cells(lines[next]).slice(0, head.length).map((cell) => inline(cell)));
  return { block: { type: "table", head: head.map((cell) => inline(cell)), rows }, next };
}

function takeQuote(lines, at, depth) {
  const inner = [];
  let next = at;
  for (; next < lines.length && /^ {0,3}>/.test(lines[next]); next++) inner.push(lines[next].replace(/^ {0,3}> ?/, ""));
  return next === at ? null : { block: { type: "quote", children: parseLines(inner, depth + 1) }, next };
}

function takeList(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (!first) return null;
  const ordered = first[2].length > 1;
  const indent = first[1].length;
  const items = [];
  let next = at;
  while (next < lines.length) {
    const match = ITEM.exec(lines[next]);
    if (!match || match[1].length > indent + 1 || match[1].length < indent || (match[2].length > 1) !== ordered || isRule(lines[next])) break;
    const body = takeItem(lines, next, match);
    items.push(parseLines(body.lines, depth + 1));
    next = body.next;
  }
  if (items.length === 0) return null;
  return { block: { type: "list", ordered, start: ordered ? Number.parseInt(first[2], 10) : 1, items }, next };
}

function takeItem(lines, at, match) {
  const body = [match[4]];
  let next = at + 1;
  while (next < lines.length) {
    const line = lines[next];
    if (line.trim() === "") {
      const after = nextFilled(lines, next);
      if (after < 0) return { lines: body, next: lines.length };
      if (leading(lines[after]) <= match[1].length) {
        // Blank lines between items of one list do not end it.
        const same = ITEM.exec(lines[after]);
        return { lines: body, next: same ? after : next };
      }
      for (; next < after; next++) body.push("");
      continue;
    }
    if (leading(line) <= match[1].length + 1 && (ITEM.test(line) || startsBlock(line))) break;
    body.push(line.slice(Math.min(leading(line), match[1].length + match[2].length + 1)));
    next += 1;
  }
  return { lines: body, next };
}

function nextFilled(lines, from) {
  for (let at = from; at < lines.length; at++) if (lines[at].trim() !== "") return at;
  return -1;
}

function leading(line) {
  let count = 0;
  while (line[count] === " ") count += 1;
  return count;
}

function startsBlock(line) {
  return FENCE.test(line) || /^ {0,3}(#{1,6} |>)/.test(line) || isRule(line);
}

function takeParagraph(lines, at) {
  let next = at + 1;
  while (next < lines.length && lines[next].trim() !== "" && !startsBlock(lines[next]) && !ITEM.test(lines[next])) next += 1;
  const text = lines.slice(at, next).map((line) => line.trim()).join("\n");
  return { block: { type: "paragraph", children: inline(text) }, next };
}

/** Inline nodes: text, code, strong, em, strike, link, break. */
export function inline(text, depth = 0) {
  const nodes = [];
  const hopeless = new Set();
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain !== "") nodes.push({ type: "text", text: plain });
    plain = "";
  };
  while (at < text.length) {
    const found = SPECIAL.includes(text[at]) && depth < MAX_DEPTH ? takeInline(text, at, depth, hopeless) : null;
    if (found === null) {
      plain += text[at];
      at += 1;
      continue;
    }
    if (found.node.type === "text") plain += found.node.text;
    else {
      flush();
      nodes.push(found.node);
    }
    at = found.next;
  }
  flush();
  return nodes;
}

const SPECIAL = "\\`*_~![h\n";

function takeInline(text, at, depth, hopeless) {
  switch (text[at]) {
    case "\n": return { node: { type: "break" }, next: at + 1 };
    case "\\": return takeEscape(text, at);
    case "`": return takeCode(text, at, hopeless);
    case "*": case "_": case "~": return takeEmphasis(text, at, depth, hopeless);
    case "!": return text[at + 1] === "[" ? takeLink(text, at + 1, depth) : null;
    case "[": return takeLink(text, at, depth);
    default: return takeAddress(text, at);
  }
}

function takeEscape(text, at) {
  return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? { node: { type: "text", text: text[at + 1] }, next: at + 2 } : null;
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function takeCode(text, at, hopeless) {
  const length = runLength(text, at);
  const mark = "`".repeat(length);
  const literal = { node: { type: "text", text: mark }, next: at + length };
  if (hopeless.has(mark)) return literal;
  for (let end = text.indexOf(mark, at + length); end >= 0; end = text.indexOf(mark, end)) {
    const run = runLength(text, end);
    if (run === length) {
      const inner = text.slice(at + length, end).replaceAll("\n", " ");
      return { node: { type: "code", text: inner.trim() === "" ? inner : inner.trim() }, next: end + length };
    }
    end += run;
  }
  hopeless.add(mark);
  return literal;
}

const EMPHASIS = { "***": "strong", "**": "strong", __: "strong", "*": "em", _: "em", "~~": "strike" };

function takeEmphasis(text, at, depth, hopeless) {
  const sign = text[at];
  const run = Math.min(runLength(text, at), 40);
  const mark = sign.repeat(Math.min(run, sign === "*" ? 3 : 2));
  const literal = { node: { type: "text", text: sign.repeat(run) }, next: at + run };
  const type = EMPHASIS[mark];
  const after = text[at + mark.length] ?? " ";
  if (!type || run > mark.length || hopeless.has(mark) || /\s/.test(after)) return literal;
  if (sign === "_" && /[\p{L}\p{N}]/u.test(text[at - 1] ?? " ")) return literal;
  const end = closer(text, at + mark.length, mark);
  if (end < 0) {
    // A closer's fitness does not depend on its opener: none from here means none further on.
    hopeless.add(mark);
    return literal;
  }
  let children = inline(text.slice(at + mark.length, end), depth + 1);
  if (mark === "***") children = [{ type: "em", children }];
  return { node: { type, children }, next: end + mark.length };
}

function closer(text, from, mark) {
  for (let end = text.indexOf(mark, from + 1); end >= 0; end = text.indexOf(mark, end)) {
    const run = runLength(text, end);
    const fits = run === mark.length || (mark.length === 1 && run === 3) || (mark.length === 2 && run === 3);
    const wordGoesOn = mark[0] === "_" && /[\p{L}\p{N}]/u.test(text[end + run] ?? " ");
    if (fits && !/\s/.test(text[end - 1]) && !wordGoesOn) return end + run - mark.length;
    end += run;
  }
  return -1;
}

function takeLink(text, at, depth) {
  const label = text.slice(at + 1, at + 500);
  const close = label.indexOf("](");
  if (close < 0 || label.slice(0, close).includes("\n")) return null;
  const from = at + 1 + close + 2;
  const target = text.slice(from, from + 2000);
  let level = 0;
  for (let i = 0; i < target.length && target[i] !== "\n"; i++) {
    if (target[i] === "(") level += 1;
    else if (target[i] === ")" && level > 0) level -= 1;
    else if (target[i] === ")") {
      const href = safeAddress(target.slice(0, i).trim().split(/\s/)[0]);
      if (href === null) return null;
      const words = inlineWithoutLinks(label.slice(0, close), depth);
      return { node: { type: "link", href, children: words.length > 0 ? words : [{ type: "text", text: href }] }, next: from + i + 1 };
    }
  }
  return null;
}

function inlineWithoutLinks(text, depth) {
  const flat = (nodes) => nodes.flatMap((node) => {
    if (node.type === "link") return flat(node.children);
    return node.children ? [{ ...node, children: flat(node.children) }] : [node];
  });
  return flat(inline(text, depth + 1));
}

function takeAddress(text, at) {
  if (!text.startsWith("https://", at) && !text.startsWith("http://", at)) return null;
  if (/[\p{L}\p{N}]/u.test(text[at - 1] ?? " ")) return null;
  let raw = /^[^\s<>"'`|\\^{}]+/.exec(text.slice(at, at + 2000))[0];
  while (/[.,;:!?*_~)\]]$/.test(raw) && !(raw.endsWith(")") && raw.includes("("))) raw = raw.slice(0, -1);
  const href = safeAddress(raw);
  return href === null ? null : { node: { type: "link", href, children: [{ type: "text", text: raw }] }, next: at + raw.length };
}

/** The address in its normal form if it is an absolute http or https one, or null. */
export function safeAddress(text) {
  if (!/^https?:\/\//i.test(text) || !URL.canParse(text)) return null;
  const address = new URL(text);
  return address.protocol === "https:" || address.protocol === "http:" ? address.href : null;
}

const INLINE_TAGS = { strong: "strong", em: "em", strike: "s" };

/** DOM nodes for a list of blocks. `makeCode(language, text)` may give the node of a code block (with a copy button, say). */
export function render(blocks, makeCode = plainCode) {
  return blocks.map((block) => renderBlock(block, makeCode));
}

function renderBlock(block, makeCode) {
  switch (block.type) {
    // The page's own headings are h1 and h2: an answer's headings stand below them.
    case "heading": return element(`h${Math.min(6, block.level + 2)}`, renderInline(block.children));
    case "code": return makeCode(block.language, block.text);
    case "rule": return element("hr", []);
    case "quote": return element("blockquote", render(block.children, makeCode));
    case "table": return renderTable(block);
    case "list": return renderList(block, makeCode);
    default: return element("p", renderInline(block.children));
  }
}

function renderList(block, makeCode) {
  const list = element(block.ordered ? "ol" : "ul", block.items.map((item) => {
    const tight = item.length > 0 && item[0].type === "paragraph";
    const nodes = tight ? [...renderInline(item[0].children), ...render(item.slice(1), makeCode)] : render(item, makeCode);
    return element("li", nodes);
  }));
  if (block.ordered && block.start !== 1) list.start = block.start;
  return list;
}

function renderTable(block) {
  const row = (tag, line) => element("tr", line.map((cell) => element(tag, renderInline(cell))));
  const table = element("table", [element("thead", [row("th", block.head)]), element("tbody", block.rows.map((line) => row("td", line)))]);
  const frame = element("div", [table]);
  frame.className = "table";
  frame.tabIndex = 0;
  return frame;
}

function renderInline(nodes) {
  return nodes.map((node) => {
    switch (node.type) {
      case "text": return document.createTextNode(node.text);
      case "break": return document.createElement("br");
      case "code": return element("code", [document.createTextNode(node.text)]);
      case "link": return renderLink(node);
      default: return element(INLINE_TAGS[node.type], renderInline(node.children));
    }
  });
}

function renderLink(node) {
  const link = element("a", renderInline(node.children));
  link.href = node.href;
  link.rel = "noopener noreferrer nofollow";
  link.target = "_blank";
  // The label may lie; the tooltip does not.
  link.title = node.href;
  return link;
}

function plainCode(language, text) {
  return element("pre", [element("code", [document.createTextNode(text)])]);
}

function element(tag, children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

/** Renders growing text into `target`, touching only the blocks that changed, so that a reader's selection above survives. */
export class GrowingMarkdown {
  #target;
  #makeCode;
  #keys = [];

  constructor(target, makeCode) {
    this.#target = target;
    this.#makeCode = makeCode;
  }

  show(text) {
    const blocks = parse(text);
    const keys = blocks.map((block) => JSON.stringify(block));
    let same = 0;
    while (same < keys.length && keys[same] === this.#keys[same]) same += 1;
    while (this.#target.childNodes.length > same) this.#target.lastChild.remove();
    this.#target.append(...render(blocks.slice(same), this.#makeCode));
    this.#keys = keys;
  }
}
