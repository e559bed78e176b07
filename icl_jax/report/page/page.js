"use strict";
// Draws the data of the page. Text only ever enters the document as textContent.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
// Okabe and Ito's, which stay apart for colour-blind readers; lighter on a dark page.
const COLOURS = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666"],
  dark: ["#56B4E9", "#FF8A3D", "#2FBF95", "#E3A0C4", "#F0B93A", "#3F86B8", "#B0B5BF"],
};
const main = document.getElementById("main");

// ---- small helpers

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children) element.append(child);
  return element;
}

const decoded = new Map();
function array(index) {
  if (!decoded.has(index)) {
    const { type, base64 } = data.arrays[index];
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    decoded.set(index, type === "f4" ? new Float32Array(bytes.buffer) : bytes);
  }
  return decoded.get(index);
}

function rows(values, width) {
  return Array.from({ length: values.length / width }, (_, i) => values.subarray(i * width, (i + 1) * width));
}

function millions(tokens) {
  const [number, unit] = tokens >= 1e9 ? [tokens / 1e9, "B"] : [tokens / 1e6, "M"];
  return `${Number(number.toPrecision(3))} ${unit}`;
}

const nats = (value) => `${value.toFixed(2)} nats`;
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

// The index of the last value that is not above `limit`; 0 if all are.
function lastUpTo(values, limit) {
  let found = 0;
  for (let i = 0; i < values.length; i++) if (values[i] <= limit * (1 + 1e-6)) found = i;
  return found;
}

// Plotly reads tags in names and labels, so what could be one is put as an entity.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// ---- what is selected: a head in each run, models that are shown

const selectedHead = data.runs.map(() => null);
const headListeners = [];
const hasHead = (run, layer, head) => data.runs[run].heads.some(([l, h]) => l === layer && h === head);

function selectHead(run, head) {
  const same = head && selectedHead[run] && head[0] === selectedHead[run][0] && head[1] === selectedHead[run][1];
  selectedHead[run] = same || !head || !hasHead(run, ...head) ? null : head;
  headListeners.forEach((listener) => listener(run));
  const box = document.getElementById("selected");
  const chosen = data.runs.map((r, i) => (selectedHead[i] ? `${r.name}: head ${selectedHead[i].join(".")}` : "")).filter(Boolean);
  box.replaceChildren(make("span", {}, chosen.join("; ")), make("button", { type: "button", onclick: clearHeads }, "Clear (Esc)"));
  box.hidden = chosen.length === 0;
}

function clearHeads() {
  data.runs.forEach((_, run) => selectedHead[run] && selectHead(run, null));
}
document.addEventListener("keydown", (event) => event.key === "Escape" && clearHeads());

function cell(run, ...children) {
  const { name, short, size } = data.runs[run];
  const head = make("h4", { title: `${name}: ${size}` }, short, make("small", {}, size));
  return make("figure", { class: "cell", "data-run": run }, head, ...children);
}

// ---- charts, drawn when they come into view

const drawn = new Set();
const pending = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) drawPending(target);
}, { rootMargin: "300px" });

function whenSeen(element, draw) {
  pending.set(element, draw);
  watcher.observe(element);
}

function drawPending(element) {
  const draw = pending.get(element);
  pending.delete(element);
  watcher.unobserve(element);
  if (draw) draw();
}

// A tick at each power of ten; below two decades at 2 and 5 times it too, below one wherever it fits.
function logTicks(axis, values) {
  const positive = axis.range ?? Array.from(values ?? []).filter((value) => value > 0);
  const decades = Math.log10(Math.max(...positive) / Math.min(...positive));
  return decades > 2 ? 1 : decades > 0.7 ? "D2" : undefined;
}

// Of models: each of 12 has dashes or marks of its own, as in the pictures.
const DASHES = ["solid", "8px,3px", "2px,2px", "8px,3px,2px,3px"];
const MARKS = [null, "circle", "triangle-up"];

function modelStyle(series, n) {
  if (series.model === null) return { mode: "lines", dash: series.dashed ? "dash" : "solid" };
  const symbol = MARKS[Math.floor(series.model / DASHES.length) % MARKS.length];
  const every = Math.max(1, Math.floor(n / 9));
  const sizes = Array.from({ length: n }, (_, i) => (i % every ? 0 : 6));
  return { mode: symbol ? "lines+markers" : "lines", dash: series.dashed ? "dash" : DASHES[series.model % DASHES.length], marker: symbol ? { symbol, size: sizes } : {} };
}

function extent(chart, which) {
  if (chart.heat) return array(chart.heat[which]);
  return chart.series.flatMap((series) => Array.from(array(series[which])));
}

function axisLayout(axis, values, isHeat) {
  const layout = {
    title: { text: plain(axis.label), font: { size: 11, color: css("--soft") }, standoff: 6 },
    type: axis.log ? "log" : "linear", exponentformat: "B", gridcolor: css("--line"), linecolor: css("--line"), zeroline: false,
    tickfont: { size: 10, color: css("--soft") }, automargin: true, nticks: 6, fixedrange: true,
  };
  if (axis.range) layout.range = axis.log ? axis.range.map(Math.log10) : axis.range;
  else if (axis.log && isHeat) layout.range = [Math.log10(values[0]), Math.log10(values[values.length - 1])];
  if (axis.names?.length) Object.assign(layout, { tickvals: axis.names.map((_, i) => i), ticktext: axis.names.map(plain) });
  else if (axis.count) layout.dtick = 1;
  else if (axis.log) layout.dtick = logTicks(axis, values);
  return layout;
}

