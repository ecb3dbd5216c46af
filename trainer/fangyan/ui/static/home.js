"use strict";
async function follow(card) {
  try {
    const answer = await fetch(`/run/status?run=${encodeURIComponent(card.dataset.run)}`);
    if (answer.ok) {
      const now = await answer.json();
      if (now.state !== "running") {
        location.reload();
        return;
      }
      const bar = card.querySelector("progress");
      bar.hidden = false;
      if (now.total) {
        bar.max = now.total;
        bar.value = now.step;
      } else {
        bar.removeAttribute("value");
      }
    }
  } catch { /* the server may come back */ }
  setTimeout(() => follow(card), 3000);
}
for (const card of document.querySelectorAll('[data-state="running"]')) follow(card);
