"use strict";
const run = document.getElementById("run").dataset.run;
const by = (id) => document.getElementById(id);
let announced = "";

function time(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} seconds`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `${minutes} minutes` : `${(seconds / 3600).toFixed(1)} hours`;
}
function where(now) {
  const steps = now.total ? `Step ${now.step.toLocaleString("en")} of ${now.total.toLocaleString("en")}` : "";
  if (now.state === "finished") return `Finished${now.step ? ` after ${now.step.toLocaleString("en")} steps` : ""}.`;
  if (now.state !== "running") return steps && `${steps}.`;
  if (!now.total) return "Starting: the data is read, and the model loaded.";
  const parts = [steps, now.epochs && `epoch ${Math.min(now.epoch + 1, now.epochs)} of ${now.epochs}`];
  if (now.step >= now.total) parts.push("the best model is scored and saved");
  else if (now.seconds_left !== null) parts.push(`about ${time(now.seconds_left)} left`);
  if (now.tokens_per_second) parts.push(`${Math.round(now.tokens_per_second).toLocaleString("en")} tokens a second`);
  if (now.memory_gb) parts.push(`${now.memory_gb.toFixed(2)} GB`);
  return `${parts.filter(Boolean).join(", ")}.`;
}
function facts(now) {
  const found = [];
  const words = (name) => name.replaceAll("_", " ");
  if (now.best) found.push([`Best on dev: ${words(now.best.name)}`, now.best.value.toFixed(2)]);
  for (const [name, value] of Object.entries(now.test ?? {})) found.push([`On test: ${words(name)}`, value.toFixed(2)]);
  by("scores").replaceChildren(...found.map(([name, value]) => {
    const box = document.createElement("div"), term = document.createElement("dt"), what = document.createElement("dd");
    term.textContent = name;
    what.textContent = value;
    box.append(term, what);
    return box;
  }));
}
function scores(now) {
  const select = by("metric");
  const names = now.dev.length ? Object.keys(now.dev[0].metrics) : [];
  if (select.options.length !== names.length) {
    const chosen = select.value || now.best?.name;
    select.replaceChildren(...names.map((name) => new Option(name.replaceAll("_", " "), name)));
    if (names.includes(chosen)) select.value = chosen;
  }
  select.hidden = !names.length;
  const points = now.dev.filter((each) => select.value in each.metrics).map((each) => [each.epoch, each.metrics[select.value]]);
  curve(by("dev"), points, select.value.replaceAll("_", " "), "epoch", true);
}
function announce(now) {
  const text = now.state === "running" ? `${now.label}${now.epoch ? `: epoch ${now.epoch} is done` : ""}` : now.label;
  if (text !== announced && announced) by("announce").textContent = text;
  announced = text;
}
let shown = null;
function show(now) {
  shown = now;
  by("state").textContent = now.label;
  by("state").className = `state ${now.state}`;
  by("sentence").textContent = now.sentence ?? "";
  by("sentence").hidden = !now.sentence;
  by("sentence").className = now.state === "failed" ? "mistake" : "sentence";
  const bar = by("progress");
  bar.hidden = now.state !== "running" && !now.total;
  if (now.total) {
    bar.max = now.total;
    bar.value = now.state === "finished" ? now.total : now.step;
  } else {
    bar.removeAttribute("value");
  }
  by("where").textContent = where(now);
  by("stop").hidden = by("safe").hidden = now.state !== "running";
  by("resume").hidden = !now.can_resume;
  by("report").hidden = !now.has_report;
  by("try-section").hidden = !now.has_model;
  curve(by("loss"), now.loss, "Loss", "step", false);
  scores(now);
  facts(now);
  by("log").textContent = now.log.join("\n");
  announce(now);
}
async function look() {
  let running = shown.state === "running";
  try {
    const answer = await fetch(`/run/status?run=${encodeURIComponent(run)}`);
    if (answer.ok) {
      const now = await answer.json();
      // What may be tried comes from the run's own data, which was not there before.
      if (now.has_model && !shown.has_model) {
        location.reload();
        return;
      }
      show(now);
      running = now.state === "running";
    } else if (answer.status === 403) {
      by("where").textContent = "The page's server was started again: open the address that it has printed. The training goes on.";
    }
  } catch {
    by("where").textContent = "The page's server does not answer. The training goes on; start fangyan ui again to watch it.";
  }
  if (running) setTimeout(look, 1000);
}
by("metric").addEventListener("change", () => scores(shown));
show(JSON.parse(by("status").textContent));
if (shown.state === "running") setTimeout(look, 500);
