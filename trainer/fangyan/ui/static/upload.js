"use strict";
const upload = document.getElementById("upload");
upload.addEventListener("submit", async (event) => {
  event.preventDefault();
  const says = document.getElementById("upload-says"), button = upload.querySelector("button");
  const file = upload.elements.file.files[0];
  if (file.size > Number(upload.dataset.most)) {
    says.textContent = `${file.name}: larger than ${upload.dataset.words}; put it into the folder itself.`;
    return;
  }
  says.textContent = "";
  button.disabled = true;
  button.textContent = "Copying …";
  try {
    const answer = await fetch(upload.action, { method: "POST", body: new FormData(upload) });
    const found = await answer.json();
    if (answer.ok) {
      location.href = found.next;
      return;
    }
    says.textContent = found.error;
  } catch {
    says.textContent = "The page's server does not answer. Is fangyan ui still running?";
  }
  button.disabled = false;
  button.textContent = "Copy it into the folder";
});
