// The picture with its boxes, and the answers. They are two components of the page that share what
// is shown and what is lit: a click on a phrase, a box or a row lights it everywhere.
window.kosmos2 = window.kosmos2 || (() => {
  "use strict";

  const shared = { entries: [], active: -1, lit: null, stage: null, answers: null };

  function make(tag, name, text) {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;  // never as HTML: models write anything
    return node;
  }

  function paint(node, span) {
    node.style.setProperty("--k2-colour", span.colour);
    node.style.setProperty("--k2-ink", span.ink);
  }

  function percent(score) {
    return score === null || score === undefined ? "" : `${(100 * score).toFixed(0)}%`;
  }

  function isLit(entry, span, box) {
    const lit = shared.lit;
    return lit !== null && lit.entry === entry && lit.span === span
      && (lit.box === null || box === null || lit.box === box);
  }

  // Lights a phrase, or one box of it; the same again puts the light out.
  function light(entry, span, box) {
    const same = isLit(entry, span, box) && shared.lit.box === box;
    shared.active = entry;
    shared.lit = same ? null : { entry, span, box };
    refresh();
  }

  function refresh() {
    if (shared.stage) shared.stage.drawBoxes();
    if (shared.answers) shared.answers.draw();
  }

  // The field that holds the box is the truth: it can be typed into as well as drawn.
  const field = () => document.querySelector("#box textarea, #box input");

  function setBox(box) {
    const input = field();
    input.value = box ? box.map((value) => Number(value.toFixed(3))).join(", ") : "";
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }

  function readBox() {
    const numbers = (field()?.value ?? "").split(",").map((part) => parseFloat(part));
    const [x1, y1, x2, y2] = numbers;
    const good = numbers.length === 4 && 0 <= x1 && x1 < x2 && x2 <= 1 && 0 <= y1 && y1 < y2
      && y2 <= 1;
    return good ? numbers : null;
  }

  function place(node, [x1, y1, x2, y2]) {
    node.style.left = `${100 * x1}%`;
    node.style.top = `${100 * y1}%`;
    node.style.width = `${100 * (x2 - x1)}%`;
    node.style.height = `${100 * (y2 - y1)}%`;
  }

  function stage(element, props, watch, send) {
    const find = (name) => element.querySelector(`.k2-${name}`);
    const area = find("area"), image = area.querySelector("img");
    let picture = null, start = null;

    async function choose(file) {
      if (!file) return;
      const bytes = new Uint8Array(await file.arrayBuffer());
      let text = "";
      for (let i = 0; i < bytes.length; i += 0x8000) {
        text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
      }
      send.picture({ base64: btoa(text) });
    }

    function showPicture() {
      const shown = props.value;
      if (!shown || shown.src === picture) return;
      picture = shown.src;
      image.src = picture;
      image.classList.toggle("k2-small", Math.max(shown.width, shown.height) <= 160);
      area.style.setProperty("--k2-shape", shown.width / shown.height);
      find("drop").hidden = true;
      find("frame").hidden = find("line").hidden = false;
      find("size").textContent = `${shown.width} × ${shown.height} pixels. Drag to draw a box.`;
      setBox(null);
    }

    function drawDrawn(box) {
      find("own").replaceChildren();
      if (!box) return;
      const node = make("div", "k2-drawn");
      place(node, box);
      find("own").append(node);
    }

    function drawBoxes() {
      const layer = find("found"), number = shared.active, entry = shared.entries[number];
      layer.replaceChildren();
      if (!entry) return;
      const boxes = entry.spans.flatMap((span, s) => span.boxes.map((box, b) => ({ span, s, box, b })))
        .filter(({ box }) => box.drawn);
      const size = ({ box: { drawn: [x1, y1, x2, y2] } }) => (x2 - x1) * (y2 - y1);
      for (const { span, s, box, b } of boxes.sort((one, other) => size(other) - size(one))) {
        const node = make("div", "k2-box");
        paint(node, span);
        place(node, box.drawn);
        if (shared.lit && shared.lit.entry === number) {
          node.classList.add(isLit(number, s, b) ? "k2-lit" : "k2-dim");
        }
        // Of several boxes of a phrase one has its words: labels would hide each other.
        const text = [b ? "" : span.text, percent(box.score)].filter(Boolean).join(" ");
        if (text) {
          const label = make("div", "k2-label", text);
          label.classList.toggle("k2-inside", box.drawn[1] < 0.07);
          label.classList.toggle("k2-left", box.drawn[0] > 0.6);
          node.append(label);
        }
        layer.append(node);
      }
    }

    function at(event) {
      const { left, top, width, height } = area.getBoundingClientRect();
      const cut = (value) => Math.min(Math.max(value, 0), 1);
      return [cut((event.clientX - left) / width), cut((event.clientY - top) / height)];
    }

    function spanned(event) {
      const [x, y] = at(event);
      return [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]),
        Math.max(y, start[1])];
    }

    // A drag of a few pixels is a click: it lights the smallest box there, or takes the drawn one away.
    function clicked([x, y]) {
      const entry = shared.entries[shared.active];
      const hits = (entry?.spans ?? []).flatMap((span, s) => span.boxes.map((box, b) => ({ s, b, box })))
        .filter(({ box: { drawn } }) => drawn && drawn[0] <= x && x <= drawn[2] && drawn[1] <= y
          && y <= drawn[3])
        .sort(({ box: { drawn: p } }, { box: { drawn: q } }) =>
          (p[2] - p[0]) * (p[3] - p[1]) - (q[2] - q[0]) * (q[3] - q[1]));
      if (hits.length) light(shared.active, hits[0].s, hits[0].b);
      else if (shared.lit) { shared.lit = null; refresh(); } else setBox(null);
    }

    area.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      area.setPointerCapture(event.pointerId);
      start = at(event);
      event.preventDefault();
    });
    area.addEventListener("pointermove", (event) => { if (start) drawDrawn(spanned(event)); });
    area.addEventListener("pointercancel", () => { start = null; drawDrawn(readBox()); });
    area.addEventListener("pointerup", (event) => {
      if (!start) return;
      const box = spanned(event), first = start, { width, height } = area.getBoundingClientRect();
      start = null;
      const isDrag = (box[2] - box[0]) * width > 4 && (box[3] - box[1]) * height > 4;
      if (isDrag) setBox(box);
      else { drawDrawn(readBox()); clicked(first); }
    });
    element.addEventListener("input", (event) => {
      if (event.target.type === "file") { choose(event.target.files[0]); event.target.value = ""; }
    });
    find("other").addEventListener("click", () => find("file").click());
    element.addEventListener("dragover", (event) => {
      event.preventDefault();
      element.classList.add("k2-over");
    });
    element.addEventListener("dragleave", () => element.classList.remove("k2-over"));
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      element.classList.remove("k2-over");
      choose(event.dataTransfer.files[0]);
    });
    document.addEventListener("paste", (event) => choose([...event.clipboardData.files]
      .find((file) => file.type.startsWith("image/"))));
    document.addEventListener("input", (event) => {
      if (event.target === field()) drawDrawn(readBox());
    });
    props.examples.forEach(({ src }, number) => {
      const button = make("button"), small = make("img");
      button.type = "button";
      button.title = `Example ${number + 1}`;
      small.src = src;
      small.alt = button.title;
      button.append(small);
      button.addEventListener("click", () => send.example({ number }));
      find("examples").append(button);
    });
    shared.stage = { drawBoxes };
    watch("value", showPicture);
    showPicture();
  }

  function answers(element, props, watch) {
    const root = element.querySelector(".k2-answers");

    function phrase(number, s, text) {
      const span = shared.entries[number].spans[s];
      const node = make("button", "k2-phrase", text);
      node.type = "button";
      node.setAttribute("aria-pressed", isLit(number, s, null));
      node.classList.toggle("k2-lit", isLit(number, s, null));
      paint(node, span);
      node.addEventListener("click", (event) => { event.stopPropagation(); light(number, s, null); });
      return node;
    }

    function row(number, span, s, box, b) {
      const node = make("tr");
      node.classList.toggle("k2-lit", isLit(number, s, b));
      const name = make("td");
      const swatch = make("span", "k2-swatch");
      paint(swatch, span);
      name.append(swatch, span.text || "a box without a phrase");
      const use = make("button", "k2-link", "use");
      use.type = "button";
      use.title = "Make it the box to ask about";
      use.addEventListener("click", (event) => { event.stopPropagation(); setBox(box.drawn); });
      const last = make("td");
      if (box.drawn) last.append(use);
      const corners = box.box.map((value) => value.toFixed(2)).join(" ");
      node.append(name, make("td", "", percent(box.score)), make("td", "", percent(box.marginal)),
        make("td", "", percent(span.score)), make("td", "k2-corners", corners), last);
      node.addEventListener("click", (event) => { event.stopPropagation(); light(number, s, b); });
      return node;
    }

    function table(entry, number) {
      const node = make("table", "k2-table"), head = make("tr"), body = make("tbody");
      const titles = [["phrase", ""], ["box", "Probability of its two corners, geometric mean"],
        ["or near", "Likewise, with the cells that touch them"],
        ["words", "Probability of the phrase's words, geometric mean"],
        ["corners", "Left, top, right, bottom, as fractions of the picture"], ["", ""]];
      for (const [title, help] of titles) {
        const cell = make("th", "", title);
        cell.title = help;
        head.append(cell);
      }
      entry.spans.forEach((span, s) => span.boxes.forEach((box, b) =>
        body.append(row(number, span, s, box, b))));
      const top = make("thead"), scroll = make("div", "k2-scroll");
      top.append(head);
      node.append(top, body);
      scroll.append(node);
      return scroll;
    }

    function card(entry, number) {
      const node = make("div", "k2-entry");
      node.classList.toggle("k2-mine", entry.who === "You");
      node.classList.toggle("k2-active", number === shared.active && shared.entries.length > 1);
      const text = make("div", "k2-text");
      for (const [piece, s] of entry.runs) text.append(s === null ? piece : phrase(number, s, piece));
      text.classList.toggle("k2-cursor", entry.busy);
      node.append(make("div", "k2-who", entry.who), text);
      if (!entry.busy && entry.spans.some((span) => span.boxes.some((box) => box.score !== null))) {
        node.append(table(entry, number));
      }
      for (const problem of entry.problems) node.append(make("div", "k2-problem", problem));
      node.addEventListener("click", () => { shared.active = number; shared.lit = null; refresh(); });
      return node;
    }

    function draw() {
      root.replaceChildren(...shared.entries.map(card));
      root.dataset.busy = String(shared.entries.some((entry) => entry.busy));
      if (!shared.entries.length) {
        root.append(make("div", "k2-empty", "Answers come here. Click a phrase to light its boxes."));
      }
    }

    function receive() {
      const before = shared.entries;
      shared.entries = props.value || [];
      const isMore = before.some((entry) => entry.busy) && before.length === shared.entries.length;
      if (isMore) {  // of what is looked at already
        refresh();
        return;
      }
      // Of a conversation the end, of several outputs the first.
      const asked = shared.entries.findLastIndex((entry) => entry.who === "You");
      shared.active = Math.min(asked + 1, shared.entries.length - 1);
      shared.lit = null;
      refresh();
    }

    shared.answers = { draw };
    watch("value", receive);
    receive();
  }

  return { stage, answers };
})();
