"use strict";
// Draws the page from the JSON in #data. Bits and numbers in it are base64; images are data URIs.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const TILE = 4;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function bytes(text) {
  const raw = atob(text);
  return Uint8Array.from(raw, (letter) => letter.charCodeAt(0));
}

const number = (value, digits = 3) =>
  value === 0 ? "0" : Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5 ? value.toExponential(1) : Number(value.toPrecision(digits)).toString();
const large = (value) => (value >= 1e9 ? `${number(value / 1e9)} G` : value >= 1e6 ? `${number(value / 1e6)} M` : `${number(value / 1e3)} k`);
const fromDense = (value) => (value === null ? "the same image as dense" : `${value.toFixed(1)} dB from dense`);
const percent = (value) => `${number(100 * value)} %`;

for (const layer of data.layers) {
  const bits = bytes(layer.active);
  layer.isActive = (row, column) => {
    const place = row * layer.columns + column;
    return Boolean(bits[place >> 3] & (128 >> (place & 7)));
  };
  layer.errorAt = bytes(layer.error);
}
for (const part of document.querySelectorAll("[data-if]")) part.hidden = !data[part.dataset.if].length;

function panel(title, source, alt) {
  return element("figure", {}, element("img", { src: source, alt: alt || title }), element("figcaption", {}, title));
}

// -- the edit

byId("about").textContent = data.about;
byId("made").textContent = data.made;
byId("partsText").textContent = data.partsText;
byId("panels").append(
  panel("before", data.images.original), panel(data.strokes, data.images.strokes),
  panel(`the edit, sparsely: ${fromDense(data.psnr)}`, data.images.edited),
  panel("all of it recomputed, densely", data.images.dense),
  panel("their difference, 8 times as strong, on grey", data.images.difference));
for (const [name, value] of data.facts) byId("facts").append(element("tr", {}, element("td", {}, name), element("td", {}, value)));

// -- tiles and layers

const pictures = { edited: "the edit", dense: "dense", original: "before", strokes: data.strokes, difference: "difference" };
const loaded = {};
for (const [name, title] of Object.entries(pictures)) {
  byId("picture").append(element("option", { value: name }, title));
  loaded[name] = new Image();
  loaded[name].onload = draw;
  loaded[name].src = data.images[name];
}
const mask = new Image();
mask.onload = draw;
mask.src = data.images.mask;
const stage = byId("stage");
const [height, width] = data.size;
const scale = Math.max(1, Math.round(640 / width));
stage.width = width * scale;
stage.height = height * scale;
let chosen = 0;
let cursor = null;

function hatch(context) {
  const cell = document.createElement("canvas");
  cell.width = cell.height = 8;
  const pen = cell.getContext("2d");
  pen.fillStyle = "rgba(255,255,255,.72)";
  pen.fillRect(0, 0, 8, 8);
  pen.strokeStyle = "rgba(0,0,0,.35)";
  pen.beginPath();
  pen.moveTo(0, 8);
  pen.lineTo(8, 0);
  pen.stroke();
  return context.createPattern(cell, "repeat");
}

// Thin lines between active tiles, thick ones where they end.
function outline(pen, layer, row, column, dx, dy) {
  const x = column * dx, y = row * dy;
  const inside = (r, c) => r >= 0 && c >= 0 && r < layer.rows && c < layer.columns && layer.isActive(r, c);
  for (const [r, c, x0, y0, x1, y1] of [[row - 1, column, x, y, x + dx, y], [row + 1, column, x, y + dy, x + dx, y + dy],
    [row, column - 1, x, y, x, y + dy], [row, column + 1, x + dx, y, x + dx, y + dy]]) {
    const end = !inside(r, c);
    pen.strokeStyle = end ? "#000" : "rgba(0,0,0,.3)";
    pen.lineWidth = end ? 2 : 0.5;
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.lineTo(x1, y1);
    pen.stroke();
  }
}