function bandShapes(band, isHeat) {
  const color = css("--band");
  const line = (x0, x1, y0, y1, width) => ({ type: "line", x0, x1, y0, y1, yref: "paper", line: { color, width } });
  const sides = band.is_open ? ["start"] : ["start", "end"];
  const inside = { type: "rect", x0: band.start, x1: band.end, y0: 0, y1: 1, yref: "paper", line: { width: 0 }, fillcolor: color, opacity: 0.18, layer: "below" };
  return [
    ...(isHeat ? sides.map((side) => line(band[side], band[side], 0, 1, 1.5)) : [inside]),
    ...sides.map((side) => line(...band[`${side}_interval`], 1.015, 1.015, 3)),
  ];
}

function seriesColour(series) {
  return series.role ? css(`--${series.role}`) : COLOURS[root.dataset.theme][series.colour % COLOURS.light.length];
}

function tracesOf(chart) {
  if (chart.heat) {
    const { x, y, z, label, diverging, range, heads } = chart.heat;
    const others = chart.x.tokens ? "%{x:.3s} tokens<br>index %{y:.0f}" : `${plain(chart.x.label)} %{x}, ${plain(chart.y.label)} %{y}`;
    const where = heads ? "head %{y}.%{x}" : others;
    const middle = root.dataset.theme === "dark" ? "#26282e" : "#f7f7f7";
    return [{
      type: "heatmap", x: array(x), y: array(y), z: rows(array(z), array(x).length), zmid: diverging ? 0 : undefined, ...(range ? { zmin: range[0], zmax: range[1] } : {}),
      colorscale: diverging ? [[0, "#0072B2"], [0.5, middle], [1, "#D55E00"]] : "Cividis",
      colorbar: { thickness: 8, outlinewidth: 0, len: 1, tickfont: { size: 9, color: css("--soft") }, title: { text: plain(label), side: "right", font: { size: 10, color: css("--soft") } } },
      hovertemplate: `${where}<br>%{z:.3f}<extra></extra>`,
    }];
  }
  const traces = [];
  for (const series of chart.series) {
    const color = seriesColour(series);
    const [x, y] = [array(series.x), array(series.y)];
    if (series.bars) {
      traces.push({ type: "bar", x, y, name: plain(series.label), marker: { color }, hovertemplate: `${plain(series.label)}<br>%{y:.4~g}<extra></extra>`, showlegend: series.in_legend });
      continue;
    }
    if (series.low !== null) {
      const invisible = { type: "scatter", mode: "lines", x, line: { width: 0 }, hoverinfo: "skip", showlegend: false };
      traces.push({ ...invisible, y: array(series.low) }, { ...invisible, y: array(series.high), fill: "tonexty", fillcolor: `${color}33` });
    }
    const style = modelStyle(series, x.length);
    const texts = series.text ? Array.from(x, (_, i) => (i === x.length - 1 ? plain(series.text) : "")) : undefined;
    traces.push({
      type: "scatter", x, y, name: plain(series.label), meta: series.head ? { head: series.head } : series.member ? { member: series.member } : {},
      mode: (series.dots ? "markers" : style.mode) + (texts ? "+text" : ""), text: texts, textposition: series.node ? "middle center" : "top center",
      textfont: { size: 10, color: series.node ? css("--paper") : css("--ink") }, cliponaxis: !texts,
      line: { color, width: series.width, dash: style.dash }, marker: { color, size: series.node ? 24 : 8 * series.width / 1.5, ...style.marker },
      hovertemplate: `${plain(series.label)}<br>%{x:.4~g}, %{y:.4~g}<extra></extra>`.replace("%{x:.4~g}", chart.x.tokens ? "%{x:.3s} tokens" : "%{x:.4~g}"),
      showlegend: series.in_legend,
    });
  }
  return traces;
}

// While printing at the size that the element has now: Plotly itself follows a new width only later.
function layoutIn(element, chart) {
  const size = root.classList.contains("printing") && element.clientWidth ? { width: element.clientWidth, height: element.clientHeight } : {};
  return { ...layoutOf(chart), ...size };
}

function layoutOf(chart) {
  const shapes = chart.x.tokens ? chart.bands.flatMap((band) => bandShapes(band, Boolean(chart.heat))) : [];
  for (const part of chart.intervened ?? []) shapes.push({ type: "rect", x0: part.start, x1: part.end, y0: 0, y1: 1, yref: "paper", line: { width: 0 }, fillcolor: css("--ink"), opacity: 0.07, layer: "below", label: { text: plain(part.what), textposition: "bottom left", font: { size: 9, color: css("--ink") } } });
  if (chart.zero) shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: { color: css("--other"), width: 1 }, layer: "below" });
  return {
    autosize: true, margin: { l: 46, r: 10, t: 14, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: css("--sans"), size: 11, color: css("--ink") }, hovermode: "closest", dragmode: false, shapes,
    hoverlabel: { bgcolor: css("--raised"), bordercolor: css("--line"), font: { color: css("--ink"), size: 12 }, align: "left" },
    showlegend: chart.legend, legend: { orientation: "h", traceorder: "normal", x: 0, y: -0.25, yanchor: "top", font: { size: 10 }, bgcolor: "rgba(0,0,0,0)" },
    xaxis: axisLayout(chart.x, extent(chart, "x"), Boolean(chart.heat)), yaxis: axisLayout(chart.y, extent(chart, "y"), Boolean(chart.heat)),
  };
}

