"use strict";
// Drawing everything, what the controls do, and following runs that are still training.

function drawAll() {
  const experiments = data.groups.length;
  const corpora = [...new Set(data.groups.map((group) => group.corpus).filter(Boolean))];
  $("subtitle").textContent =
    `${runs.size} run${runs.size === 1 ? "" : "s"}` +
    (experiments < runs.size ? ` in ${experiments} group${experiments === 1 ? "" : "s"}` : "") +
    (corpora.length ? ` on ${corpora.slice(0, 3).join(", ")}` : "");
  $("warnings").hidden = !data.warnings.length;
  $("warnings").replaceChildren(...data.warnings.map((text) => el("li", {}, text)));
  $("smooth-value").textContent = state.smooth.toFixed(2);
  drawLegend();
  drawArrivals();
  drawResults();
  drawDifferences();
  drawSamples();
  const drawn = drawCurves();
  drawSmall();
  return drawn;
}

/** Until somebody chooses: the validation loss once there is one, before that the training loss. */
function chooseCurve() {
  const validated = [...runs.values()].some((run) => run.val[data.metric].length);
  if (!state.chosen) state.y = validated ? data.metric : "train/loss";
  $("y").value = state.y;
}

function setTheme(theme, keep) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", theme === "dark" ? "switch to light colours" : "switch to dark colours");
  try {
    if (keep) localStorage.setItem("lm.compare.theme", theme);
  } catch {
    /* a page from a file may have no storage */
  }
}

function firstTheme() {
  let kept = null;
  try {
    kept = localStorage.getItem("lm.compare.theme");
  } catch {
    /* as above */
  }
  const system = matchMedia("(prefers-color-scheme: dark)");
  setTheme(["dark", "light"].includes(kept) ? kept : system.matches ? "dark" : "light", false);
  system.addEventListener("change", (event) => {
    setTheme(event.matches ? "dark" : "light", false);
    drawAll();
  });
}

function connectCurves() {
  const on = (id, event, act) => $(id).addEventListener(event, act);
  on("x-axis", "change", (event) => {
    state.x = event.target.value;
    state.range = null;
    drawAll();
  });
  on("y", "change", () => {
    state.y = $("y").value;
    state.chosen = true;
    state.range = null;
    drawAll();
  });
  on("logx", "change", () => {
    state.logX = $("logx").checked;
    state.range = null;
    drawAll();
  });
  on("logy", "change", () => {
    state.logY = $("logy").checked;
    state.range = null;
    drawAll();
  });
  on("grouped", "change", () => {
    state.grouped = $("grouped").checked;
    drawAll();
  });
  on("smooth", "input", () => {
    state.smooth = Number($("smooth").value);
    $("smooth-value").textContent = state.smooth.toFixed(2);
    drawCurves();
    drawSmall();
  });
  for (const event of ["input", "change"]) on("target", event, () => setTarget(Number($("target").value)));
  on("legend", "click", (event) => {
    const chip = event.target.closest("[data-line]");
    if (chip) toggleLine(Number(chip.dataset.line));
  });
  on("show-all", "click", () => {
    state.hidden.clear();
    drawAll();
  });
  on("show-none", "click", () => {
    for (const id of runs.keys()) state.hidden.add(id);
    drawAll();
  });
  on("zoom-in", "click", () => zoom(1 / 1.5));
  on("zoom-out", "click", () => zoom(1.5));
  on("zoom-reset", "click", () => {
    state.range = null;
    drawCurves();
  });
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
    if (event.key === "0") {
      state.range = null;
      drawCurves();
    } else if (keys[event.key]) {
      event.preventDefault();
      zoom(...keys[event.key]);
    }
  });
  // plotly tells of a zoom by its own means only; a double click there shows all
  $("curves").on("plotly_relayout", (change) => {
    if (Object.keys(change).some((key) => key.includes("autorange"))) state.range = null;
    else if (Object.keys(change).some((key) => key.includes("range"))) state.range = currentRange();
    else return;
    drawCurves();
  });
}

function connectRest() {
  const on = (id, event, act) => $(id).addEventListener(event, act);
  const handle = $("handle");
  on("handle", "pointerdown", (event) => {
    handle.setPointerCapture(event.pointerId);
    event.preventDefault();
    handle.focus();
  });
  on("handle", "pointermove", (event) => {
    if (handle.hasPointerCapture(event.pointerId)) dragHandle(event);
  });
  on("handle", "keydown", (event) => {
    const move = { ArrowUp: 0.01, ArrowRight: 0.01, ArrowDown: -0.01, ArrowLeft: -0.01, PageUp: 0.1, PageDown: -0.1 }[
      event.key
    ];
    if (move) {
      event.preventDefault();
      setTarget(Number((target() + move).toFixed(4)));
    }
  });
  on("results", "click", (event) => {
    const key = event.target.dataset.sort;
    if (!key) return;
    state.sort = { key, up: state.sort.key === key ? !state.sort.up : key !== "chars_per_second" };
    drawResults();
  });
  on("sample-step", "input", () => {
    const { steps, value } = $("sample-step");
    const newest = Number(value) === steps.length - 1; // there: stay with the newest as runs go on
    state.sampleStep = newest ? Infinity : steps[value];
    drawSamples();
  });
  on("save-csv", "click", () => save("comparison.csv", "text/csv", asCsv()));
  on("save-png", "click", () => savePlot("png"));
  on("save-svg", "click", () => savePlot("svg"));
  on("theme", "click", () => {
    setTheme(dark() ? "light" : "dark", true);
    drawAll();
  });
  new ResizeObserver(placeHandle).observe($("curves"));
}

/** Ask for what changed, draw it, and again in two seconds; while nobody looks, ask nothing. */
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
  const text = reached
    ? running
      ? `following, ${running} running`
      : "following"
    : "no answer; the page shows what it had";
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
  firstTheme();
  drawAll().then(() => performance.mark("drawn"));
  connectCurves();
  connectRest();
  if (data.live) {
    showLive(true);
    setTimeout(follow, 2000);
  }
}

start();
