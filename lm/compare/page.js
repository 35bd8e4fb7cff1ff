"use strict";
// Drawing everything, what the controls do, and following runs that are still training.

function drawAll() {
  const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
  const groups = data.groups.length < runs.size ? ` in ${count(data.groups.length, "group")}` : "";
  const corpora = data.corpora.filter(Boolean).slice(0, 3).join(", ");
  $("subtitle").textContent = count(runs.size, "run") + groups + (corpora ? ` on ${corpora}` : "");
  $("warnings").hidden = !data.warnings.length;
  $("warnings").replaceChildren(...data.warnings.map((text) => el("li", {}, text)));
  $("smooth-value").textContent = state.smooth.toFixed(2);
  drawLegend();
  drawArrivals();
  drawResults();
  drawParameters();
  drawDifferences();
  drawSamples();
  const drawn = drawCurves();
  drawSmall();
  return drawn;
}

/** Change what is shown, and draw it. */
function change(values, draw = drawAll) {
  Object.assign(state, values);
  draw();
}

/** Until the user chooses: the validation loss once there is one, before that the training loss. */
function chooseCurve() {
  const validated = [...runs.values()].some((run) => run.val[data.metric].length);
  if (!state.chosen) state.y = validated ? data.metric : "train/loss";
  $("y").value = state.y;
}

function connectCurves() {
  on("x-axis", "change", (event) => change({ x: event.target.value, range: null }));
  on("y", "change", () => change({ y: $("y").value, chosen: true, range: null }));
  on("logx", "change", () => change({ logX: $("logx").checked, range: null }));
  on("logy", "change", () => change({ logY: $("logy").checked, range: null }));
  on("grouped", "change", () => change({ grouped: $("grouped").checked }));
  on("smooth", "input", () => {
    change({ smooth: Number($("smooth").value) }, drawCurves);
    $("smooth-value").textContent = state.smooth.toFixed(2);
    drawSmall();
  });
  for (const event of ["input", "change"]) on("target", event, () => setTarget(Number($("target").value)));
  on("legend", "click", (event) => {
    const chip = event.target.closest("[data-line]");
    if (chip) toggleLine(Number(chip.dataset.line));
  });
  on("show-all", "click", () => change({ hidden: new Set() }));
  on("show-none", "click", () => change({ hidden: new Set(runs.keys()) }));
}

function connectZoom() {
  const all = () => change({ range: null }, drawCurves);
  on("zoom-in", "click", () => zoom(1 / 1.5));
  on("zoom-out", "click", () => zoom(1.5));
  on("zoom-reset", "click", all);
  const keys = {
    ArrowLeft: [1, -0.1],
    ArrowRight: [1, 0.1],
    ArrowUp: [1, 0, 0.1],
    ArrowDown: [1, 0, -0.1],
    "+": [1 / 1.5],
    "=": [1 / 1.5],
    "-": [1.5],
  };
  on("curves", "keydown", (event) => {
    if (event.key === "0") all();
    else if (keys[event.key]) {
      event.preventDefault();
      zoom(...keys[event.key]);
    }
  });
  // plotly has events of its own for a zoom; a double click there shows all
  $("curves").on("plotly_relayout", (changed) => {
    const names = Object.keys(changed).join();
    if (names.includes("autorange")) all();
    else if (names.includes("range")) change({ range: currentRange() }, drawCurves);
  });
}

function connectTarget() {
  const handle = $("handle");
  on("handle", "pointerdown", (event) => {
    handle.setPointerCapture(event.pointerId);
    event.preventDefault();
    handle.focus();
  });
  on("handle", "pointermove", (event) => {
    if (handle.hasPointerCapture(event.pointerId)) dragHandle(event);
  });
  const moves = { ArrowUp: 0.01, ArrowRight: 0.01, ArrowDown: -0.01, ArrowLeft: -0.01, PageUp: 0.1, PageDown: -0.1 };
  on("handle", "keydown", (event) => {
    const move = moves[event.key];
    if (move) {
      event.preventDefault();
      setTarget(target() + move);
    }
  });
  new ResizeObserver(placeHandle).observe($("curves"));
}

function connectTables() {
  on("results", "click", (event) => {
    const key = event.target.dataset.sort;
    if (!key) return;
    const up = state.sort.key === key ? !state.sort.up : key !== "chars_per_second";
    change({ sort: { key, up } }, drawResults);
  });
  on("sample-step", "input", () => {
    const { steps, value } = $("sample-step");
    const newest = Number(value) === steps.length - 1; // there: stay with the newest as runs go on
    change({ sampleStep: newest ? Infinity : steps[value] }, drawSamples);
  });
  on("save-csv", "click", () => save("comparison.csv", "text/csv", asCsv()));
  on("save-png", "click", () => savePlot("png"));
  on("save-svg", "click", () => savePlot("svg"));
}

/** Ask for what changed, draw it, and again in two seconds; a hidden page asks for nothing. */
async function follow() {
  try {
    const news = document.hidden ? null : await ask();
    if (news) {
      const { runs: changed, ...rest } = news;
      Object.assign(data, rest);
      takeRuns(changed);
      chooseCurve();
      await drawAll();
      showLive(true);
    }
  } finally {
    setTimeout(follow, 2000);
  }
}

/** What is new since the revision that the page has; null for nothing, or no answer. */
async function ask() {
  try {
    const answer = await fetch(`data?since=${encodeURIComponent(data.revision)}`);
    if (!answer.ok) throw new Error(answer.statusText);
    showLive(true);
    return answer.status === 200 ? await answer.json() : null;
  } catch {
    showLive(false);
    return null;
  }
}

function showLive(reached) {
  const running = [...runs.values()].filter((run) => run.status === "running").length;
  const following = running ? `following, ${running} running` : "following";
  const text = reached ? following : "no answer; the page shows what it had";
  if ($("live").textContent !== text) $("live").textContent = text;
  $("live").hidden = false;
  $("live").classList.toggle("lost", !reached);
}

function start() {
  performance.mark("start");
  takeRuns(data.runs);
  delete data.runs;
  chooseCurve();
  // without seeds to group there is nothing to switch
  $("grouped").closest("label").hidden = !data.live && data.groups.length === runs.size;
  connectTheme(drawAll);
  drawAll().then(() => performance.mark("drawn"));
  connectCurves();
  connectZoom();
  connectTarget();
  connectTables();
  if (data.live) {
    showLive(true);
    setTimeout(follow, 2000);
  }
}

start();