function drawChart(element, chart, run) {
  drawn.add(element);
  element.redraw = () => {
    Plotly.react(element, tracesOf(chart), layoutIn(element, chart), { responsive: true, displayModeBar: false });
    highlight(element, run);
  };
  element.redraw();
  element.on("plotly_click", ({ points: [point] }) => {
    const { head, member } = chart.heat?.heads ? { head: [point.y, point.x] } : point.data.meta ?? {};
    if (head) selectHead(run, head);
    if (member) openMember(member);
  });
}

// Fades all heads but the selected one.
function highlight(element, run) {
  if (run === null || !element.data?.some((trace) => trace.meta?.head)) return;
  const head = selectedHead[run];
  const isFaded = element.data.map((trace) => Boolean(head && trace.meta?.head && trace.meta.head.join() !== head.join()));
  Plotly.restyle(element, { opacity: isFaded.map((faded) => (faded ? 0.12 : 1)) });
}
headListeners.push((run) => drawn.forEach((element) => Number(element.dataset.run) === run && highlight(element, run)));

function panel(figure, found, run) {
  const chart = make("div", { class: found.chart?.legend ? "chart legended" : "chart", ...(run === null ? {} : { "data-run": run }), role: "img", "aria-label": figure.title });
  if (found.gap) return [gap(found.gap)];
  if (found.value) return [make("p", { class: "value" }, found.value)];
  whenSeen(chart, () => drawChart(chart, found.chart, run));
  const title = found.chart.title ? [make("p", { class: "chart-title" }, found.chart.title)] : [];
  return [...title, chart, ...(found.ours ? [make("p", { class: "ours" }, found.ours)] : [])];
}

function figureRow(figure) {
  const ofAll = figure.panels.filter((found) => found.run === null);
  const wide = ofAll.filter((found) => ofAll.length === 1 || found.chart?.wide);
  const single = (found) => make("figure", { class: "cell" }, ...panel(figure, found, null));
  const cells = ofAll.length
    ? ofAll.filter((found) => !wide.includes(found)).map(single)
    : data.runs.map((_, run) => cell(run, ...figure.panels.filter((found) => found.run === run).flatMap((found) => panel(figure, found, run))));
  const link = (kind) => make("a", { href: `figures/${figure.name}.${kind}` }, kind.toUpperCase());
  const row = make("div", { class: "row", id: figure.name },
    make("h3", {}, figure.title), make("p", { class: "prose" }, `${figure.shows} ${figure.look_for}`));
  if (figure.paper) row.append(make("p", { class: "paper" }, `The paper: ${figure.paper}.`));
  row.append(...wide.map((found) => make("div", { class: "wide" }, single(found))), ...(cells.length ? [strip(...cells)] : []));
  if (figure.panels.some((found) => found.chart)) row.append(make("p", { class: "files" }, link("png"), " · ", link("pdf"), " · ", link("csv")));
  return row;
}

// Rows of the table scroll sideways together.
const strips = [];
function strip(...cells) {
  const element = make("div", { class: "strip", tabindex: 0, role: "group", "aria-label": "a column for each model" }, ...cells);
  strips.push(element);
  element.addEventListener("scroll", () => {
    for (const other of strips) if (other !== element && Math.abs(other.scrollLeft - element.scrollLeft) > 1) other.scrollLeft = element.scrollLeft;
  }, { passive: true });
  return element;
}

function section(id, title, ...children) {
  const element = make("section", { id, "aria-labelledby": `${id}-title` }, make("h2", { id: `${id}-title` }, title), ...children);
  main.append(element);
  document.getElementById("contents").append(make("a", { href: `#${id}` }, title));
  return element;
}

const gap = (why) => make("p", { class: "gap" }, `Nothing to draw: ${why}.`);
const prose = (text) => make("p", { class: "prose" }, text);

function table(id, header, body) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  return make("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "table" }, make("table", { id }, make("thead", {}, head), make("tbody", {}, ...body)));
}

const td = (text, kind = "") => make("td", { class: kind }, text);

// ---- the models

function showModels() {
  document.querySelectorAll(".cell[data-run]").forEach((element) => {
    element.hidden = !document.getElementById(`show-${element.dataset.run}`).checked;
  });
  window.dispatchEvent(new Event("resize"));
}

