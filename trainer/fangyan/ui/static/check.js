"use strict";
const check = document.getElementById("check");
async function look() {
  try {
    const answer = await fetch(`/check?file=${encodeURIComponent(check.dataset.file)}`, { headers: { Accept: "text/html" } });
    if (answer.status !== 202) {
      location.replace(`/recipe?file=${encodeURIComponent(check.dataset.file)}#check`);
      location.reload();
      return;
    }
  } catch { /* the server may come back */ }
  setTimeout(look, 800);
}
if (check.dataset.checking === "yes") look();
