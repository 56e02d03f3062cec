"use strict";
// Draws the figures of the page, and lets a reader walk through its program. All data is in the element #data.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const quiet = { displaylogo: false, responsive: true, modeBarButtons: [["toImage"]] };
const bare = { ...quiet, displayModeBar: false };
const quiet3d = { ...quiet, modeBarButtons: [["toImage", "resetCameraDefault3d"]] };

function draw(place, name) {
  const { data: traces, layout } = data.figures[name];
  return Plotly.newPlot(place, traces, layout, layout.scene ? quiet3d : quiet);
}

document.querySelectorAll("[data-figure]").forEach((place) => draw(place, place.dataset.figure));

// ---- the division of the atoms -------------------------------------------------------------------------------------

if (data.figures.division) {
  const place = find("division");
  draw(place, "division");

  const isShown = ({ role, ranks }, rank, lines) => {
    if (role === "message") return lines && (rank === "" || ranks.includes(Number(rank)));
    if (role === "cell" || role === "name") return true;
    if (rank === "") return role === "owned";
    return ranks[0] === Number(rank);
  };
  const show = () => {
    const rank = find("rank").value, lines = find("lines").checked;
    Plotly.restyle(place, { visible: place.data.map((trace) => isShown(trace.meta, rank, lines)) });
  };
  if (find("rank")) {  // there are several
    find("rank").addEventListener("change", show);
    find("lines").addEventListener("change", show);
  }
}

// ---- the program ---------------------------------------------------------------------------------------------------