function modelsSection() {
  const groupSeen = new Set();
  const body = data.runs.map((run, i) => {
    const isFirst = !groupSeen.has(run.group);
    groupSeen.add(run.group);
    const box = make("input", { type: "checkbox", id: `show-${i}`, checked: isFirst, onchange: showModels });
    return make("tr", {}, td(make("label", {}, box, " ", run.name)), td(`${run.size}; ${run.details}`), td(run.seeds),
      make("td", {}, ...run.changes.flatMap((text) => [text, make("br")])), td(run.heads_form), td(String(run.n_snapshots), "number"));
  });
  body.push(...data.others.map((run) => make("tr", { class: "other" }, td(run.name), td(`${run.size}; ${run.details}`), td(run.seeds),
    make("td", {}, ...run.changes.flatMap((text) => [text, make("br")])), td(run.heads_form), td(String(run.n_snapshots), "number"))));
  const choice = data.others.length ? ` Everything is shown of ${data.runs.length} of ${data.runs.length + data.others.length} runs, one of each config first; the others, without a box, are in the table, in means over seeds and in the verdicts. A report of fewer runs shows theirs.` : "";
  const header = ["model", "what it is", "seed", "phase change of the ICL score (90 % intervals)", "induction heads", "snapshots"];
  section("models", "Models", prose("The phase change is an abrupt change of the in-context learning score that no smooth learning curve explains: tested, so that a run may have none. Of runs that differ in their seeds alone the first is shown below; tick others to see them." + choice), table("models-table", header, body));
}

// ---- audits

function auditSection() {
  const cells = data.runs.flatMap((run, i) => (run.audit ? [cell(i, make("img", { src: `data:image/png;base64,${run.audit}`, alt: "Distance of each snapshot from the first, and from its neighbours" }))] : []));
  if (cells.length) section("audit", "Audit", prose("How far each snapshot lies from the first, and how far apart from its neighbours: icl-jax audit names what is out of line."), strip(...cells));
}

// ---- members: many runs of one experiment, together

let openedMember = null;
const memberListeners = [];
const memberName = (of, k) => `${of.name}/members/${k}`;

// Marks a member in the figures of all, and shows its column below where the page has one.
function openMember(name) {
  openedMember = openedMember === name ? null : name;
  memberListeners.forEach((listener) => listener());
  const shown = data.runs.findIndex((run) => run.name === openedMember);
  if (shown >= 0) {
    data.runs.forEach((run, i) => { document.getElementById(`show-${i}`).checked = i === shown; });
    showModels();
  }
  const where = shown >= 0 ? "shown in the figures below" : `not among those shown below: icl-jax report RUN RUN/members/${openedMember?.split("/").pop()} adds it`;
  document.querySelectorAll(".opened-member").forEach((element) => { element.textContent = openedMember ? `${openedMember}: ${where}.` : ""; });
}

function fadeMembers(element) {
  if (!element.data?.some((trace) => trace.meta?.member)) return;
  Plotly.restyle(element, { opacity: element.data.map((trace) => (openedMember && trace.meta?.member && trace.meta.member !== openedMember ? 0.12 : 1)) });
}
memberListeners.push(() => drawn.forEach(fadeMembers));

function membersSection() {
  if (!data.over_members) return;
  const parts = data.over_members.flatMap((of, i) => [
    ...(data.over_members.length > 1 ? [make("h3", {}, of.name)] : []), prose(`${of.name}: ${of.seeds.length} members, ${of.counts}.`),
    ...(of.quantiles.length ? [prose("Share of members that are past it, with 95 % bootstrap intervals."), table(`members-quantiles-${i}`, ["", "5 %", "25 %", "50 %", "75 %", "95 %"], of.quantiles.map((row) => make("tr", {}, ...row.map((text) => td(text)))))] : []),
    ...(of.laws.length ? [prose("Laws of the times, the likeliest first; the p-value is that of the largest distance from the Kaplan-Meier curve, by parametric bootstrap."), table(`members-laws-${i}`, ["time", "law", "AIC above the lowest", "distance", "p", ""], of.laws.map((row) => make("tr", {}, ...row.map((text) => td(text)))))] : []),
    ...(of.known.length ? [prose(`Can the start be told before? ${of.predicted}`), table(`members-known-${i}`, ["known before", "rank correlation with the start", "95 % interval", "p"], of.known.map((row) => make("tr", {}, ...row.map((text) => td(text)))))] : []),
    ...(of.outliers.length ? [prose("Outliers:"), make("ul", { class: "prose" }, ...of.outliers.map((one) => make("li", {}, make("button", { type: "button", onclick: () => openMember(memberName(of, one.member)) }, `member ${one.member}`), ` (seed ${one.seed}): ${one.why}`)))] : []),
  ]);
  const figures = data.members_figures.map((figure) => (figure.name === "members_scatter" ? scatterRow(figure) : figureRow(figure)));
  section("members", "Over members", ...parts, prose("Click a curve or a dot to open the member it is of; once more to close it."), make("p", { class: "ours opened-member", role: "status" }), ...figures);
}

