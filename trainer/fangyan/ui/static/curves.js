"use strict";
/* A curve as SVG, with its extremes and its last value written out; points are [x, y]. */
const SVG = "http://www.w3.org/2000/svg";
function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
function brief(value) {
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : value.toFixed(size >= 10 ? 1 : size >= 1 ? 2 : 3);
}
function curve(place, points, name, unit, dots) {
  if (!points.length) {
    const empty = document.createElement("p");
    empty.textContent = "Nothing yet.";
    place.replaceChildren(empty);
    return;
  }
  const width = 360, height = 190, left = 46, right = 12, top = 14, bottom = 24;
  const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
  const x0 = Math.min(...xs), x1 = Math.max(...xs), y0 = Math.min(...ys), y1 = Math.max(...ys);
  const x = (value) => left + (x1 > x0 ? (value - x0) / (x1 - x0) : 0.5) * (width - left - right);
  const y = (value) => height - bottom - (y1 > y0 ? (value - y0) / (y1 - y0) : 0.5) * (height - top - bottom);
  const last = points[points.length - 1];
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${name}: from ${brief(ys[0])} at ${unit} ${xs[0]} to ${brief(last[1])} at ${unit} ${last[0]}` });
  for (const value of y1 > y0 ? [y0, y1] : [y0]) {
    svg.append(element("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(element("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, brief(value)));
  }
  svg.append(element("text", { x: left, y: height - 6 }, `${unit} ${x0}`));
  if (x1 > x0) svg.append(element("text", { x: width - right, y: height - 6, "text-anchor": "end" }, `${x1}`));
  svg.append(element("polyline", { class: "line", points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") }));
  for (const [a, b] of dots ? points : [last]) svg.append(element("circle", { class: "dot", cx: x(a), cy: y(b), r: 3.5 }));
  place.replaceChildren(svg);
}
