// The interactive map: draws what map_data.py describes, as a widget (anywidget) or in a page of its own.
// No library and nothing from the network. Texts reach the page as text, never as HTML.

const CHOSEN = 1, INERT = 2, VEILED = 4; // bits of a cell's state
const ROW = 18, WIDE = 32, NARROW = 9, SIDE = 340, GAP = 24; // pixels
const SHORT = ["module", "cost", "α", "probability", "spread", "margin to the cut", "chosen", "chosen in", "inert"];
const DRAWN = new Set(["svg", "g", "rect", "path", "text"]);
let pages = 0;

function make(tag, attributes = {}, ...children) {
  const element = DRAWN.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const list = (coded) => (Array.isArray(coded) ? coded : coded.at.map((place) => coded.of[place]));
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const short = (number) => String(Number(number.toPrecision(3))).replace("-", "−");
const breakable = (text) => text.split(/(?<=\.)/).flatMap((part, at) => (at ? [make("wbr"), part] : [part]));
const square = (x, y, width, height, inset) =>
  `M${x + inset} ${y + inset}h${width - 2 * inset}v${height - 2 * inset}h${2 * inset - width}z`;

function bright(colour) { // relative luminance (WCAG 2) of "rrggbb"
  const [r, g, b] = [0, 2, 4].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

const pen = document.createElement("canvas").getContext("2d");
function wide(text, bold = false) {
  pen.font = `${bold ? "bold " : ""}12px system-ui, sans-serif`;
  return pen.measureText(text).width;
}

// Whether the page around an element is dark: by the marks of JupyterLab, VS Code, Colab and marimo, else by its
// background, else by what the reader's system says.
function isDark(element) {
  const { documentElement: top, body } = document;
  const said = body.dataset.jpThemeLight ?? body.dataset.vscodeThemeKind ?? top.getAttribute("theme") ??
    top.dataset.theme ?? body.dataset.theme;
  if (said) return said === "false" || (/dark|high-contrast$/.test(said) && !/light/.test(said));
  for (let at = element; at; at = at.parentElement ?? at.getRootNode().host) {
    const [r, g, b, a = 1] = (getComputedStyle(at).backgroundColor.match(/[\d.]+/g) ?? []).map(Number);
    if (a > 0.5 && r !== undefined) return 0.299 * r + 0.587 * g + 0.114 * b < 128;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function render({ model, el }) {
  const own = `s3pet-map-${++pages}-${Math.random().toString(36).slice(2)}`;
  const heading = make("div", { class: "title", role: "heading", "aria-level": "2" });
  const colour = make("select"), names = make("datalist", { id: `${own}-names` });
  const find = make("input", { list: names.id, placeholder: "type an address", spellcheck: "false" });
  const tools = make("div", { class: "tools" }, make("label", {}, "colour", colour), make("label", {}, "candidate", find), names);
  const figure = make("div", { class: "figure" }), legend = make("div", { class: "legend" });
  const bars = make("div", { class: "bars", role: "group", "aria-label": "share of the budget" });
  const before = make("button", { type: "button" }, "← chosen before"), next = make("button", { type: "button" }, "chosen next →");
  const card = make("div", { class: "card" });
  const side = make("div", { class: "side" }, bars, make("div", { class: "steps" }, before, next), card);
  const live = make("div", { class: "heard", role: "status", "aria-live": "polite" });
  const summary = make("div", { class: "heard", id: `${own}-summary` });
  const tip = make("div", { class: "tip", role: "tooltip", "aria-hidden": "true", popover: "manual" });
  const root = make("div", { class: "s3pet-map", "data-lm-suppress-shortcuts": "true" }, heading, tools,
    make("div", { class: "parts" }, make("div", {}, figure, legend), side), summary, live, tip);
  let data, facts, pets, cells, budget, svg, rings, shape, active = 0, picked = -1, drawnAt = 0;

  // ── what the data say ──

  const value = () => data.values[model.get("value")] ?? data.values[data.value];
  const cellOf = (candidate) => cells.find((cell) => cell.candidates.includes(candidate));
  const called = (candidate) => {
    const rank = facts.rank?.[candidate];
    const named = rank && rank !== "—" && (rank !== "1" || cellOf(candidate).candidates.length > 1);
    return `${facts.address[candidate]} ${facts["PET module"][candidate]}${named ? ` ${rank}` : ""}`;
  };
  const palette = (shown) => data.colours[shown.colours[root.dataset.theme]].match(/.{6}/g);

  function load() {
    data = model.get("data"); // never changed here: a notebook saves it
    budget = data.bars.map((bar) => ({ ...bar }));
    facts = Object.fromEntries(Object.entries(data.facts).map(([name, texts]) => [name, list(texts)]));
    pets = list(data.pets);
    const { x, y, state, rank, candidates } = data.cells, ranks = list(rank);
    cells = x.map((_, at) => ({ at, x: x[at], y: y[at], state: state[at], rank: ranks[at], candidates: candidates[at] }));
    active = clamp(active, 0, cells.length - 1);
  }

  function sizes(cell) { // every size of a PET module that lies in a cell
    const said = facts[value().fact];
    return cell.candidates.map((i) => `${facts.rank[i]}: ${said[i] ?? "—"}${facts.chosen?.[i] === "yes" ? " (chosen)" : ""}`).join(" · ");
  }

  // ── drawing ──

  function draw() {
    load();
    const grid = data.grid, focused = figure.contains(root.getRootNode().activeElement);
    drawnAt = root.clientWidth;
    const width = (drawnAt || 900) - 24, rows = grid.rows.map(([, name]) => wide(name)), groups = grid.headers.map(([, name]) => wide(name, true));
    const left = Math.ceil(Math.max(...rows, ...groups)) + 10, beside = width >= left + 13 * grid.size[0] + GAP + SIDE;
    root.classList.toggle("beside", beside);
    const cell = clamp(Math.floor((width - left - 2 - (beside ? GAP + SIDE : 0)) / grid.size[0]), NARROW, WIDE);
    const long = Math.max(0, ...grid.columns.map(([, name]) => (/^\d+$/.test(name) || wide(name) < 1.3 * cell ? 0 : wide(name))));
    shape = {
      left, cell, top: 20, width: left + cell * grid.size[0] + 2, height: 20 + ROW * grid.size[1] + (long ? long + 8 : 18) + 16,
      px: (x) => Math.round(left + x * cell), py: (y) => Math.round(20 + y * ROW),
    };
    svg = make("svg", {
      role: "grid", viewBox: `0 0 ${shape.width} ${shape.height}`, width: shape.width, height: shape.height,
      "aria-describedby": summary.id, "aria-rowcount": grid.rows.length, "aria-colcount": grid.columns.length,
    });
    frame(grid, long);
    const columns = grid.columns.map(([x]) => x);
    grid.rows.forEach(([y, name], at) => {
      const row = make("g", { role: "row", "aria-label": name, "aria-rowindex": at + 1 });
      for (const each of cells.filter((one) => one.y === y)) {
        each.element = make("rect", {
          class: `cell${each.state & VEILED ? " veiled" : ""}`, x: shape.px(each.x) + 0.5, y: shape.py(y) + 0.5, width: shape.px(each.x + 1) - shape.px(each.x) - 1,
          height: ROW - 1, role: "gridcell", tabindex: "-1", "aria-colindex": columns.indexOf(each.x) + 1,
        });
        row.append(each.element);
      }
      svg.append(row);
    });
    const over = make("g", { class: "over", "aria-hidden": "true" });
    const outlines = cells.filter((one) => one.state & CHOSEN).map((one) => box(one, 1.5)).join("");
    over.append(make("path", { class: "rim", d: outlines }), make("path", { class: "chosen", d: outlines }));
    for (const each of cells) {
      const x = shape.px(each.x + 0.5), y = shape.py(each.y) + ROW / 2;
      each.mark = null;
      if (each.state & INERT) each.mark = make("path", { class: "inert", d: `M${x - 3} ${y - 3}l6 6m0-6l-6 6` });
      else if (each.rank) {
        each.mark = make("text", { class: "rank", x, y: y + 4 }, each.rank);
        each.mark.style.fontSize = `${Math.min(11, (1.7 * cell) / each.rank.length)}px`;
        if (each.state & CHOSEN) each.mark.classList.add("bold");
      }
      if (each.mark) over.append(each.mark);
    }
    rings = { picked: make("path", { class: "picked" }), pickedRim: make("path", { class: "picked rim" }), focus: make("path", { class: "focus" }) };
    over.append(rings.pickedRim, rings.picked, rings.focus);
    svg.append(over);
    figure.replaceChildren(svg);
    figure.parentElement.style.maxWidth = `${Math.max(shape.width, 480)}px`;
    heading.textContent = data.title;
    summary.textContent = data.summary;
    names.replaceChildren(...data.names.map((name) => make("option", { value: name })));
    colour.replaceChildren(...Object.entries(data.values).map(([name, one]) => make("option", { value: name }, one.label)));
    before.disabled = next.disabled = !data.order.length;
    drawBars();
    paint();
    pick();
    if (focused) cells[active].element.focus({ preventScroll: true });
  }

  const box = (cell, inset) => square(shape.px(cell.x), shape.py(cell.y), shape.px(cell.x + 1) - shape.px(cell.x), ROW, inset);

  function frame(grid, long) { // names of rows, columns, groups and stacks; hatching where there is no candidate
    const layer = make("g", { "aria-hidden": "true" }), { left, cell, top, px, py } = shape;
    const bottom = py(grid.size[1]), ends = grid.stacks.map(([, first, last]) => [px(first), px(last + 1)]);
    const taken = new Set(cells.map((one) => `${one.x} ${one.y}`));
    const free = grid.columns.flatMap(([x]) => grid.rows.filter(([y]) => !taken.has(`${x} ${y}`)).map(([y]) => [x, y]));
    layer.append(make("path", { class: "absent", d: free.map(([x, y]) => hatch(px(x) + 1, py(y) + 1, px(x + 1) - px(x) - 2, ROW - 2)).join("") }));
    for (const [y, name] of grid.rows) layer.append(make("text", { class: "row", x: left - 6, y: py(y) + 13 }, name));
    grid.headers.forEach(([y, name], at) => {
      layer.append(make("text", { class: "row bold", x: left - 6, y: py(y) + 13 }, name));
      if (at) layer.append(make("path", { class: "faint", d: ends.map(([a, b]) => `M${a} ${py(y + 0.55)}H${b}`).join("") }));
    });
    const every = [1, 2, 4, 5, 10, 20].find((n) => n * cell >= 17) ?? 20;
    for (const [x, name] of grid.columns) {
      const middle = px(x + 0.5), number = /^\d+$/.test(name);
      if (number && Number(name) % every) continue;
      const turned = !number && long ? { transform: `rotate(-90 ${middle + 4} ${bottom + 4})`, x: middle + 4, y: bottom + 4, "text-anchor": "end" } : { x: middle, y: bottom + 14 };
      layer.append(make("text", { class: "column", ...turned }, name));
    }
    grid.stacks.forEach(([name], at) => {
      const [a, b] = ends[at];
      layer.append(make("text", { class: "column bold", x: (a + b) / 2, y: top - 7 }, name), make("path", { class: "line", d: `M${a} ${top}H${b}` }));
      if (at) layer.append(make("path", { class: "line", d: `M${Math.round(a - 0.35 * cell)} ${top}V${bottom}` }));
    });
    layer.append(make("text", { class: "column", x: (left + shape.width) / 2, y: shape.height - 4 }, "layer"));
    svg.append(layer);
    shape.free = free.length;
  }

  function hatch(x, y, width, height) { // diagonal lines inside a rectangle
    let lines = "";
    for (let at = 5; at < width + height; at += 6) {
      const [ax, ay] = at <= height ? [0, at] : [at - height, height], [bx, by] = at <= width ? [at, 0] : [width, at - width];
      lines += `M${x + ax} ${y + ay}L${x + bx} ${y + by}`;
    }
    return lines;
  }

  function drawBars() {
    bars.replaceChildren(...(budget.length ? [make("div", { class: "caption" }, "share of the budget (%)")] : []));
    for (const bar of budget) {
      const fill = make("span", { class: "fill" }), part = make("span", { class: "part" });
      const track = make("span", { class: "track", "aria-hidden": "true" }, fill, part), about = `${bar.label}: ${bar.share.toFixed(1)} % of the budget, ${bar.text}`;
      fill.style.width = `${Math.min(bar.share, 100)}%`;
      fill.style.background = bar.colour;
      if (bar.uniform !== null) {
        const uniform = make("span", { class: "uniform" });
        uniform.style.left = `${bar.uniform}%`;
        track.append(uniform);
      }
      const label = make("span", { class: "label" }, bar.label), number = make("span", { class: "number" }, bar.text);
      bar.row = make("button", { type: "button", class: "bar", "aria-label": about }, label, track, number);
      bar.part = part;
      bar.row.disabled = !data.order.some((i) => pets[i] === bar.pet);
      bar.row.addEventListener("click", () => step(1, bar.pet));
      bar.row.addEventListener("pointerenter", () => dim(bar.pet));
      bar.row.addEventListener("pointerleave", () => dim(null));
      bars.append(bar.row);
    }
    if (budget.length) bars.append(make("div", { class: "key" }, make("span", { class: "uniform" }), "uniform gates"));
  }

  const dim = (pet) => cells.forEach((cell) => cell.element.classList.toggle("dim", pet !== null && pets[cell.candidates[0]] !== pet));

  // Colours and words of what is shown; the layout stays.
  function paint() {
    root.dataset.theme = isDark(el) ? "dark" : "light";
    const shown = value(), colours = palette(shown), said = facts[shown.fact];
    colour.value = Object.keys(data.values).find((name) => data.values[name] === shown);
    for (const cell of cells) {
      const index = shown.index[cell.at], first = cell.candidates[0], fill = colours[index];
      cell.element.setAttribute("fill", fill ? `#${fill}` : "var(--pale)");
      if (cell.mark) cell.mark.style.color = fill ? (bright(fill) > 0.179 ? "black" : "white") : "var(--ink)";
      const words = [called(first), `${shown.label} ${said[first] ?? "unknown"}`];
      if (cell.candidates.length > 1) words.push(`${cell.candidates.length} sizes`);
      if (cell.state & CHOSEN) words.push("chosen");
      if (cell.state & INERT) words.push("inert");
      if (cell.state & VEILED) words.push("filtered out");
      cell.element.setAttribute("aria-label", words.join(", "));
    }
    svg.setAttribute("aria-label", `${data.title ? `${data.title}: ` : ""}map of ${shown.label}`);
    drawLegend(shown, colours);
    roam(active);
  }

  function drawLegend(shown, colours) {
    const [low, high] = shown.limits, width = 220, at = (number) => ((number - low) / (high - low)) * width;
    const ramp = make("svg", { width: width + 2, height: 14, role: "img", "aria-label": `${shown.label} from ${short(low)} to ${short(high)}` });
    colours.forEach((hex, i) => i % 4 || ramp.append(make("rect", { x: 1 + (i * width) / colours.length, y: 0, width: width / 64 + 0.5, height: 14, fill: `#${hex}` })));
    const marks = Object.entries(shown.marks).map(([name, number], i) => {
      const dashes = i ? { "stroke-dasharray": "2 2" } : {}, line = `M${1 + at(number)} 0V14`;
      ramp.append(make("path", { d: line, stroke: "white", "stroke-width": 4 }), make("path", { d: line, stroke: "black", "stroke-width": 1.8, ...dashes }));
      return entry(`${name} ${short(number)}`, make("path", { d: "M7 0V14", class: "line", ...dashes }));
    });
    const arrows = { min: "≤", max: "≥", both: "≤≥" }[shown.extend] ?? "";
    const ticks = make("div", { class: "ticks" }, make("span", {}, `${arrows.includes("≤") ? "≤ " : ""}${short(low)}`),
      make("span", {}, short((low + high) / 2)), make("span", {}, `${arrows.includes("≥") ? "≥ " : ""}${short(high)}`));
    const entries = [...marks], { chosen, inert, rank } = data.legend;
    if (chosen) entries.push(entry(chosen, make("path", { class: "rim", d: square(0, 0, 14, 14, 2) }), make("path", { class: "chosen", d: square(0, 0, 14, 14, 2) })));
    if (inert) entries.push(entry(inert, make("path", { class: "line", d: "M4 4l6 6m0-6l-6 6" })));
    if (rank) entries.push(entry(rank, make("text", { class: "column", x: 7, y: 11 }, "n")));
    if (shape.free) entries.push(entry("no candidate here", make("path", { class: "absent", d: hatch(0, 0, 14, 14) })));
    if (shown.index.includes(-1)) entries.push(entry("no number", make("rect", { width: 14, height: 14, fill: "var(--pale)" })));
    const scale = make("div", { class: "scale" }, make("div", { class: "caption" }, shown.label), ramp, ticks);
    legend.replaceChildren(scale, make("div", { class: "entries" }, ...entries));
  }

  const entry = (words, ...shapes) => make("span", { class: "entry" }, make("svg", { width: 14, height: 14, "aria-hidden": "true" }, ...shapes), words);

  // ── one candidate ──

  function choose(candidate) {
    model.set("selected", candidate < 0 ? "" : data.names[candidate]);
    model.save_changes();
  }

  function press(cell) { // select what a cell shows or, if it is selected already, the next of its sizes
    const here = cell.candidates.indexOf(picked), { candidates } = cell;
    choose(candidates[(here + 1) % candidates.length]);
    if (tip.classList.contains("on")) show(cell);
  }

  function step(by, pet = null) { // the next chosen candidate in the order of the gates, or the one before
    const order = data.order.filter((i) => pet === null || pets[i] === pet), here = order.indexOf(picked);
    if (order.length) choose(order[(Math.max(here, by > 0 ? -1 : 0) + by + order.length) % order.length]);
  }

  function pick() {
    const last = picked, cell = (picked = data.names.indexOf(model.get("selected"))) < 0 ? null : cellOf(picked);
    for (const one of cells) one.element.setAttribute("aria-selected", one === cell);
    for (const ring of [rings.pickedRim, rings.picked]) ring.setAttribute("d", cell ? box(cell, 0.5) : "");
    find.value = picked < 0 ? "" : data.names[picked];
    for (const bar of budget) {
      const mine = picked >= 0 && pets[picked] === bar.pet;
      bar.row.classList.toggle("on", mine);
      bar.part.hidden = !(mine && facts.chosen?.[picked] === "yes");
      bar.part.style.width = `${data.shares[picked] ?? 0}%`;
    }
    if (!cell) return void card.replaceChildren(make("p", {}, "Point at a cell. Click it, or walk with the arrow keys and press Enter, to keep it here."));
    roam(cell.at);
    card.replaceChildren(make("div", { class: "name" }, called(picked)), about(picked, Object.keys(facts)));
    if (last !== picked) live.textContent = `selected: ${cell.element.getAttribute("aria-label")}`;
  }

  function about(candidate, wanted) { // a table of facts
    const cell = cellOf(candidate), rows = wanted.filter((name) => facts[name]?.[candidate]).map((name) => [name, facts[name][candidate]]);
    if (cell.candidates.length > 1) rows.push([`sizes: ${value().fact}`, sizes(cell)]);
    return make("table", {}, ...rows.map(([name, text]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, ...breakable(text)))));
  }

  // ── pointing and walking ──

  function roam(at) { // which cell the tab key reaches
    cells[active].element.setAttribute("tabindex", "-1");
    active = at;
    cells[active].element.setAttribute("tabindex", "0");
  }

  function show(cell) {
    const first = cell.candidates.includes(picked) ? picked : cell.candidates[0];
    const measured = Object.keys(facts).filter((name) => name.endsWith("utility"));
    tip.replaceChildren(make("div", { class: "name" }, called(first)), about(first, [...SHORT, ...measured]));
    if (tip.isConnected) tip.showPopover?.();
    tip.classList.add("on");
    const at = cell.element.getBoundingClientRect(), { offsetWidth: width, offsetHeight: height } = tip;
    const below = at.bottom + 8 + height < innerHeight || at.top < height + 8;
    tip.style.left = `${clamp(at.left + 14, 4, Math.max(4, innerWidth - width - 8))}px`;
    tip.style.top = `${below ? at.bottom + 8 : at.top - height - 8}px`;
    for (const bar of budget) bar.row.classList.toggle("near", bar.pet === pets[first]);
  }

  function hide() {
    if (tip.matches(":popover-open")) tip.hidePopover();
    tip.classList.remove("on");
    for (const bar of budget) bar.row.classList.remove("near");
  }

  function under(event) { // the cell below the pointer
    const { left, top, width } = svg.getBoundingClientRect(), zoom = shape.width / width;
    const x = (event.clientX - left) * zoom, y = (event.clientY - top) * zoom, inside = (from, to, z) => from <= z && z < to;
    return cells.find((one) => inside(shape.px(one.x), shape.px(one.x + 1), x) && inside(shape.py(one.y), shape.py(one.y) + ROW, y));
  }

  function walk(key, all) { // the cell that a key leads to, from the one in use
    const from = cells[active], ahead = (axis, sign) => (one) => sign * (one[axis] - from[axis]) > 0;
    const row = cells.filter((one) => one.y === from.y).sort((a, b) => a.x - b.x), column = cells.filter((one) => one.x === from.x).sort((a, b) => a.y - b.y);
    const ordered = [...cells].sort((a, b) => a.y - b.y || a.x - b.x);
    return {
      ArrowRight: () => row.find(ahead("x", 1)), ArrowLeft: () => row.findLast(ahead("x", -1)),
      ArrowDown: () => column.find(ahead("y", 1)), ArrowUp: () => column.findLast(ahead("y", -1)),
      Home: () => (all ? ordered : row)[0], End: () => (all ? ordered : row).at(-1), PageUp: () => column[0], PageDown: () => column.at(-1),
    }[key]?.();
  }

  figure.addEventListener("pointermove", (event) => {
    const cell = under(event);
    if (cell) show(cell);
    else hide();
  });
  figure.addEventListener("pointerleave", hide);
  figure.addEventListener("click", (event) => {
    const cell = under(event);
    if (!cell) return;
    roam(cell.at);
    press(cell);
  });
  figure.addEventListener("focusin", (event) => {
    const cell = cells.find((one) => one.element === event.target);
    if (!cell) return;
    roam(cell.at);
    if (!event.target.matches(":focus-visible")) return; // reached with the pointer
    rings.focus.setAttribute("d", box(cell, -1.5));
    show(cell);
  });
  figure.addEventListener("focusout", () => {
    rings.focus.setAttribute("d", "");
    hide();
  });
  figure.addEventListener("keydown", (event) => {
    if (event.altKey || event.metaKey) return;
    const to = walk(event.key, event.ctrlKey);
    if (to) {
      roam(to.at);
      to.element.focus();
    } else if (event.key === "Enter" || event.key === " ") press(cells[active]);
    else if (event.key === "Escape") {
      hide();
      choose(-1);
    } else if (!/^(Arrow|Home|End|Page)/.test(event.key)) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook would move to another cell
  });
  before.addEventListener("click", () => step(-1));
  next.addEventListener("click", () => step(1));
  colour.addEventListener("change", () => {
    model.set("value", colour.value);
    model.save_changes();
  });
  find.addEventListener("change", () => {
    const at = data.names.indexOf(find.value.trim());
    if (at >= 0 || !find.value.trim()) choose(at);
    else live.textContent = `no candidate is called ${find.value}`;
    find.toggleAttribute("aria-invalid", at < 0 && find.value.trim() !== "");
  });

  const repaint = () => svg && root.dataset.theme !== (isDark(el) ? "dark" : "light") && paint();
  const revalue = () => {
    paint();
    pick();
    live.textContent = `colour: ${value().label}`;
  };
  const watched = new MutationObserver(() => requestAnimationFrame(repaint));
  for (const one of [document.documentElement, document.body]) watched.observe(one, { attributes: true });
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", repaint);
  const sized = new ResizeObserver(() => Math.abs(root.clientWidth - drawnAt) > 1 && root.clientWidth && draw());
  el.replaceChildren(root);
  draw();
  sized.observe(root);
  model.on("change:data", draw);
  model.on("change:value", revalue);
  model.on("change:selected", pick);
  return () => {
    watched.disconnect();
    sized.disconnect();
    system.removeEventListener("change", repaint);
    model.off("change:data", draw);
    model.off("change:value", revalue);
    model.off("change:selected", pick);
  };
}

// In a page of its own there is no kernel: the page keeps the state, and its address names the candidate.
export function openPage() {
  const linked = () => decodeURIComponent(location.hash.slice(1));
  const data = JSON.parse(document.getElementById("s3pet-data").textContent), followers = {};
  const state = { data, value: data.value, selected: linked() || data.selected };
  const model = {
    get: (name) => state[name],
    set(name, value) {
      if (state[name] === value) return;
      state[name] = value;
      for (const follow of followers[`change:${name}`] ?? []) follow();
    },
    on: (event, follow) => (followers[event] ??= []).push(follow),
    off() {},
    save_changes: () => history.replaceState(null, "", `#${encodeURIComponent(state.selected)}`),
  };
  addEventListener("hashchange", () => model.set("selected", linked()));
  render({ model, el: document.getElementById("s3pet-map") });
}

export default { render };
