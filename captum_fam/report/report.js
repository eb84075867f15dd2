"use strict";
// The page works without this script: it shows photographs and texts. The script draws the maps, and shows which cells
// match. All numbers of a row are decoded when the row comes into view, or when the browser is idle.
(() => {
  const page = JSON.parse(document.getElementById("page").textContent);
  const form = document.getElementById("view");
  const view = { method: 0, contrast: "on", sides: "both", look: "smooth", scale: "match" };
  const NO_COSINE = -32768, LARGEST = 32767, FINE = 4, LEVEL = 0.5, GONE = "The cell is let go.";
  const colors = bytes(page.colors), steps = colors.length / 4 - 1;
  const table = new Uint32Array(colors.buffer); // one number per color, in the order of bytes that a canvas has
  let chosen = null; // the cell that is marked: {row, photo, cell, kept, partner}

  function bytes(text) {
    const characters = atob(text), values = new Uint8Array(characters.length);
    for (let i = 0; i < values.length; i++) values[i] = characters.charCodeAt(i);
    return values;
  }

  // Five digits to the base 85 are four bytes.
  const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
  const digits = new Uint8Array(128);
  [...DIGITS].forEach((char, value) => { digits[char.charCodeAt(0)] = value; });
  function packed(text, size) {
    const values = new DataView(new ArrayBuffer(4 * text.length / 5));
    for (let i = 0; i < text.length; i += 5) {
      let value = 0;
      for (let k = 0; k < 5; k++) value = 85 * value + digits[text.charCodeAt(i + k)];
      values.setUint32(4 * i / 5, value);
    }
    return new Uint8Array(values.buffer, 0, size);
  }

  function make(name, classes, parent) {
    const element = name === "svg" || name === "path"
      ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    element.setAttribute("class", classes);
    if (parent) parent.append(element);
    return element;
  }

  // ---- Numbers in words

  const minus = (text) => text.replace("-", "\u2212");
  function number(value) {
    const rounded = value.toPrecision(3), size = Math.abs(value);
    return minus(value === 0 ? "0" : size >= 1000 && size < 1e9 ? Number(rounded).toLocaleString("en") : rounded);
  }
  const percent = (share, half = 0) => known(100 * share, 100 * half, rounded) + "\u00a0%";
  function rounded(value) {
    return minus(Math.abs(value) >= 10 ? value.toFixed(1) : value === 0 ? "0" : value.toPrecision(2));
  }
  // A value with its true digits, where `half` is half a step of the integers that it is read from.
  function known(value, half, exact) {
    const digits = (one, count) => minus(String(Number(one.toPrecision(count))));
    const power = (one) => Math.log10(Math.abs(one));
    if (!half) return exact(value);
    if (Math.abs(value) <= half) {
      const unit = 10 ** Math.floor(power(half));
      return `less than ${digits(unit * Math.ceil(half / unit), 1)}`;
    }
    const count = Math.floor(power(value)) + 1 - Math.ceil(power(2 * half));
    return count > 2 ? exact(value) : `about ${digits(value, Math.max(1, count))}`;
  }
  const words = (grid, cell) => `row ${Math.floor(cell / grid[1]) + 1}, column ${(cell % grid[1]) + 1}`;

  // ---- Drawing

  function paint(canvas, values, rows, columns, limit) {
    canvas.width = columns;
    canvas.height = rows;
    const image = new ImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
    const half = steps / 2, scale = half / limit;
    for (let i = 0; i < values.length; i++) {
      pixels[i] = table[Math.round(Math.min(steps, Math.max(0, half + scale * values[i])))];
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // Linear interpolation between the centers of the cells.
  function finer({ rows, columns, values }) {
    const places = (count) => Array.from({ length: FINE * count }, (_, i) => {
      const at = Math.min(count - 1, Math.max(0, (i + 0.5) / FINE - 0.5)), low = Math.floor(at);
      return { low, high: Math.min(count - 1, low + 1), part: at - low };
    });
    const across = places(columns), fine = new Float64Array(FINE * rows * FINE * columns);
    let i = 0;
    for (const y of places(rows)) {
      const top = y.low * columns, bottom = y.high * columns;
      for (const x of across) {
        const above = values[top + x.low] + x.part * (values[top + x.high] - values[top + x.low]);
        const below = values[bottom + x.low] + x.part * (values[bottom + x.high] - values[bottom + x.low]);
        fine[i++] = above + y.part * (below - above);
      }
    }
    return { rows: FINE * rows, columns: FINE * columns, values: fine };
  }

  // The lines at which a map crosses a level, as short pieces; dashed lines leave some of the pieces out.
  function contour(map, level, sign) {
    const fine = finer(map), pieces = [];
    const value = (y, x) => sign * fine.values[y * fine.columns + x] - level;
    for (let y = 0; y + 1 < fine.rows; y++) for (let x = 0; x + 1 < fine.columns; x++) {
      const corners = [[y, x], [y, x + 1], [y + 1, x + 1], [y + 1, x]], crossings = [];
      corners.forEach((from, i) => {
        const to = corners[(i + 1) % 4], a = value(...from), b = value(...to);
        if (a > 0 === b > 0) return;
        const part = a / (a - b);
        crossings.push([0, 1].map((axis) => ((from[axis] + part * (to[axis] - from[axis]) + 0.5) / FINE).toFixed(3)));
      });
      if (sign < 0 && (x + y) % 4 === 0) continue;
      for (let i = 0; i + 1 < crossings.length; i += 2) {
        pieces.push(`M${crossings[i][1]} ${crossings[i][0]}L${crossings[i + 1][1]} ${crossings[i + 1][0]}`);
      }
    }
    return pieces.join("");
  }

  function outline(svg, map, limit) {
    svg.setAttribute("viewBox", `0 0 ${map.columns} ${map.rows}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.replaceChildren();
    for (const sign of [-1, 1]) {
      const line = contour(map, LEVEL * limit, sign), end = sign < 0 ? 0 : colors.length - 4;
      for (const kind of ["rim", "line"]) {
        const path = make("path", kind, svg);
        path.setAttribute("d", line);
        if (kind === "line") path.style.stroke = `rgb(${colors.subarray(end, end + 3).join(" ")})`;
      }
    }
  }

  class Photo {
    constructor(row, element, pair) {
      Object.assign(this, { row, element, pair, side: element.dataset.side, marks: [] });
      this.map = make("canvas", "map", element);
      this.svg = make("svg", "outline", element);
      this.tint = make("canvas", "tint", element);
      for (const layer of [this.map, this.svg, this.tint]) layer.setAttribute("aria-hidden", "true");
      this.clear();
    }

    draw(map, limit) {
      this.shown = map;
      this.map.hidden = !map || view.look === "outline";
      this.svg.toggleAttribute("hidden", !map || view.look !== "outline");
      if (!map) return;
      this.map.classList.toggle("cells", view.look === "cells");
      if (view.look === "outline") return outline(this.svg, map, limit);
      const drawn = view.look === "cells" ? map : finer(map);
      paint(this.map, drawn.values, drawn.rows, drawn.columns, limit);
    }

    get grid() {
      const matches = this.side === "query" ? this.row.matches[0] : this.row.data.pairs[this.pair].matches;
      return matches ? matches.grids[this.side === "query" ? 0 : 1] : this.shown && [this.shown.rows, this.shown.columns];
    }

    cellAt(event) {
      const box = this.element.getBoundingClientRect(), [rows, columns] = this.grid;
      const place = (at, from, size, count) => Math.min(count - 1, Math.max(0, Math.floor(count * (at - from) / size)));
      return place(event.clientY, box.top, box.height, rows) * columns + place(event.clientX, box.left, box.width, columns);
    }

    mark(cell, classes, [rows, columns] = this.grid) {
      const mark = make("div", "mark " + classes, this.element);
      Object.assign(mark.style, {
        left: `${100 * (cell % columns + 0.5) / columns}%`, top: `${100 * (Math.floor(cell / columns) + 0.5) / rows}%`,
        width: `${100 / columns}%`, height: `${100 / rows}%`,
      });
      this.marks.push(mark);
    }

    tintBy(values, [rows, columns]) {
      const limit = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
      paint(this.tint, values, rows, columns, limit);
      this.tint.hidden = false;
      this.element.classList.add("tinted");
    }

    clear() {
      this.marks.splice(0).forEach((mark) => mark.remove());
      this.tint.hidden = true;
      this.element.classList.remove("tinted");
    }
  }

  class Row {
    constructor(element) {
      this.element = element;
      this.readouts = [...element.querySelectorAll(".readout")];
    }

    // Read the numbers of the row, once.
    async read() {
      const script = this.element.querySelector(".data"), data = JSON.parse(script.textContent);
      script.remove(); // the text is no longer needed, and is the larger part of the memory of a row
      const stream = new Blob([packed(data.numbers, data.bytes)]).stream().pipeThrough(new DecompressionStream("deflate"));
      const numbers = await new Response(stream).arrayBuffer();
      this.wide = new Int16Array(numbers, 0, data.wide);
      this.narrow = new Int8Array(numbers, 2 * data.wide);
      this.matches = data.pairs.map((pair) => pair.matches).filter(Boolean);
      this.data = data;
      this.photos = [];
      this.element.querySelectorAll(".query > .photo").forEach((photo) => this.photos.push(new Photo(this, photo)));
      this.element.querySelectorAll(".pair").forEach((pair, index) => pair.querySelectorAll(".photo").forEach((photo) => {
        this.photos.push(new Photo(this, photo, index));
      }));
      this.photos.forEach((photo) => listen(photo));
    }

    async show() {
      this.reading ??= this.read();
      await this.reading;
      this.draw();
    }

    draw() {
      const key = Object.values(view).join();
      if (!this.data || this.drawn === key) return;
      this.drawn = key;
      for (const photo of this.photos) {
        const isQuery = photo.side !== "support";
        const hidden = view.sides === (isQuery ? "support" : "query");
        photo.draw(hidden ? null : this.mapOf(this.mapsOf(photo)), this.limit(photo.pair));
      }
      if (!chosen || chosen.row !== this) this.clear();
    }

    mapsOf(photo) {
      if (photo.side === "query") return this.data.query;
      return this.data.pairs[photo.pair][photo.side === "mini" ? "query" : "support"];
    }

    placeOf(maps) {
      const states = maps[view.method];
      return states && states[view.contrast === "off" ? 1 : 0];
    }

    mapOf(maps) {
      const place = this.placeOf(maps);
      const [rows, columns] = place ? place.shape : [];
      return place && { rows, columns, values: this.numbers(place), half: place.scale / 2 };
    }

    numbers({ at, shape, scale }) {
      return Float64Array.from(this.wide.subarray(at, at + shape.reduce((a, b) => a * b)), (value) => value * scale);
    }

    // The magnitude of the full color. Both sides of a match share it, or all matches of the row, so that equal colors
    // mean equal values. The map of the whole score is another quantity, and has its own, unless there is one match.
    limit(index) {
      const { query, pairs } = this.data, isOne = pairs.length === 1;
      const used = view.scale === "row" || isOne ? pairs : [pairs[index]];
      const matches = isOne || index !== undefined ? used.flatMap((pair) => [pair.query, pair.support]) : [];
      const maps = isOne || index === undefined ? [query, ...matches] : matches;
      return Math.max(0, ...maps.map((one) => this.placeOf(one)).map((place) => place ? place.scale * LARGEST : 0));
    }

    // What one cell shares with each cell of the other image.
    shares(matches, side, cell) {
      const [others, count] = matches.matrix.shape, steps = this.numbers(matches.steps), start = matches.matrix.at;
      const share = (q, p) => this.narrow[start + p * count + q] * steps[q];
      return side === 0 ? Float64Array.from({ length: others }, (_, p) => share(cell, p))
        : Float64Array.from({ length: count }, (_, q) => share(q, cell));
    }

    // Half a step of the share of two cells.
    half(matches, q) {
      return this.numbers(matches.steps)[q] / 2;
    }

    best(matches, side, cell) {
      const best = matches.best[side], cosine = this.wide[best.cosines.at + cell];
      return {
        cell: this.wide[best.cells.at + cell],
        share: this.wide[best.shares.at + cell] * best.shares.scale, half: best.shares.scale / 2,
        cosine: cosine === NO_COSINE ? null : cosine / LARGEST,
      };
    }

    // What the texts say while no cell is marked.
    clear() {
      this.photos.forEach((photo) => photo.clear());
      this.element.querySelectorAll(".scale").forEach((line, index) => {
        const limit = this.limit(index ? index - 1 : undefined);
        const unknown = !index && view.contrast === "off" && this.data.query.some(Boolean) && !this.placeOf(this.data.query);
        line.textContent = limit ? `full color: ${number(limit)}`
          : unknown ? "Without the contrast, each match has a map of its own." : "";
      });
      this.readouts.forEach((readout, index) => {
        const found = this.strongest(index);
        readout.textContent = found ? sentence("The strongest pair of cells", found) : "";
        readout.classList.add("rest");
      });
    }

    // The pair of cells of two photographs that carries the most.
    strongest(index) {
      const { matches } = this.data.pairs[index];
      if (!matches) return null;
      const of = { score: matches.score, what: matches.what };
      if (matches.top) return matches.top.length ? { ...of, share: matches.top[0][2], cosine: matches.top[0][3] } : null;
      const shares = this.numbers(matches.best[0].shares), cell = shares.indexOf(Math.max(...shares));
      return { ...of, ...this.best(matches, 0, cell), from: cell };
    }
  }

  // ---- Which cells match

  // What two cells carry: `part` of the score, and `share` in its unit.
  function amounts({ share, score, half = 0 }) {
    return {
      part: score > 0 ? percent(share / score, half / score) : "",
      share: known(share, half, number),
    };
  }

  function sentence(subject, found) {
    const { cosine, score, what } = found, { part, share } = amounts(found);
    const angle = cosine === null ? "" : `; their surroundings have cosine ${minus(cosine.toFixed(2))}`;
    const of = `${share} of ${number(score)}`;
    return part ? `${subject} carries ${part} of ${what} (${of})${angle}.` : `${subject} carries ${of}, ${what}${angle}.`;
  }

  // The same in few words, behind the place of the partner.
  function spoken(place, found) {
    const { part, share } = amounts(found);
    return `${place}, ${part ? `${part} of` : `${share},`} ${found.what}`;
  }

  // Mark a cell and its match in the other photograph of one pair. Returns the sentence about the two, and the same in
  // few words.
  function matchIn(row, pair, photo, cell, partner) {
    const matches = row.data.pairs[pair].matches, side = photo.side === "query" ? 0 : 1;
    const other = row.photos.find((one) => side === 0 ? one.pair === pair && one.side === "support" : one.side === "query");
    const [grid, otherGrid] = side === 0 ? matches.grids : [...matches.grids].reverse();
    if (matches.top) return matchInTop(matches, side, photo, other, cell, partner);
    const shares = row.shares(matches, side, cell);
    let found = row.best(matches, side, cell);
    if (partner !== null) {
      // The cosine of two cells is known for best matches only, so that it is said of none that the reader chose.
      const back = row.best(matches, 1 - side, partner), half = row.half(matches, side === 0 ? cell : partner);
      if (partner !== found.cell) found = back.cell === cell ? back : { share: shares[partner], half };
      found = { ...found, cell: partner, cosine: null };
    }
    other.tintBy(shares, otherGrid);
    other.mark(found.cell, "partner", otherGrid);
    const states = row.data.pairs[pair][side === 0 ? "query" : "support"][0];
    const isWhole = states && states[1] && page.methods[0].account && matches.score > 0;
    const [whole, half] = isWhole ? [row.numbers(states[1])[cell], states[1].scale / 2] : [];
    return {
      text: sentence("This pair of cells", { ...matches, ...found })
        + (isWhole ? ` With all cells of the other photograph: ${percent(whole / matches.score, half / matches.score)}.` : ""),
      short: spoken(words(otherGrid, found.cell), { ...matches, ...found }),
    };
  }

  // The same where only the strongest pairs of cells are known.
  function matchInTop(matches, side, photo, other, cell, partner) {
    const { top } = matches, [grid, otherGrid] = side === 0 ? matches.grids : [...matches.grids].reverse();
    const count = top.length === 1 ? "the strongest pair of cells" : `the ${top.length} strongest pairs of cells`;
    const isOf = (one) => one[side] === cell && (partner === null || one[1 - side] === partner);
    const told = (subject, one) => sentence(subject, { ...matches, share: one[2], cosine: one[3] });
    const of = top.find(isOf);
    if (partner !== null || of) {
      const at = of ? of[1 - side] : partner;
      other.mark(at, "partner", otherGrid);
      if (!of) return { text: `This is none of ${count}.`, short: `${words(otherGrid, at)}, none of ${count}` };
      return {
        text: told("This pair of cells", partner === null ? of : [...of.slice(0, 3), null]),
        short: spoken(words(otherGrid, at), { ...matches, share: of[2] }),
      };
    }
    const [y, x] = [Math.floor(cell / grid[1]), cell % grid[1]];
    const far = (one) => (Math.floor(one[side] / grid[1]) - y) ** 2 + (one[side] % grid[1] - x) ** 2;
    const nearest = top.reduce((a, b) => far(b) < far(a) ? b : a, top[0]);
    const none = `This cell is in none of ${count}`;
    if (nearest) {
      photo.mark(nearest[side], "end", grid);
      other.mark(nearest[1 - side], "end partner", otherGrid);
    }
    return {
      text: nearest ? `${none}. ${told("The nearest of them", nearest)}` : "This report has no match of these two.",
      short: nearest ? `in none of ${count}; the nearest is ${words(grid, nearest[side])} with `
        + spoken(words(otherGrid, nearest[1 - side]), { ...matches, share: nearest[2] }) : "no match is known",
    };
  }

  function render(aloud) {
    const { row, photo, cell, kept, partner } = chosen;
    row.clear();
    const said = [], grid = photo.grid, isMany = row.data.pairs.length > 1;
    row.data.pairs.forEach((pair, index) => {
      const touched = photo.side === "query" || photo.pair === index;
      if (!touched || !pair.matches) return;
      const at = partner && partner.pair === index ? partner.cell : null;
      const { text, short } = matchIn(row, index, photo, cell, at);
      row.readouts[index].textContent = text;
      row.readouts[index].classList.remove("rest");
      const place = photo.side !== "query" ? "query" : isMany ? `match ${index + 1}` : "match";
      if (!partner || at !== null) said.push(`${place}: ${short}.`);
    });
    photo.mark(cell, kept ? "kept" : "", grid);
    if (photo.shown && !said.length) {
      const text = `Cell in ${words(grid, cell)}: ${known(photo.shown.values[cell], photo.shown.half, number)}, ${page.methods[view.method].unit}.`;
      said.push(text);
      const place = photo.side === "query" ? row.element.querySelector(".scale") : row.readouts[photo.pair];
      place.textContent = text;
    }
    drawLegend();
    const name = photo.side === "query" ? "query" : isMany ? `match ${photo.pair + 1}` : "match";
    if (aloud) say([`${kept ? "kept: " : ""}${name}, ${words(grid, cell)}.`, ...said].map(sentenceCase).join(" "), true);
  }

  const sentenceCase = (text) => text[0].toUpperCase() + text.slice(1);

  // Say a text to those who do not see the page. Narrow windows show it at their lower edge, while a cell is marked.
  function say(text, isOpen) {
    const line = document.getElementById("said");
    line.textContent = text;
    line.classList.toggle("open", isOpen);
  }

  function choose(photo, cell, { kept = false, aloud = false } = {}) {
    if (!photo.grid) return;
    const held = chosen && chosen.kept && chosen.row === photo.row ? chosen : null;
    if (held && held.photo !== photo && (held.photo.side === "query" || photo.side === "query")) {
      // A cell is kept in the other photograph: this cell is its partner.
      const pair = photo.side === "query" ? held.photo.pair : photo.pair;
      chosen = { ...held, partner: { pair, cell } };
    } else if (held && !kept) {
      return;
    } else {
      if (chosen && chosen.row !== photo.row) chosen.row.clear();
      chosen = { row: photo.row, photo, cell, kept, partner: null };
    }
    render(aloud);
  }

  function letGo(text = "") {
    if (!chosen) return;
    const { row } = chosen;
    chosen = null;
    row.clear();
    drawLegend();
    say(text, false);
  }

  function listen(photo) {
    const { element } = photo;
    if (photo.side === "mini") return;
    element.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse") choose(photo, photo.grid && photo.cellAt(event));
    });
    element.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && chosen && !chosen.kept) letGo();
    });
    element.addEventListener("click", (event) => {
      const cell = photo.grid && photo.cellAt(event);
      const again = chosen && chosen.kept && chosen.photo === photo && chosen.cell === cell;
      again ? letGo(GONE) : choose(photo, cell, { kept: true, aloud: true });
    });
    element.addEventListener("focus", () => photo.row.photos.forEach((one) => {
      if (one.element.hasAttribute("tabindex")) one.element.tabIndex = one === photo ? 0 : -1;
    }));
    element.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!photo.grid || event.ctrlKey || event.metaKey || event.altKey) return;
      const [rows, columns] = photo.grid, at = cellOf(photo);
      if (move) {
        const [y, x] = at === null ? strongestCell(photo) : [Math.floor(at / columns) + move[0], at % columns + move[1]];
        const cell = Math.min(rows - 1, Math.max(0, y)) * columns + Math.min(columns - 1, Math.max(0, x));
        choose(photo, cell, { kept: Boolean(chosen && chosen.kept && chosen.photo === photo), aloud: true });
      } else if (event.key === "Enter" || event.key === " ") {
        const kept = chosen && chosen.kept && chosen.photo === photo;
        kept ? letGo(GONE) : at !== null && choose(photo, at, { kept: true, aloud: true });
      } else if (["PageDown", "PageUp", "Home", "End"].includes(event.key)) {
        const stops = photo.row.photos.filter((one) => one.element.hasAttribute("tabindex")), last = stops.length - 1;
        const next = { PageDown: stops.indexOf(photo) + 1, PageUp: stops.indexOf(photo) - 1, Home: 0, End: last }[event.key];
        stops[Math.min(last, Math.max(0, next))].element.focus();
      } else return;
      event.preventDefault();
    });
    element.addEventListener("blur", () => { if (chosen && !chosen.kept && chosen.photo === photo) letGo(); });
  }

  // The cell of a photograph that is marked: the chosen cell, or the partner of a kept one.
  function cellOf(photo) {
    if (!chosen || chosen.row !== photo.row) return null;
    if (chosen.photo === photo) return chosen.cell;
    return chosen.partner && (photo.side === "query" || photo.pair === chosen.partner.pair) ? chosen.partner.cell : null;
  }

  // Row and column of the cell where the arrow keys begin.
  function strongestCell(photo) {
    if (!photo.shown) return photo.grid.map((count) => Math.floor(count / 2));
    const cell = photo.shown.values.indexOf(Math.max(...photo.shown.values));
    return [Math.floor(cell / photo.shown.columns), cell % photo.shown.columns];
  }

  // ---- The switches

  function change() {
    const values = new FormData(form);
    view.method = Number(values.get("method") || 0);
    view.contrast = values.get("contrast") || "on";
    view.sides = values.get("sides");
    view.look = values.get("look");
    view.scale = values.get("scale");
    document.documentElement.style.setProperty("--strength", document.getElementById("strength").value / 100);
    document.documentElement.classList.toggle("maps-off", document.getElementById("off").checked);
    for (const line of document.querySelectorAll(".account")) {
      line.hidden = Number(line.dataset.method) !== view.method || line.dataset.contrast !== view.contrast;
    }
    for (const line of document.querySelectorAll(".contrast")) line.hidden = view.contrast === "off";
    drawScale();
    drawLegend();
    near.forEach((row) => row.draw());
    whenIdle();
  }

  // What the colors mean. The darkened photographs beside a marked cell have a scale each.
  function drawLegend() {
    const isTinted = chosen && chosen.row.photos.some((photo) => photo.element.classList.contains("tinted"));
    const hasContrast = page.contrast && view.contrast === "on" && !isTinted;
    const [below, above] = page.ends[hasContrast ? "on" : "off"], legend = document.getElementById("legend");
    const [start, , end] = legend.querySelectorAll(".ends span");
    [start.textContent, end.textContent] = [below, above];
    legend.querySelector("canvas").setAttribute(
      "aria-label", `Color scale: blue is ${below}, zero is transparent, orange is ${above}`);
    document.getElementById("unit").textContent = isTinted
      ? `dark photographs: ${page.methods[0].unit} with the marked cell, each photograph to its own maximum`
      : page.methods[view.method].unit + (hasContrast ? `, ${page.contrast}` : "");
  }

  function drawScale() {
    const values = Float32Array.from({ length: steps + 1 }, (_, i) => 2 * i / steps - 1);
    const scale = document.getElementById("colors");
    paint(scale, values, 1, steps + 1, 1);
  }

  // Rows out of view follow one by one, so that a print has all maps.
  let waiting = null;
  function whenIdle() {
    const later = window.requestIdleCallback || ((task) => setTimeout(task, 30));
    if (waiting) return;
    waiting = later(async () => {
      const key = Object.values(view).join();
      const row = rows.find((one) => one.drawn !== key);
      if (row) await row.show();
      waiting = null;
      if (row) whenIdle();
    });
  }

  // ---- Start

  if (!("DecompressionStream" in window)) {
    document.querySelector(".hint").textContent = "This browser is too old to draw the maps. Open the file in a newer one.";
    return;
  }

  // A picture that occurs twice stands in the file once.
  const source = (image) => image.dataset.from ? source(document.getElementById(image.dataset.from)) : image.src;
  document.querySelectorAll("img[data-from]").forEach((image) => { image.src = source(image); });
  if (window.matchMedia("(max-width: 760px)").matches) form.parentElement.open = false;
  const rows = [...document.querySelectorAll(".row")].map((element) => new Row(element));
  const near = new Set();
  const observer = new IntersectionObserver((entries) => entries.forEach((entry) => {
    const row = rows[byElement.get(entry.target)];
    entry.isIntersecting ? near.add(row) : near.delete(row);
    if (entry.isIntersecting) row.show();
  }), { rootMargin: "600px" });
  const byElement = new Map(rows.map((row, index) => [row.element, index]));
  rows.forEach((row) => observer.observe(row.element));
  form.addEventListener("input", change);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") letGo(GONE);
    if (event.key === "o" && !event.ctrlKey && !event.metaKey && !event.altKey) {
      document.getElementById("off").click();
    }
  });
  window.addEventListener("beforeprint", () => { letGo(); rows.forEach((row) => row.draw()); });
  change();
})();
