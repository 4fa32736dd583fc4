"use strict";

const part = (id) => document.getElementById(id);
let token = "";
let mostBytes = Infinity;
let digest = "";
let newest = 0; // what was taken last: the answers to what came before are not shown

class Refusal extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Refusal(0, "The service does not answer.");
  }
  const told = await answer.json().catch(() => ({ error: `The service answers with status ${answer.status}.` }));
  if (!answer.ok) throw new Refusal(answer.status, told.error);
  return told;
}

function showProblem(error, name = "") {
  const wrongToken = error.status === 401;
  part("problem").textContent = wrongToken ? "This token is not the service's." : `${name} ${error.message}`.trim();
  part("problem").hidden = wrongToken && !token; // nothing is wrong yet
  if (wrongToken) {
    part("access").hidden = false;
    part("token").focus();
  }
}

async function showModel() {
  let model;
  part("again").hidden = true;
  try {
    model = await ask("model");
  } catch (error) {
    part("name").textContent = "A model";
    part("again").hidden = error.status === 401;
    return showProblem(error);
  }
  const image = model.input_shape.length === 3;
  const [, height, width] = model.input_shape;
  const input = image ? `images, seen as ${width}×${height} pixels` : `rows of ${model.input_shape[0]} numbers`;
  ({ most_bytes: mostBytes, digest } = model);
  document.title = model.name;
  part("name").textContent = model.name;
  part("about").textContent = `${model.classes.length} classes · ${input} · ${model.digest.slice(0, 12)}`;
  part("features").textContent = image ? "" : model.input_shape[0];
  part("access").hidden = part("problem").hidden = true;
  part("drop").hidden = !image;
  part("vector").hidden = image;
}

async function predict(body, { type, name, found }) {
  const mine = ++newest;
  const started = performance.now();
  part("problem").hidden = true;
  part("answer").classList.add("waiting");
  try {
    const answer = await ask("predict", { method: "POST", body, headers: { "Content-Type": type } });
    const took = performance.now() - started;
    if (answer.model.digest !== digest) await showModel(); // a newer one is in service
    if (mine === newest) show(found(answer), took);
  } catch (error) {
    if (mine !== newest) return;
    part("answer").hidden = true;
    showProblem(error, error.status === 400 ? name : ""); // a reason of the body's begins with its verb
  } finally {
    if (mine === newest) part("answer").classList.remove("waiting");
  }
}

function show(answer, took) {
  const share = (probability) => `${(100 * probability).toFixed(1)} %`;
  part("best").textContent = answer.class;
  part("bars").replaceChildren(...answer.top.map(({ class: name, probability }) => {
    const line = document.createElement("li");
    for (const [kind, text] of [["class", name], ["track", ""], ["share", share(probability)]]) {
      const cell = document.createElement("span");
      cell.className = kind;
      cell.textContent = text;
      line.append(cell);
    }
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.style.width = `${100 * probability}%`;
    line.children[1].append(bar);
    return line;
  }));
  part("took").textContent = `Answered in ${took.toFixed(0)} ms.`;
  part("answer").hidden = false;
}

function take(files) {
  const [file] = files;
  if (!file) return;
  const picture = part("picture");
  URL.revokeObjectURL(picture.src);
  picture.hidden = true;
  picture.onload = () => {
    picture.classList.toggle("small", picture.naturalWidth < 160);
    picture.hidden = false;
  };
  picture.src = URL.createObjectURL(file); // what the browser cannot show (TIFF) is still classified
  picture.alt = file.name;
  const which = files.length > 1 ? `${file.name}, the first of ${files.length} files` : file.name;
  part("invitation").textContent = `${which}: drop another, or press to choose one`;
  if (file.size > mostBytes) {
    newest++;
    part("answer").hidden = true;
    part("answer").classList.remove("waiting");
    return showProblem(new Refusal(413, `${file.name} is larger than ${mostBytes / 1e6} MB.`));
  }
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  predict(file, { type, name: file.name, found: (answer) => answer });
}

for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => { // anywhere: a near miss would leave the page for the image
    if (!event.dataTransfer.types.includes("Files")) return; // a text, which may go into the rows
    event.preventDefault();
    part("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
  });
}
document.addEventListener("drop", (event) => {
  if (!part("drop").hidden) take(event.dataTransfer.files);
});
part("file").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
part("vector").addEventListener("submit", (event) => {
  event.preventDefault();
  const row = part("row").value.split(/[\s,;]+/).filter((word) => word).map(Number);
  const found = (answer) => answer.predictions[0];
  predict(JSON.stringify({ rows: [row] }), { type: "application/json", name: "", found });
});
part("again").addEventListener("click", showModel);
part("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = part("token").value.trim();
  showModel();
});
showModel();