// A dot for each member, by any two of its numbers.
function scatterRow(figure) {
  const chosen = [...data.over_members[0].scatter];
  const names = data.over_members[0].quantities;
  const redraws = [];
  const selects = chosen.map((name, i) => make("select", { id: `members-${"xy"[i]}`, "aria-label": `${"xy"[i]} axis`, onchange: (event) => { chosen[i] = event.target.value; redraws.forEach((f) => f()); } },
    ...names.map((one) => make("option", { value: one.name, selected: one.name === name }, one.label))));
  const cells = data.over_members.map((of) => {
    const chart = make("div", { class: "chart", role: "img", "aria-label": `${of.name}: ${figure.title}` });
    const redraw = () => {
      const [x, y] = chosen.map((name) => of.quantities.find((one) => one.name === name) ?? of.quantities[0]);
      const [xs, ys] = [array(x.values), array(y.values)];
      const numbers = of.seeds.map((_, k) => k).filter((k) => Number.isFinite(xs[k]) && Number.isFinite(ys[k]));
      const axis = (one) => ({ label: one.label, tokens: one.tokens, log: false, count: false, range: null });
      const colours = numbers.map((k) => (memberName(of, k) === openedMember ? css("--accent") : COLOURS[root.dataset.theme][0]));
      const sizes = numbers.map((k) => (memberName(of, k) === openedMember ? 13 : 8));
      const trace = { type: "scatter", mode: "markers", x: numbers.map((k) => xs[k]), y: numbers.map((k) => ys[k]), customdata: numbers, marker: { color: colours, size: sizes },
        text: numbers.map((k) => `member ${k}, seed ${of.seeds[k]}: ${of.status[k]}`), hovertemplate: "%{text}<br>%{x:.3s}, %{y:.4~g}<extra></extra>" };
      Plotly.react(chart, [trace], layoutIn(chart, { x: axis(x), y: axis(y), series: [], bands: [], legend: false }), { responsive: true, displayModeBar: false });
    };
    chart.redraw = redraw;
    whenSeen(chart, () => { drawn.add(chart); redraw(); chart.on("plotly_click", ({ points }) => openMember(memberName(of, points[0].customdata))); });
    redraws.push(() => drawn.has(chart) && redraw());
    return make("figure", { class: "cell" }, make("p", { class: "chart-title" }, of.name), chart);
  });
  memberListeners.push(() => redraws.forEach((f) => f()));
  const link = (name) => make("a", { href: `figures/${name}` }, name.split(".").pop().toUpperCase());
  return make("div", { class: "row", id: figure.name }, make("h3", {}, figure.title), prose(`${figure.shows} ${figure.look_for}`), make("div", { class: "controls" }, ...selects), strip(...cells),
    make("p", { class: "files" }, link(`${figure.name}.png`), " · ", link(`${figure.name}.pdf`), " · ", link("members.csv")));
}

// ---- verdicts

function verdictsSection() {
  const body = data.verdicts.map((row) => make("tr", {},
    td(make("strong", {}, row.argument)), make("td", {}, row.claim, make("small", {}, `The paper calls its evidence ${row.paper}.`)),
    make("td", { class: `finding ${row.finding.replace(" ", "-")}` }, row.finding), make("td", {}, ...row.effect.map((text) => make("div", {}, text))), make("td", {}, ...row.controls.map((text) => make("div", {}, text))), td(row.limits)));
  section("arguments", "The six arguments", prose("What these runs say to each argument of the paper, by rules that are written in icl_jax/report/verdicts.py. Controls are what would have shown it false."),
    table("verdicts", ["argument", "claim", "these runs", "effect", "controls", "open"], body));
}

// ---- the slider: everything at one moment of training

const moment = { tokens: 0, sequence: 0 };
const momentListeners = [];
const moments = [...new Set(data.moments.flatMap((m) => Array.from(array(m.tokens))))].sort((a, b) => a - b);

function setMoment(index) {
  moment.tokens = moments[index];
  document.getElementById("moment-out").textContent = moments.length > 1 ? `${millions(moment.tokens)} training tokens` : "";
  momentListeners.forEach((listener) => listener());
}

function momentSection() {
  const slider = make("input", { type: "range", id: "moment-slider", min: 0, max: moments.length - 1, value: moments.length - 1, "aria-label": "Moment of training", oninput: (e) => setMoment(Number(e.target.value)) });
  let timer = null;
  const play = make("button", { type: "button", onclick: () => {
    if (timer) return stop();
    if (Number(slider.value) === moments.length - 1) slider.value = 0;
    play.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + Math.max(1, Math.round(moments.length / 60));
      setMoment(Number(slider.value));
      if (Number(slider.value) === moments.length - 1) stop();
    }, 120);
  } }, "Play");
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  const names = [...new Set(data.moments.flatMap((m) => (m.patterns ? m.patterns.sequences.map((s) => s.name) : [])))];
  const pick = make("select", { "aria-label": "Sequence of the attention patterns", onchange: (e) => { moment.sequence = Number(e.target.value); momentListeners.forEach((f) => f()); } },
    ...names.map((name, i) => make("option", { value: i }, name)));
  const isOne = moments.length === 1;
  const controls = make("div", { class: "controls sticky" }, ...(isOne ? [] : [play, slider]), make("output", { id: "moment-out", for: "moment-slider" }), ...(names.length ? [pick] : []));
  const cells = data.runs.map((_, run) => cell(run, ...momentCell(run)));
  const legend = make("p", { class: "legend" }, swatch("prefix matching", "--induction"), swatch("previous-token attention", "--previous"));
  const what = "he loss by token index, the scores of every head and an attention pattern";
  const said = isOne ? `T${what} of the one snapshot that there is.` : `Move the slider: t${what} follow it together.`;
  section("moment", "One moment of training", prose(`${said} Click a head, here or in any figure, to isolate it in every figure of its model.`), controls, legend, strip(...cells));
}