function draw() {
  const layer = data.layers[chosen], pen = stage.getContext("2d");
  const picture = loaded[byId("picture").value];
  if (!picture.complete || !mask.complete) return;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(picture, 0, 0, stage.width, stage.height);
  const over = byId("over").value, dx = (stage.width * TILE) / layer.w, dy = (stage.height * TILE) / layer.h;
  const pattern = hatch(pen);
  if (over === "mask") {
    pen.globalAlpha = 0.75;
    pen.drawImage(mask, 0, 0, stage.width, stage.height);
    pen.globalAlpha = 1;
  }
  for (let row = 0; row < layer.rows && over !== "nothing" && over !== "mask"; row++) {
    for (let column = 0; column < layer.columns; column++) {
      const active = layer.isActive(row, column), x = column * dx, y = row * dy;
      if (over === "error") {
        const shade = layer.errorAt[row * layer.columns + column];
        pen.fillStyle = `rgba(${255 - shade},${255 - shade},${255 - shade},.9)`;
        pen.fillRect(x, y, dx, dy);
      } else if (!active) {
        pen.fillStyle = pattern;
        pen.fillRect(x, y, dx, dy);
      }
      if (active) outline(pen, layer, row, column, dx, dy);
    }
  }
  if (cursor) {
    for (const [colour, line] of [["#fff", 6], ["#000", 3]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = line;
      pen.strokeRect(cursor[1] * dx, cursor[0] * dy, dx, dy);
    }
  }
}

function choose(place) {
  const before = data.layers[chosen], layer = data.layers[place];
  if (cursor && before !== layer) {
    cursor = [Math.min(layer.rows - 1, Math.floor((cursor[0] * layer.rows) / before.rows)),
      Math.min(layer.columns - 1, Math.floor((cursor[1] * layer.columns) / before.columns))];
  }
  chosen = place;
  byId("layer").value = place;
  [...byId("bars").tBodies[0].querySelectorAll(".layer")].forEach((row, i) => row.setAttribute("aria-selected", i === place));
  const time = layer.ms === null ? "" : `, ${number(layer.ms)} ms`;
  byId("layerFacts").replaceChildren(
    data.parts[layer.part] ? `${data.parts[layer.part]}. ` : "",
    element("strong", {}, layer.path), ` (${layer.kind || "layer"}${layer.kept ? "" : ", scratch"}): ${layer.h}×${layer.w}, ${layer.channels} channels; ` +
    `${layer.count} of ${layer.total} tiles active, ${large(layer.macs)} of ${large(layer.macsDense)} MACs${time}; ` +
    `error inherited ${number(layer.inherited)}, own ${number(layer.own)} of what it should move.`,
    element("pre", {}, layer.code ? `${layer.file}:${layer.line}   ${layer.code}` : "no line of a model calls it"));
  draw();
  showTile();
  markCurve();
}

stage.addEventListener("click", (event) => {
  const layer = data.layers[chosen], box = stage.getBoundingClientRect();
  cursor = [Math.min(layer.rows - 1, Math.floor(((event.clientY - box.top) / box.height) * layer.h / TILE)),
    Math.min(layer.columns - 1, Math.floor(((event.clientX - box.left) / box.width) * layer.w / TILE))];
  draw();
  showTile();
});
stage.addEventListener("keydown", (event) => {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const move = moves[event.key], layer = data.layers[chosen];
  if (!move) return;
  event.preventDefault();
  cursor = cursor || firstTile(layer) || [0, 0];
  cursor = [Math.min(layer.rows - 1, Math.max(0, cursor[0] + move[0])), Math.min(layer.columns - 1, Math.max(0, cursor[1] + move[1]))];
  draw();
  showTile();
});
byId("layer").max = data.layers.length - 1;
byId("layer").addEventListener("input", (event) => choose(Number(event.target.value)));
byId("back").addEventListener("click", () => choose(Math.max(0, chosen - 1)));
byId("on").addEventListener("click", () => choose(Math.min(data.layers.length - 1, chosen + 1)));
byId("picture").addEventListener("change", draw);
byId("over").addEventListener("change", draw);

const firstTile = (layer) => (layer.tiles.length ? [layer.tiles[0].row, layer.tiles[0].column] : null);
const most = (name) => Math.max(...data.layers.map((layer) => layer[name] || 0), 1e-9);
const bar = (value, largest) => element("span", { class: "bar", style: `width:${(2 * value) / largest}rem` });
const largest = { macs: most("macs"), ms: most("ms") };
data.layers.forEach((layer, place) => {
  if (data.parts[layer.part] && layer.part !== (data.layers[place - 1] || {}).part)
    byId("bars").tBodies[0].append(element("tr", { class: "part" }, element("th", { colspan: 5, scope: "colgroup" }, data.parts[layer.part])));
  byId("bars").tBodies[0].append(element("tr", { class: "layer" },
    element("td", {}, element("button", { type: "button", onclick: () => choose(place) }, layer.path)),
    element("td", {}, `${layer.h}×${layer.w}`), element("td", {}, percent(layer.count / layer.total)),
    element("td", {}, bar(layer.macs, largest.macs), large(layer.macs)),
    element("td", {}, ...(layer.ms === null ? ["–"] : [bar(layer.ms, largest.ms), `${number(layer.ms, 2)} ms`]))));
});
const sum = (name) => data.layers.reduce((total, layer) => total + (layer[name] || 0), 0);
byId("bars").tFoot.append(element("tr", {}, element("td", {}, `${data.layers.length} layers`), element("td", {}, ""),
  element("td", {}, percent(sum("macs") / sum("macsDense"))), element("td", {}, `${large(sum("macs"))} of ${large(sum("macsDense"))}`),
  element("td", {}, sum("ms") ? `${number(sum("ms"))} ms` : "–")));

// -- one tile

function grid(values, side, caption, mark = () => "") {
  const rows = [];
  for (let y = 0; y < values.length / side; y++) {
    const cells = [];
    for (let x = 0; x < side; x++) cells.push(element("td", { class: mark(y, x) }, number(values[y * side + x])));
    rows.push(element("tr", {}, ...cells));
  }
  return element("figure", {}, element("table", {}, element("tbody", {}, ...rows)), element("figcaption", {}, caption));
}
const sign = (text) => element("span", { class: "sign" }, text);

function showTile() {
  const layer = data.layers[chosen], place = byId("tileFacts");
  if (!cursor) {
    const first = firstTile(layer);
    place.replaceChildren(element("p", {}, "No tile is chosen."), ...(first
      ? [element("button", { type: "button", onclick: () => { cursor = first; draw(); showTile(); } }, "Choose an active tile of this layer")] : []));
    return;
  }
  const [row, column] = cursor, active = layer.isActive(row, column);
  const said = `Tile (${row}, ${column}) of ${layer.path}: rows ${row * TILE}–${row * TILE + 3}, columns ${column * TILE}–${column * TILE + 3} of its ${layer.h}×${layer.w}.`;
  const tile = layer.tiles.find((each) => each.row === row && each.column === column);
  if (!tile) {
    const why = !active ? "It is not active: the edit left it as the original has it, and nothing was computed."
      : layer.tiles.length ? `It is active. This page holds the numbers of ${layer.tiles.length} of the layer's active tiles.`
      : "It is active. Numbers are shown of convolutions only.";
    const nearest = layer.tiles.reduce((best, each) => {
      const far = (each.row - row) ** 2 + (each.column - column) ** 2;
      return best && best.far <= far ? best : { far, at: [each.row, each.column] };
    }, null);
    place.replaceChildren(element("p", {}, `${said} ${why}`), ...(nearest
      ? [element("button", { type: "button", onclick: () => { cursor = nearest.at; draw(); showTile(); } }, "Go to the nearest one with numbers")] : []));
    return;
  }
  const all = new Float32Array(bytes(tile.numbers).buffer);
  let at = 0;
  const take = (count) => all.subarray(at, (at += count));
  const window_ = take(tile.window * tile.window), kernel = take(tile.kernel * tile.kernel), sums = take(16), output = take(16);
  const margin = (tile.window - TILE * tile.stride) / 2;
  const halo = (y, x) => (y < margin || x < margin || y >= tile.window - margin || x >= tile.window - margin ? "halo" : "own");
  const facts = [element("p", {}, said + ` Of ${layer.channels} output channels, number ${tile.output} has the largest values here; ` +
    `of the input's, number ${tile.input} adds most to it.`),
    element("pre", {}, layer.code ? `${layer.file}:${layer.line}   ${layer.code}` : "")];
  const plain = [grid(window_, tile.window, `d: the window it reads (input ${tile.input}, rows from ${tile.top}, columns from ${tile.left}; hatched: the halo)`, halo),
    sign("∗"), grid(kernel, tile.kernel, `g: the kernel, input ${tile.input} → output ${tile.output}`)];
  const ends = [sign("→"), grid(sums, TILE, "y: summed over all inputs"), sign("→"),
    grid(output, TILE, "the canvas: with bias, residual and activation")];
  facts.push(element("div", { class: "numbers" }, ...plain, ...(tile.transformed ? [] : ends)));
  if (tile.transformed) {
    const [u, v, m] = [take(36), take(36), take(36)];
    facts.push(element("p", {}, "The fast backends compute it by Winograd's transforms: 36 products instead of 144. Here with " +
      "the textbook's points 0, ±1, ±2, ∞ (the kernels use 0, ±¾, ±1½, ∞, whose error is half as large)."));
    facts.push(element("div", { class: "numbers" }, grid(v, 6, "Bᵀ d B: the window, transformed"), sign("⊙"), grid(u, 6, "G g Gᵀ: the kernel, transformed"),
      sign("Σ"), grid(m, 6, "M: their products, summed over all inputs")));
    facts.push(element("div", { class: "numbers" }, element("span", {}, "Aᵀ M A"), ...ends));
  }
  place.replaceChildren(...facts);
}

// -- distance

byId("distanceText").textContent = data.distance;
const graph = { w: 960, h: 240, left: 46, bottom: 24, top: 8 };
const peak = Math.max(...data.layers.map((layer) => Math.max(layer.inherited, layer.own)), 1e-6);
const xOf = (place) => graph.left + ((graph.w - graph.left - 12) * place) / Math.max(1, data.layers.length - 1);
const yOf = (value) => graph.h - graph.bottom - ((graph.h - graph.bottom - graph.top) * value) / peak;
const curve = svg("svg", { viewBox: `0 0 ${graph.w} ${graph.h}`, role: "img", "aria-label": "Error of each layer, inherited and own" });
for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
  const y = yOf(tick * peak);
  curve.append(svg("line", { x1: graph.left, x2: graph.w - 12, y1: y, y2: y, stroke: "#ddd" }),
    svg("text", { x: graph.left - 6, y: y + 4, "text-anchor": "end", "font-size": 11 }, number(tick * peak, 2)));
}
// Passes do not inherit from each other here: each has a line of its own.
const begins = (i) => !i || data.layers[i].part !== data.layers[i - 1].part;
const path = (name) => data.layers.map((layer, i) => `${begins(i) ? "M" : "L"}${xOf(i)} ${yOf(layer[name])}`).join(" ");
data.layers.forEach((layer, i) => {
  if (!layer.part || !begins(i)) return;
  const x = xOf(i) - (i ? (xOf(i) - xOf(i - 1)) / 2 : 0);
  curve.append(svg("line", { x1: x, x2: x, y1: graph.top, y2: graph.h - graph.bottom, stroke: "#999", "stroke-dasharray": "2 3" }),
    svg("text", { x: x + 4, y: graph.top + 10, "font-size": 11 }, layer.part));
});
curve.append(svg("path", { d: path("own"), fill: "none", stroke: "#666", "stroke-width": 1.5, "stroke-dasharray": "5 4" }),
  svg("path", { d: path("inherited"), fill: "none", stroke: "#000", "stroke-width": 2 }),
  svg("text", { x: graph.left, y: graph.h - 6, "font-size": 11 }, "first layer"),
  svg("text", { x: graph.w - 12, y: graph.h - 6, "font-size": 11, "text-anchor": "end" }, "last layer"));