if (data.program) {
  const { texts, passes, lines, spaces } = data.program;
  const operators = data.program.operators.map((row, id) => {
    const [part, name, operator, gives, space, by, line, args, crosses] = row.slice(0, 9).map((i) => texts[i]);
    return { id, part, name, operator, gives, space, by, line, args, crosses, bytes: row[9],
             inputs: row[10].map((i) => texts[i]) };
  });
  const colour = Object.fromEntries(spaces.map((s) => [s.name, s.colour]));
  const HEIGHT = 26, WHOLE = "#8a8f98", EARLY = "#b6bcc4";

  let at = passes.length - 1;   // the pass that is shown
  let shown = [];               // its operators that the filter lets through, in order
  let chosen = null;            // the operator whose details are shown

  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");  // plotly takes some tags in texts
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // A type with the names of spaces in their colours: f32[edges, 3*atoms].
  const names = spaces.map((s) => s.name).sort((a, b) => b.length - a.length);
  const escaped = names.map((name) => name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const pattern = new RegExp(`(?<!\\w)(${escaped.join("|")})(?!\\w)`);
  const coloured = (text) => text.split(pattern).map((part) => {
    if (!(part in colour)) return part;
    const name = make("span", { className: "space", textContent: part });
    name.style.setProperty("--colour", colour[part]);
    return name;
  });
  document.querySelectorAll(".type").forEach((cell) => cell.replaceChildren(...coloured(cell.textContent)));

  // -- which operators are shown

  const all = () => passes[at].operators.map((id) => operators[id]);

  function passesFilter(o) {
    const words = find("words").value.toLowerCase().split(/\s+/).filter(Boolean);
    const said = `${o.operator} ${o.name} ${o.gives} ${o.by} ${o.line} ${o.part}`.toLowerCase();
    return words.every((word) => said.includes(word))
      && (!find("space").value || o.space === find("space").value)
      && (!find("new").checked || o.by === passes[at].name)
      && (!find("crossing").checked || o.crosses);
  }

  function refresh() {
    const everything = all();
    shown = everything.filter(passesFilter);
    find("pass").value = at;
    find("count").textContent = `${shown.length} of ${everything.length}`;
    find("rows").style.height = `${shown.length * HEIGHT}px`;
    list();
    drawMap();
    drawPasses();
  }

  // -- the list: only the rows in sight are elements of the page

  function list() {
    const box = find("list"), first = Math.floor(box.scrollTop / HEIGHT);
    const last = Math.min(shown.length, first + Math.ceil(box.clientHeight / HEIGHT) + 1);
    find("rows").replaceChildren(...shown.slice(first, last).map((o, i) => row(o, first + i)));
  }

  function row(o, i) {
    const kind = [o.part === "once" ? "once" : o.part ? "inner" : "", o.operator === "region" ? "region" : "",
                  o.crosses ? "crossing" : "", chosen && o.id === chosen.id ? "chosen" : ""].join(" ");
    const bytes = o.crosses ? `  ${o.bytes} B${o.crosses.includes("a row of") ? "/row" : ""}` : "";
    const title = o.operator === "region" ? o.name : o.operator;
    const element = make("div", { className: `row ${kind}`, onclick: () => choose(o) },
      make("span", { textContent: title + bytes, title: o.name }), make("span", {}, ...coloured(o.gives)),
      make("span", { textContent: o.by }), make("span", { textContent: o.line }));
    element.style.top = `${i * HEIGHT}px`;
    return element;
  }

  // -- details of one operator

  function choose(o) {
    chosen = o;
    details(o);
    const i = shown.findIndex((other) => other.id === o.id), box = find("list");
    const top = i * HEIGHT;
    if (i >= 0 && (top < box.scrollTop || top > box.scrollTop + box.clientHeight - HEIGHT)) {
      box.scrollTop = top - box.clientHeight / 2;
    }
    list();
    drawMap();
  }

  function details(o) {
    const here = all();
    const named = (name) => here.find((n) => n.name === name && n.part === o.part)
      || here.find((n) => n.name === name && !n.part);
    const link = (n) => make("a", { textContent: n.name, title: `${n.operator} ${n.gives}`, onclick: () => choose(n) });
    const linked = o.args.split(/(\w+)/).map((word) => (o.inputs.includes(word) && named(word) ? link(named(word)) : word));
    const users = here.filter((n) => n.inputs.includes(o.name) && (n.part === o.part || (!o.part && n.part !== "once")));
    const head = (text) => make("h4", { textContent: text });
    const parts = [make("h3", {}, o.name), make("div", {}, `${o.operator}(`, ...linked, ")"),
                   head("gives"), make("div", {}, ...coloured(o.gives || "a number, or nothing"))];
    if (o.crosses) parts.push(head("crosses between ranks"), make("div", { className: "message", textContent: o.crosses }));
    parts.push(head("written by"), make("div", { textContent: o.by === "capture" ? "the model (capture)" : o.by }));
    if (o.part) parts.push(head("runs"), make("div", { textContent:
      o.part === "once" ? "once, on the whole graph object" : `in ${o.part}, block by block` }));
    const line = lines[o.line];
    if (line) {
      const [file, number, code] = line;
      parts.push(head("for this line of the model"), make("div", { textContent: `${file}:${number}` }),
        make("pre", {}, ...code.map(([n, text]) =>
          make("span", { className: n === number ? "here" : "", textContent: `${String(n).padStart(4)}  ${text}` }))));
    }
    parts.push(head(`read by ${users.length}`),
      make("div", {}, ...users.slice(0, 200).flatMap((n) => [link(n), " "])));
    find("details").replaceChildren(...parts);
    find("details").scrollTop = 0;
  }

  // -- all operators in order, in the lanes of their spaces

  function drawMap() {
    const lanes = [...spaces.map((s) => s.name), "whole"];
    const used = new Set(all().map((o) => o.space || "whole"));
    const present = lanes.filter((lane) => used.has(lane)).reverse();
    const place = new Map(all().map((o, i) => [o.id, i]));
    const trace = (lane, some, marker, name) => ({
      type: "scatter", mode: "markers", name, showlegend: false, marker,
      x: some.map((o) => place.get(o.id)), y: some.map(() => lane), customdata: some.map((o) => o.id),
      cliponaxis: false, text: some.map((o) => [o.name, o.gives, o.line, o.crosses].filter(Boolean).map(plain).join("<br>")),
      hoverinfo: "text" });
    const early = present.length === 1;
    const traces = present.map((lane) => trace(lane, shown.filter((o) => (o.space || "whole") === lane && !o.crosses),
      { symbol: "line-ns-open", size: 13, color: early ? EARLY : colour[lane] || WHOLE, opacity: 0.75 }, lane));
    const most = Math.max(...shown.map((o) => o.bytes), 1);
    const crossing = shown.filter((o) => o.crosses);
    present.forEach((lane) => {
      const some = crossing.filter((o) => (o.space || "whole") === lane);
      traces.push(trace(lane, some, { symbol: "diamond", color: "#ffb000", line: { color: "#1c2128", width: 1.2 },
        size: some.map((o) => 9 + 9 * Math.sqrt(o.bytes / most)) }, "messages"));
    });
    if (chosen && place.has(chosen.id)) {
      traces.push(trace(chosen.space || "whole", [chosen],
        { symbol: "circle-open", size: 20, color: "#d1242f", line: { width: 2.5 } }, "chosen"));
    }
    const layout = { height: 90 + 34 * present.length, margin: { l: 130, r: 10, t: 8, b: 36 },
      font: { family: "system-ui, 'DejaVu Sans', sans-serif", size: 12 }, hovermode: "closest", dragmode: "zoom",
      xaxis: { title: { text: early ? "order; spaces are not known yet" : "order" }, zeroline: false, showgrid: false,
               range: [-1, all().length * 1.01] },
      yaxis: { type: "category", categoryorder: "array", categoryarray: present, range: [-0.6, present.length - 0.4],
               gridcolor: "#eaeef2", fixedrange: true } };
    Plotly.react("map", traces, layout, bare);
  }

  // -- how many operators there are after each pass

  function drawPasses() {
    const counts = passes.map((p) => p.operators.length);
    const said = passes.map((p) => `after ${p.name} (${p.stage}): ${p.operators.length}<br>${p.come} came, ${p.gone} went`);
    const stages = [...new Set(passes.map((p) => p.stage))];
    const shade = (p, i) => (i === at ? "#0b5cad" : stages.indexOf(p.stage) % 2 ? "#aeb8c2" : "#cdd5dd");
    const trace = { type: "bar", x: passes.map((p) => p.name), y: counts, hovertext: said, hoverinfo: "text",
      marker: { color: passes.map(shade) } };
    const marks = stages.map((stage) => {
      const mine = passes.map((p, i) => (p.stage === stage ? i : -1)).filter((i) => i >= 0);
      return { x: (mine[0] + mine[mine.length - 1]) / 2, y: 1, yref: "paper", yanchor: "bottom", text: stage,
               showarrow: false, font: { size: 10.5, color: "#57606a" } };
    });
    Plotly.react("passes", [trace], { height: 230, margin: { l: 130, r: 10, t: 24, b: 110 }, annotations: marks,
      font: { family: "system-ui, 'DejaVu Sans', sans-serif", size: 12 }, bargap: 0.15,
      xaxis: { tickangle: -40, fixedrange: true }, yaxis: { title: { text: "operators" }, fixedrange: true } }, bare);
  }

  // -- what a reader does

  const go = (to) => {
    at = Math.min(passes.length - 1, Math.max(0, to));
    const name = chosen && chosen.name, part = chosen && chosen.part;
    chosen = all().find((o) => o.name === name && o.part === part) || null;
    if (chosen) details(chosen);
    else if (name) find("details").replaceChildren(make("p", { className: "hint", textContent: `${name} is not there.` }));
    find("list").scrollTop = 0;
    refresh();
  };
  passes.forEach((p, i) => find("pass").append(make("option", { value: i, textContent: `${p.name} (${p.stage})` })));
  spaces.forEach((s) => find("space").append(make("option", { value: s.name, textContent: s.name })));
  find("pass").addEventListener("change", (event) => go(Number(event.target.value)));
  find("before").addEventListener("click", () => go(at - 1));
  find("after").addEventListener("click", () => go(at + 1));
  ["words", "space", "new", "crossing"].forEach((id) => find(id).addEventListener("input", () => {
    find("list").scrollTop = 0;
    refresh();
  }));
  find("list").addEventListener("scroll", list);
  refresh();
  choose(shown.find((o) => o.crosses && o.space) || shown[0]);
  find("map").on("plotly_click", (event) => choose(operators[event.points[0].customdata]));
  find("passes").on("plotly_click", (event) => go(event.points[0].pointNumber));

  // A bar of a region leads to its operators in the program as it runs.
  document.querySelectorAll("#regions [data-figure]").forEach((place) => place.on("plotly_click", (event) => {
    if (!operators.some((o) => o.part === event.points[0].x)) return;  // a group of regions
    find("words").value = event.points[0].x;
    go(passes.length - 1);
    find("program").scrollIntoView();
  }));
}