const swatch = (text, colour) => make("span", { style: `--swatch: var(${colour})` }, text);

function momentCell(run) {
  const found = data.moments[run];
  const tokens = array(found.tokens);
  const parts = [];
  if ("loss" in found) parts.push(...lossAtMoment(run, found, tokens));
  if (found.scores) parts.push(headGrid(run, found, tokens));
  parts.push(...(found.patterns ? patternView(run, found.patterns, tokens) : [gap("the model has no layers, so it has no heads")]));
  return parts;
}

function lossAtMoment(run, found, tokens) {
  const positions = array(found.positions);
  const curves = rows(array(found.loss), positions.length);
  const chart = make("div", { class: "chart", id: `loss-at-moment-${run}`, role: "img", "aria-label": "Loss by token index at this moment" });
  const trace = (y, name, color, width) => ({ type: "scatter", mode: "lines", x: positions, y, name, line: { color, width }, hovertemplate: "index %{x}: %{y:.3f} nats<extra></extra>" });
  const top = curves.reduce((most, curve) => Math.max(most, ...curve), 0);
  const redraw = () => {
    const now = curves[lastUpTo(tokens, moment.tokens)];
    const layout = layoutIn(chart, { x: { label: "token index", log: true }, y: { label: "loss (nats)", range: [0, top * 1.03] }, series: [] });
    layout.xaxis.range = [0, Math.log10(positions[positions.length - 1])];
    const before = curves.length > 1 ? [trace(curves[0], "start", css("--other"), 1.2)] : [];
    Plotly.react(chart, [...before, trace(now, "now", css("--accent"), 2)], layout, { responsive: true, displayModeBar: false });
  };
  whenSeen(chart, () => { drawn.add(chart); chart.redraw = redraw; redraw(); });
  momentListeners.push(() => drawn.has(chart) && redraw());
  return [chart];
}

function headGrid(run, found, tokens) {
  const { heads } = data.runs[run];
  const names = Object.keys(found.scores);
  const buttons = heads.map(([layer, head]) => make("button", { type: "button", "aria-pressed": "false", "data-head": `${layer}.${head}`, onclick: () => selectHead(run, [layer, head]) },
    make("span", { class: "bars", "aria-hidden": "true" }, make("i"), make("i")), `${layer}.${head}`));
  const update = () => {
    const at = lastUpTo(tokens, moment.tokens);
    buttons.forEach((button, i) => {
      const values = names.map((name) => array(found.scores[name])[at * heads.length + i]);
      values.forEach((value, bar) => { button.querySelectorAll("i")[bar].style.height = `${Math.round(100 * value)}%`; });
      const words = names.map((name, k) => `${name.replace("_", " ")} ${values[k].toFixed(2)}`).join(", ");
      button.title = words;
      button.setAttribute("aria-label", `head ${button.dataset.head}: ${words}`);
    });
  };
  momentListeners.push(update);
  headListeners.push((changed) => changed === run && buttons.forEach((button, i) =>
    button.setAttribute("aria-pressed", String(selectedHead[run]?.join(".") === `${heads[i][0]}.${heads[i][1]}`))));
  const perRow = heads.filter(([layer]) => layer === heads[0][0]).length;
  return make("div", { class: "heads", style: `--per-row: ${perRow}` }, ...buttons);
}

function patternView(run, patterns, tokens) {
  const canvas = make("canvas", { class: "pattern", tabindex: 0, role: "img" });
  const readout = make("p", { class: "readout" });
  const title = make("p", { class: "ours" });
  const kept = patterns.heads.map((head) => head.join());
  const at = patterns.at.map((i) => tokens[i]);
  const best = bestHead(run);
  let [query, key] = [null, null];
  const current = () => {
    const head = selectedHead[run] ?? patterns.heads[Math.max(0, kept.indexOf(best))];
    const which = kept.indexOf(head.join());
    const { texts, pattern } = patterns.sequences[Math.min(moment.sequence, patterns.sequences.length - 1)];
    const size = (texts.length * (texts.length + 1)) / 2;
    const when = lastUpTo(at, moment.tokens);
    const values = which < 0 ? null : array(pattern).subarray((when * kept.length + which) * size, (when * kept.length + which + 1) * size);
    return { head, texts, values, when };
  };
  const update = () => {
    const { head, texts, values, when } = current();
    const n = texts.length;
    [canvas.width, canvas.height] = [n, n];
    title.textContent = `head ${head.join(".")}${at.length > 1 ? ` at ${millions(at[when])} tokens` : ""}: query down, key across`;
    canvas.setAttribute("aria-label", `Attention pattern of head ${head.join(".")}; arrow keys move, the reading is below`);
    readout.textContent = values ? "Point at a cell, or use the arrow keys, to read it." : "Patterns are kept of the 16 heads with the highest scores; this is none of them.";
    if (!values) return;
    const context = canvas.getContext("2d");
    const image = context.createImageData(n, n);
    const [ink, paper] = [rgb(css("--accent")), rgb(css("--paper"))];
    for (let q = 0, i = 0; q < n; q++) for (let k = 0; k <= q; k++, i++) {
      const share = Math.sqrt(values[i] / 255);
      const pixel = 4 * (q * n + k);
      for (let c = 0; c < 3; c++) image.data[pixel + c] = paper[c] + share * (ink[c] - paper[c]);
      image.data[pixel + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    read();
  };
  const read = () => {
    const { texts, values } = current();
    if (query === null || !values || query >= texts.length || key > query) return;
    readout.textContent = `query ${query} “${texts[query]}” attends ${(values[(query * (query + 1)) / 2 + key] / 255).toFixed(2)} to key ${key} “${texts[key]}”`;
  };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    query = Math.floor(((event.clientY - box.top) / box.height) * canvas.height);
    key = Math.min(query, Math.floor(((event.clientX - box.left) / box.width) * canvas.width));
    if (query >= 0 && key >= 0) read();
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    query = Math.min(canvas.height - 1, Math.max(0, (query ?? 0) + step[0]));
    key = Math.min(query, Math.max(0, (key ?? 0) + step[1]));
    read();
  });
  canvas.redraw = update;
  whenSeen(canvas, () => { drawn.add(canvas); update(); });
  momentListeners.push(() => drawn.has(canvas) && update());
  headListeners.push((changed) => changed === run && drawn.has(canvas) && update());
  return [title, canvas, readout];
}