const marker = svg("line", { y1: graph.top, y2: graph.h - graph.bottom, stroke: "#000", "stroke-width": 1 });
curve.append(marker);
data.layers.forEach((layer, place) => {
  const dot = svg("rect", { x: xOf(place) - 3, y: yOf(layer.inherited) - 3, width: 6, height: 6, fill: "#000", style: "cursor:pointer" },
    svg("title", {}, `${layer.path}: inherited ${number(layer.inherited)}, own ${number(layer.own)}`));
  dot.addEventListener("click", () => choose(place));
  curve.append(dot);
});
byId("curve").append(curve);
function markCurve() {
  marker.setAttribute("x1", xOf(chosen));
  marker.setAttribute("x2", xOf(chosen));
}
byId("histogram").innerHTML = data.plots.histogram;
byId("memory").innerHTML = data.plots.memory;
if (data.plots.costs) byId("costs").innerHTML = data.plots.costs;
if (data.plots.steps) byId("stepBars").innerHTML = data.plots.steps;

// -- time

byId("timeText").textContent = data.timeText;
const whole = (name) => data.sizes.reduce((total, size) => total + size[name], 0);
const wholes = { macsDense: whole("macsDense"), macs: whole("macs"), ms: whole("ms") };
for (const size of data.sizes) {
  const share = (name) => (wholes[name] ? [bar(size[name], 0.5 * wholes[name]), percent(size[name] / wholes[name])] : ["–"]);
  byId("sizes").tBodies[0].append(element("tr", {}, element("th", { scope: "row" }, size.name), element("td", {}, percent(size.active)),
    ...["macsDense", "macs", "ms"].map((name) => element("td", {}, ...share(name)))));
}

