"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  if (!at("data")) return;
  const rows = JSON.parse(at("data").textContent);
  const setup = JSON.parse(at("setup").textContent);
  const PAGE = 50;
  let found = rows;
  let first = 0;

  const plain = (text) => text.normalize("NFKC").toLocaleLowerCase();
  const words = (row) => [row.above, row.left, row.text, row.right].map((part) => part || "").join("");
  for (const row of rows) {
    row.searched = plain([words(row), ...row.gold, ...row.predicted.flat(), row.source].join(" "));
  }

  // Choices of a list, the most frequent first.
  const fill = (id, valuesOf) => {
    const counts = new Map();
    for (const row of rows) {
      for (const value of new Set(valuesOf(row))) counts.set(value, (counts.get(value) || 0) + 1);
    }
    for (const [value, count] of [...counts].sort((a, b) => b[1] - a[1])) {
      const option = document.createElement("option");
      option.value = value;
      option.textContent = `${value} (${count.toLocaleString("en")})`;
      option.dir = "auto";
      at(id).append(option);
    }
    return counts.size;
  };
  const hide = (name) => document.querySelectorAll(name).forEach((part) => { part.hidden = true; });
  const who = (row) => {
    const right = setup.runs.filter((_, i) => row.right_of[i]);
    return right.length ? right.join(", ") : "none";
  };
  const splits = fill("split", (row) => [row.split]);
  if (splits < 2) at("split").parentElement.hidden = true;
  if (fill("set", (row) => [row.data_set]) < 2) hide(".for-sets");
  if (setup.tags) {
    fill("gold", (row) => row.gold);
    fill("predicted", (row) => row.predicted.flat());
  } else hide(".for-tags");
  if (setup.runs.length > 1) fill("who", (row) => [who(row)]);
  else hide(".for-runs");
  if (!rows.some((row) => row.probability !== undefined)) at("order").querySelector("[value=sure]").remove();

  const element = (name, text, type) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (type) made.className = type;
    return made;
  };
  const spoken = (name, text, type) => {
    const made = element(name, text, type);
    made.dir = "auto";
    if (setup.language) made.lang = setup.language;
    return made;
  };
  const pair = (list, name, value, type) => {
    const both = element("div");
    const description = element("dd", value, type);
    description.dir = "auto";
    both.append(element("dt", name), description);
    list.append(both);
  };
  const show = (row) => {
    const item = element("li");
    if (row.above) item.append(spoken("p", row.above));
    const context = spoken("p", row.left || "", "context");
    context.append(element("mark", row.text || "∅"), row.right || "");
    const list = element("dl", undefined, "tags");
    pair(list, "gold", row.gold.join(" "));
    setup.runs.forEach((run, i) => {
      pair(list, run, row.predicted[i].join(" "), row.right_of[i] ? "is-right" : "is-wrong");
    });
    if (row.probability !== undefined) pair(list, "probability", row.probability.toFixed(2));
    if (row.times) pair(list, "times", row.times.toLocaleString("en"));
    pair(list, "in", `${row.source} (${row.split}, ${row.length.toLocaleString("en")} ${setup.unit})`);
    item.append(context, list);
    return item;
  };
  const render = () => {
    at("rows").replaceChildren(...found.slice(first, first + PAGE).map(show));
    const last = Math.min(first + PAGE, found.length);
    const range = found.length > PAGE ? `, ${first + 1} to ${last} shown` : "";
    const all = found.length === rows.length ? "" : ` of ${rows.length.toLocaleString("en")}`;
    at("count").textContent = `${found.length.toLocaleString("en")}${all} ${setup.what}${range}`;
    at("earlier").disabled = first === 0;
    at("later").disabled = last >= found.length;
  };
  const orders = {
    times: null,
    sure: (a, b) => (b.probability || 0) - (a.probability || 0),
    file: (a, b) => (a.split < b.split ? -1 : a.split > b.split ? 1 : (a.place || 0) - (b.place || 0)),
  };
  const filter = () => {
    const text = plain(at("text").value.trim());
    const [gold, predicted, split, set, right] = ["gold", "predicted", "split", "set", "who"].map((id) => at(id).value);
    const least = Number(at("least").value || 0);
    const most = Number(at("most").value || Infinity);
    found = rows.filter((row) =>
      (!text || row.searched.includes(text)) && (!gold || row.gold.includes(gold)) &&
      (!predicted || row.predicted.some((labels) => labels.includes(predicted))) &&
      (!split || row.split === split) && (!set || row.data_set === set) && (!right || who(row) === right) &&
      row.length >= least && row.length <= most);
    const order = orders[at("order").value];
    if (order) found.sort(order);
    first = 0;
    render();
  };
  at("filter").addEventListener("input", filter);
  at("filter").addEventListener("submit", (event) => event.preventDefault());
  at("filter").addEventListener("reset", () => setTimeout(filter));
  const turn = (by) => {
    first += by;
    render();
    at("count").scrollIntoView({ block: "nearest" });
  };
  at("earlier").addEventListener("click", () => turn(-PAGE));
  at("later").addEventListener("click", () => turn(PAGE));
  document.querySelectorAll(".look").forEach((button) => button.addEventListener("click", () => {
    at("filter").reset();
    for (const id of ["gold", "predicted", "split"]) at(id).value = button.dataset[id];
    setTimeout(() => { filter(); at("errors").focus(); });
  }));
  filter();
  document.documentElement.dataset.readyAfter = String(performance.now());
})();
