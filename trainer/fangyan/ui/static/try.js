"use strict";
/* What a model says of a text, as the records of `fangyan predict --json` have it. */
const form = document.getElementById("try"), answer = document.getElementById("answer");
function make(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}
function tagged(found) {
  const line = make("p", undefined, "tagged");
  line.dir = "auto";
  found.tokens.forEach((token, i) => {
    const box = make("span", undefined, found.tags[i] === "O" ? "token plain" : "token"), tag = make("small");
    tag.append(make("bdi", found.tags[i]));
    box.append(make("bdi", token), tag);
    line.append(box, " ");
  });
  return [line];
}
function classes(found) {
  const label = Array.isArray(found.label) ? found.label.join(", ") || "none of the classes" : found.label;
  const line = make("p", undefined, "tagged");
  const what = make("strong", typeof label === "number" ? label.toPrecision(4) : label);
  what.dir = "auto";
  line.append(what);
  const table = make("div", undefined, "classes");
  for (const [name, share] of Object.entries(found.probabilities ?? {}).slice(0, 12)) {
    const bar = make("meter");
    bar.value = share;
    bar.setAttribute("aria-label", name);
    table.append(make("bdi", name), bar, make("span", `${(100 * share).toFixed(1)}%`));
  }
  line.append(table);
  return [line];
}
function found_in(found) {
  const line = make("p", undefined, "tagged");
  line.dir = "auto";
  if (found.start < 0) {
    line.textContent = "The text does not say.";
  } else {
    // Python counts characters, JavaScript half of some.
    const characters = Array.from(found.context), end = found.start + Array.from(found.answer).length;
    line.append(characters.slice(0, found.start).join(""), make("mark", found.answer), characters.slice(end).join(""));
  }
  return [line, make("p", `${(100 * found.score).toFixed(1)}% sure`, "quiet")];
}
function written(found) {
  const line = make("p", undefined, "tagged");
  line.dir = "auto";
  if (found.continuation !== undefined) line.append(found.text);
  line.append(make("span", found.continuation ?? found.answer, "written"));
  return [line];
}
function filled(found) {
  const line = make("p", found.filled, "tagged");
  line.dir = "auto";
  const places = found.candidates.map((place) => {
    const text = place.map(([token, share]) => `${token} ${(100 * share).toFixed(1)}%`).join(", ");
    const shown = make("p", text, "quiet");
    shown.dir = "auto";
    return shown;
  });
  return [line, ...places];
}
function show_answer(found) {
  if (found.tags) return tagged(found);
  if (found.candidates) return filled(found);
  if (found.start !== undefined) return found_in(found);
  if (found.label !== undefined) return classes(found);
  return written(found);
}
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  const waiting = make("p", undefined, "working"), spinner = make("span", undefined, "spinner");
  spinner.setAttribute("aria-hidden", "true");
  waiting.append(spinner, "The model is asked. The first time it has to be loaded.");
  answer.replaceChildren(waiting);
  try {
    const said = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
    const found = await said.json();
    answer.replaceChildren(...(said.ok ? show_answer(found) : [make("p", found.error, "mistake")]));
  } catch {
    answer.replaceChildren(make("p", "The page's server does not answer. Is fangyan ui still running?", "mistake"));
  }
  button.disabled = false;
});