// -- steps

if (data.steps.length) {
  byId("stepsText").textContent = data.stepsText;
  byId("step").max = data.steps.length - 1;
  const [edit, dense] = [panel("the edit, as predicted after this step", ""), panel("dense", "")];
  byId("stepPanels").append(edit, dense);
  const show = (place) => {
    const step = data.steps[place];
    edit.querySelector("img").src = step.preview;
    dense.querySelector("img").src = step.dense;
    byId("stepFacts").textContent = `${place}: ${step.computed ? "computed" : "carried"}, ${large(step.macs)} of ${large(step.macsDense)} MACs, ` +
      `${number(step.ms)} ms, ${fromDense(step.psnr)}` + (place === data.step ? " (the layers above are this step's)" : "");
  };
  byId("step").addEventListener("input", (event) => show(Number(event.target.value)));
  byId("step").value = data.steps.length - 1;
  show(data.steps.length - 1);
}

// -- break it

const outcomes = [{ name: "as it is", text: "Nothing is taken away.", image: data.images.edited, difference: data.images.difference, psnr: data.psnr }, ...data.whatIfs];
if (data.whatIfs.length) {
  const [image, far] = [panel("", ""), panel("its difference from dense, 8 times as strong, on grey", "")];
  byId("breakPanels").append(image, panel("dense", data.images.dense), far);
  const show = (outcome) => {
    image.querySelector("img").src = outcome.image;
    image.querySelector("figcaption").textContent = `${outcome.name}: ${fromDense(outcome.psnr)}`;
    far.querySelector("img").src = outcome.difference;
    byId("breakText").textContent = outcome.text;
  };
  outcomes.forEach((outcome, place) => {
    const button = element("input", { type: "radio", name: "outcome", id: `outcome${place}`, onchange: () => show(outcome) });
    if (!place) button.checked = true;
    byId("switches").append(element("label", { for: `outcome${place}` }, button, ` ${outcome.name}`));
  });
  show(outcomes[0]);
}

chosen = data.first;
cursor = firstTile(data.layers[chosen]);
choose(chosen);