// The induction head with the highest prefix matching at the end, or whatever head scores highest.
function bestHead(run) {
  const scores = data.moments[run].scores?.prefix_matching;
  const { heads } = data.runs[run];
  if (scores === undefined) return heads[0].slice(0, 2).join();
  const last = array(scores).subarray(-heads.length);
  return heads[last.indexOf(Math.max(...last))].slice(0, 2).join();
}

function rgb(colour) {
  const digits = colour.length === 4 ? [...colour.slice(1)].map((c) => c + c) : colour.slice(1).match(/../g);
  return digits.map((pair) => parseInt(pair, 16));
}

// ---- behaviours

function behavioursSection() {
  if (data.behaviours.length === 0) {
    section("behaviours", "Behaviours", make("p", { class: "gap" }, "The corpora of these runs do not say what their tokens show, so there are no behaviours to measure."));
    return;
  }
  const groups = [...new Set(data.behaviours.map((row) => row.group))];
  const labels = [...new Set(data.behaviours.map((row) => row.label))];
  const measured = ({ prob, half }) => `${prob.toFixed(2)}${half === null ? "" : ` ± ${half.toFixed(2)}`}`;
  const body = labels.map((label) => make("tr", {}, td(make("strong", {}, label.replaceAll("_", " "))), ...groups.map((group) => {
    const row = data.behaviours.find((r) => r.label === label && r.group === group);
    if (!row) return td("–");
    return make("td", {}, `${measured(row.before)} → ${measured(row.after)}`,
      make("br"), make("small", {}, `rank ${row.before.rank.toFixed(1)} → ${row.after.rank.toFixed(1)}; ${row.after.n} tokens`, ...(row.learned ? [make("br"), `abrupt: ${row.learned}`] : [])));
  })));
  section("behaviours", "Behaviours", prose("Probability of the right token before the phase change and at the end of the run, over the held-out tokens that the corpus marks as showing each behaviour; with 95 % intervals, over seeds where there are several, else over the tokens. Rank 1 is the likeliest token. Abrupt: where the probability itself changes as no smooth curve does; over seeds the mean with its 95 % interval."),
    table("behaviours-table", ["behaviour", ...groups], body), ...answersTable(), ...data.behaviour_figures.map(figureRow));
}

function answersTable() {
  if (data.answers.length === 0) return [];
  const counts = data.answer_examples.map((n, i) => (i === data.answer_examples.length - 1 ? `${n} and more` : String(n)));
  const body = data.answers.map((row) => make("tr", {}, td(make("strong", {}, row.label.replaceAll("_", " "))), td(row.group),
    ...row.by_examples.map((words) => td(words || "–")), td(row.prob || "–"), td(row.right || "–"), td(row.learned)));
  return [prose("Whole answers at the end of the runs: their probability, every token after the right ones, by how many examples stand before them in their row; the share all of whose tokens come first; and the tokens of training after which the probability reaches 0.9, the median of the seeds."),
    table("answers-table", ["answer", "", ...counts, "all", "all right", "tokens to 0.9"], body)];
}

// ---- token text

const reading = { row: 0, mode: "change", label: "" };
const readingListeners = [];

