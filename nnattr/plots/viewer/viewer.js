"use strict";
// Heads as thumbnails, tokens to point at, one head's map. All texts enter as textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const part = (id) => document.getElementById(id);
  const state = { prompt: 0, head: 0, token: null, held: false };
  const SHADE = 0.55; // of the strongest colour, so that text on it can be read
  const LISTED = 6;

  // ---- the numbers: for each head the rows of a lower triangle, one after the other

  const decoded = new Map();
  function numbers(prompt) {
    if (!decoded.has(prompt)) {
      const bytes = Uint8Array.from(atob(data.prompts[prompt].values), (c) => c.charCodeAt(0));
      decoded.set(prompt, new Uint16Array(bytes.buffer));
    }
    return decoded.get(prompt);
  }
  const tokens = () => data.prompts[state.prompt].tokens;
  function share(head, query, key) {
    const n = tokens().length;
    const at = head * n * (n + 1) / 2 + query * (query + 1) / 2 + key;
    return key > query ? 0 : numbers(state.prompt)[at] / 65535;
  }
  const number = (x) => (x * data.largest).toFixed(data.weighted && data.largest >= 10 ? 1 : 2);
  const visible = (text) => text.replace(/\n/g, "\\n").replace(/\t/g, "\\t").trim() || "␣";

  // ---- drawing

  function paint(canvas, head) {
    const n = tokens().length;
    canvas.width = canvas.height = n;
    const image = new ImageData(n, n);
    for (let query = 0; query < n; query++) {
      for (let key = 0; key < n; key++) {
        const at = 4 * (query * n + key), dark = Math.sqrt(share(head, query, key));
        const [r, g, b] = key > query ? [246, 248, 250] : [255, 255, 255];
        image.data[at] = r - (r - 8) * dark;
        image.data[at + 1] = g - (g - 48) * dark;
        image.data[at + 2] = b - (b - 107) * dark;
        image.data[at + 3] = 255;
      }
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function paintMap() {
    const map = part("map"), n = tokens().length, cell = Math.max(2, Math.ceil(960 / n));
    const small = document.createElement("canvas");
    paint(small, state.head);
    map.width = map.height = n * cell;
    const pen = map.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, 0, 0, n * cell, n * cell);
    if (state.token !== null) {
      pen.lineWidth = 4;
      pen.strokeStyle = "rgb(33, 102, 172)"; // the row: what the token looks at
      pen.strokeRect(2, state.token * cell, (state.token + 1) * cell - 2, cell);
      pen.strokeStyle = "rgb(200, 110, 10)"; // the column: what looks at it
      pen.strokeRect(state.token * cell, state.token * cell, cell, (n - state.token) * cell - 2);
    }
    map.setAttribute("aria-label",
      `Attention of ${data.heads[state.head]}: ${n} queries down, ${n} keys across`);
  }

  function shade() {
    const t = state.token;
    [...part("tokens").children].forEach((button, i) => {
      const value = t === null ? 0
        : i <= t ? share(state.head, t, i) : share(state.head, i, t);
      button.classList.toggle("looks", t !== null && i <= t);
      button.classList.toggle("seen", t !== null && i > t);
      button.classList.toggle("chosen", t === i);
      button.setAttribute("aria-pressed", String(t === i && state.held));
      button.style.setProperty("--share", (SHADE * Math.sqrt(value)).toFixed(3));
      button.querySelector("small").textContent = value >= 0.005 ? number(value) : "";
    });
    paintMap();
    say();
  }

  function say() {
    const said = part("said"), t = state.token;
    said.replaceChildren();
    if (t === null) {
      const hint = document.createElement("p");
      hint.textContent = "Point at a token, or tab to the tokens and use the arrow keys.";
      said.append(hint);
      return;
    }
    const own = `${t} “${visible(tokens()[t])}”`;
    const ranked = (pairs) => pairs.sort((a, b) => b[0] - a[0]).slice(0, LISTED);
    const keys = ranked(tokens().slice(0, t + 1).map((_, k) => [share(state.head, t, k), k]));
    const queries = ranked(tokens().slice(t).map((_, i) => [share(state.head, t + i, t), t + i]));
    list(said, `${own} looks at`, keys);
    list(said, `${own} is looked at by`, queries);
  }

  function list(parent, title, pairs) {
    const heading = document.createElement("h3"), lines = document.createElement("ol");
    heading.textContent = title;
    for (const [value, i] of pairs) {
      const line = document.createElement("li");
      for (const text of [number(value), `${i} “${visible(tokens()[i])}”`]) {
        const span = document.createElement("span");
        span.textContent = text;
        line.append(span);
      }
      lines.append(line);
    }
    parent.append(heading, lines);
  }

  // ---- choosing

  function point(token) {
    if (!state.held && token !== state.token) {
      state.token = token;
      shade();
    }
  }
  function hold(token) {
    state.held = !(state.held && state.token === token);
    state.token = token;
    shade();
  }
  function release() {
    state.held = false;
    shade();
  }
  function chooseHead(head) {
    state.head = head;
    [...part("heads").children].forEach((button, i) => {
      button.setAttribute("aria-checked", String(i === head));
      button.tabIndex = i === head ? 0 : -1;
    });
    part("head-name").textContent = data.heads[head];
    shade();
  }
  function choosePrompt(prompt) {
    Object.assign(state, { prompt, token: null, held: false });
    [...part("heads").children].forEach((b, i) => paint(b.querySelector("canvas"), i));
    part("tokens").replaceChildren(...tokens().map((text, i) => {
      const button = document.createElement("button");
      const word = document.createElement("bdi"), value = document.createElement("small");
      word.textContent = visible(text);
      button.type = "button";
      button.tabIndex = i === 0 ? 0 : -1;
      button.setAttribute("aria-label", `token ${i}, ${visible(text)}`);
      button.append(word, value);
      return button;
    }));
    chooseHead(state.head);
  }

  /** The neighbour of an element in a wrapped row of them that an arrow key leads to, or none. */
  function neighbour(all, from, key) {
    const straight = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: all.length - 1 };
    if (key in straight) return all[straight[key]];
    if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
    const here = all[from].getBoundingClientRect(), sign = key === "ArrowUp" ? -1 : 1;
    const away = (box) => sign * (box.top - here.top);
    const aside = (box) => Math.abs(box.left + box.width / 2 - here.left - here.width / 2);
    const found = all.map((e) => [e, e.getBoundingClientRect()]).filter((p) => away(p[1]) > 2);
    found.sort((a, b) => away(a[1]) - away(b[1]) || aside(a[1]) - aside(b[1]));
    return found.length ? found[0][0] : undefined;
  }

  /** Arrow keys move the focus inside a group, of which Tab reaches one element. */
  function walk(group, chosen) {
    group.addEventListener("keydown", (event) => {
      const all = [...group.children], from = all.indexOf(event.target.closest("button"));
      const next = from < 0 ? undefined : neighbour(all, from, event.key);
      if (next === undefined) return;
      event.preventDefault();
      all.forEach((e) => { e.tabIndex = e === next ? 0 : -1; });
      next.focus();
      chosen(all.indexOf(next));
    });
  }
  const indexOf = (group, event) => [...group.children].indexOf(event.target.closest("button"));

  // ---- the page

  if (data.columns) { // all heads of whole layers: a row for each layer
    part("heads").classList.add("by-layer");
    part("heads").style.setProperty("--columns", String(data.columns));
  }
  data.heads.forEach((name, i) => {
    const button = document.createElement("button"), label = document.createElement("span");
    const canvas = document.createElement("canvas");
    button.type = "button";
    button.setAttribute("role", "radio");
    canvas.setAttribute("aria-hidden", "true");
    label.textContent = name;
    button.append(canvas, label);
    button.addEventListener("click", () => chooseHead(i));
    part("heads").append(button);
  });
  data.prompts.forEach((prompt, i) => {
    const text = prompt.tokens.join("").replace(/\s+/g, " ").trim();
    const option = document.createElement("option");
    option.value = String(i);
    option.textContent = `${i + 1}: ${text.length > 90 ? text.slice(0, 89) + "…" : text}`;
    part("prompt").append(option);
  });
  part("prompt").addEventListener("change", (e) => choosePrompt(Number(e.target.value)));
  walk(part("heads"), chooseHead);
  walk(part("tokens"), point);
  for (const kind of ["pointerover", "focusin"]) {
    part("tokens").addEventListener(kind, (event) => {
      const i = indexOf(part("tokens"), event);
      if (i >= 0) point(i);
    });
  }
  part("tokens").addEventListener("click", (event) => {
    const i = indexOf(part("tokens"), event);
    if (i >= 0) hold(i);
  });
  const row = (event) => {
    const box = part("map").getBoundingClientRect(), n = tokens().length;
    return Math.min(n - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * n)));
  };
  part("map").addEventListener("pointermove", (event) => point(row(event)));
  part("map").addEventListener("click", (event) => hold(row(event)));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") release(); });
  choosePrompt(0);
})();
