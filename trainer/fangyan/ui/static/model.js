"use strict";
/* Whoever names a model means it. */
document.getElementById("own_model").addEventListener("input", () => {
  document.querySelector('input[name="model"][value="own"]').checked = true;
});