function textSection() {
  const nRows = Math.max(0, ...data.token_losses.map((found) => (found.rows ? found.rows.length : 0)));
  const setMode = (mode) => { reading.mode = mode; readingListeners.forEach((f) => f()); };
  const isOne = moments.length === 1;
  if (isOne) reading.mode = "after";
  const modes = isOne ? {} : { before: "before the change", after: "after it", change: "the difference", slider: "at the slider" };
  const buttons = Object.entries(modes).map(([mode, text]) => make("button", { type: "button", "data-mode": mode, "aria-pressed": String(mode === reading.mode), onclick: () => setMode(mode) }, text));
  readingListeners.push(() => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.mode === reading.mode))));
  const pick = make("select", { id: "row", "aria-label": "Held-out row", onchange: (e) => { reading.row = Number(e.target.value); readingListeners.forEach((f) => f()); } },
    ...Array.from({ length: nRows }, (_, i) => make("option", { value: i }, rowTitle(i))));
  const labels = [...new Set(data.token_losses.flatMap((found) => found.label_names ?? []))];
  const pickLabel = make("select", { id: "label", "aria-label": "Behaviour", onchange: (e) => { reading.label = e.target.value; readingListeners.forEach((f) => f()); } },
    make("option", { value: "" }, "all tokens"), ...labels.map((label) => make("option", { value: label }, label.replaceAll("_", " "))));
  const swatches = isOne ? [swatch("high loss", "--induction")] : [swatch("high loss, or worse after the change", "--induction"), swatch("better after the change", "--previous")];
  const legend = make("p", { class: "legend" }, ...swatches);
  const better = isOne ? "" : " Tokens that stood earlier in the row after the same token get better; those whose predecessor led elsewhere before get worse.";
  section("text", "Token by token", prose(`Held-out rows, each token coloured by its loss.${better} Tokens that show a behaviour are underlined.`),
    make("div", { class: "controls" }, ...(nRows ? [pick] : []), ...(labels.length ? [pickLabel] : []), ...buttons), legend, strip(...data.runs.map((_, run) => cell(run, ...textCell(run)))));
}

function rowTitle(i) {
  const found = data.token_losses.find((f) => f.rows && f.rows[i]);
  return `row ${i + 1}: ${found.rows[i].texts.slice(0, 12).join(" ").slice(0, 40)}…`;
}

function textCell(run) {
  const found = data.token_losses[run];
  if (found.gap) return [gap(found.gap)];
  const text = make("div", { class: "text", tabindex: 0 });
  const readout = make("p", { class: "readout" }, "Point at a token to read its loss.");
  const top = Math.max(...Array.from(array(found.rows[0].loss)).filter(Number.isFinite));
  const update = () => {
    const row = found.rows[Math.min(reading.row, found.rows.length - 1)];
    const losses = rows(array(row.loss), row.texts.length);
    const [before, after] = [losses[found.before], losses[found.after]];
    const now = losses[lastUpTo(array(found.tokens), moment.tokens)];
    const shown = { before, after, slider: now, change: after.map((value, i) => value - before[i]) }[reading.mode];
    const labels = new Map(row.labels);
    text.replaceChildren(...row.texts.flatMap((token, i) => {
      const share = Math.min(1, Math.abs(shown[i]) / top);
      const colour = shown[i] < 0 ? "var(--previous)" : "var(--induction)";
      const label = labels.has(i) ? found.label_names[labels.get(i)] : "";
      const said = losses.length > 1 ? `${nats(before[i])} before, ${nats(after[i])} after` : nats(after[i]);
      const words = `token ${i + 1} “${token}”: ${said}${label ? `; ${label.replaceAll("_", " ")}` : ""}`;
      const span = make("span", { class: `${label ? "labelled" : ""} ${reading.label && label !== reading.label ? "faded" : ""}`, title: words, style: `background: color-mix(in srgb, ${colour} ${Math.round(62 * share)}%, transparent)`,
        onpointerenter: () => { readout.textContent = words; } }, token);
      return token.endsWith("\\n") ? [span, "\n"] : [span];
    }));
  };
  text.redraw = update;
  whenSeen(text, () => { drawn.add(text); update(); });
  readingListeners.push(() => drawn.has(text) && update());
  momentListeners.push(() => reading.mode === "slider" && drawn.has(text) && update());
  return [text, readout];
}

// ---- theme and print

function setTheme(theme) {
  root.dataset.theme = theme;
  drawn.forEach((element) => element.redraw?.());
}
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
root.dataset.theme = prefersDark.matches ? "dark" : "light";
prefersDark.addEventListener("change", () => setTheme(prefersDark.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
let themeBeforePrint = null;
addEventListener("beforeprint", () => {
  themeBeforePrint = root.dataset.theme;
  root.classList.add("printing");
  [...pending.keys()].forEach(drawPending);
  setTheme("light");
});
addEventListener("afterprint", () => {
  root.classList.remove("printing");
  setTheme(themeBeforePrint);
});

// ---- the page

document.getElementById("title").textContent = data.title;
document.getElementById("made").textContent = data.made;
modelsSection();
auditSection();
membersSection();
section("comparison", "All models", ...data.comparisons.map(figureRow));
verdictsSection();
momentSection();
section("analysis", "Model analysis", prose("A row for each measurement, a column for each model; rows scroll sideways together."),
  make("p", { class: "legend" }, swatch(`induction head (prefix matching ${data.threshold} or more at the end, on random tokens or at labels of its own corpus)`, "--induction"), swatch(`previous-token head (${data.threshold} or more)`, "--previous"), swatch("other heads", "--other"),
    make("span", { class: "stretch", style: "--swatch: var(--band)" }, "phase change, its 90 % intervals above")),
  ...data.model_analysis.map(figureRow));
behavioursSection();
textSection();
showModels();
setMoment(moments.length - 1);
})();
